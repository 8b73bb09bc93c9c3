"""The command line as a user types it: results on stdout, messages on stderr, exit codes, and no tracebacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SWEEP = """
question = "Which?"
base = "tiny.toml"
seeds = [1, 2]
target = 0.001

[arms.adamw]
optimizer.name = "adamw"

[arms.muon]
optimizer.name = "muon"
"""


def test_help_and_version(muonlab):
    code, out, _ = muonlab("--help")
    assert code == 0
    for command in ("train", "sweep", "report", "plan", "optimizers", "presets", "schema"):
        assert command in out
    import muonlab as package

    assert muonlab("--version")[1].strip() == package.__version__


def test_train_prints_its_result(workdir, muonlab):
    code, out, err = muonlab("train", "tiny.toml", "--set", "optimizer.lr=0.03", "--out", "runs/x", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["status"] == "finished"
    assert result["folder"] == "runs/x"
    assert "step 12/12" in err
    assert json.loads((workdir / "runs/x/run.json").read_text())["recipe"]["optimizer"]["lr"] == 0.03
    code, out, err = muonlab("train", "tiny.toml", "--set", "optimizer.lr=0.03", "--out", "runs/x", "--resume")
    assert code == 0
    assert "already finished" in err
    assert "Validation loss" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nothing.toml"], "nothing.toml: no such file"),
        (["train", "tiny.toml", "--set", "optimizer.lrr=1"], "did you mean 'lr'?"),
        (["train", "tiny.toml", "--set", "optimizer.lr=-1"], "expected greater than 0, got -1"),
        (["train", "tiny.toml", "--set", "data.files=['gone.txt']"], "no file matches 'gone.txt'"),
        (["train", "tiny.toml", "--set", "data.files=['empty.txt']"], "corpus is empty"),
        (["train", "tiny.toml", "--set", "data.files=['short.txt']"], "shorter than a batch"),
        (["train", "tiny.toml", "--set", "train.eval_tokens=1000000"], "eval_tokens: expected 32"),
        (["train", "tiny.toml", "--set", "model.vocab_size=100"], "expected at least the tokenizer's 257, got 100"),
        (["train", "tiny.toml", "--set", "optimizer.lr_mul={'blcks.*'=2.0}"], "matches none of the"),
        (["train", "tiny.toml", "--device", "gpu"], "expected cpu, cuda or cuda:N, got 'gpu'"),
        (["train", "tiny.toml", "--threads", "0"], "--threads: expected a number of at least 1, got 0"),
        (["train", "tiny.toml", "--out", "corpus.txt"], "corpus.txt"),
        (["train", "tiny.toml", "--out", "corpus.txt/run"], "corpus.txt"),
        (["train", "tiny.toml", "--sed", "1"], "--sed"),
        (["trian", "tiny.toml"], "trian"),
        (["train", "--seed", "1"], "expected a recipe file such as recipes/quickstart.toml, or --model with a preset"),
        (["train", "--model", "gpt-1n"], "command line: model.preset: unknown model preset 'gpt-1n'; did you mean 'gpt-1m'?"),
        (["train", "tiny.toml", "--preset", "muonfast"], "preset: unknown training preset 'muonfast'; did you mean 'muon_fast'?"),
        (["train", "tiny.toml", "--scale-steps", "-1"], "tiny.toml: scale_steps: expected greater than 0, got -1.0"),
        (["presets", "gpt2"], "no preset matches 'gpt2'; did you mean 'gpt-"),
        (["presets", "--batch", "0"], "--batch: expected a number of at least 1, got 0"),
        (["sweep", "nothing.toml"], "no such file"),
        (["sweep", "sweep.toml", "--workers", "0"], "--workers: expected a number of at least 1"),
        (["sweep", "sweep.toml", "--out", "corpus.txt"], "corpus.txt"),
        (["report", "."], "expected the folder of a sweep"),
        (["optimizers", "adagrad*"], "no optimizer matches 'adagrad*'; known: adamuon, adamw,"),
        (["schema", "reciep"], "reciep"),
    ],
)
def test_bad_input_gets_one_clear_message_and_leaves_nothing(workdir, muonlab, arguments, message):
    (workdir / "empty.txt").touch()
    (workdir / "short.txt").write_text("too short " * 9)
    (workdir / "sweep.toml").write_text(SWEEP)
    before = sorted(p.name for p in workdir.rglob("*"))
    code, out, err = muonlab(*arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert sorted(p.name for p in workdir.rglob("*")) == before


def test_presets_take_the_place_of_a_recipe(workdir, muonlab):
    """A preset tried in a few steps, in a folder with the model's name; the flags are keys of the recipe, which --set beats."""
    small = ["model.layers=1", "model.width=32", "model.context=32", "train.batch=2", "train.eval_tokens=64"]
    corpus = ["data.source=text", "data.files=['corpus.txt']", "train.precision=float32"]
    sets = [word for setting in [*small, *corpus] for word in ("--set", setting)]
    code, out, err = muonlab("train", "--model", "gpt-1m", "--preset", "muon_fast", "--scale-steps", "0.0001", *sets, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["steps"] == 3
    assert result["folder"] == f"runs/gpt-1m-{result['id']}"
    described = json.loads((workdir / result["folder"] / "run.json").read_text())["recipe"]
    assert (described["optimizer"]["name"], described["optimizer"]["lr"]) == ("muon", 0.004)
    keys = ["model.preset=gpt-1m", "preset=muon_fast", "scale_steps=0.0001"]
    (workdir / "empty.toml").touch()
    code, out, _ = muonlab("train", "empty.toml", *[w for key in keys for w in ("--set", key)], *sets, "--json")
    assert json.loads(out)["id"] == result["id"]


def test_plan_takes_presets_too(workdir, muonlab):
    code, out, _ = muonlab("plan", "--model", "gpt-1m", "--preset", "default", "--json")
    assert code == 0
    (row,) = [row for row in json.loads(out) if row["name"] == "blocks.0.mlp.up.weight"]
    assert row["rule"].startswith("adamw")
    assert row["lr"] == pytest.approx(3e-4)
    rates = {}
    for more in ([], ["--preset", "muon_default"]):
        rows = json.loads(muonlab("plan", "tiny.toml", *more, "--json")[1])
        (rates[len(more)],) = {row["lr"] for row in rows if row["role"] == "head"}
    assert rates == {0: 0.01, 2: 3e-4}  # tiny.toml's own, and the preset's


def test_presets_are_listed_with_what_they_need(muonlab):
    code, out, _ = muonlab("presets", "gpt-1m", "--batch", "2", "--precision", "float32", "--device", "cpu", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["training"] == []
    (row,) = found["models"]
    assert (row["name"], row["family"], row["parameters"], row["context"]) == ("gpt-1m", "gpt", 858_369, 256)
    for needs in row["bytes"].values():
        assert needs["total"] == needs["weights"] + needs["gradients"] + needs["optimizer_state"] + needs["activations"]
    assert row["bytes"]["muon"]["optimizer_state"] < row["bytes"]["adamw"]["optimizer_state"]
    code, out, _ = muonlab("presets", "muon_*", "--precision", "float32", "--device", "cpu")
    assert "muon_default                    muon        0.003       0.0003          0.1        60000         2000" in out
    assert "gpt" not in out


def test_a_diverged_run_fails_and_says_where(workdir, muonlab):
    code, out, err = muonlab("train", "tiny.toml", "--set", "optimizer.weight_decay=-1e38", "--out", "x")
    assert code == 1
    assert "diverged" in out
    assert "lower optimizer.lr" in err


@pytest.mark.slow
def test_a_sweep_runs_what_is_missing_and_nothing_else(workdir, muonlab):
    """Two worker processes; a second call does nothing; a deleted run comes back with the same weights."""
    (workdir / "sweep.toml").write_text(SWEEP)
    code, out, err = muonlab("sweep", "sweep.toml", "--workers", "2")
    assert code == 0, err
    assert "4/4" in err
    assert "reached by none of the runs" in out, "the target is out of reach, and that is no error"
    assert Path("runs/sweep/report/report.html").exists()
    results = {path.parent.name: path.read_text() for path in Path("runs/sweep/runs").glob("*/result.json")}
    assert len(results) == 4
    changed = {path: path.stat().st_mtime_ns for path in Path("runs/sweep/runs").glob("*/*.json*")}
    code, _, err = muonlab("sweep", "sweep.toml", "--workers", "2")
    assert (code, err) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in changed} == changed
    gone = sorted(results)[0]
    import shutil

    shutil.rmtree(Path("runs/sweep/runs") / gone)
    code, _, err = muonlab("sweep", "sweep.toml", "--workers", "2")
    assert code == 0
    assert err.count("started") == 1
    again = json.loads((Path("runs/sweep/runs") / gone / "result.json").read_text())
    assert again["weights_sha256"] == json.loads(results[gone])["weights_sha256"]


def test_bad_data_stops_a_sweep_with_one_message(workdir, muonlab):
    (workdir / "sweep.toml").write_text("set.data.files = ['gone.txt']\n" + SWEEP)
    code, _, err = muonlab("sweep", "sweep.toml", "--workers", "1")
    assert code == 2
    assert not Path("runs").exists(), "nothing is written for an experiment that cannot run"
    assert err.count("no file matches 'gone.txt'") == 1
    assert "Traceback" not in err


def test_plan_and_optimizers_and_schemas(workdir, muonlab):
    code, out, _ = muonlab("plan", "tiny.toml")
    assert code == 0
    assert "blocks.*.mlp.up.weight (×2)" in out
    rows = json.loads(muonlab("plan", "tiny.toml", "--json")[1])
    assert {row["role"] for row in rows} == {"matrix", "embedding", "head", "vector"}
    assert [row["name"] for row in json.loads(muonlab("optimizers", "*ormuon", "--json")[1])] == ["normuon"]
    for kind in ("recipe", "experiment"):
        schema = json.loads(muonlab("schema", kind)[1])
        assert schema["title"] == f"muonlab {kind}"


def test_shipped_recipes_and_experiments_fit_their_schemas(muonlab):
    jsonschema = pytest.importorskip("jsonschema")
    import tomllib

    for kind, folder in (("recipe", "recipes"), ("experiment", "experiments")):
        schema = json.loads(muonlab("schema", kind)[1])
        files = list((ROOT / folder).glob("*.toml"))
        assert files
        for path in files:
            jsonschema.validate(tomllib.loads(path.read_text()), schema)


def test_quickstart_uses_the_learning_rates_that_its_tuning_found(muonlab, monkeypatch):
    """The committed tuning result and the experiment that relies on it must agree, on different seeds."""
    monkeypatch.chdir(ROOT)
    from muonlab.lab.plan.loading import load_experiment

    tuned = json.loads(Path("experiments/quickstart_lr/results.json").read_text())
    confirming = load_experiment("experiments/quickstart.toml")
    assert {cell.arm: cell.recipe.optimizer.lr for cell in confirming.cells} == {
        arm: point["optimizer.lr"] for arm, point in tuned["best"].items()
    }
    assert not set(tuned["plan"]["seeds"]) & set(confirming.config.seeds)
    recipes = {cell["name"]: cell["recipe"] for cell in tuned["plan"]["cells"]}
    for cell in confirming.cells:
        assert cell.recipe.canonical() == recipes[f"{cell.arm} lr={cell.recipe.optimizer.lr}"], "tuned as it is now run"


def test_ctrl_c_outside_of_a_run_is_130(muonlab, monkeypatch):
    import muonlab.lab.runs.store as store

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "read_plan", interrupted)
    code, _, err = muonlab("report", ".")
    assert code == 130
    assert "interrupted" in err


@pytest.mark.slow
def test_a_changed_corpus_is_refused_by_a_sweep(workdir, muonlab):
    import shutil

    (workdir / "sweep.toml").write_text(SWEEP.replace("[1, 2]", "[1]"))
    assert muonlab("sweep", "sweep.toml", "--workers", "1")[0] == 0
    (workdir / "corpus.txt").write_text((workdir / "corpus.txt").read_text() + " more")
    shutil.rmtree(next(Path("runs/sweep/runs").glob("muon-*")))
    code, _, err = muonlab("sweep", "sweep.toml", "--workers", "1")
    assert code == 2
    assert "the corpus has changed since this run" in err
