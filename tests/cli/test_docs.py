"""README and docs: every command and every program in them runs, and README's figures are those of the committed report."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# What makes a documented run small enough for a test; everything else of the command stays as printed.
SMALL = ["train.steps=4", "train.eval_every=2", "train.eval_tokens=512", "model.layers=1", "model.width=32", "train.log_every=1"]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_programs_run_as_printed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for program in blocks(page, "python"):
        exec(compile(program, str(page), "exec"), {"__name__": "__main__"})
    assert blocks(page, "python") or page.name in ("experiments.md", "studies.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_run_as_printed(page, tmp_path, monkeypatch, muonlab):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for folder in ("recipes", "experiments", "tests/data"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("muonlab ")]
    # The sweeps of studies.md take minutes: tests/unit/test_studies.py looks at their reports; gpu.md: tests/unit/test_gpu_pack.py.
    assert commands or page.name in ("studies.md", "gpu.md")
    for command in commands:
        line = " ".join(command)
        own = ("model.",) * ("toy" in line) + ("train.eval_tokens",) * ("data." in line or "--dataset" in line)  # as printed
        settings = [setting for setting in SMALL if not setting.startswith(own)]
        small = [word for setting in settings for word in ("--set", setting)] if command[0] in ("train", "sweep", "race") else []
        code, _, err = muonlab(*command, *small)
        assert code == 0, (command, err)


def test_experiments_in_the_docs_are_valid(tmp_path):
    from muonlab.evaluate.roadmap import load_roadmap
    from muonlab.lab.experiment import load_experiment

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


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


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
    quotes = re.findall(r"^> (.*)$", (ROOT / "docs/how-to/evaluate.md").read_text(), flags=re.MULTILINE)
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

    (row,) = [line for line in (ROOT / "docs/how-to/train.md").read_text().splitlines() if line.startswith("| `data` | `source`")]
    assert [name for name in get_args(DataConfig.model_fields["source"].annotation) if f"`{name}`" not in row] == []


def test_every_optimizer_has_a_row_in_the_docs():
    import muonlab as package

    text = (ROOT / "docs/how-to/optimizer.md").read_text()
    for name in package.optimizers():
        assert f"| `{name}` |" in text
