"""A run read back from its folder: the weights that training ended with, and clear words where things do not fit."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from muonlab.data.tokenizers import ByteTokenizer, train_bpe
from muonlab.errors import InputError, RunError
from muonlab.evaluate.loading import load_run
from muonlab.evaluate.loss import evaluate_loss
from muonlab.files import sha256_of
from muonlab.train.checkpoint import weights_sha256
from muonlab.train.recipe import load_recipe
from muonlab.train.run import train
from muonlab.train.run_folder import RunFolder, write_json
from tests.conftest import TINY

MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with corpus.txt and run: 12 steps, checkpoints after the 9th and the 12th, evaluations after 4, 8 and 12."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("loading")
    (folder / "corpus.txt").write_text("the polar factor of the gradient is the step " * 400)
    (folder / "tiny.toml").write_text(TINY.replace("corpus.txt", str(folder / "corpus.txt")))
    train(load_recipe(folder / "tiny.toml"), 0, folder / "run", threads=1)
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy to spoil."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def change(run, **entries):
    folder = RunFolder(run)
    described = folder.run()
    assert described is not None
    described.update(entries)
    write_json(folder.run_file, described)


def reseal(checkpoint):
    """Makes the manifest true of what is there: not damaged, but another thing."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name, about in manifest["files"].items():
        about |= {"sha256": sha256_of(checkpoint / name), "bytes": (checkpoint / name).stat().st_size}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_the_weights_are_those_that_training_ended_with(run):
    loaded = load_run(run, threads=1)
    result = RunFolder(run).result()
    assert result is not None
    assert weights_sha256(loaded.model) == result["weights_sha256"]
    assert loaded.step == 12
    assert not loaded.model.training
    assert loaded.tokenizer.sha256 == ByteTokenizer.sha256
    assert loaded.recipe.run_id(0) == result["id"]
    assert loaded.templates() == []


def test_another_checkpoint_can_be_asked_for(run):
    earlier = load_run(run, checkpoint="9", threads=1)
    expected = load_file(run / "checkpoints/step-00000009" / MODEL)
    assert earlier.step == 9
    assert all(torch.equal(value, expected[key]) for key, value in earlier.model.state_dict().items())
    assert load_run(run, checkpoint="best", threads=1).step == 12


def test_a_damaged_checkpoint_gives_way_to_the_one_before(run):
    (run / "checkpoints/step-00000012" / MODEL).write_bytes(b"cut short")
    assert load_run(run, threads=1).step == 9
    with pytest.raises(InputError, match=r"step-00000012: damaged \(model.safetensors has 9 of"):
        load_run(run, checkpoint="12", threads=1)
    (run / "checkpoints/step-00000009" / MODEL).unlink()
    with pytest.raises(InputError, match="no whole checkpoint is left"):
        load_run(run, threads=1)


def test_what_is_no_run_is_named(run, tmp_path):
    with pytest.raises(InputError, match="nothing: no such folder; expected that of a run"):
        load_run("nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"empty: expected the folder of a run, as muonlab train --out made it; it has no run.json$"
    ):
        load_run("empty")
    with pytest.raises(InputError, match=r"it has no run.json; there are runs in it, such as run$"):
        load_run(".")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file: expected a folder, got a file"):
        load_run("file")
    (run / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"run.json: damaged"):
        load_run(run)


def test_a_run_of_another_program_has_no_weights(tmp_path, monkeypatch):
    import muonlab

    monkeypatch.chdir(tmp_path)
    with muonlab.run("arm", seed=0) as logged:
        logged.log(step=1, val_loss=2.0)
    with pytest.raises(InputError, match=r"a run that another program logged or that was imported: its weights are not here"):
        load_run(logged.path)


def test_a_run_without_a_checkpoint_says_so(run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(InputError, match="has no checkpoint: expected the folder of a run that has saved one"):
        load_run(run)


@pytest.mark.parametrize("which", ["newest", "11", "-1", "1e3"])
def test_a_checkpoint_that_is_not_there_is_refused(run, which):
    with pytest.raises(InputError, match=r"expected last, best or a step, got '|has no checkpoint of step 11: ") as error:
        load_run(run, checkpoint=which)
    assert "there are 9, 12" in str(error.value)


def test_a_checkpoint_of_another_architecture_is_named(run):
    newest = run / "checkpoints/step-00000012"
    weights = load_file(newest / MODEL)
    weights["conv.weight"] = weights.pop("embed.weight")
    save_file(weights, newest / MODEL)
    reseal(newest)
    with pytest.raises(InputError, match=r"another architecture: embed.weight missing; conv.weight not part of it"):
        load_run(run)
    weights["embed.weight"] = weights.pop("conv.weight")[:, :16].contiguous()
    save_file(weights, newest / MODEL)
    reseal(newest)
    with pytest.raises(InputError, match=r"other sizes: embed.weight: expected \(257, 32\), got \(257, 16\)"):
        load_run(run)


def test_a_recipe_of_another_architecture_is_named(run):
    described = RunFolder(run).run()
    assert described is not None
    recipe = described["recipe"]
    change(run, recipe={**recipe, "model": {**recipe["model"], "layers": 3}})
    with pytest.raises(InputError, match=r"another architecture: blocks.2.* and \d+ more missing"):
        load_run(run)
    change(run, recipe={**recipe, "model": {**recipe["model"], "family": "transmogrifier"}})
    with pytest.raises(InputError, match="transmogrifier"):
        load_run(run)


def test_a_tokenizer_that_does_not_match_is_named(run, tmp_path):
    pytest.importorskip("tokenizers")
    train_bpe(["some words to merge some words"] * 9, 270).save(tmp_path / "other.json")
    with pytest.raises(InputError, match=r"other.json: does not match the model: expected the tokenizer that it was trained with"):
        load_run(run, tokenizer=tmp_path / "other.json")
    assert load_run(run, tokenizer="bytes", threads=1).tokenizer.vocab_size == 257
    shutil.copy(tmp_path / "other.json", run / "tokenizer.json")
    with pytest.raises(InputError, match=r"tokenizer.json: does not match the model.*257 tokens.* got one of"):
        load_run(run)
    (run / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="cannot read"):
        load_run(run)


def test_token_shards_do_not_tell_their_tokenizer(run, tmp_path):
    pytest.importorskip("tokenizers")
    described = RunFolder(run).run()
    assert described is not None
    data = {key: value for key, value in described["data"].items() if key != "tokenizer"}
    recipe = {**described["recipe"], "model": {**described["recipe"]["model"], "vocab_size": 257}}
    change(run, data=data, recipe=recipe)
    (run / "tokenizer.json").unlink()
    loaded = load_run(run, threads=1)
    with pytest.raises(InputError, match="trained on token shards, which do not say what their tokens mean: give --tokenizer"):
        _ = loaded.tokenizer
    assert load_run(run, tokenizer="bytes", threads=1).tokenizer.end == 256
    train_bpe(["some words to merge some words"] * 9, 270).save(tmp_path / "large.json")
    with pytest.raises(InputError, match=r"does not match the model: it has 2\d\d tokens, and the model knows 257"):
        load_run(run, tokenizer=tmp_path / "large.json")


# -- loss -----------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_training(trained, run):
    loaded, told = load_run(run, threads=1), []
    found = evaluate_loss(loaded, on_progress=lambda share, rate: told.append(share))
    assert found["recorded"] == RunFolder(run).rows()[-1]["val_loss"]
    assert found["loss"] == pytest.approx(found["recorded"], abs=1e-6)
    assert (found["targets"], told[-1]) == (128, 1.0)
    earlier = evaluate_loss(load_run(run, checkpoint="9", threads=1))
    assert earlier["recorded"] is None, "there was no evaluation"
    assert earlier["loss"] > found["loss"]
    everything = evaluate_loss(loaded, split="train", tokens=3200)
    assert everything["targets"] == 3200
    assert everything["recorded"] is None
    with pytest.raises(InputError, match=r"--tokens: expected 32 \(one row\) to \d+ \(all\), got 31"):
        evaluate_loss(loaded, tokens=31)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_no_figure(run, weight):
    loaded = load_run(run, threads=1)
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(weight)
    with pytest.raises(RunError, match=r"step 12: expected a finite loss, got nan: .* --checkpoint"):
        evaluate_loss(loaded)


def test_data_that_is_not_there_is_named_with_where_its_path_begins(trained, run, monkeypatch):
    recipe = json.loads((run / "run.json").read_text())["recipe"]
    change(run, recipe={**recipe, "data": {**recipe["data"], "files": ["corpus.txt"]}})
    monkeypatch.chdir(trained)
    assert evaluate_loss(load_run(run, threads=1))["loss"] > 0
    monkeypatch.chdir(run)
    relative = r"no file matches 'corpus.txt'.*\n.*run: .* paths are relative to where the run was trained: .* name --data"
    with pytest.raises(InputError, match=relative):
        evaluate_loss(load_run(run, threads=1))
    change(run, recipe={**recipe, "data": {**recipe["data"], "files": ["/nothing/corpus.txt"]}})
    with pytest.raises(InputError, match=r"\n.*run: the data that it was trained on cannot be read; name --data"):
        evaluate_loss(load_run(run, threads=1))


def test_the_window_is_the_one_that_training_ended_with(trained, tmp_path):
    settings = [
        "model.window_pattern='L'",
        "model.window_block=4",
        "schedule.windows=[1, 2]",
        f"data.files=['{trained}/corpus.txt']",
    ]
    train(load_recipe(trained / "tiny.toml", settings), 0, tmp_path / "windows", threads=1)
    found = evaluate_loss(load_run(tmp_path / "windows", threads=1))
    assert found["loss"] == pytest.approx(found["recorded"], abs=1e-6)
    model = load_run(tmp_path / "windows", threads=1).model
    assert model.window.tolist() == [8, 4]


def test_a_corpus_that_has_changed_is_not_evaluated_as_the_same(trained, run):
    corpus = trained / "corpus.txt"
    before = corpus.read_text()
    try:
        corpus.write_text(before + "and more")
        with pytest.raises(InputError, match="its corpus has changed since it was trained"):
            evaluate_loss(load_run(run, threads=1))
    finally:
        corpus.write_text(before)
