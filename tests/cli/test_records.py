"""import, certify and verify as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEEDRUN = ROOT / "tests" / "data" / "speedrun" / "smoothed"
CERTIFY = ["certify", "runs", "--rule", "speedrun", "--target", "3.28", "--out", "record"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_from_logs_to_a_verified_record(muonlab):
    code, out, err = muonlab("import", str(SPEEDRUN / "*.txt"), "--out", "runs")
    assert (code, err) == (0, "")
    assert "smoothed: 7 finished" in out
    code, out, err = muonlab(*CERTIFY)
    assert (code, err) == (0, "")
    assert "validation loss: mean: 3.277500 (3.2775)" in out
    assert "p (t-test, mean < 3.28): 0.004098" in out
    assert "rule speedrun: met" in out
    code, out, err = muonlab("verify", "record")
    assert (code, err) == (0, "")
    assert out == "record: verified, 7 runs, rule speedrun met\n"
    assert json.loads(muonlab("verify", "record", "--json")[1])["verified"] is True


def test_a_rule_that_is_not_met_is_exit_code_1_with_a_record(muonlab):
    for i, loss in enumerate((3.2795, 3.2805, 3.279)):
        Path("logs").mkdir(exist_ok=True)
        Path(f"logs/{i}.txt").write_text(f"step:10/10 val_loss:{loss} train_time:5ms\n")
    assert muonlab("import", "logs", "--out", "runs")[0] == 0
    code, out, err = muonlab(*CERTIFY)
    assert code == 1
    assert "rule speedrun: not met" in out
    assert "record: written, and the rule is not met" in err
    assert "missing: the rule is not met: p = " in err
    assert "more runs would meet it" in err
    assert muonlab("verify", "record")[:2] == (0, "record: verified, 3 runs, rule speedrun not met\n")
    code, out, _ = muonlab(*CERTIFY[:-1], "again", "--json")
    assert code == 1
    assert json.loads(out)["figures"]["met"] is False


def test_an_altered_record_is_exit_code_1_and_says_where(muonlab):
    muonlab("import", str(SPEEDRUN), "--out", "runs")
    muonlab(*CERTIFY)
    page = Path("record/README.md")
    page.write_text(page.read_text().replace("3.277500", "3.267500"))
    code, out, err = muonlab("verify", "record")
    assert (code, out) == (1, "")
    assert "record: does not verify" in err
    assert "README.md: changed (its SHA-256 is not that of SHA256SUMS)" in err
    assert "the runs give '| validation loss: mean | 3.277500 (3.2775) |'" in err
    code, out, _ = muonlab("verify", "record", "--json")
    assert code == 1
    assert json.loads(out)["verified"] is False


def test_what_is_not_finished_is_said(muonlab):
    Path("logs").mkdir()
    Path("logs/cut.txt").write_text("step:0/10 val_loss:9.0\nstep:5/10 val_loss:4.0\n")
    Path("logs/nan.txt").write_text("step:0/10 val_loss:9.0\nstep:5/10 val_loss:nan\n")
    code, out, err = muonlab("import", "logs", "--out", "runs", "--arm", "x")
    assert code == 0
    assert "cut.txt (x, seed 0): unfinished: the log ends at step 5 of 10" in err
    assert "nan.txt (x, seed 1): diverged" in err
    assert "x: 1 unfinished, 1 diverged" in out
    runs = json.loads(muonlab("import", "logs", "--out", "other", "--json")[1])["runs"]
    assert [run["status"] for run in runs] == ["unfinished", "diverged"]


@pytest.mark.slow
def test_a_sweep_of_our_own_has_a_record_too(workdir, muonlab):
    arms = '[arms.muon]\noptimizer.name = "muon"\n[arms.sgd]\noptimizer.name = "sgd"\n'
    (workdir / "s.toml").write_text(f'question = "?"\nbase = "tiny.toml"\nseeds = [1, 2]\n{arms}')
    assert muonlab("sweep", "s.toml", "--workers", "1")[0] == 0
    certify = ["certify", "runs/s", "--rule", "speedrun", "--target", "99", "--out", "record"]
    code, _, err = muonlab(*certify)
    assert code == 2
    assert "runs/s: holds 2 arms: choose one with --arm (muon, sgd)" in err
    code, out, err = muonlab(*certify, "--arm", "muon")
    assert "runs: 2" in out, err
    recipe = json.loads(Path("record/recipe.json").read_text())
    assert (recipe["arm"], recipe["recipe"]["optimizer"]["name"]) == ("muon", "muon")
    provenance = json.loads(Path("record/provenance.json").read_text())
    assert all("torch" in run["versions"] for run in provenance.values())
    assert not list(Path("record").rglob("checkpoints"))
    assert muonlab("verify", "record")[0] == 0
    run = next(Path("runs/s/runs").glob("muon-*"))
    (run / "result.json").unlink()
    assert "1 of the runs failed" in muonlab(*certify[:-1], "again", "--arm", "muon")[2], "unfinished"
    for path in run.iterdir():
        path.unlink() if path.is_file() else None
    code, _, err = muonlab(*certify[:-1], "more", "--arm", "muon")
    assert code == 2
    assert "is missing: run it first" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "--out", "runs"], "import: expected logs, got none"),
        (["import", "gone.txt", "--out", "runs"], "gone.txt: no such file or folder"),
        (["import", "x.txt"], "--out"),
        (["import", "x.txt", "--out", "x.txt"], "expected a folder, got a file"),
        (["import", "x.txt", "--out", "x.txt/runs"], "x.txt/runs: cannot be written"),
        (["import", "x.txt", "--out", "runs", "--map", "a"], "--map: expected KEY=COLUMN"),
        (["import", "table.csv", "--out", "runs"], "--map val_loss=COLUMN"),
        (["certify", "x.txt", "--rule", "speedrun", "--target", "3", "--out", "r"], "x.txt: expected a folder"),
        (["certify", "gone", "--rule", "speedrun", "--target", "3", "--out", "r"], "gone: expected a folder of runs"),
        (["certify", ".", "--rule", "speedrun", "--target", "3", "--out", "r"], "holds no runs"),
        (["certify", ".", "--rule", "sprint", "--target", "3", "--out", "r"], "sprint"),
        (["certify", ".", "--rule", "speedrun", "--out", "r"], "--target"),
        (["certify", ".", "--rule", "speedrun", "--target", "x", "--out", "r"], "x"),
        (["certify", ".", "--rule", "speedrun", "--target", "3", "--out", "r", "--against", "."], "holds no runs"),
        (["verify", "."], "expected the folder of a record"),
        (["verify", "x.txt"], "x.txt: expected the folder of a record|cannot be read"),
        (["verify"], "record"),
    ],
)
def test_bad_input_is_one_clear_message_and_leaves_nothing(muonlab, arguments, message):
    import re

    Path("x.txt").write_text("step:1/1 val_loss:3.5\n")
    Path("table.csv").write_text("step,loss\n1,2\n")
    code, out, err = muonlab(*arguments)
    assert (code, out) == (2, ""), err
    assert re.search(message, err, flags=re.IGNORECASE)
    assert "Traceback" not in err
    assert sorted(path.name for path in Path().iterdir()) == ["table.csv", "x.txt"]
