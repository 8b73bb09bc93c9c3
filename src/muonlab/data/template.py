"""Prompts: a Jinja template turns a row's columns into the prompt, and the answer follows it.

The last column is the answer, those before it are the prompt's; a single column is a text without a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from muonlab.errors import InputError
from muonlab.names import did_you_mean

DEFAULT = "{{ prompt }}\n"


class Template:
    """Renders prompts. In the template stand the columns of the prompt by name, and `prompt`: those that are not empty, a line
    each. What it renders to ends where the answer begins. Raises InputError for a template that cannot be read, or
    that names another variable."""

    def __init__(self, columns: Sequence[str], text: str | None = None) -> None:
        if not columns or len(set(columns)) < len(columns):
            raise InputError(f"--columns: expected names of columns, each once, got {','.join(columns)!r}")
        self.columns, self.text = tuple(columns), (DEFAULT if text is None else text) if len(columns) > 1 else None
        self._render: Any = None
        if self.text is None and text is not None:
            raise InputError(f"--template: makes a prompt, and one column ({columns[0]}) has none: name --columns PROMPT,ANSWER")
        if self.text is not None and self.text != DEFAULT:  # the default needs no engine: half the time of a row would be its
            self._render = _compiled(self.text, self.columns)

    @property
    def has_prompt(self) -> bool:
        return len(self.columns) > 1

    def prompt(self, row: Mapping[str, str]) -> str:
        """What comes before the answer; of a single column nothing."""
        if not self.has_prompt:
            return ""
        given = [row[name] for name in self.columns[:-1]]
        joined = "\n".join(filter(None, given))
        if self._render is None:
            return joined + "\n"
        import jinja2

        try:
            return self._render({"prompt": joined, **dict(zip(self.columns[:-1], given))})
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, OverflowError, MemoryError) as error:
            raise InputError(f"--template: {error or type(error).__name__}") from None

    def answer(self, row: Mapping[str, str]) -> str:
        """The last column: the text that is to be learned."""
        return row[self.columns[-1]]


def _compiled(text: str, columns: tuple[str, ...]) -> Any:
    import jinja2
    from jinja2 import meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    try:
        used = meta.find_undeclared_variables(environment.parse(text))
        template = environment.from_string(text)
    except jinja2.TemplateError as error:
        raise InputError(f"--template: not a Jinja template: {error}") from None
    if columns[-1] in used and columns[-1] != "prompt":
        raise InputError(f"--template: {columns[-1]!r} is the answer, which follows the prompt by itself: leave it out")
    known = ["prompt", *columns[:-1]]
    unknown = sorted(used - set(known) - set(environment.globals))
    if unknown:
        raise InputError(f"--template: unknown variable {unknown[0]!r}; {did_you_mean(unknown[0], known)}")
    if not used & set(known):
        raise InputError(f"--template: uses no column, so that all prompts would be the same; expected one of {', '.join(known)}")
    return template.render
