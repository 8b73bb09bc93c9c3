"""benchmarks/gpu.py, the pack for a GPU: it runs on a CPU with tiny sizes, and a part that goes wrong costs its own share only."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from muonlab.lab.plan import machine
from muonlab.lab.plan.loading import load_experiment
from muonlab.lab.plan.machine import GPU_PROCESS, GPU_RUNS, GPU_SHARE, needed_memory, runs_on_a_gpu
from muonlab.train.recipe import Recipe
from muonlab.train.trainer import Machine

PACK = Path(__file__).parents[2] / "benchmarks/gpu.py"
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
FINE = "import sys, json; open(sys.argv[2], 'w').write(json.dumps({'status': 'ok', 'headline': 'all is well'}))"
GIB = 1 << 30


def pack(out, *arguments, parts=None, **environment):
    command = [sys.executable, str(PACK), "--out", str(out), *map(str, arguments)]
    environment = ENVIRONMENT | environment | ({} if parts is None else {"MUONLAB_GPU_PARTS": str(parts)})
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=out.parent, timeout=900)


def figures(out, part):
    return json.loads((out / f"{part}.json").read_text())


@pytest.fixture
def parts(tmp_path):
    """A folder of parts that are all fine, for a test to spoil one."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("correct", "step", "train", "run", "sweep", "decode"):
        (folder / f"{name}.py").write_text(FINE)
    return folder


@pytest.mark.slow
def test_the_pack_runs_from_end_to_end_on_a_cpu(tmp_path):
    done = pack(tmp_path / "out", "--tiny", "--device", "cpu", "--minutes", "14")
    logs = "\n".join(path.read_text() for path in (tmp_path / "out").glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    for part in ("correct", "step", "train", "run", "sweep", "decode"):
        found = figures(tmp_path / "out", part)
        assert found["status"] == "ok", (part, found)
        assert {"date", "hardware", "driver", "torch", "triton", "python"} <= found.keys()
        assert found["cases"]
        assert found["headline"] in done.stdout
    assert figures(tmp_path / "out", "correct")["cases"]["pytest"]["passed"] > 0
    assert figures(tmp_path / "out", "sweep")["fastest"] in (1, 2)
    resumed = figures(tmp_path / "out", "run")["cases"]["killed and resumed"]
    assert resumed.get("equal", True) is True  # a run that ended before it could be killed says so, and is not compared


def test_a_part_that_crashes_costs_itself_only(parts, tmp_path):
    (parts / "step.py").write_text("import os; os.abort()")
    (parts / "train.py").write_text("raise SystemExit('no')")
    done = pack(tmp_path / "out", "--tiny", parts=parts)
    assert done.returncode == 1
    statuses = {part: figures(tmp_path / "out", part)["status"] for part in ("correct", "step", "train", "run", "sweep", "decode")}
    assert statuses == dict.fromkeys(("correct", "run", "sweep", "decode"), "ok") | {"step": "failed", "train": "failed"}
    assert "exit code -6" in figures(tmp_path / "out", "step")["why"]


@pytest.mark.slow
def test_a_part_that_hangs_is_killed_with_its_children_and_keeps_its_figures(parts, tmp_path):
    (parts / "train.py").write_text(
        "import json, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\n"
        "open(sys.argv[2], 'w').write(json.dumps({'status': 'running', 'headline': 'half of it', 'child': child.pid}))\n"
        "time.sleep(1000)\n"
    )
    done = pack(tmp_path / "out", "--tiny", "--only", "train", "decode", "--minutes", "0.2", parts=parts)
    assert done.returncode == 1
    found = figures(tmp_path / "out", "train")
    assert (found["status"], found["headline"]) == ("timed out", "half of it")
    assert "half of it" in done.stdout
    assert figures(tmp_path / "out", "decode")["status"] == "ok"
    assert is_gone(found["child"])


def is_gone(pid):
    """Killed processes whose parent is dead are reaped by whoever inherits them, some time."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_ctrl_c_kills_the_part_and_prints_the_table(parts, tmp_path):
    (parts / "step.py").write_text(
        "import os, sys, time; open(sys.argv[2] + '.pid', 'w').write(str(os.getpid())); time.sleep(1000)"
    )
    command = [sys.executable, str(PACK), "--out", str(tmp_path / "out"), "--tiny"]
    process = subprocess.Popen(command, env=ENVIRONMENT | {"MUONLAB_GPU_PARTS": str(parts)}, stdout=subprocess.PIPE, text=True)
    pid = tmp_path / "out/step.json.pid"
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert [line.split()[:2] for line in out.splitlines()[-6:]] == [
        ["correct", "ok"],
        *([part, "stopped"] for part in ("step", "train", "run", "sweep", "decode")),
    ]
    assert is_gone(int(pid.read_text()))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "speed"], "unknown part speed; expected some of correct, step, train, run, sweep, decode"),
        (["--out", "a_file"], "a_file is a file"),
        (["--out", "a_file/below"], "a_file is a file"),
        (["--minutes", "0"], "--minutes: expected more than 0"),
        (["--minutes", "nan"], "--minutes: expected more than 0"),
        (["--device", "cpu"], "add --tiny"),
    ],
)
def test_bad_input_is_refused(tmp_path, arguments, says):
    (tmp_path / "a_file").touch()
    done = pack(tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


def test_dry_lists_parts_and_times_and_runs_nothing(tmp_path):
    done = pack(tmp_path / "out", "--dry", "--minutes", "10")
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["correct", "step", "train", "run", "sweep", "decode"]
    assert sum(int(row[1]) for row in rows) == pytest.approx(600, abs=6)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_gpu_needs_no_install(tmp_path):
    shutil.copy(PACK.parents[1] / "Makefile", tmp_path)

    def printed(*arguments):
        command = ["make", "-n", "gpu", "PYTHON=py", *arguments]
        outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        done = subprocess.run(command, cwd=tmp_path, env=outside, capture_output=True, text=True, check=True)
        return " ".join(done.stdout.replace("\\", "").split())

    assert printed() == "py benchmarks/gpu.py --out gpu-results --minutes 8"
    asked = printed("OUT=here", "MINUTES=4", "PARTS=train step", "TINY=1")
    assert asked == "py benchmarks/gpu.py --out here --minutes 4 --only train step --tiny"
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch()
    assert printed().startswith(".venv/bin/python benchmarks/gpu.py")


@pytest.mark.slow
def test_without_packages_the_parts_that_need_them_say_so(tmp_path):
    """A sitecustomize on the path stands for a Python that has torch and numpy alone."""
    blocked = ("pydantic", "safetensors", "pyarrow", "tomli_w", "cyclopts", "pytest", "scipy")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {blocked}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
    )
    out = tmp_path / "out"
    done = pack(out, "--tiny", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    statuses = {part: figures(out, part)["status"] for part in ("correct", "step", "train", "run", "sweep", "decode")}
    assert statuses == dict.fromkeys(("correct", "train", "run", "sweep", "decode"), "not run") | {"step": "ok"}
    assert figures(out, "run")["why"] == "needs pydantic, safetensors, tomli_w, cyclopts"
    assert "needs pytest" in done.stdout


def test_runs_at_once_on_a_gpu_are_as_many_as_memory_cores_and_runs_allow():
    free = 80 * GIB
    assert runs_on_a_gpu(free, 2 * GIB, cores=16, runs=9) == GPU_RUNS
    assert runs_on_a_gpu(free, 2 * GIB, cores=3, runs=9) == 3
    assert runs_on_a_gpu(free, 2 * GIB, cores=16, runs=2) == 2
    assert runs_on_a_gpu(free, int(GPU_SHARE * free / 3), cores=16, runs=9) == 3
    assert runs_on_a_gpu(free, 70 * GIB, cores=16, runs=9) == 1
    assert runs_on_a_gpu(free, None, cores=16, runs=9) == 1


def test_a_sweeps_memory_is_that_of_its_largest_recipe():
    def recipe(width, **train):
        model = {"layers": 1, "width": width, "head_width": 16, "context": 32}
        return Recipe.model_validate({"model": model, "train": {"batch": 4, "eval_tokens": 64, **train}})

    machine = Machine("cpu", "float32", 1, False)
    small, large = needed_memory([recipe(32)], machine), needed_memory([recipe(64)], machine)
    assert small is not None
    assert large is not None
    assert GPU_PROCESS < small < large
    assert needed_memory([recipe(32), recipe(64), recipe(32)], machine) == large
    assert needed_memory([recipe(64, accumulate=4)], machine) < large
    assert needed_memory([recipe(32), recipe(64, accumulate="auto")], machine) is None


def test_a_sweep_on_a_gpu_runs_several_at_once_by_default(monkeypatch):
    experiment = load_experiment(PACK.parents[1] / "experiments/quickstart.toml")
    monkeypatch.setattr(machine, "choose_machine", lambda *_, **__: Machine("cuda", "float32", 1, False))
    monkeypatch.setattr(machine, "needed_memory", lambda *_: 2 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8 * GIB, 80 * GIB))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert machine.workers_and_machine(experiment, None, None)[0] == 3
    assert machine.workers_and_machine(experiment, 8, None) == (8, {"device": "cuda", "bf16_fast": False, "threads": 2})
