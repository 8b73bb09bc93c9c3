"""The Triton kernels: the switch here, what they compute on a GPU or in Triton's interpreter, and that they compile for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from muonlab.optim import kernels
from muonlab.optim.kernels import switch

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: pip install -e '.[kernels]'")


def in_child(*arguments, **environment):
    """Python in a process of its own, since Triton decides when it is imported whether it interprets."""
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *arguments], env=inherited | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_off_unless_enabled():
    assert not kernels.enabled()
    assert not kernels.chosen(torch.empty(1, 512, 512))


def test_importing_the_optimizers_imports_no_triton():
    in_child("-c", "import sys, muonlab.optim; sys.exit('triton' in sys.modules)")


def test_enabling_without_triton_raises(monkeypatch):
    monkeypatch.setattr(switch, "_importable", lambda: False)
    with pytest.raises(ImportError, match="muonlab\\[kernels\\]"):
        kernels.enable()
    assert not kernels.enabled()
    assert not kernels.available(torch.ones(1))


@pytest.mark.parametrize(
    ("error", "changed"),
    [
        (ValueError, {"a": torch.ones(3, 4)}),
        (ValueError, {"b": torch.ones(2, 4, 5)}),
        (ValueError, {"add": torch.ones(2, 4, 4)}),
        (ValueError, {"out": torch.ones(1, 3, 3)}),
        (ValueError, {"out": torch.ones(2, 3, 3, device="meta")}),
        (TypeError, {"b": torch.ones(2, 4, 3, dtype=torch.bfloat16)}),
        (TypeError, {"a": torch.ones(2, 3, 4, dtype=torch.float64), "b": torch.ones(2, 4, 3, dtype=torch.float64)}),
    ],
)
def test_what_does_not_fit_is_refused(error, changed):
    with pytest.raises(error, match="symmetric_product: expected"):
        kernels.symmetric_product(**{"a": torch.ones(2, 3, 4), "b": torch.ones(2, 4, 3)} | changed)


def test_a_tensor_that_no_kernel_can_take_is_refused(monkeypatch):
    monkeypatch.setattr(switch, "_importable", lambda: False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        kernels.symmetric_product(torch.ones(2, 3, 4), torch.ones(2, 4, 3))


@pytest.mark.slow
@needs_triton
def test_results_on_a_gpu_or_in_the_interpreter(device):
    tests = Path(__file__).with_name("interpreted_kernels.py")
    interpret = {"TRITON_INTERPRET": "1"} if device == "cpu" else {}
    in_child("-m", "pytest", "-p", "no:cacheprovider", "--device", device, str(tests), **interpret)


# What the interpreter takes and the compiler refuses. Ampere and Hopper; no GPU is needed to compile.
COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from muonlab.optim.kernels.triangle import _CONFIGS, _triangle

kernel = _triangle.fn
for capability, dtype, config in ((80, "fp32", _CONFIGS[0]), (90, "bf16", _CONFIGS[-1])):
    constants = {"HAS_ADD": True, "PRECISION": "ieee", "WIDEN": False, **config.kwargs}
    types = {name: "i32" for name in kernel.arg_names}
    types |= {name: f"*{dtype}" for name in ("a", "b", "add", "out")} | {"alpha": "fp32", "beta": "fp32"}
    types |= {name: "constexpr" for name in constants}
    source = ASTSource(kernel, types, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    assert compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]
"""


@pytest.mark.slow
@needs_triton
def test_compiles_for_cuda(tmp_path):
    in_child("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path))
