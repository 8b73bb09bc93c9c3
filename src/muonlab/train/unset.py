"""The word "none": the one way to say that an optional key has no value. TOML has no null."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

WORD = "none"

# Names and files: "none" may be one, as an arm's often is.
_NAMES = ("preset", "base", "baseline", "tuned_by")


def may_be_none(model: type[BaseModel], key: str) -> bool:
    """Whether "none" leaves this key of the table without a value: where it may have none, and no value is called so."""
    field = model.model_fields.get(key)
    if field is None or key in _NAMES:
        return False
    parts = [field.annotation, *_parts(field.annotation)]
    words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
    return NoneType in get_args(field.annotation) and WORD not in words


def unset(model: type[BaseModel], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with None for every optional key that is "none", in the tables below as well."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        field = model.model_fields.get(key)
        if value == WORD and may_be_none(model, key):
            found[key] = None
        elif isinstance(value, Mapping) and field is not None:
            tables = [t for t in (field.annotation, *_parts(field.annotation)) if isinstance(t, type) and issubclass(t, BaseModel)]
            for table in tables:  # of a union, such as the families' of [model], each knows its own keys
                value = unset(table, value)
            found[key] = value
        else:
            found[key] = value
    return found


def with_the_word(schema: Any) -> Any:
    """A JSON schema with the word in the place of null."""
    if isinstance(schema, Mapping):
        if dict(schema) == {"type": "null"}:
            return {"const": WORD}
        return {key: with_the_word(value) for key, value in schema.items() if not (key == "default" and value is None)}
    return [with_the_word(value) for value in schema] if isinstance(schema, list) else schema


def _parts(annotation: Any) -> Iterator[Any]:
    for part in get_args(annotation):
        yield part
        yield from _parts(part)
