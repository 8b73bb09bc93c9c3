"""Questions as a run was trained to read them: its own template, out of its folder."""

from __future__ import annotations

from collections.abc import Callable

from muonlab.data.template import Template
from muonlab.errors import InputError
from muonlab.evaluate.loading import LoadedRun

Ask = Callable[[str], str]  # question -> prompt


def asked_by(template: Template) -> Ask:
    """The question takes the place of the template's column "question", or of its first one; other columns stay empty."""
    place, *others = _columns(template)
    return lambda question: template.prompt({**dict.fromkeys(others, ""), place: question})


def left_empty(template: Template) -> list[str]:
    """The prompt's other columns."""
    return _columns(template)[1:]


def _columns(template: Template) -> list[str]:
    """The prompt's columns, that of the question first."""
    return sorted(template.columns[:-1], key=lambda name: name != "question")


def own_template(run: LoadedRun, given: str | None = None) -> Template | None:
    """The template that the run was trained on, or the one that is given (its variables: question, prompt); None: there is none.

    Raises InputError where it was trained on several.
    """
    if given is not None:
        return Template(("question", "answer"), given)
    found = run.templates()
    if len(found) > 1:
        texts = " and ".join(repr(template.text) for template in found)
        raise InputError(f"{run.folder}: was trained on prompts of several forms ({texts}): choose one with --template")
    return found[0] if found else None
