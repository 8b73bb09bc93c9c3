"""Trackers get what metrics.jsonl gets, and whatever they do, the run ends as it would without them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from functools import partial

import pytest

from muonlab.errors import InputError, Interrupted
from muonlab.train import run, tracking
from muonlab.train.recipe import load_recipe
from muonlab.train.run_folder import RunFolder
from tests.unit.test_train import stop_after

train = partial(run.train, device="cpu", threads=1)


class Recorder:
    """A tracker that remembers; `do` maps a call's name to what happens in it. One for all sessions of a test."""

    def __init__(self, **do):
        self.do, self.sessions, self.calls, self.settings = do, [], [], None

    def __call__(self, run):
        self.sessions.append(run)
        return self

    def act(self, name):
        self.calls.append(name)
        self.do.get(name, lambda: None)()

    def start(self):
        self.act("start")

    def store_init_configuration(self, values):
        self.settings = values
        self.act("store_init_configuration")

    def log(self, values, step=None):
        self.act("log")
        self.calls[-1] = (step, values)

    def finish(self):
        self.act("finish")

    @property
    def rows(self):
        return [call for call in self.calls if isinstance(call, tuple)]


@pytest.fixture
def using(monkeypatch, workdir):
    """using(tracker) -> its name, and little patience."""
    monkeypatch.setattr(tracking, "PATIENCE", 0.2)
    monkeypatch.setattr(tracking, "_hung", False)

    def add(tracker, name="mine"):
        monkeypatch.setitem(tracking.TRACKERS, name, tracker)
        return name

    return add


def fail(error):
    def raising():
        raise error

    return raising


def hang():
    threading.Event().wait()


def session(name, steps=range(1, 13), before=0):
    """What a run's session says whose rows these are."""
    said, folder = [], RunFolder("run")
    folder.path.mkdir(exist_ok=True)
    with tracking.Tracking(folder, [name] if isinstance(name, str) else name, {}, before, said.append) as trackers:
        for step in steps:
            row = {"step": step, "train_loss": 1 / step}
            folder.append_row(row)
            trackers.log(row)
    return said


def expected(folder):
    """The rows of metrics.jsonl as trackers get them."""
    return [(row.pop("step"), row) for row in RunFolder(folder).rows()]


def test_a_tracker_gets_the_settings_and_every_row_and_changes_nothing(using):
    recipe, tracker = load_recipe("tiny.toml"), Recorder()
    tracked = train(recipe, 3, "tracked", trackers=[using(tracker)])
    assert tracker.rows == expected("tracked")
    assert [call for call in tracker.calls if isinstance(call, str)] == ["start", "store_init_configuration", "finish"]
    assert tracker.settings["optimizer.name"] == "normuon"
    assert tracker.settings["seed"] == 3
    assert all(isinstance(value, str | int | float | None) for value in tracker.settings.values())
    plain = train(recipe, 3, "plain")
    assert tracked["weights_sha256"] == plain["weights_sha256"]
    assert RunFolder("tracked").run()["id"] == RunFolder("plain").run()["id"]
    assert not tracking.hung()


@pytest.mark.parametrize("where", ["start", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_hangs_is_given_up_at_the_end(using, where):
    said = session(using(Recorder(**{where: hang})))
    lost = "all rows were taken, but it did not end" if where == "finish" else "12 of 12 rows were lost, which metrics.jsonl has"
    assert said == [f"tracker mine: {lost}: it has not answered for 0.2 s"]
    assert tracking.hung()


def test_a_slow_tracker_holds_up_the_end_of_a_run_for_a_bounded_time_with_its_result_written(using, monkeypatch):
    """It shows signs of life all the time."""
    monkeypatch.setattr(tracking, "PATIENCE", 10.0)
    monkeypatch.setattr(tracking, "ENDING", 1.5)
    over, said = threading.Event(), []

    def slow():
        while RunFolder("run").result() is None:
            over.wait(0.01)
        over.wait(0.5)

    tracker = Recorder(log=slow)
    train(load_recipe("tiny.toml"), 0, "run", trackers=[using(tracker, "slow")], say=said.append)
    lost = int(said[0].split()[2])
    assert said == [f"tracker slow: {lost} of 12 rows were lost, which metrics.jsonl has: 1.5 s were not enough at the run's end"]
    assert lost >= 8
    assert tracking.hung()
    over.set()
    for thread in [thread for thread in threading.enumerate() if thread.name == "tracker slow"]:
        thread.join()
    assert len(tracker.rows) <= 12 - lost + 1, "but for the one that was under way, what is said to be lost is not sent later"


def test_a_run_with_a_tracker_that_hangs_ends_as_without(using):
    said = []
    result = train(load_recipe("tiny.toml"), 0, "run", trackers=[using(Recorder(log=hang))], say=said.append)
    assert result["status"] == "finished"
    assert said == ["tracker mine: 12 of 12 rows were lost, which metrics.jsonl has: it has not answered for 0.2 s"]


@pytest.mark.parametrize("error", [OSError("disk full"), SystemExit(1), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_what_a_failing_tracker_lost_is_said_once(using, where, error):
    said = session(using(Recorder(**{where: fail(error)})))
    reason = f"{type(error).__name__}: {error}"
    assert (
        said
        == {
            "start": [f"tracker mine: cannot start: {reason}; the run goes on without it"],
            "log": [f"tracker mine: 12 of 12 rows were lost, which metrics.jsonl has: {reason}"],
            "finish": [f"tracker mine: all rows were taken, but it did not end: {reason}"],
        }[where]
    )
    assert not tracking.hung()


def test_a_tracker_that_fails_once_loses_one_row(using):
    failures = [OSError("no network")]
    tracker = Recorder(log=lambda: fail(failures.pop())() if failures else None)
    said = session(using(tracker))
    assert said == ["tracker mine: 1 of 12 rows were lost, which metrics.jsonl has: OSError: no network"]
    assert tracker.rows == expected("run")[1:]


def test_rows_wait_for_a_slow_tracker_up_to_a_bound(using, monkeypatch):
    monkeypatch.setattr(tracking, "CAPACITY", 2)
    gate = threading.Event()
    tracker = Recorder(log=gate.wait)

    def steps():
        yield from range(1, 13)
        gate.set()

    said = session(using(tracker), steps())
    kept = len(tracker.rows)
    assert 2 <= kept <= 3, "two that wait, and one that it may have begun with"
    too_slow = "it was too slow: 2 rows were waiting"
    assert said == [f"tracker mine: {12 - kept} of 12 rows were lost, which metrics.jsonl has: {too_slow}"]
    assert tracker.calls[-1] == "finish"


def test_one_tracker_that_hangs_takes_nothing_from_another(using, monkeypatch):
    good = Recorder()
    monkeypatch.setattr(tracking, "PATIENCE", 1.0)  # enough for the good one on a busy machine
    session([using(Recorder(start=hang), "bad"), using(good, "good")])
    assert good.rows == expected("run")
    assert good.calls[-1] == "finish"


def test_a_resume_goes_on_with_the_same_tracked_run(using):
    tracker, recipe = Recorder(), load_recipe("tiny.toml")
    with pytest.raises(Interrupted):
        train(recipe, 0, "run", trackers=[using(tracker)], on_progress=stop_after(5))
    assert tracker.calls[-1] == "finish"
    train(recipe, 0, "run", resume=True)
    first, second = tracker.sessions
    assert first.id == second.id
    assert (first.first_step, second.first_step) == (1, 6)
    assert tracker.rows == expected("run")
    other = Recorder()
    train(recipe, 0, "other", trackers=[using(other)])
    assert other.sessions[0].id != first.id


def test_a_tracker_that_comes_with_a_resume_gets_the_rows_so_far(using):
    early, late, recipe = Recorder(), Recorder(), load_recipe("tiny.toml")
    with pytest.raises(Interrupted):
        train(recipe, 0, "run", trackers=[using(early, "early")], on_progress=stop_after(5))
    train(recipe, 0, "run", trackers=[using(late, "late")], resume=True)
    assert late.rows == early.rows == expected("run")
    assert [run.first_step for run in late.sessions] == [1]


def test_a_damaged_tracking_file_costs_the_trackers_and_not_the_run(using):
    tracker = Recorder()
    session(using(tracker), range(1, 6))
    path = RunFolder("run").path / "tracking.json"
    path.write_text(path.read_text().replace("mine", "mein"))
    assert session([], range(6, 9), before=5) == ["run/tracking.json: damaged (its checksum does not fit); its trackers begin anew"]
    assert len(tracker.sessions) == 1


def test_a_row_of_a_diverged_run_has_only_numbers(using):
    tracker = Recorder()
    train(load_recipe("tiny.toml", ["optimizer.weight_decay=-1e38"]), 0, "run", trackers=[using(tracker)])
    step, values = tracker.rows[-1]
    assert step == RunFolder("run").rows()[-1]["step"]
    assert values["diverged"] is True
    assert "train_loss" not in values


def test_trackers_that_are_not_there_are_refused_before_anything_is_written(workdir, muonlab, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    code, _, err = muonlab("train", "tiny.toml", "--out", "run", "--track", "wandb", "--track", "tensorbord")
    assert code == 2
    assert "--track wandb: needs the wandb package: pip install 'muonlab[trackers]'" in err
    assert "--track: unknown tracker 'tensorbord'; did you mean 'tensorboard'?" in err
    assert not (workdir / "run").exists()


@pytest.mark.slow
def test_a_process_ends_though_its_tracker_would_wait_for_ever_at_exit(workdir):
    """As a library does that uploads in a thread of its own: neither the thread nor its exit handler ends."""
    program = """
import atexit, sys, threading
from muonlab.cli import main
from muonlab.train import tracking
class Hangs:
    def __init__(self, run): pass
    def start(self):
        threading.Thread(target=threading.Event().wait).start()
        atexit.register(threading.Event().wait)
        threading.Event().wait()
tracking.TRACKERS["hangs"], tracking.PATIENCE = Hangs, 0.2
sys.argv = ["muonlab", "train", "tiny.toml", "--out", "run", "--device", "cpu", "--threads", "1", "--track", "hangs", "--json"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "finished"
    assert "tracker hangs: 12 of 12 rows were lost" in done.stderr


def killed_and_resumed(recipe, name):
    """A run that ends at step 8 as by a kill (its checkpoint is of step 6), and its second session."""

    def die(progress):
        if progress.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, 0, "run", trackers=[name], on_progress=die)
    train(recipe, 0, "run", resume=True)


def test_tensorboard_has_every_row_once_also_after_a_crash(workdir):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed_and_resumed(load_recipe("tiny.toml"), "tensorboard")
    events = EventAccumulator("run/tensorboard", size_guidance={"scalars": 0})
    events.Reload()
    rows = expected("run")
    assert len(rows) == 12
    for key in ("train_loss", "val_loss", "lr", "tokens"):
        found = [(event.step, event.value) for event in events.Scalars(key)]
        assert found == [(step, pytest.approx(row[key], rel=1e-6)) for step, row in rows if key in row]
    assert "optimizer.name|normuon" in events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()


def test_accelerates_own_trackers_fit(using):
    """The shape is theirs."""
    pytest.importorskip("tensorboard")
    theirs = pytest.importorskip("accelerate.tracking")
    from accelerate import PartialState
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    PartialState(cpu=True)
    name, said = using(lambda run: theirs.TensorBoardTracker("theirs", run.folder)), []
    train(load_recipe("tiny.toml"), 0, "run", trackers=[name], say=said.append)
    assert said == []
    events = EventAccumulator("run/theirs")
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == list(range(1, 13))


def test_wandb_offline_keeps_one_run_over_sessions(workdir, monkeypatch):
    pytest.importorskip("wandb").teardown()  # it reads the environment once
    monkeypatch.setenv("WANDB_MODE", "offline")
    killed_and_resumed(load_recipe("tiny.toml"), "wandb")
    run_id = json.loads((workdir / "run/tracking.json").read_text())["id"]
    files = sorted((workdir / "run/wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert files
    assert sum(path.stat().st_size for path in files) > 1000
    assert b"val_loss" in files[-1].read_bytes()


def test_wandb_without_a_login_asks_for_nothing(workdir, monkeypatch, tmp_path):
    pytest.importorskip("wandb").teardown()
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    said = []
    assert train(load_recipe("tiny.toml"), 0, "run", trackers=["wandb"], say=said.append)["status"] == "finished"
    assert len(said) == 1
    assert "tracker wandb: cannot start: RuntimeError: not logged in: run `wandb login`, or set WANDB_MODE=offline" in said[0]


def test_trackio_keeps_one_run_over_sessions_and_prints_nothing(workdir, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(workdir / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    killed_and_resumed(load_recipe("tiny.toml"), "trackio")
    (name,) = SQLiteStorage.get_runs("muonlab")
    logged = {entry["step"]: entry for entry in SQLiteStorage.get_logs("muonlab", name)}
    for step, row in expected("run"):
        assert logged[step]["train_loss"] == row["train_loss"]
    assert capsys.readouterr().out == ""


def test_unknown_names_in_a_call_are_refused(workdir):
    with pytest.raises(InputError, match="unknown tracker 'x'"):
        train(load_recipe("tiny.toml"), 0, "run", trackers=["x"])
