"""The zoo: every parameter of a hundred public architectures has the role and the matrices that its source says, and trains."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tests.unit.zoo import adapters, encoders, language, vision
from tests.unit.zoo.walk import Entry, check_routing, check_steps, draw

transformers = pytest.importorskip("transformers")
ENTRIES = {**language.ENTRIES, **encoders.ENTRIES}
ROOT = Path(__file__).parents[2]


def built(kind: str, options: dict, task: str):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, task).from_config(transformers.AutoConfig.for_model(kind, **options)).eval()
    model.config.use_cache = False
    return model


@pytest.mark.parametrize("name", ENTRIES)
def test_every_parameter_has_its_role_and_matrices_and_trains(name):
    entry: Entry = ENTRIES[name]
    model = built(entry.kind, entry.options, entry.task)
    check_routing(model, entry.expected, entry.tied)
    check_steps(model, lambda model: model(**draw(entry.inputs)), entry.idle)


@pytest.mark.parametrize("name", adapters.ADAPTERS)
def test_adapters_and_new_heads(name):
    peft = pytest.importorskip("peft")
    entry = adapters.ADAPTERS[name]
    model = peft.get_peft_model(built(entry.kind, entry.options, entry.task), peft.LoraConfig(r=4, **entry.adapter))
    check_routing(model, entry.expected)
    inputs = {"pixel_values": (2, 3, 32, 32)} if "Image" in entry.task else {"input_ids": (2, 12)}
    check_steps(model, lambda model: model(**draw(inputs)))


@pytest.fixture(scope="module", name="seen")
def _seen():
    """What is wrong with each model of timm and torchvision: by a process of its own (vision.py says why)."""
    folder = ROOT / ".venv" / "vision"
    if not folder.exists() and importlib.util.find_spec("timm") is None:
        pytest.fail(f"timm and torchvision are neither in {folder} nor installed: make test brings them there")
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    command = [sys.executable, "-m", "tests.unit.zoo.vision", str(folder) if folder.exists() else ""]
    ran = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", vision.ZOO)
def test_models_of_timm_and_torchvision(name, seen):
    assert not seen[name], seen[name]
