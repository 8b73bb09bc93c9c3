"""The trainer from Python: a recipe, a run, and text from what it has learned. The same as `muonlab train` and `muonlab generate`.

pip install "muonlab[lab]", then: python examples/train_from_python.py
"""

import tempfile
from pathlib import Path

from muonlab.evaluate.generation import TextGenerator
from muonlab.evaluate.loading import load_run
from muonlab.train.recipe import Recipe
from muonlab.train.run import train

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    (folder / "lines.txt").write_text("the polar factor of the gradient is the step of the matrix\n" * 400)
    recipe = Recipe.model_validate(
        {
            "data": {"source": "text", "files": [str(folder / "lines.txt")]},
            "model": {"family": "gpt", "layers": 2, "width": 32, "head_width": 16, "context": 64},
            "optimizer": {"name": "normuon", "lr": 0.02, "aux_lr": 0.01},
            "train": {"steps": 80, "batch": 8, "eval_every": 20, "eval_tokens": 512, "precision": "float32"},
        }
    )
    losses = []
    train(recipe, 0, folder / "run", on_progress=lambda now: losses.append(now.val_loss))  # seed 0
    losses = [loss for loss in losses if loss is not None]
    print(f"loss {losses[0]:.3f} before, {losses[-1]:.3f} after")

    writer = TextGenerator.of(load_run(folder / "run"))
    for done in writer.complete(["the polar ", "the step "], max_tokens=40, temperature=0):
        print(repr(done.text))
