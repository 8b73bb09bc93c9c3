"""Weights saved before the families shared their head (tests/data/old_models) load, and give the logits that they gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from muonlab.models.family import families

FILES = sorted((Path(__file__).parents[1] / "data/old_models").glob("*.safetensors"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_saved_weights_give_the_logits_and_the_loss_that_they_gave(file):
    with safe_open(file, "pt") as saved:
        settings = json.loads(saved.metadata()["config"])
        found = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
    model = families()[file.stem.partition("-")[0]](**settings).build(29)
    model.load_state_dict({name.removeprefix("model."): value for name, value in found.items() if name.startswith("model.")})
    with torch.no_grad():
        torch.testing.assert_close(model(found["tokens"]), found["logits"])
        torch.testing.assert_close(model.loss(found["tokens"], found["targets"]), found["loss"][0])
    logits = found["logits"].double()
    torch.testing.assert_close(
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), found["targets"].flatten()).float(), found["loss"][0]
    )
