"""Long runs, with real processes: started, listed, tailed, stopped, resumed."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from muonlab.train.recipe import load_recipe
from muonlab.train.run import train
from muonlab.train.run_folder import RunFolder
from muonlab.train.session import standing

LONG = ["--set", "train.steps=300", "--set", "train.eval_every=50", "--set", "train.checkpoint_every=50"]
BACKGROUND = ["train", "tiny.toml", *LONG, "--threads", "1", "--device", "cpu", "--background"]


def wait_until(what):
    """Returns what `what` gives, once it is true."""
    while not (found := what()):
        time.sleep(0.01)
    return found


def reached(folder, step):
    return lambda: any(row["step"] >= step for row in RunFolder(folder).rows())


def evidence(folder):
    rows = [(row["step"], row.get("train_loss"), row.get("val_loss")) for row in RunFolder(folder).rows()]
    return RunFolder(folder).result()["weights_sha256"], rows


def listed(muonlab):
    (row,) = json.loads(muonlab("runs", "--json")[1])
    return row


@pytest.mark.slow
def test_a_run_in_the_background_is_listed_tailed_stopped_and_resumed_to_the_same_weights(workdir, muonlab):
    code, out, err = muonlab(*BACKGROUND, "--out", "runs/x", "--json")
    assert code == 0, err
    started = json.loads(out)
    assert (started["folder"], started["log"]) == ("runs/x", "runs/x/log.txt")
    wait_until(reached("runs/x", 10))
    row = listed(muonlab)
    assert (row["folder"], row["status"], row["pid"], row["steps"]) == ("runs/x", "running", started["pid"], 300)
    assert 10 <= row["step"] < 300
    assert row["tokens_per_second"] > 0
    assert row["seconds_left"] >= 0
    first, second = muonlab("logs", "runs/x")[1].splitlines()[:2]
    assert first == f"run {row['id']} in runs/x"
    assert second.endswith(f"process {started['pid']} trains runs/x")
    code, out, _ = muonlab("runs", "show", "runs/x")
    assert "running" in out

    code, out, err = muonlab("stop", "runs/x")
    assert code == 0, err
    stopped_at = int(re.fullmatch(r"runs/x: stopped after step (\d+)\n", out)[1])
    assert (listed(muonlab)["status"], RunFolder("runs/x").saved_steps()[-1]) == ("stopped", stopped_at)
    assert "stopped by `muonlab stop`" in muonlab("logs", "runs/x", "--lines", 1)[1]
    assert muonlab("stop", "runs/x")[:2] == (0, f"runs/x: was not running: stopped after step {stopped_at}\n")

    assert muonlab("resume", "runs/x", "--background", "--json")[0] == 0
    out = muonlab("logs", "runs/x", "--follow")[1]  # until it ends
    assert "runs/x: finished after 300 steps" in out.splitlines()[-1]
    assert listed(muonlab)["status"] == "finished"
    train(load_recipe("tiny.toml", LONG[1::2]), 0, "whole", device="cpu", threads=1)
    assert evidence("runs/x") == evidence("whole")
    code, out, _ = muonlab("resume", "runs/x", "--json")
    assert (code, json.loads(out)["status"]) == (0, "finished")


def test_a_run_survives_its_terminal(workdir):
    """A shell on a terminal starts it; then the terminal is closed, which sends SIGHUP to all that belongs to it."""
    ours, theirs = pty.openpty()
    command = " ".join([sys.executable, "-m", "muonlab", *BACKGROUND, "--out", "runs/x"])
    shell = subprocess.Popen(
        ["sh", "-c", f"{command}; echo started; read never"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    seen = b""
    while b"started\r\n" not in seen:
        seen += os.read(ours, 1000)
    assert b"starting" not in seen, "a bar on a terminal that it is about to leave"
    os.close(ours)
    assert shell.wait() == -signal.SIGHUP, "the terminal's end reached what belongs to it"
    assert standing("runs/x").state == "running"
    step = standing("runs/x").step
    wait_until(reached("runs/x", step + 20))
    os.kill(standing("runs/x").pid, signal.SIGTERM)
    wait_until(lambda: standing("runs/x").state == "stopped")


def test_bad_input_is_said_where_the_command_was_typed_and_nothing_is_left(workdir):
    """Also what is wrong only once the data is seen."""
    before = sorted(workdir.rglob("*"))
    command = [sys.executable, "-m", "muonlab", *BACKGROUND, "--set", "train.eval_tokens=1000000", "--out", "runs/x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "train.eval_tokens: expected 32 (one window) to" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(workdir.rglob("*")) == before


def test_an_interrupted_start_leaves_no_process(workdir):
    """Ctrl-C while the command waits for the run to be ready."""
    command = [sys.executable, "-m", "muonlab", *BACKGROUND, "--out", "runs/x"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.parent.exists():
        process.kill()
        pytest.skip("needs Linux's /proc to find the child")
    (child,) = wait_until(lambda: children.read_text().split())
    os.kill(process.pid, signal.SIGINT)
    process.communicate()  # ends when nobody holds the pipe any more
    assert process.returncode == 130
    assert not Path(f"/proc/{child}").exists()
    assert not Path("runs/x").exists()


def gone(pid):
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.slow
def test_a_start_outlives_a_terminal_that_is_closed_while_it_prepares(workdir, monkeypatch):
    """The terminal goes before the run has said its first word, which it cannot print any more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(workdir / "cache"))
    Path("rows.jsonl").write_text("".join(json.dumps({"text": f"{i} and {i + 1} " * 9}) + "\n" for i in range(80)))
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "muonlab", "train", "tiny.toml", "--dataset", "rows.jsonl", "--out", "x", "--background"]
        os.execv(sys.executable, [*command, "--threads", "1", "--device", "cpu"])
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.parent.exists():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pytest.skip("needs Linux's /proc to find the child")
    (child,) = wait_until(lambda: children.read_text().split())
    wait_until(lambda: os.getsid(int(child)) == int(child))
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGHUP
    wait_until(lambda: gone(child))
    assert RunFolder("x").result()["status"] == "finished"
    assert f"process {child} trains x" in Path("x/log.txt").read_text()


def test_a_killed_start_is_told(workdir):
    from muonlab.errors import RunError
    from muonlab.train.background import start

    with pytest.raises(RunError, match=r"was killed \(signal 9\) before it could begin"):
        start(["sh", "-c", "kill -9 $$"])
    assert start(["sh", "-c", "exit 7"]) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume", "nothing"], "nothing: expected the folder of a run (with run.json); `muonlab runs` lists those in runs/"),
        (["stop", "nothing"], "nothing: expected the folder of a run"),
        (["logs", "nothing"], "nothing: expected the folder of a run"),
        (["runs", "show", "nothing"], "nothing: expected the folder of a run"),
        (["runs", "nothing"], "nothing: expected a folder with runs"),
        (["stop", "run", "--timeout", "0"], "--timeout: expected a number of seconds above 0, got 0"),
        (["logs", "run", "--lines", "0"], "--lines: expected a number of at least 1, got 0"),
        (["logs", "run"], "run/log.txt: there is none: only a run that is started with --background writes it"),
        (["stop", "logged"], "logged: is logged by a program of your own: stop that"),
        (["resume", "logged"], "logged: is logged by a program of your own: go on with it there"),
        (["resume", "strange"], "strange/run.json: model: expected a table, got 1"),
    ],
)
def test_what_cannot_be_done_to_a_run_is_said(workdir, muonlab, arguments, message):
    from muonlab.train.run_folder import write_json

    for name, run in (
        ("run", {"recipe": {"train": {"steps": 3}}}),
        ("logged", {"source": "log", "recipe": {}}),
        ("strange", {"recipe": {"model": 1}, "seed": 0}),
    ):
        Path(name).mkdir()
        write_json(Path(name) / "run.json", {"id": "0" * 12, "seed": 0, **run})
    code, out, err = muonlab(*arguments)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "runs/x/made.bin"), "muonlab: runs/x/made.bin: No space left on device"),
        (OSError(28, "No space left on device", b"made.bin"), "muonlab: made.bin: No space left on device"),
        (OSError(28, "No space left on device"), "muonlab: cannot write: No space left on device"),
        (OSError("strange"), "muonlab: cannot write: strange"),
    ],
)
def test_a_failure_of_the_system_names_the_file(muonlab, monkeypatch, error, said):
    from muonlab.cli import app as cli
    from muonlab.cli import console

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(type(cli.app), "__call__", fails)
    monkeypatch.setattr(console, "_silence", lambda: None)  # it is the test's own stdout
    code, out, err = muonlab("optimizers")
    assert (code, out, err.strip()) == (1, "", said)


def test_what_can_be_said_at_once_is_said_before_data_is_prepared(workdir, muonlab, monkeypatch):
    """Rows can take hours to prepare."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(workdir / "cache"))
    from muonlab.cli import training

    Path("rows.jsonl").write_text("".join(json.dumps({"text": f"{i} and {i + 1} " * 9}) + "\n" for i in range(80)))
    command = ["train", "tiny.toml", "--dataset", "rows.jsonl", "--threads", "1"]
    code, first, err = muonlab(*command, "--out", "done", "--json")
    assert code == 0, err
    monkeypatch.setattr(training, "_prepare", lambda config: pytest.fail("prepares data"))
    for arguments, message in (
        (["--out", "done"], "done: holds a finished run: go on with --resume"),
        (["--out", "done", "--seed", "1", "--resume"], "done: holds another run (seed: 0 there, 1 now)"),
        (["--out", "x", "--track", "tensorbord"], "--track: unknown tracker 'tensorbord'"),
        (["--out", "x", "--device", "tpu"], "--device: expected cpu, cuda or cuda:N, got 'tpu'"),
        (["--out", "x", "--vram-auto", "--memory-limit", "lots"], "--memory-limit: expected a size"),
        (["--out", "x", "--memory-limit", "4GB"], "--memory-limit: nothing asks for it here"),
    ):
        code, _, err = muonlab(*command, *arguments)
        assert (code, message in err) == (2, True), err
        assert not Path("x").exists()
    code, again, err = muonlab(*command, "--out", "done", "--resume", "--json")
    assert (code, json.loads(again)) == (0, json.loads(first)), "a finished run is told without its data"


@pytest.mark.parametrize("resume", [["--resume"], ["--resume", "auto"], ["--resume=auto"], ["--resume=AUTO"], ["--resume=true"]])
def test_resume_auto_begins_goes_on_and_reports(workdir, muonlab, resume):
    """One way, with or without the word: job scripts say `--resume auto` each time that they are started."""
    command = ["train", *resume, "tiny.toml", "--threads", "1", "--json", "--out", "x"]
    code, out, err = muonlab(*command)
    assert code == 0, err
    first = json.loads(out)
    (Path("x") / "result.json").unlink()
    code, out, err = muonlab(*command)
    assert "goes on after step 12" in err
    assert json.loads(out)["weights_sha256"] == first["weights_sha256"]
    code, out, err = muonlab(*command)
    assert (code, json.loads(out)) == (0, json.loads(out))
    assert "x: already finished" in err
