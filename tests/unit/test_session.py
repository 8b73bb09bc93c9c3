"""What can be told of a run from outside, whatever became of its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from muonlab.errors import InputError, Interrupted, RunError
from muonlab.train.recipe import load_recipe
from muonlab.train.run import train
from muonlab.train.run_folder import Locked, RunFolder, format_row, write_json
from muonlab.train.session import session, standing, stop

RUN = {"id": "0" * 12, "seed": 0, "recipe": {"train": {"steps": 100}}}


@pytest.fixture
def folder(tmp_path):
    """A run of 100 steps with nothing done."""
    made = RunFolder(tmp_path / "run")
    made.path.mkdir()
    write_json(made.run_file, RUN)
    return made


def write_rows(folder, steps, **values):
    for step in steps:
        folder.append_row({"step": step, "tokens": step * 10, "seconds": step / 2, "train_loss": 1 / step, **values})


def test_a_run_is_running_while_its_lock_is_held_and_no_longer(folder):
    """The number of a process, even of a living one, says nothing."""
    with folder.lock(), session(folder) as begin:
        begin(0)
        assert standing(folder.path).state == "running"
        assert standing(folder.path).pid == os.getpid()
    write_json(folder.session_file, {"pid": os.getpid(), "began": "2026-01-01T00:00:00+00:00", "step": 0, "status": "running"})
    now = standing(folder.path)
    assert (now.state, now.pid, now.reason) == ("crashed", None, "its process was killed, or its machine went down")


def leave_by(error, folder):
    with folder.lock(), session(folder) as begin:
        begin(3)
        raise error


def test_a_killed_process_is_told_from_one_that_works(folder):
    program = (
        "import sys, time; from muonlab.train.run_folder import RunFolder; from muonlab.train.session import session\n"
        "folder = RunFolder(sys.argv[1])\n"
        "with folder.lock(), session(folder) as begin: begin(0); print('begun', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, folder.path], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    assert (standing(folder.path).state, standing(folder.path).pid) == ("running", process.pid)
    process.kill()
    process.communicate()
    now = standing(folder.path)
    assert (now.state, now.pid, now.reason) == ("crashed", None, "its process was killed, or its machine went down")


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (Interrupted(signal.SIGTERM, "stopped by SIGTERM"), "stopped", "stopped by SIGTERM"),
        (RunError("no room"), "crashed", "no room"),
        (MemoryError("of the device"), "crashed", "MemoryError: of the device"),
    ],
)
def test_how_a_process_left_a_run_is_told(folder, error, state, reason):
    with pytest.raises(type(error)):
        leave_by(error, folder)
    now = standing(folder.path)
    assert (now.state, now.reason) == (state, reason)


def test_a_process_that_finds_bad_input_changes_nothing(folder):
    """What the one before it left is still told."""
    with pytest.raises(RunError):
        leave_by(RunError("no room"), folder)
    with pytest.raises(InputError), folder.lock(), session(folder):
        raise InputError("the corpus has changed")
    assert standing(folder.path).reason == "no room"


def test_the_end_of_a_run_is_its_result(folder):
    with folder.lock(), session(folder) as begin:
        begin(0)
        write_json(folder.result_file, {"id": RUN["id"], "status": "diverged", "steps": 7})
        assert standing(folder.path).state == "diverged", "it holds the lock for a moment more"
    assert (standing(folder.path).state, standing(folder.path).step) == ("diverged", 7)
    assert not folder.session_file.exists()


def test_speed_and_time_left_are_those_of_now(folder):
    """Speed: of the last rows, in seconds of training. Time left: by the clock since the process began, evaluations included."""
    write_rows(folder, range(1, 21))
    with folder.lock(), session(folder) as begin:
        begin(20)
        assert standing(folder.path).seconds_left is None, "nothing done yet"
        for step in range(21, 41):
            folder.append_row({"step": step, "tokens": step * 10, "seconds": 10 + (step - 20) * 4})
        now = time.time()
        os.utime(folder.metrics_file, (now, now + 100))
        found = standing(folder.path)
    assert found.tokens_per_second == pytest.approx(10 / 4)
    assert found.seconds_left == pytest.approx(100 / 20 * 60 + 100, abs=2)  # 5 s a step; the file's time lies 100 s ahead


def test_the_last_evaluation_is_found_however_long_ago(folder):
    write_rows(folder, [1], val_loss=3.5)
    write_rows(folder, range(2, 2000))
    assert len(folder.recent_rows()) < 1000
    assert folder.recent_rows() == folder.rows()[-len(folder.recent_rows()) :]
    found = standing(folder.path)
    assert (found.step, found.steps, found.val_loss, found.train_loss) == (1999, 100, 3.5, 1 / 1999)


def test_a_step_that_was_saved_but_not_logged_counts(folder):
    write_rows(folder, [10, 20])
    (folder.checkpoints / "step-00000027").mkdir(parents=True)
    assert standing(folder.path).step == 27


def test_other_programs_runs_have_no_number_of_steps(folder):
    write_json(folder.run_file, {**RUN, "source": "log", "recipe": {"train": "long"}})
    folder.append_row({"step": 5, "val_loss": 2.0, "seconds": 1.0})
    found = standing(folder.path)
    assert (found.step, found.steps, found.tokens_per_second, found.val_loss) == (5, None, None, 2.0)


def test_damage_is_a_state_too(folder):
    folder.run_file.write_text("{}")
    assert standing(folder.path).state == "damaged"
    assert "run.json: damaged" in standing(folder.path).reason


def test_looking_at_a_run_never_keeps_it_from_starting(folder):
    """Others look at the lock without a pause while it is taken a thousand times."""
    done = threading.Event()

    def look():
        while not done.is_set():
            folder.held()

    with folder.lock():
        assert folder.held()
    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(1000):
            with folder.lock():
                pass
    finally:
        done.set()
        for looker in lookers:
            looker.join()
    with folder.lock(), pytest.raises(Locked), folder.lock():
        pass
    assert not folder.held()


def test_stop_reaches_a_run_of_whatever_process(workdir):
    recipe = load_recipe("tiny.toml", ["train.steps=100000"])
    asked = []

    def ask():
        while not RunFolder("run").rows():
            pass
        asked.append(stop("run", timeout=60))

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(Interrupted, match=r"stopped by `muonlab stop` after step \d+, saved; .* `muonlab resume run`") as caught:
        train(recipe, 0, "run", device="cpu", threads=1)
    asking.join()
    assert asked == [True]
    assert caught.value.signum == signal.SIGTERM
    assert not RunFolder("run").stop_file.exists()
    assert standing("run").state == "stopped"
    assert standing("run").step == RunFolder("run").rows()[-1]["step"] >= 1
    assert stop("run", timeout=1) is False


def test_a_note_that_nobody_answered_is_for_no_later_process(workdir):
    RunFolder("run").path.mkdir()
    RunFolder("run").stop_file.touch()
    assert train(load_recipe("tiny.toml", ["train.steps=3"]), 0, "run", device="cpu", threads=1)["status"] == "finished"


def test_a_run_that_does_not_stop_in_time_is_told(folder):
    with folder.lock(), pytest.raises(RunError, match=r"run: still running after 0.2 s: it stops after its present step"):
        stop(folder.path, timeout=0.2)
    assert folder.stop_file.exists(), "it is asked all the same"


def test_cut_rows_at_the_edge_of_what_is_read_are_left_out(folder):
    folder.append_row({"step": 1})
    line = format_row({"step": 2})
    folder.append_row({"step": 2})
    assert [row["step"] for row in folder.recent_rows(len(line) + 3)] == [2]
