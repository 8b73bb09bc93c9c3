"""What several tests share: a tiny recipe on a text file, and the command line in this process."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # here and in every process that a test starts; before torch is imported

import random
import signal
from pathlib import Path

import pytest
import torch

from muonlab.cli import console

TINY = """
[model]
layers = 2
width = 32
head_width = 16
context = 32

[data]
source = "text"
files = ["corpus.txt"]

[optimizer]
name = "normuon"
lr = 0.02
aux_lr = 0.01

[train]
steps = 12
batch = 4
precision = "float32"
eval_every = 4
eval_tokens = 128
log_every = 1
checkpoint_every = 3
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", help="where the tests marked cuda run: cpu or cuda (which GPU: CUDA_VISIBLE_DEVICES)"
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with SIGINT ignored, nohup with SIGHUP; tests send them to themselves and to what they start.
    for signum, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(signum) == signal.SIG_IGN:
            signal.signal(signum, default)
    name = config.getoption("--device")
    try:
        if torch.device(name).index is not None:
            raise RuntimeError("a kind of device without a number; CUDA_VISIBLE_DEVICES picks one")
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # a torch without CUDA raises AssertionError
        why = str(error).partition("\n")[0]
        raise pytest.UsageError(f"--device: expected a device that torch can use here, got {name!r}: {why}") from None


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever takes the fixture `device` can run on a GPU, and carries the marker that picks it."""
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cuda)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Where models, weights and gradients live; references stay on the CPU. Random numbers are drawn on the CPU and moved, so
    that they are the same everywhere.

    Tolerances that a GPU needs looser say so in the test. In products it differs by the order of its sums, and by the shape:
    cuBLAS takes another kernel for a stack than for one matrix. TF32 is no part of that: torch leaves it off for products.
    """
    return request.config.getoption("--device")


@pytest.fixture(autouse=True)
def _one_thread():
    """Equal bits need equal thread counts; one is also the fastest at these sizes."""
    torch.set_num_threads(1)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with corpus.txt (20 kB of words) and tiny.toml (12 steps, about a second)."""
    monkeypatch.chdir(tmp_path)
    words = random.Random(0)
    vocabulary = ["muon", "weight", "gradient", "matrix", "the", "of", "polar", "factor", "step"]
    (tmp_path / "corpus.txt").write_text(" ".join(words.choice(vocabulary) for _ in range(4000)))
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


@pytest.fixture
def muonlab(capsys: pytest.CaptureFixture[str]):
    """muonlab("train", ...) -> (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = console.run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
