"""README and docs: every command and every program in them runs, and README's figures are those of the committed report."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

# What makes a documented run small enough for a test; everything else of the command stays as printed.
SMALL = ["train.steps=4", "train.eval_every=2", "train.eval_tokens=512", "model.layers=1", "model.width=32", "train.log_every=1"]


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    return [text for found, text in all_blocks(page) if found == language]


def all_blocks(page):
    """Language and text of each, in the order of the page."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") or blocks(page, "sh")], ids=name_of)
def test_programs_and_commands_run_as_printed(page, tmp_path, monkeypatch, muonlab):
    """From top to bottom, in one folder. (The sweeps of studies.md: tests/unit/test_studies.py; `make gpu`: test_gpu_pack.py.)"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for folder in ("recipes", "experiments", "tests/data"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for language, text in all_blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), {"__name__": "__main__"})
        elif language == "sh":
            for line in text.replace("\\\n", "").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["muonlab"]:
                    run_small(muonlab, words[1:])
                else:
                    assert not words or words[0] in ("make", "pip"), line


def run_small(muonlab, command):
    line = " ".join(command)
    own = ("model.",) * ("toy" in line) + ("train.eval_tokens",) * ("data." in line or "--dataset" in line)  # as printed
    settings = [setting for setting in SMALL if not setting.startswith(own)]
    small = [word for setting in settings for word in ("--set", setting)] if command[0] in ("train", "sweep", "race") else []
    code, _, err = muonlab(*command, *small)
    assert code == 0, (command, err)


def test_each_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    assert [name_of(page) for page in PAGES[1:] if f": {page.relative_to(DOCS)}\n" not in text] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built documentation; warnings are errors."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_every_command_is_on_the_built_page(site):
    from muonlab.cli.console import application

    page = (site / "reference/cli.html").read_text()
    assert "-m mkdocs" not in page

    def names(of, path):
        for name in of:
            if not name.startswith("-"):
                yield " ".join([*path, name])
                yield from names(of[name], [*path, name])

    found = list(names(application.app, []))
    assert {"train", "eval gsm8k"} <= set(found)
    assert [name for name in found if f'id="muonlab-{name.replace(" ", "-")}"' not in page] == []


@pytest.mark.slow
def test_every_optimizer_is_on_the_built_page_with_its_formula_and_options(site):
    import muonlab as package

    page = html.unescape(re.sub(r"<[^>]+>", "", (site / "reference/optimizers.html").read_text()))
    for variant in package.optimizers():
        assert all(part in page for part in variant.formula.split("; ")), variant
        assert all(option in page for option in variant.options())


@pytest.mark.slow
def test_the_built_site_asks_nothing_of_the_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\" >]+)|<link[^>]* href=\"?([^\" >]+)", page.read_text())
        assert [url for pair in loaded for url in pair if re.match(r"(https?:)?//", url)] == [], page


def test_experiments_in_the_docs_are_valid(tmp_path):
    from muonlab.evaluate.roadmap import load_roadmap
    from muonlab.lab.plan.loading import load_experiment

    for i, text in enumerate(block for page in PAGES for block in blocks(page, "toml")):
        tomllib.loads(text)
        if text.startswith("# recipes/"):  # that of a family which is not there: tests/cli/test_family_of_ones_own.py
            continue
        if text.startswith("# roadmap"):
            (tmp_path / "recipes").mkdir(exist_ok=True)
            (tmp_path / "recipes/words.toml").write_bytes((ROOT / "recipes/words.toml").read_bytes())
            (tmp_path / "recipes/roadmap.toml").write_text(text)
            assert load_roadmap(tmp_path / "recipes/roadmap.toml").config.stages
            (tmp_path / "recipes/roadmap.toml").unlink()
            continue
        (tmp_path / "experiments").mkdir(exist_ok=True)
        shutil.copytree(ROOT / "recipes", tmp_path / "recipes", dirs_exist_ok=True)
        path = tmp_path / "experiments" / f"docs{i}.toml"
        path.write_text(text)
        assert load_experiment(path).baseline == "none"


def test_make_targets_of_the_pages_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {target for page in PAGES for target in re.findall(r"^make (\S+)", page.read_text(), flags=re.MULTILINE)}
    assert {"demo", "test", "gpu"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_readme_shows_the_committed_report():
    readme, report = (ROOT / "README.md").read_text(), (ROOT / "experiments/quickstart/report.md").read_text()
    first_table = report.split("\n## ")[0]
    rows = [line for line in first_table.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    for row in rows:
        assert row in readme
    figures = json.loads((ROOT / "experiments/quickstart/results.json").read_text())
    assert "uncommitted" not in figures["provenance"]["code"]
    for sentence in figures["answer"]:
        assert sentence in readme


def test_what_is_quoted_of_the_roadmap_is_in_its_report():
    report = (ROOT / "roadmaps/words/report.md").read_text()
    quotes = re.findall(r"^> (.*)$", (DOCS / "how-to/roadmaps.md").read_text(), flags=re.MULTILINE)
    assert len(quotes) == 4
    for quote in quotes:
        assert f"- {quote}\n" in report


def test_links_of_the_pages_lead_somewhere():
    for page in PAGES:
        for link, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text()):
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{page.name}: {link}#{anchor}"


def test_every_data_source_is_in_the_table_of_the_recipes_keys():
    from typing import get_args

    from muonlab.data.config import DataConfig

    (row,) = [line for line in (DOCS / "how-to/train.md").read_text().splitlines() if line.startswith("| `data` | `source`")]
    assert [name for name in get_args(DataConfig.model_fields["source"].annotation) if f"`{name}`" not in row] == []


def test_every_optimizer_has_a_row_in_the_docs():
    import muonlab as package

    text = (DOCS / "how-to/optimizer.md").read_text()
    for name in package.optimizers():
        assert f"| `{name}` |" in text
