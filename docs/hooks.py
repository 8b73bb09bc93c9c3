"""What the site is built with besides its pages (mkdocs calls the functions that begin with `on_`).

Two things. Reference pages have marks such as `<!-- made: commands -->`: what stands there in the site is made from the code. And
pages link to files outside of docs/ (reports, measurements, examples): these come into the site as well, below repository/.
"""

from __future__ import annotations

import contextlib
import io
import json
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))  # this checkout, whatever is installed

MARK = re.compile(r"^<!-- made: (\w+) -->$", flags=re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s#:]+)((?:#[^)\s]*)?)\)")
SHOWN = {".py": "python", ".toml": "toml"}  # a file of these becomes a page with its text

# ---- the command line


def commands() -> str:
    """Every command with its help and its options, as the app itself has them."""
    from cyclopts.docs import generate_markdown_docs

    from muonlab.cli.app import OPTIMIZERS
    from muonlab.cli.console import application

    text = generate_markdown_docs(
        application.app,
        heading_level=2,
        no_root_title=True,
        generate_toc=False,
        flatten_commands=True,
        exclude_commands=["--install-completion"],
    )
    text = text[text.index(f"**{OPTIMIZERS.name}**") :].replace(" *[default: False]*", "")
    text = text.replace(" -m mkdocs", "")  # the name of the program that runs, where that is `python -m mkdocs`
    return re.sub(r"^```console$", "```text", text, flags=re.MULTILINE)


def _printed(*command: str) -> str:
    from muonlab.cli.console import run

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run(list(command))
    assert code == 0, command
    return out.getvalue()


# ---- the keys of TOML files


def recipe_keys() -> str:
    schema = json.loads(_printed("schema", "recipe"))
    lines = ["## At the top", "", *_table({k: v for k, v in schema["properties"].items() if k in ("preset", "scale_steps")})]
    for name, about in schema["properties"].items():
        for found in _references(about):
            keys = schema["$defs"][found]
            family = keys["properties"].get("family", {}).get("default")
            lines += ["", f"## `[{name}]`" + (f' with `family = "{family}"`' if family else ""), "", keys["description"], ""]
            lines += _table({k: v for k, v in keys["properties"].items() if not v.get("description", "").startswith("option of ")})
            if name == "optimizer":
                lines += ["", "### Options of the chosen optimizer", "", *_options()]
    return "\n".join(lines)


def experiment_keys() -> str:
    schema = json.loads(_printed("schema", "experiment"))
    lines = _table(schema["properties"])
    for name, about in schema["properties"].items():
        for found in _references(about):
            keys = schema["$defs"][found]
            lines += ["", f"## In `{name}`", "", keys["description"], "", *_table(keys["properties"])]
    return "\n".join(lines)


def _references(about: Mapping[str, Any]) -> list[str]:
    return [one["$ref"].rsplit("/", 1)[1] for one in (about, *about.get("anyOf", ())) if "$ref" in one]


def _table(keys: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, about in keys.items():
        if key == "family" or (_references(about) and "description" not in about):
            continue
        default = f"`{json.dumps(about['default'], ensure_ascii=False)}`" if "default" in about else ""
        meaning = " ".join(about.get("description", "").split()).replace("|", "\\|")
        lines.append(f"| `{key}` | {' or '.join(_kinds(about))} | {default} | {meaning} |")
    return lines


def _kinds(about: Mapping[str, Any]) -> Iterator[str]:
    """What a value may be, in a few words."""
    for one in about.get("anyOf", (about,)):
        if "$ref" in one:
            yield "a table"
        elif "enum" in one:
            yield ", ".join(f"`{value}`" for value in one["enum"])
        elif "const" in one:
            yield f"`{one['const']}`"
        elif one.get("type") == "array":
            inside = one.get("items", {})
            yield "a list" + (f" of: {', '.join(map(str, inside['enum']))}" if "enum" in inside else "")
        else:
            kind = {"object": "a table", "string": "text", "boolean": "`true`, `false`", "integer": "whole number"}
            low = f" > {one['exclusiveMinimum']:g}" if "exclusiveMinimum" in one else ""
            low = f" ≥ {one['minimum']:g}" if "minimum" in one else low
            name = str(one.get("type", "any"))
            yield kind.get(name, name) + low


def _options() -> list[str]:
    """Key, the defaults, and whose option it is."""
    import muonlab

    owners: dict[str, dict[str, list[str]]] = {}
    for variant in muonlab.optimizers():
        for key, option in variant.options().items():
            owners.setdefault(key, {}).setdefault(_value(option.default), []).append(f"[`{variant}`](optimizers.md#{variant})")
    lines = ["| key | default: an option of |", "|---|---|"]
    for key, defaults in sorted(owners.items()):
        whose = "; ".join(f"`{value}`: " + ", ".join(names) for value, names in defaults.items())
        lines.append(f"| `{key}` | {whose} |")
    return lines


def _value(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


# ---- the optimizers


def optimizers() -> str:
    """Name, formula, source and options of each."""
    import muonlab

    lines = []
    for variant in muonlab.optimizers():
        about = " ".join((variant.factory.__doc__ or "").split())
        source = re.sub(r"(https?://[^\s,;)]+)", r"<\1>", variant.source)
        source = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)
        lines += [
            f"## {variant}",
            "",
            about,
            "",
            "```text",
            variant.formula.replace("; ", "\n"),
            "```",
            "",
            f"Source: {source}.",
            "",
        ]
        options = {"lr": variant.lr, **{key: option.default for key, option in variant.options().items()}}
        lines += ["Options: " + ", ".join(f"`{key}={value!r}`" for key, value in options.items()) + ".", ""]
    return "\n".join(lines)


MADE = {"commands": commands, "recipe_keys": recipe_keys, "experiment_keys": experiment_keys, "optimizers": optimizers}

# ---- links that lead out of docs/


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Brings in what pages link to, and what that links to."""
    todo = [
        (f"docs/{file.src_uri}", Path(file.abs_src_path).read_text()) for file in files.documentation_pages() if file.abs_src_path
    ]
    while todo:
        page, text = todo.pop()
        for link, _ in LINK.findall(text):
            target = _target(page, link)
            place = _place(target)
            if place is None or files.get_file_from_path(place) is not None or target.startswith("docs/"):
                continue
            path = ROOT / target
            if path.suffix == ".md":
                files.append(File.generated(config, place, content=path.read_text()))
                todo.append((target, path.read_text()))
            elif path.suffix in SHOWN:
                content = f"# {path.name}\n\n`{target}`\n\n````{SHOWN[path.suffix]}\n{path.read_text()}````\n"
                files.append(File.generated(config, place, content=content))
            else:
                files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    origin = here.removeprefix("repository/") if here.startswith("repository/") else f"docs/{here}"

    def link(found: re.Match[str]) -> str:
        target = _target(origin, found[1])
        place = _place(target)
        if place is None or (origin.startswith("docs/") and target.startswith("docs/")):
            return found[0]  # mkdocs complains of what is not there
        return f"]({posixpath.relpath(place, posixpath.dirname(here))}{found[2]})"

    markdown = MARK.sub(lambda mark: MADE[mark[1]](), markdown)
    return LINK.sub(link, markdown)


def _target(page: str, link: str) -> str:
    """The file that a page's link means, as a path in the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _place(target: str) -> str | None:
    """Where a file of the repository stands in the site; None if it is no file."""
    path = ROOT / target
    if target.startswith("..") or not path.is_file():
        return None
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return f"repository/{target}" + (".md" if path.suffix in SHOWN else "")
