"""Labels are shifted exactly once, counted once, and masked where the prompt is: told by what a model can and cannot learn."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from muonlab.data.packing import pack, packed_validation_batches
from muonlab.data.prepare import Plan, prepare
from muonlab.data.prepared import open_prepared
from muonlab.data.tokenizers import load_tokenizer, train_bpe
from muonlab.errors import InputError
from muonlab.train.recipe import Recipe
from muonlab.train.run import train
from muonlab.train.trainer import Trainer, choose_machine

LETTERS = "abcdefgh"
CODE = dict(zip(LETTERS, "EFGHABCD"))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def recipe(data, *, context=32, **settings):
    model = {"layers": 1, "width": 32, "head_width": 16, "context": context}
    train = {"batch": 16, "precision": "float32", "steps": 150, "eval_every": 50, "eval_tokens": context * 4, **settings}
    return Recipe.model_validate(
        {"model": model, "data": data, "optimizer": {"lr": 0.02, "aux_lr": 0.02}, "schedule": {"cooldown": 0.5}, "train": train}
    )


def pairs(n, seed=0):
    """Letters drawn at random, each followed by its code: every other token can be known, and the one after never."""
    drawn = random.Random(seed)
    return "".join(letter + CODE[letter] for letter in (drawn.choice(LETTERS) for _ in range(n)))


def write(rows, name="rows.jsonl"):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def predicted(trainer, text, source="text"):
    tokens = torch.tensor([[*([256] if source == "prepared" else []), *text.encode()]])
    return chr(int(trainer.model(tokens)[0, -1].argmax()))


def learned(settings, steps=None):
    trainer = Trainer(settings, 0, choose_machine(settings, "cpu", 1))
    for _ in range(steps or settings.train.steps):
        trainer.train_step()
    return trainer


@pytest.mark.parametrize("source", ["text", "prepared"])
def test_every_other_token_is_known_and_no_more(source):
    """The loss ends at ln(8)/2. Not shifted, it would go to 0: the model copies. Shifted twice, it would stay at ln(8): a letter
    says nothing about the next letter, and nothing about that one's code."""
    if source == "text":
        Path("corpus.txt").write_text(pairs(20000))
        settings = recipe({"source": "text", "files": ["corpus.txt"]})
    else:
        prepare(Plan([write([{"text": pairs(16, seed)} for seed in range(800)])]), "data")
        settings = recipe({"source": "prepared", "files": ["data"]}, context=33)
    trainer = learned(settings)
    # a prepared document begins and ends with the end token: of its 33 targets the 16 letters are not known
    half = math.log(8) * (1 / 2 if source == "text" else 16 / 33)
    assert trainer.evaluate() == pytest.approx(half, abs=0.03)
    assert [predicted(trainer, f"aE{letter}", source) for letter in LETTERS] == [CODE[letter] for letter in LETTERS]


def test_a_language_with_one_next_token_is_learned_to_zero():
    Path("corpus.txt").write_text("abc" * 5000)
    trainer = learned(recipe({"source": "text", "files": ["corpus.txt"]}), 60)
    assert trainer.evaluate() < 0.01
    assert [predicted(trainer, text) for text in ("a", "ab", "abc")] == ["b", "c", "a"]


def test_a_copy_is_learned_where_only_the_copy_counts():
    """Prompt: letters at random, and no loss on them, which would be ln(8) each. Answer: the same again."""
    drawn = random.Random(1)
    words = ["".join(drawn.choice(LETTERS) for _ in range(4)) for _ in range(1500)]
    prepare(Plan([write([{"q": word, "a": word} for word in words])], columns=("q", "a"), template="{{ q }}="), "data")
    trainer = learned(recipe({"source": "prepared", "files": ["data"]}, context=10, batch=32, steps=200))
    assert trainer.evaluate() < 0.05
    text = "hgab="
    for _ in range(4):
        text += predicted(trainer, text, "prepared")
    assert text == "hgab=hgab"


def questions():
    """Answers of very different lengths: a mean of means would not be the mean."""
    rows = [{"q": f"{i}?", "a": "yes" * (1 + 7 * (i % 2 == 0))} for i in range(200)]
    return prepare(Plan([write(rows)], columns=("q", "a"), held_out=0.2), "data")


def test_the_mean_is_over_counted_targets_however_the_batch_is_split():
    questions()
    gradients, losses = [], []
    for parts in (1, 2, 8):
        settings = recipe({"source": "prepared", "files": ["data"]}, batch=8, accumulate=parts)
        trainer = Trainer(settings, 0, choose_machine(settings, "cpu", 1))
        trainer.optimizer.zero_grad = lambda set_to_none=True: None  # keep them to be looked at
        losses.append(float(trainer.train_step()))
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    for gradient, loss in zip(gradients[1:], losses[1:]):
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-6)
        assert loss == pytest.approx(losses[0], rel=1e-6)


def rows_of(documents):
    return pack(documents.sizes(), np.arange(len(documents)), 32)


def test_evaluation_is_the_mean_over_the_answers_tokens():
    """Against each document by itself, in a plain loop."""
    held = questions().validation
    settings = recipe({"source": "prepared", "files": ["data"]})
    trainer = learned(settings, 5)
    trainer.validation = packed_validation_batches(held, context=32, batch=3, tokens=32 * len(rows_of(held)))
    total, count = 0.0, 0
    with torch.no_grad():
        for i in range(len(held)):
            tokens = torch.tensor(held.tokens(i).astype(int))
            losses = F.cross_entropy(trainer.model(tokens[None, :-1])[0], tokens[1:], reduction="none")
            chosen = [losses[t - 1].item() for t in range(1, len(tokens)) if held.counts(i)[t]]
            total, count = total + sum(chosen), count + len(chosen)
    assert trainer.evaluate() == pytest.approx(total / count, rel=1e-5)


# -- runs on prepared data -------------------------------------------------------------------------------------------


def test_a_run_tells_its_data_and_keeps_its_tokenizer():
    bpe = train_bpe(["a yes is a yes"] * 9, 270)
    bpe.save(Path("tok.json"))
    rows = [{"q": f"{i}?", "a": "yes"} for i in range(100)]
    prepared = prepare(Plan([write(rows)], columns=("q", "a"), tokenizer="tok.json"), "data")
    said = []
    train(
        recipe({"source": "prepared", "files": ["data"]}, context=6, steps=2, batch=2, eval_tokens=12),
        0,
        "run",
        threads=1,
        say=said.append,
    )
    data = json.loads(Path("run/run.json").read_text())["data"]
    assert data["manifests"][0]["sha256"] == prepared.sha256
    assert data["manifests"][0]["template"] == "{{ prompt }}\n"
    assert data["tokenizer"]["sha256"] == bpe.sha256 == load_tokenizer("run/tokenizer.json").sha256
    assert data["documents"] == 100
    assert any(line.startswith("packed: ") and "% of them empty" in line for line in said)
    Path("corpus.txt").write_text(pairs(2000))
    train(recipe({"source": "text", "files": ["corpus.txt"]}, steps=1), 0, "bytes", threads=1)
    assert json.loads(Path("bytes/run.json").read_text())["data"]["tokenizer"]["name"] == "bytes"
    assert load_tokenizer("bytes/tokenizer.json").name == "bytes"


def test_a_resumed_run_is_the_whole_run():
    questions()
    settings = {"steps": 7, "batch": 2, "checkpoint_every": 3, "log_every": 1, "eval_tokens": 32}
    data = {"source": "prepared", "files": ["data"]}
    whole = train(recipe(data, **settings), 0, "whole", threads=1)

    class Stop(BaseException):
        pass

    def stop(progress):
        if progress.step == 5:
            raise Stop

    with pytest.raises(Stop):
        train(recipe(data, **settings), 0, "parts", threads=1, on_progress=stop)
    assert train(recipe(data, **settings), 0, "parts", threads=1, resume=True)["weights_sha256"] == whole["weights_sha256"]


def test_several_folders_are_one_corpus_and_must_fit():
    rows = write([{"text": f"text {i}"} for i in range(50)])
    a, b = (prepare(Plan([rows], held_out=0.2, limit=n), f"{n}") for n in (50, 30))
    other = {"source": "prepared", "files": ["50", "30"]}
    trainer = Trainer(recipe(other), 0, choose_machine(recipe(other), "cpu", 1))
    assert len(trainer.loader.documents) == len(a.train) + len(b.train)
    held = {"source": "prepared", "files": ["50"], "validation_files": ["30"]}
    trainer = Trainer(recipe(held), 0, choose_machine(recipe(held), "cpu", 1))
    assert sum(len(batch.inputs) for batch in trainer.validation) == 4
    assert trainer.data["split"] == "by files"


def _other_tokenizer():
    train_bpe(["a"] * 3, 260).save(Path("tok.json"))
    prepare(Plan(["rows.jsonl"], tokenizer="tok.json"), "bpe")


@pytest.mark.parametrize(
    ("make", "data", "model", "message"),
    [
        (lambda: None, ["data"], {"vocab_size": 256}, "vocab_size: expected at least the tokenizer's 257, got 256"),
        (_other_tokenizer, ["data", "bpe"], {}, r"data \(bytes\) and bpe \(tok.json\) have different tokenizers"),
        (lambda: prepare(Plan(["rows.jsonl"], held_out=0.3), "b"), ["data", "b"], {}, r"hold out different shares \(0.2, 0.3\)"),
        (lambda: prepare(Plan(["rows.jsonl"], held_out=0), "b"), ["b"], {}, "no document is held out: prepare with a larger"),
        (lambda: Path("data/manifest.json").unlink(), ["data"], {}, "data: expected a folder that `muonlab data prepare` made"),
        (lambda: Path("data/train-00000.tokens").unlink(), ["data"], {}, "damaged: train-00000.tokens is missing"),
        (lambda: Path("data/train-00000.index").write_bytes(b"x"), ["data"], {}, r"train-00000.index has 1 of \d+ bytes"),
        (lambda: Path("data/manifest.json").write_text("{}"), ["data"], {}, "damaged: manifest.json cannot be read"),
        (lambda: None, ["nowhere"], {}, "nowhere: expected a folder that"),
    ],
)
def test_data_that_does_not_fit_is_refused(make, data, model, message):
    prepare(Plan([write([{"text": f"text {i}"} for i in range(50)])], held_out=0.2), "data")
    make()
    table = recipe({"source": "prepared", "files": data}).model_dump()
    table["model"] |= model
    settings = Recipe.model_validate({**table, "optimizer": {"lr": 0.02}})
    with pytest.raises(InputError, match=message):
        train(settings, 0, "run")
    assert not Path("run/run.json").exists()


def test_what_was_damaged_in_place_is_found():
    folder = questions().folder
    assert open_prepared(folder).damage() == []
    content = bytearray((folder / "train-00000.tokens").read_bytes())
    content[10] ^= 1
    (folder / "train-00000.tokens").write_bytes(content)
    assert open_prepared(folder).damage() == ["train-00000.tokens"]
