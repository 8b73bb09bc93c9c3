"""Real processes and real signals."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muonlab.train.run_folder import RunFolder

# Long enough that a signal sent at step 10 arrives before the end, on fast and on loaded machines.
STEPS = 300
ARGUMENTS = ["train", "tiny.toml", "--set", f"train.steps={STEPS}", "--threads", "1", "--device", "cpu"]


def start(*arguments):
    command = [sys.executable, "-m", "muonlab", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(*arguments):
    process = start(*arguments)
    out, err = process.communicate()
    return process.returncode, out, err


def wait_for_step(folder, step):
    """Returns once the run's metrics show this step."""
    while True:
        rows = RunFolder(folder).rows()
        if rows and rows[-1]["step"] >= step:
            return
        time.sleep(0.002)


def workers_of(process):
    """Process ids of a sweep's workers."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not Path("/proc/self/task").exists():
        process.kill()
        pytest.skip("needs Linux's /proc to find the workers")
    found = []
    for child in children.read_text().split() if children.exists() else []:
        try:
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                found.append(int(child))
        except OSError:
            continue  # it has ended meanwhile
    return found


def evidence(folder):
    rows = [(row["step"], row.get("train_loss"), row.get("val_loss")) for row in RunFolder(folder).rows()]
    return json.loads((Path(folder) / "result.json").read_text())["weights_sha256"], rows


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_goes_on(workdir, signum, code):
    whole = finish(*ARGUMENTS, "--out", "whole")
    assert whole[0] == 0, whole[2]
    process = start(*ARGUMENTS, "--out", "parts")
    wait_for_step("parts", 10)
    os.killpg(process.pid, signum)
    _, err = process.communicate()
    assert process.returncode == code
    assert "saved; the same command with --resume goes on" in err
    assert "Traceback" not in err
    stopped_at = RunFolder("parts").rows()[-1]["step"]
    assert 10 <= stopped_at < STEPS
    resumed = finish(*ARGUMENTS, "--out", "parts", "--resume")
    assert resumed[0] == 0, resumed[2]
    assert f"goes on after step {stopped_at}" in resumed[2]
    assert evidence("parts") == evidence("whole")


def test_killed_runs_go_on_exactly(workdir):
    """SIGKILL at random moments; benchmarks/kill_test.py does it 20 times."""
    assert finish(*ARGUMENTS, "--out", "whole")[0] == 0
    moments = random.Random(1)
    for i in range(3):
        process = start(*ARGUMENTS, "--out", f"killed{i}")
        wait_for_step(f"killed{i}", moments.randrange(1, 50))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        code, _, err = finish(*ARGUMENTS, "--out", f"killed{i}", "--resume")
        assert code == 0, err
        assert evidence(f"killed{i}") == evidence("whole")


def test_an_interrupted_sweep_saves_all_its_runs_and_goes_on(workdir):
    (workdir / "sweep.toml").write_text(
        f'question = "?"\nbase = "tiny.toml"\nseeds = [1, 2]\nset.train.steps = {STEPS}\n[arms.muon]\noptimizer.name = "muon"\n'
    )
    command = ["sweep", "sweep.toml", "--workers", "2", "--device", "cpu"]
    process = start(*command)
    runs = Path("runs/sweep/runs")
    while len(list(runs.glob("*/metrics.jsonl"))) < 2:
        time.sleep(0.01)
    for folder in runs.iterdir():
        wait_for_step(folder, 3)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "all runs are saved" in err
    assert "Traceback" not in err
    saved = {folder.name: RunFolder(folder).rows()[-1]["step"] for folder in runs.iterdir()}
    assert min(saved.values()) >= 3
    assert min(saved.values()) < STEPS  # the run that began last; the other one may have ended by then
    code, _, err = finish(*command)
    assert code == 0, err
    for folder in runs.iterdir():
        assert RunFolder(folder).result()["steps"] == STEPS


def test_a_killed_worker_costs_nothing(workdir):
    """Its run is tried again in the same sweep."""
    (workdir / "sweep.toml").write_text(
        'question = "?"\nbase = "tiny.toml"\nseeds = [1, 2, 3]\nset.train.steps = 60\n[arms.muon]\noptimizer.name = "muon"\n'
    )
    process = start("sweep", "sweep.toml", "--workers", "1", "--device", "cpu")
    runs = Path("runs/sweep/runs")
    while not list(runs.glob("*/metrics.jsonl")):
        time.sleep(0.01)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "its process ended with exit code -9; it is tried again" in err
    assert len(list(runs.glob("*/result.json"))) == 3


def test_a_run_whose_process_is_killed_each_time_is_given_up(workdir):
    (workdir / "sweep.toml").write_text('question = "?"\nbase = "tiny.toml"\nseeds = [1]\nset.train.steps = 20\n[arms.muon]\n')
    process = start("sweep", "sweep.toml", "--workers", "1", "--device", "cpu")
    killed = set()
    while process.poll() is None:
        for worker in workers_of(process):
            if worker not in killed:
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)
        time.sleep(0.01)
    _, err = process.communicate()
    assert process.returncode == 1
    assert len(killed) == 3
    assert "exit code -9, 3 times in a row" in err
    assert "the same command tries these again" in err
    assert "Traceback" not in err
    code, _, _ = finish("sweep", "sweep.toml", "--workers", "1", "--device", "cpu")
    assert code == 0


def test_workers_leave_when_their_runner_is_killed_and_the_next_runner_waits_for_them(workdir):
    (workdir / "sweep.toml").write_text(
        'question = "?"\nbase = "tiny.toml"\nseeds = [1, 2]\nset.train.steps = 100\nset.train.log_every = 100\n[arms.muon]\n'
    )
    command = ["sweep", "sweep.toml", "--workers", "2", "--device", "cpu"]
    process = start(*command)
    runs = Path("runs/sweep/runs")
    while len(list(runs.glob("*/checkpoints/*"))) < 2:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    code, _, err = finish(*command)
    assert code == 0, err
    assert "another process" not in err
    assert len(list(runs.glob("*/result.json"))) == 2


def test_a_second_runner_is_refused_and_told_by_whom(workdir):
    (workdir / "sweep.toml").write_text('question = "?"\nbase = "tiny.toml"\nseeds = [1]\nset.train.steps = 300\n[arms.muon]\n')
    command = ["sweep", "sweep.toml", "--workers", "1", "--device", "cpu"]
    process = start(*command)
    while not list(Path("runs/sweep/runs").glob("*/metrics.jsonl")):
        time.sleep(0.01)
    code, _, err = finish(*command)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    assert code == 2
    assert f"another process (number {process.pid}) is working here" in err


def test_importing_the_optimizers_loads_torch_alone():
    code = (
        "import sys, torch; before = set(sys.modules); import muonlab.optim; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; print(sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['muonlab']"


def test_help_does_not_load_torch():
    code = "import sys; from muonlab.cli.console import run; run(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_reader_that_leaves_does_not_stop_the_work(workdir):
    """`muonlab train ... 2>&1 | head -1`: the line is read, the run goes on to its end."""
    command = f"{sys.executable} -m muonlab train tiny.toml --out x --device cpu 2>&1 | head -1"
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert RunFolder("x").result()["status"] == "finished"


@pytest.mark.slow
def test_a_sweep_whose_workers_and_runner_are_killed_loses_nothing(tmp_path):
    """benchmarks/kill_sweep.py kills 30 workers and 5 runners of 100 runs."""
    if not Path("/proc/self/task").exists():
        pytest.skip("needs Linux's /proc to find the workers")
    script = Path(__file__).parents[2] / "benchmarks/kill_sweep.py"
    few = ["--runs", "10", "--workers-killed", "3", "--runners-killed", "1", "--out", str(tmp_path / "figures.json")]
    done = subprocess.run([sys.executable, str(script), *few], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["workers_killed"], figures["runners_killed"]) == (3, 1)
