"""TOML files, `--set key=value`, and pydantic's errors in words: all problems of a file at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, Tag, ValidationError

from muonlab.errors import InputError
from muonlab.names import did_you_mean
from muonlab.train.unset import WORD, may_be_none, unset

M = TypeVar("M", bound=BaseModel)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The content of a TOML file. Raises InputError if it is missing, unreadable or malformed."""
    path = Path(path)
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        if (key := _with_nul(settings)) is not None:
            raise InputError(f"{path}: {key!r}: expected text without NUL characters")
        return settings
    except FileNotFoundError:
        beside = [p.name for p in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
        hint = f"; {did_you_mean(path.name, beside)}" if beside else ""
        raise InputError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected a TOML file in UTF-8, got other bytes") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML: {error}") from None


def _with_nul(value: Any, key: str = "") -> str | None:
    """The first key whose text, or that itself, holds a NUL character, which no path can."""
    if isinstance(value, dict):
        for name, one in value.items():
            found = name if "\0" in name else _with_nul(one, f"{key}.{name}".lstrip("."))
            if found is not None:
                return found
        return None
    if isinstance(value, list):
        return next((found for v in value if (found := _with_nul(v, key)) is not None), None)
    return key if isinstance(value, str) and "\0" in value else None


def with_overrides(settings: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """`settings` with every "dotted.key=value" applied; values are TOML (numbers, true, [1, 2]) or else plain text."""
    changed = dict(settings)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise InputError(f"--set: expected key=value such as optimizer.lr=0.02, got {assignment!r}")
        value = _value(text)
        if "\0" in key or _with_nul(value, key) is not None:
            raise InputError(f"--set {key!r}: expected text without NUL characters")
        changed = merge(changed, nested({key: value}))
    return changed


def _value(text: str) -> Any:
    """A TOML value, or the text itself where it is none."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


_OF_PATTERNS = ("lr_mul", "wd_mul", "roles")  # tables whose keys are patterns, dots and all


def key_parts(key: str) -> list[str]:
    """ "a.b" -> ["a", "b"]; what stands below a table of patterns is one part."""
    parts = key.split(".")
    ends = [i for i, part in enumerate(parts) if part in _OF_PATTERNS and i + 1 < len(parts)]
    return [*parts[: ends[0] + 1], ".".join(parts[ends[0] + 1 :])] if ends else parts


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}."""
    result: dict[str, Any] = {}
    for key, value in flat.items():
        for part in reversed(key_parts(key)):
            value = {part: value}
        result = merge(result, value)
    return result


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, table by table."""
    result = dict(base)
    for key, value in changes.items():
        below = result.get(key)
        result[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def validated(model: type[M], settings: Mapping[str, Any], source: str) -> M:
    """`settings` as a model. Raises InputError with a line for each problem, `source` before it."""
    try:
        return model.model_validate(unset(model, settings))
    except ValidationError as error:
        lines = [line for problem in error.errors() for line in _in_words(model, dict(problem)).split("\n")]
        raise InputError(*(f"{source}: {line}" for line in lines)) from None


def _in_words(model: type[BaseModel], problem: dict[str, Any]) -> str:
    location = [part for part in problem["loc"] if not (isinstance(part, str) and part.startswith(("function-", "constrained-")))]
    path, table, alternatives = _followed(model, location)
    where = ".".join(map(str, path))
    prefix = f"{where}: " if where else ""
    given = problem["input"]
    if problem["type"] == "union_tag_invalid":
        known = re.findall(r"'(\w+)'", problem["ctx"]["expected_tags"])
        return f"{where}.family: unknown family {problem['ctx']['tag']!r}; {did_you_mean(problem['ctx']['tag'], known)}"
    if problem["type"] == "union_tag_not_found":
        return f"{prefix}expected a table, got {given!r}"
    if problem["type"] == "extra_forbidden":
        key = str(location[-1])
        others = [tag for tag, other in alternatives.items() if key in other.model_fields]
        if others:
            family = f"{where.rpartition('.')[0]}.family"
            return f"{prefix}a key of the family {' or '.join(others)}, and this model is of another: set {family}"
        return f"{prefix}unknown key; {did_you_mean(key, table.model_fields)}"
    if problem["type"] == "missing":
        return f"{prefix}missing; this key is required"
    if problem["type"] == "value_error":
        lines = str(problem["ctx"]["error"]).split("\n")  # those of a table's own keys begin with the key
        return "\n".join((f"{where}." if where and re.match(r"\w+: ", line) else prefix) + line for line in lines)
    if problem["type"] == "too_short":
        return f"{prefix}expected at least one, got none"
    message = problem["msg"].removeprefix("Input ").replace("should be", "expected", 1)
    message = re.sub("valid dictionary.*", "table", message)
    off = isinstance(given, str) or given in (0, False)  # what one writes for "not at all"
    message += f', or "{WORD}"' if off and location and may_be_none(table, str(path[-1])) else ""
    return f"{prefix}{message}, got {given!r}"


def _followed(model: type[BaseModel], location: list[Any]) -> tuple[list[Any], type[BaseModel], dict[str, type[BaseModel]]]:
    """pydantic's location as a user knows it, without the tags of unions; the (possibly nested) table that its end lies in; and
    where that is one of a union, all of them by their tags."""
    path: list[Any] = []
    alternatives: dict[str, type[BaseModel]] = {}
    here: Any = model
    choices: dict[str, type[BaseModel]] = {}
    for part in location:
        if part in choices:
            here, alternatives, choices = choices[part], choices, {}
            continue
        path.append(part)
        field = here.model_fields.get(part)
        candidates = [] if field is None else [field.annotation, *get_args(field.annotation)]
        here = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), here)
        tagged = [(get_args(c)[0], tag) for c in candidates for tag in getattr(c, "__metadata__", ())]
        tagged += [(here, tag) for tag in ([] if field is None else field.metadata)]  # a union of one
        choices = {tag.tag: c for c, tag in tagged if isinstance(tag, Tag)}
    return path, here, alternatives
