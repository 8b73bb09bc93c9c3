"""The example of docs/how-to/own-family.md: one file and one recipe, and everything knows the new family."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_family_is_one_file_and_one_recipe(tmp_path):
    page = (ROOT / "docs/how-to/own-family.md").read_text()
    (program,) = re.findall(r"^```python\n(# src/muonlab/models/mingru.py\n.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    (recipe,) = re.findall(r"^```toml\n(# recipes/mingru-toy.toml\n.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert len(program.splitlines()) <= 70
    for folder in ("src", "recipes", "tests/contract"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests/conftest.py", tmp_path / "tests")  # the contract's tests take --device
    (tmp_path / "src/muonlab/models/mingru.py").write_text(program)
    (tmp_path / "recipes/mingru-toy.toml").write_text(recipe)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}

    def run(*arguments):
        done = subprocess.run([sys.executable, "-m", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    small = ["--set", "train.steps=20", "--set", "train.eval_tokens=512", "--set", "train.batch=2"]
    assert "finished after 20 steps" in run("muonlab", "train", "recipes/mingru-toy.toml", *small, "--out", "run")
    assert "gate.weight" in run("muonlab", "plan", "recipes/mingru-toy.toml")
    assert '"mingru"' in run("muonlab", "schema", "recipe")
    run("pytest", "-q", "-p", "no:cacheprovider", "tests/contract/test_families.py", "-k", "mingru or recipe")
