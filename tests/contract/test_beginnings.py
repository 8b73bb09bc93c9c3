"""Training and inference share one beginning: what training's own loss says of a document's first token is what generation and
evaluation say, for every family and every way to feed data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from muonlab.data import corpus
from muonlab.data.loader import IGNORED
from muonlab.data.prepare import Plan, prepare
from muonlab.data.prepared import Documents
from muonlab.data.shards import write_shard
from muonlab.data.tokenizers import ByteTokenizer
from muonlab.evaluate.generation import TextGenerator, _Decoding
from muonlab.evaluate.loading import load_run
from muonlab.evaluate.scoring import score
from muonlab.models.family import families
from muonlab.train.recipe import Recipe
from muonlab.train.run import train
from muonlab.train.trainer import batches
from tests.contract.test_families import smallest

BYTES = ByteTokenizer()
END = BYTES.end
WORDS = ["fox", "bird", "tree", "small bird", "red fox", "moon", "stone"]
ROWS = [{"question": f"{'What' if i % 2 else 'How much'} is {i} + {i % 7}?", "answer": f"{i + i % 7}"} for i in range(300)]
TEXTS = [f"Note {i}: {'fox ' * (i % 5)}." for i in range(300)]
CONTEXT = 32
QA = ("question", "answer")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def questions():
    Path("qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return ["qa.jsonl"]


def texts():
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return ["texts.jsonl"]


def folder(sources, **options):
    prepare(Plan(sources, held_out=0.1, **options), "made")
    return {"source": "prepared", "files": ("made",)}


def shards():
    stream = np.concatenate([[END, *BYTES.encode(text)] for text in TEXTS])
    write_shard("s_000.bin", stream[:4000])
    write_shard("s_001.bin", stream[4000:])
    return ["s_000.bin", "s_001.bin"]


def files():
    for i in range(30):
        Path(f"{i}.txt").write_text("\n".join(TEXTS[i * 10 : i * 10 + 10]))
    return ("*.txt",)


WAYS = {
    "rows": lambda: {"source": "rows", "files": texts()},
    "rows of questions": lambda: {"source": "rows", "files": questions(), "columns": QA},
    "prepared": lambda: folder(texts()),
    "prepared, masked": lambda: folder(questions(), columns=QA),
    "prepared, no mask": lambda: folder(questions(), columns=QA, mask="none"),
    "prepared shards": lambda: folder(shards()),
    "jsonl": lambda: {"source": "jsonl", "files": texts()},
    "text": lambda: {"source": "text", "files": files()},
    "shards": lambda: {"source": "bin", "files": shards(), "validation_fraction": 0.1},
}


def recipe_of(family, data, **train):
    table = smallest()[family].model_dump(mode="json")
    table["data"] = data
    table["model"] |= {"context": CONTEXT, "vocab_size": 257}
    settings = {"steps": 3, "batch": 8, "eval_tokens": 2 * CONTEXT, "accumulate": 1, "eval_every": 3, **train}
    table["train"] = {**table["train"], **settings}
    return Recipe.model_validate(table)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", families())
def test_generation_and_evaluation_begin_as_training_did(family, way):
    recipe = recipe_of(family, WAYS[way]())
    train(recipe, 0, "run", device="cpu")
    run = load_run("run", "cpu", tokenizer=None if way != "shards" else "bytes")
    text = corpus.load(recipe.data)
    loader, _ = batches(recipe, text, 0)
    checked, writer = 0, TextGenerator.of(run)
    for _ in range(200):
        batch = loader.next()
        for b, at, target in firsts(batch, text):
            only = torch.full_like(batch.targets[b : b + 1], IGNORED)
            only[0, at] = target
            documents = () if batch.documents is None else (batch.documents[b : b + 1],)
            with torch.no_grad():
                trained = -float(run.model.loss(batch.inputs[b : b + 1], only, *documents))
            begin = at if batch.documents is None else int((batch.documents[b] == batch.documents[b, at]).nonzero()[0])
            before = batch.inputs[b, begin : at + 1].tolist()
            prompt = BYTES.decode(before)
            assert writer.prompt(prompt) == before, "a prompt has the tokens that it had in training"
            assert score(run, [(before, [target])])[0].log_likelihood == pytest.approx(trained, abs=1e-4)
            (row,) = writer._rows([prompt], 1, 0, ())
            with torch.inference_mode():
                first = _Decoding(run.model, [row], 257).logits.log_softmax(-1)[0, target]
            assert float(first) == pytest.approx(trained, abs=1e-4)
            checked += 1
        if checked >= 4:
            return
    raise AssertionError(f"{checked} beginnings found")


def firsts(batch, text):
    """Of each row the first target that follows a beginning: (row, position, target)."""
    for b, (inputs, targets) in enumerate(zip(batch.inputs, batch.targets)):
        if inputs[0] == END and (counted := (targets != IGNORED).nonzero()).numel() and targets[0] != END:
            at = int(counted[0])
            if not isinstance(text.train, Documents) or batch.documents[b, at] == 0:
                yield b, at, int(targets[at])


@pytest.mark.parametrize("way", ["rows", "prepared", "prepared, no mask", "prepared shards"])
def test_every_first_token_is_a_target_and_stands_after_the_end_token(way):
    recipe = recipe_of("gpt", WAYS[way]())
    text = corpus.load(recipe.data)
    assert isinstance(text.train, Documents)
    loader, _ = batches(recipe, text, 0)
    seen = 0
    while seen < 100:
        batch = loader.next()
        for inputs, targets, documents in zip(*batch):
            for d in range(int(documents.max()) + 1):
                here = documents == d
                if (targets[here] != IGNORED).any() and inputs[here][0] == END:
                    assert targets[here][0] != IGNORED
                    seen += 1


def test_a_model_learns_how_documents_begin():
    """As many texts that all begin alike: without a prompt they do so, too."""
    Path("notes.jsonl").write_text("".join(json.dumps({"text": f"Note: the {w} no {i}."}) + "\n" for i, w in enumerate(WORDS * 40)))
    recipe = recipe_of("gpt", {"source": "rows", "files": ["notes.jsonl"]}, steps=60, batch=16, eval_every=60)
    train(recipe, 0, "run", device="cpu")
    run = load_run("run", "cpu")
    assert score(run, [([END], [ord("N")])])[0].log_likelihood > -0.05
    assert TextGenerator.of(run).generate([""], max_tokens=9)[0] == "Note: the"
