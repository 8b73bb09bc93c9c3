"""Where there is no estimate of chance, nothing prints one: no interval, no p, no verdict but undecided."""

from __future__ import annotations

import json
import math
import re

import pytest

from muonlab.lab import stats
from muonlab.lab.stats.samples import estimable

EQUAL = [1.0, 1.0, 1.0 + 2e-16]
CASES = {
    "one run": "a,1.0\nb,2.0\nb,2.1\nb,2.2\n",
    "rounding": "a,1\na,1\na,1.0000000000000002\nb,2\nb,2\nb,2.0000000000000004\n",
    "diverged": "a,1.0\na,1.1\na,1.05\nb,2.0\nb,2.1\nb,\n",
    "constant": "a,1\na,1\na,1\nb,1\nb,1\nb,1\n",
}


@pytest.mark.parametrize("case", CASES)
def test_no_p_is_told_where_the_verdict_has_no_estimate(case, tmp_path, muonlab):
    (tmp_path / "runs.csv").write_text("arm,val_loss\n" + CASES[case])
    code, out, _ = muonlab("stats", str(tmp_path / "runs.csv"))
    assert code == 0
    assert "undecided" in out
    assert "no Dunnett p: there is no estimate of chance" in out
    assert "Dunnett p =" not in out
    assert "Dunnett p <" not in out
    code, out, _ = muonlab("stats", str(tmp_path / "runs.csv"), "--json")
    (claim,) = json.loads(out)["claims"]
    assert claim["dunnett"] is None
    assert claim["verdict"]["word"] == "undecided"


def test_equal_runs_have_no_interval(tmp_path, muonlab):
    (tmp_path / "runs.csv").write_text("arm,val_loss\n" + CASES["rounding"])
    _, out, _ = muonlab("stats", str(tmp_path / "runs.csv"))
    assert "1.000000   all runs are equal: no interval" in out
    assert " CI " not in out
    found = stats.summarize(EQUAL)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(stats.one_sample(EQUAL, 2.0).p_less)


def test_one_place_decides():
    assert estimable([1.0, 2.0], [3.0, 3.0])
    assert not estimable([1.0, 2.0], [3.0])
    assert not estimable(EQUAL, EQUAL)
    arms = {"base": [1.0, 1.1, 1.2], "one": [2.0], "other": [1.5, 1.6, 1.7]}
    found = stats.dunnett(arms, "base")
    assert math.isnan(found["one"])
    assert found["other"] == stats.dunnett({k: v for k, v in arms.items() if k != "one"}, "base")["other"]
    for ours, theirs in ((arms["one"], arms["base"]), (EQUAL, EQUAL)):
        assert math.isnan(stats.compare(ours, theirs).p)


def test_a_report_of_equal_runs_is_drawn(tmp_path, muonlab):
    """Its pictures have a stroke where others have an interval."""
    rows = [{"arm": arm, "seed": seed, "step": 10, "val_loss": 1.0 + (arm == "b")} for arm in "ab" for seed in range(3)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = muonlab("import", str(tmp_path / "log.jsonl"), "--out", str(tmp_path / "runs"))
    assert code == 0, err
    code, _, err = muonlab("report", str(tmp_path / "runs"))
    assert code == 0, err
    (page,) = (tmp_path / "runs/report").glob("report.md")
    assert not re.search(r"\bnan\b", page.read_text(), re.IGNORECASE)
