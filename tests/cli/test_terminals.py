"""Terminals that are not UTF-8: what they cannot show is replaced, and no command ends for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STATS = ["stats", str(ROOT / "tests/data/quickstart.jsonl"), "--column", "val_loss", "--by", "arm", "--detect", "0.01"]
COMMANDS = [["optimizers", "muon"], ["plan", str(ROOT / "recipes/quickstart.toml")], STATS, ["presets", "gpt-1m"], ["--help"]]


def run(encoding, *arguments, folder=None):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    return subprocess.run([sys.executable, "-m", "muonlab", *arguments], env=environment, cwd=folder, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_what_a_terminal_cannot_show_is_replaced(command, encoding):
    done = run(encoding, *command)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert len(done.stdout.decode(encoding).splitlines()) > 2


def test_utf8_is_left_as_it_is():
    assert "W ← W(1 − η·wd)" in run("utf-8", "optimizers", "muon").stdout.decode()
    assert "W ? W(1 ? ?" in run("ascii", "optimizers", "muon").stdout.decode("ascii")


def test_errors_are_told_too_and_files_are_utf8(tmp_path):
    done = run("ascii", "train", "größe.toml", folder=tmp_path)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    (tmp_path / "corpus.txt").write_text("η is a rate, β a mean. " * 200, encoding="utf-8")
    recipe = (ROOT / "recipes/quickstart.toml").read_text(encoding="utf-8")
    (tmp_path / "tiny.toml").write_text(recipe, encoding="utf-8")
    small = ["model.layers=1", "model.width=32", "train.steps=2", "train.eval_tokens=128", "train.batch=2", "data.source=text"]
    words = [word for setting in [*small, 'data.files=["corpus.txt"]'] for word in ("--set", setting)]
    done = run("ascii", "train", "tiny.toml", *words, "--out", "run", "--device", "cpu", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for file in (tmp_path / "run").rglob("*.json*"):
        file.read_text(encoding="utf-8")
