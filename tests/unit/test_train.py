"""Runs: exact resume, accumulation, checkpoints that survive damage, and what a run's folder tells."""

from __future__ import annotations

import json
import os
import signal
from functools import partial

import pytest
import torch

from muonlab.errors import InputError, Interrupted, RunError
from muonlab.train import checkpoint as checkpoints
from muonlab.train import run as training
from muonlab.train.recipe import load_recipe
from muonlab.train.run_folder import RunFolder, format_row, parse_row
from muonlab.train.trainer import Trainer, choose_machine

train = partial(training.train, threads=1)  # at these sizes more only get into each other's way


def losses(folder):
    return [(row["step"], row.get("train_loss"), row.get("val_loss")) for row in RunFolder(folder).rows()]


def stop_after(step):
    """A progress callback that asks for a stop as Ctrl-C does, after this step."""

    def callback(progress):
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return callback


@pytest.mark.parametrize("stop", [1, 4, 11])
@pytest.mark.parametrize(
    "overrides", [[], ["optimizer.name=adamw", "train.accumulate=2", "train.grad_clip=0.5"], ["optimizer.name=muon"]]
)
def test_an_interrupted_run_goes_on_bit_for_bit(workdir, stop, overrides):
    recipe = load_recipe("tiny.toml", overrides)
    whole = train(recipe, 5, "whole")
    with pytest.raises(Interrupted) as caught:
        train(recipe, 5, "parts", on_progress=stop_after(stop))
    assert caught.value.signum == signal.SIGINT
    assert RunFolder("parts").result() is None
    parts = train(recipe, 5, "parts", resume=True)
    assert parts["weights_sha256"] == whole["weights_sha256"]
    assert losses("parts") == losses("whole")
    assert parts["val_loss"] == whole["val_loss"]


def test_arms_share_initial_weights_and_data_order(workdir):
    trainers = []
    for name in ("adamw", "muon"):
        recipe = load_recipe("tiny.toml", [f"optimizer.name={name}"])
        trainers.append(Trainer(recipe, 3, choose_machine(recipe, "cpu", 1)))
    a, b = trainers
    assert checkpoints.weights_sha256(a.model) == checkpoints.weights_sha256(b.model)
    for _ in range(3):
        assert torch.equal(a.loader.next()[0], b.loader.next()[0])


def test_accumulated_gradients_are_averaged(workdir):
    """Four micro-batches of one sequence give the gradient of one batch of four: not their sum."""
    gradients = []
    for parts in (1, 4):
        recipe = load_recipe("tiny.toml", [f"train.accumulate={parts}"])
        trainer = Trainer(recipe, 0, choose_machine(recipe, "cpu", 1))
        trainer.optimizer.zero_grad = lambda set_to_none=True: None  # keep them to be looked at
        trainer.train_step()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_the_schedule_is_counted_in_optimizer_steps(workdir):
    recipe = load_recipe("tiny.toml", ["train.accumulate=4", "train.steps=10", "schedule.cooldown=1.0"])
    train(recipe, 0, "run")
    rates = [row["lr"] for row in RunFolder("run").rows()]
    assert rates == pytest.approx([0.02 * (1 - t / 10) for t in range(10)])


def test_the_loss_falls(workdir):
    recipe = load_recipe("tiny.toml", ["train.steps=60", "train.eval_every=60"])
    first = losses_of_training = None
    train(recipe, 0, "run")
    losses_of_training = [row["train_loss"] for row in RunFolder("run").rows()]
    first = losses_of_training[0]
    assert first == pytest.approx(5.549, abs=0.01), "ln 257: an untrained model knows nothing"
    assert losses_of_training[-1] < 0.6 * first


def test_bf16_autocast_is_used_and_recorded(workdir):
    recipe = load_recipe("tiny.toml", ["train.precision=bf16"])
    train(recipe, 0, "run")
    assert RunFolder("run").run()["machine"]["precision"] == "bf16"
    train(load_recipe("tiny.toml"), 0, "other")
    assert losses("run") != losses("other")
    assert [step for step, _, _ in losses("run")] == [step for step, _, _ in losses("other")]


def test_run_json_tells_where_the_figures_come_from(workdir):
    recipe = load_recipe("tiny.toml")
    result = train(recipe, 7, "run")
    run = RunFolder("run").run()
    assert run["id"] == recipe.run_id(7)
    assert run["seed"] == 7
    assert run["recipe"] == recipe.canonical()
    assert set(run["provenance"]) >= {"git", "versions", "cpu", "gpu", "device", "threads", "started"}
    assert set(run["machine"]) == {"device", "precision", "threads", "bf16_fast"}
    assert len(run["data"]["sha256"]) == 64
    assert run["model"]["parameters"] > 0
    assert str(workdir) not in json.dumps(run), "no path of this machine"
    assert result["tokens"] == 12 * 4 * 32
    rows = RunFolder("run").rows()
    assert [row["step"] for row in rows if "val_loss" in row] == [4, 8, 12]


def test_a_diverged_run_is_a_result(workdir):
    recipe = load_recipe("tiny.toml", ["optimizer.weight_decay=-1e38"])
    result = train(recipe, 0, "run")
    assert result["status"] == "diverged"
    assert result["val_loss"] is None
    assert RunFolder("run").rows()[-1]["diverged"] is True
    assert train(recipe, 0, "run", resume=True) == result


def spoil_gradients(monkeypatch, at):
    """The gradients of these optimizer steps (1, 2, …) of every run are NaN."""
    whole = Trainer._loss

    def spoiled(self, batch):
        loss = whole(self, batch)
        if torch.is_grad_enabled() and self.step + 1 in at:
            loss.register_hook(lambda grad: grad * torch.nan)
        return loss

    monkeypatch.setattr(Trainer, "_loss", spoiled)


def test_skipped_steps_are_told_and_counted_through_a_resume(workdir, monkeypatch):
    recipe = load_recipe("tiny.toml")
    spoil_gradients(monkeypatch, at=(3, 9))
    with pytest.raises(Interrupted):
        train(recipe, 0, "run", on_progress=stop_after(7))
    result = train(recipe, 0, "run", resume=True)
    assert result["skipped"] == 2
    rows = RunFolder("run").rows()
    assert {row["step"]: row.get("skipped") for row in rows if row["step"] in (2, 4, 12)} == {2: None, 4: 1, 12: 2}


def test_a_gradient_that_is_not_finite_stops_a_run_in_words(workdir, monkeypatch):
    spoil_gradients(monkeypatch, at=(3,))
    with pytest.raises(RunError, match=r"stopped at step 2: .*gradients are not finite"):
        train(load_recipe("tiny.toml", ["optimizer.nonfinite=raise"]), 0, "run")


# -- checkpoints -----------------------------------------------------------------------------------------------------


def interrupted(workdir, at=7):
    recipe = load_recipe("tiny.toml")
    with pytest.raises(Interrupted):
        train(recipe, 5, "run", on_progress=stop_after(at))
    return recipe, checkpoints.checkpoints(RunFolder("run").checkpoints)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("model.safetensors", lambda data: data[: len(data) // 2]),
        ("optimizer.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("manifest.json", lambda data: data[:20]),
        ("state.json", None),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(workdir, name, spoil):
    recipe, saved = interrupted(workdir)
    assert [path.name for path in saved] == ["step-00000007", "step-00000006"]
    path = saved[0] / name
    path.unlink() if spoil is None else path.write_bytes(spoil(path.read_bytes()))
    said = []
    result = train(recipe, 5, "run", resume=True, say=said.append)
    assert "step-00000007 is damaged" in said[0]
    assert name in said[0]
    assert "using step-00000006" in said[0]
    assert result["weights_sha256"] == train(recipe, 5, "whole")["weights_sha256"]
    assert losses("run") == losses("whole")


def test_without_a_whole_checkpoint_nothing_is_guessed(workdir):
    recipe, saved = interrupted(workdir)
    for path in saved:
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="no whole checkpoint is left"):
        train(recipe, 5, "run", resume=True)


def test_old_checkpoints_are_pruned_and_nothing_half_built_stays(workdir):
    train(load_recipe("tiny.toml"), 0, "run")
    assert sorted(p.name for p in (workdir / "run" / "checkpoints").iterdir()) == ["step-00000009", "step-00000012"]


def test_a_full_disk_while_saving_leaves_the_older_checkpoint(workdir, monkeypatch):
    from muonlab.errors import RunError

    recipe = load_recipe("tiny.toml")
    real, calls = checkpoints.save_file, []

    def fails_later(tensors, path):
        calls.append(path)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", fails_later)
    with pytest.raises(RunError, match=r"stopped at step 6: No space left on device; step-00000003 is saved"):
        train(recipe, 5, "run")
    assert [p.name for p in (workdir / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.undo()
    monkeypatch.chdir(workdir)
    assert train(recipe, 5, "run", resume=True)["weights_sha256"] == train(recipe, 5, "whole")["weights_sha256"]


# -- folders ---------------------------------------------------------------------------------------------------------


def test_rows_carry_a_checksum():
    line = format_row({"step": 3, "train_loss": 0.1})
    assert parse_row(line) == {"step": 3, "train_loss": 0.1}
    assert parse_row(line.replace("0.1", "0.2")) is None
    assert parse_row(line[:-5]) is None


def test_a_folder_with_another_run_is_refused(workdir):
    train(load_recipe("tiny.toml"), 0, "run")
    with pytest.raises(InputError, match="holds a finished run: go on with --resume"):
        train(load_recipe("tiny.toml"), 0, "run")
    with pytest.raises(InputError, match=r"another run \(optimizer.lr: 0.02 there, 0.03 now; seed: 0 there, 1 now\)"):
        train(load_recipe("tiny.toml", ["optimizer.lr=0.03"]), 1, "run", resume=True)


def test_a_changed_corpus_is_refused(workdir):
    recipe, _ = interrupted(workdir)
    (workdir / "corpus.txt").write_text("something else " * 1000)
    with pytest.raises(InputError, match="corpus has changed"):
        train(recipe, 5, "run", resume=True)


def test_two_processes_cannot_work_on_one_run(workdir):
    with RunFolder("run").lock(), pytest.raises(InputError, match="another process"):
        train(load_recipe("tiny.toml"), 0, "run")


def test_a_signal_in_a_checkpoint_step_writes_it_once(workdir):
    """A whole checkpoint is never deleted to be written again: a crash in between would leave none."""
    recipe = load_recipe("tiny.toml")
    with pytest.raises(Interrupted):
        train(recipe, 5, "run", on_progress=stop_after(3))
    saved = workdir / "run/checkpoints/step-00000003"
    before = saved.stat().st_ino
    checkpoints.save(saved.parent, 3, checkpoints.load_newest(saved.parent)[0], 2)
    assert saved.stat().st_ino == before


def test_a_resume_clears_what_a_crash_left(workdir):
    recipe, saved = interrupted(workdir)
    (saved[0] / "state.json").write_text("{")
    (saved[0].parent / ".building-00000008").mkdir()
    said = []
    with pytest.raises(Interrupted):
        train(recipe, 5, "run", resume=True, say=said.append, on_progress=stop_after(7))
    assert sorted(p.name for p in saved[0].parent.iterdir()) == ["step-00000006", "step-00000007"]
    assert checkpoints.damage(saved[0]) is None


def test_a_damaged_line_of_metrics_is_told_and_costs_that_line_only(workdir):
    recipe, _ = interrupted(workdir)
    file = workdir / "run/metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], lines[1].replace("train_loss", "train_lost"), *lines[2:]]))
    said = []
    train(recipe, 5, "run", resume=True, say=said.append)
    assert "1 damaged rows are left out" in said[0]
    assert [row["step"] for row in RunFolder("run").rows()] == [1, *range(3, 13)]


def test_a_folder_that_lost_its_run_json_is_not_taken_for_an_empty_one(workdir):
    recipe, _ = interrupted(workdir)
    (workdir / "run/run.json").unlink()
    for resume in (False, True):
        with pytest.raises(InputError, match=r"holds a run without its run\.json"):
            train(recipe, 6, "run", resume=resume)


def test_a_run_that_begins_while_another_does_is_refused(workdir, monkeypatch):
    """Both find an empty folder; the slower one must not go on with the faster one's run."""
    recipe, real = load_recipe("tiny.toml"), training.Trainer

    def slow(*arguments):
        monkeypatch.setattr(training, "Trainer", real)
        train(recipe, 0, "run")
        return real(*arguments)

    monkeypatch.setattr(training, "Trainer", slow)
    with pytest.raises(InputError, match="another process has begun a run here"):
        train(recipe, 7, "run")


def test_a_run_killed_before_its_result_ends_with_the_same_result(workdir, monkeypatch):
    """Its last checkpoint is there: nothing is left to compute, and all is left to tell."""

    def killed(*_):
        raise KeyboardInterrupt

    recipe = load_recipe("tiny.toml", ["train.log_every=5", "train.eval_every=5"])
    whole = train(recipe, 5, "whole")
    with monkeypatch.context() as patched:
        patched.setattr(training._Session, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, 5, "run")
    assert RunFolder("run").result() is None
    resumed = train(recipe, 5, "run", resume=True)
    assert resumed["train_loss"] is not None
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}


def test_a_resume_that_is_overtaken_by_another_leaves_its_result(workdir, monkeypatch):
    """Both find an unfinished run; the slower one must tell the faster one's result, not write another."""
    recipe, real, said = interrupted(workdir)[0], training.Trainer, []

    def slow(*arguments):
        monkeypatch.setattr(training, "Trainer", real)
        train(recipe, 5, "run", resume=True)
        return real(*arguments)

    monkeypatch.setattr(training, "Trainer", slow)
    result = train(recipe, 5, "run", resume=True, say=said.append)
    assert said == ["run: already finished, by another process meanwhile"]
    assert result == RunFolder("run").result()
    assert result["train_loss"] is not None


# -- which checkpoints stay ------------------------------------------------------------------------------------------


def evaluations(monkeypatch, values):
    """The validation losses of the next run, one evaluation after the other."""
    given = iter(values)
    monkeypatch.setattr(Trainer, "evaluate", lambda self: next(given))


def steps_saved(folder):
    return [checkpoints.step_of(path) for path in reversed(checkpoints.checkpoints(RunFolder(folder).checkpoints))]


def test_the_best_checkpoint_stays_and_can_be_chosen(workdir, monkeypatch):
    """Evaluated every second step, saved every fifth: the lowest loss, at step 4, is saved then and kept to the end."""
    recipe = load_recipe("tiny.toml", ["train.eval_every=2", "train.checkpoint_every=5", "train.keep_best=true"])
    evaluations(monkeypatch, [5.0, 3.0, 4.0, 3.0, 3.5, 9.0])
    train(recipe, 0, "run")
    assert steps_saved("run") == [4, 10, 12]
    assert checkpoints.chosen(RunFolder("run"), "best").name == "step-00000004"
    assert checkpoints.chosen(RunFolder("run"), "last").name == "step-00000012"
    assert checkpoints.chosen(RunFolder("run"), 10).name == "step-00000010"


def test_the_best_is_known_to_a_resumed_run(workdir, monkeypatch):
    recipe = load_recipe("tiny.toml", ["train.eval_every=2", "train.checkpoint_every=2", "train.keep_best=true"])
    evaluations(monkeypatch, [5.0, 3.0, 4.0, 4.0, 3.5, 9.0])
    with pytest.raises(Interrupted):
        train(recipe, 0, "run", on_progress=stop_after(7))
    train(recipe, 0, "run", resume=True)
    assert steps_saved("run") == [4, 10, 12]


def test_every_nth_checkpoint_stays(workdir):
    recipe = load_recipe("tiny.toml", ["train.checkpoint_every=5", "train.keep_every=3"])
    train(recipe, 0, "run")
    assert steps_saved("run") == [3, 6, 9, 10, 12]  # every third, and the newest two
    train(load_recipe("tiny.toml"), 0, "other")
    assert RunFolder("run").result()["weights_sha256"] == RunFolder("other").result()["weights_sha256"]


def test_keeping_checkpoints_is_no_part_of_a_recipe_that_does_not_ask_for_it(workdir):
    assert not {"keep_best", "keep_every"} & load_recipe("tiny.toml").canonical()["train"].keys()
    scaled = load_recipe("tiny.toml", ["train.keep_every=6", "scale_steps=0.5"])
    assert (scaled.train.steps, scaled.train.keep_every) == (6, 3)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("best", r"no checkpoint of step 4, the best \(validation loss 1.0000\): there are 9, 12; train with train.keep_best=true"),
        ("5", "no checkpoint of step 5: there are 9, 12$"),
        ("newest", "expected last, best or a step, got 'newest'; there are 9, 12"),
        ("9", r"step-00000009: damaged \(model.safetensors has 0 of"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_told(workdir, monkeypatch, which, message):
    evaluations(monkeypatch, [1.0, 2.0, 3.0])
    train(load_recipe("tiny.toml"), 0, "run")
    (workdir / "run/checkpoints/step-00000009/model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        checkpoints.chosen(RunFolder("run"), which)


def test_the_last_whole_checkpoint_is_chosen(workdir):
    train(load_recipe("tiny.toml"), 0, "run")
    (workdir / "run/checkpoints/step-00000012/model.safetensors").write_bytes(b"")
    assert checkpoints.chosen(RunFolder("run"), "last").name == "step-00000009"
    with pytest.raises(InputError, match="has no checkpoint"):
        checkpoints.chosen(RunFolder("nothing"), "last")
