"""The shipped experiments: each can be read, its committed report is of the runs that its file asks for, and
docs/explanation/studies.md says what these reports say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from muonlab.lab.plan.loading import load_experiment
from muonlab.train.settings import read_toml

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "experiments").glob("*.toml"))


def committed(name):
    return json.loads((ROOT / "experiments" / name / "results.json").read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_committed_report_is_of_the_runs_that_the_file_asks_for(path):
    experiment, results = load_experiment(path), committed(path.stem)
    asked = {(c.name, seed): c.recipe.run_id(seed) for seed in experiment.config.seeds for c in experiment.cells}
    found = {(run["cell"], run["seed"]): run["id"] for run in results["runs"]}
    assert found == asked
    assert all(run["status"] in ("finished", "diverged") for run in results["runs"])
    assert results["plan"]["changes"] == []
    assert "uncommitted" not in results["provenance"]["code"]


@pytest.mark.parametrize(
    ("path", "profile"),
    [(path, name) for path in FILES for name in read_toml(path).get("profiles", {})],
    ids=lambda x: str(x)[-20:],
)
def test_profiles_can_be_read(path, profile):
    if {"refine", "head_to_head"} & read_toml(path).keys():
        pytest.skip("follows from a sweep at this size, which has not been run")
    plain, other = load_experiment(path), load_experiment(path, profile=profile)
    assert [cell.name for cell in other.cells] == [cell.name for cell in plain.cells]
    assert other.cells[0].recipe.model.width > plain.cells[0].recipe.model.width


def test_the_page_of_studies_quotes_its_reports():
    text = (ROOT / "docs/explanation/studies.md").read_text()
    sections = re.split(r"^#+ ", text, flags=re.MULTILINE)
    quoted = 0
    for section in sections:
        names = re.findall(r"\]\(\.\./\.\./experiments/(\w+)/report\.md\)", section)
        said = {line for name in names for key in ("answer", "verdicts", "audit", "notes") for line in committed(name)[key]}
        for line in re.findall(r"^> (.+)$", section, flags=re.MULTILINE):
            assert line in said, line
            quoted += 1
    assert quoted >= 10
    assert all(f"experiments/{path.stem}" in text for path in FILES if "quickstart" not in path.stem)
