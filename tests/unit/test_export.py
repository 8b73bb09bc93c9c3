"""A model taken along gives what it gave in its run: in muonlab, and in transformers without muonlab."""

from __future__ import annotations

import inspect
import json
import os
import resource
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from muonlab.data.tokenizers import ByteTokenizer, HubTokenizer, train_bpe
from muonlab.errors import InputError, RunError
from muonlab.evaluate.export import export, load_exported
from muonlab.evaluate.hub_files import byte_table, tokenizer_files
from muonlab.evaluate.loading import LoadedRun
from muonlab.models.family import families
from muonlab.models.gpt import GPTConfig
from muonlab.train.checkpoint import weights_sha256
from muonlab.train.recipe import Recipe
from muonlab.train.trainer import Machine

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

VOCABULARY = 260  # three rows more than the byte tokenizer has tokens
SMALL = {"layers": 2, "width": 32, "head_width": 8, "context": 24}
EXTRAS = {
    "plain": {},
    "bare": {"bias": False, "qk_norm": False, "logit_cap_form": "none", "tied": True},
    "windows": {"window_pattern": "LS", "window_block": 4, "kv_heads": 2, "layers": 3, "logit_cap_form": "tanh", "logit_cap": 5.0},
    "values": {
        "value_embeddings": 2, "layers": 5, "skips": [[4, 0], [3, 1]], "kv_heads": 1, "residual_scale_learned": "branch",
        "residual_scale": 0.7,
    },
    "scales": {"residual_scale_learned": "layer", "window_pattern": "S", "window_block": 4, "value_embeddings": 1},
    "fixed": {"residual_scale": 0.5, "attention_scale": 0.3, "rope_base": 64.0, "mlp_ratio": 2},
}  # fmt: skip


def made(model, tokenizer=None, schedule=None, folder="run"):
    """A run, as it would be read back, of a model whose every parameter is random: fresh projections are zero and hide errors."""
    recipe = Recipe.model_validate(
        {"data": {"source": "text", "files": ["x"]}, "model": model, "schedule": schedule or {}, "train": {"steps": 10}}
    )
    built = recipe.model.build(VOCABULARY).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in built.parameters():
            p.normal_(mean=float(p.ndim < 2), std=0.3, generator=random)
    described = {"id": "0123456789ab", "recipe": {"model": model}, "data": {}}
    run = LoadedRun(folder, recipe, 10, built, Machine("cpu", "float32", 1, False), described, tokenizer)  # pyright: ignore
    if run.window_blocks is not None:
        built.set_window(run.window_blocks)
    return run


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Where transformers keeps the code of models, in this test alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def in_transformers(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


def tokens(rows, columns, seed=0):
    return torch.randint(VOCABULARY, (rows, columns), generator=torch.Generator().manual_seed(seed))


# -- for muonlab ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", families())
def test_every_family_comes_back_with_its_weights(family, tmp_path):
    sizes = {"gpt": EXTRAS["values"]}.get(family, {})
    fields = families()[family].model_fields
    small = {key: value for key, value in {**SMALL, "head_width": 16, "state": 16}.items() if key in fields}
    run = made({"family": family, **small, **sizes}, ByteTokenizer())
    export(run, tmp_path / "out")
    again = load_exported(tmp_path / "out")
    x = tokens(2, 16)
    assert torch.equal(again.model(x), run.model(x))
    assert again.trained == {"run": "0123456789ab", "step": 10, "weights_sha256": weights_sha256(again.model)}
    assert again.tokenizer is not None
    assert again.tokenizer.sha256 == ByteTokenizer.sha256
    assert not again.model.training
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}


def test_windows_are_those_of_the_last_step(tmp_path):
    model = {**SMALL, **EXTRAS["windows"]}
    run = made(model, schedule={"windows": [1, 2, 3]})
    export(run, tmp_path / "out")
    x = tokens(2, 24)
    assert torch.equal(load_exported(tmp_path / "out").model(x), run.model(x))
    assert run.model.window.tolist() == [12, 4]
    assert made(model).model.window.tolist() == [24, 12]


def test_a_tied_matrix_is_written_once(tmp_path):
    export(made({**SMALL, "tied": True}), tmp_path / "out")
    names = load_file(tmp_path / "out/model.safetensors").keys()
    assert "embed.weight" in names
    assert not [name for name in names if name.startswith("head")]
    assert load_exported(tmp_path / "out").tokenizer is None


def test_what_does_not_fit_is_named(tmp_path):
    out, config = tmp_path / "out", tmp_path / "out/config.json"
    with pytest.raises(InputError, match="out: no such folder; expected a folder that `muonlab export --to safetensors` made"):
        load_exported(out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"it has no config.json$"):
        load_exported(tmp_path / "empty")
    export(made(SMALL, ByteTokenizer()), tmp_path / "hf", "hf")
    with pytest.raises(InputError, match="it is one for transformers"):
        load_exported(tmp_path / "hf")
    export(made(SMALL, ByteTokenizer()), out)
    written = json.loads(config.read_text())
    for entries, message in (
        ({"model": {**written["model"], "family": "gtp"}}, "config.json: unknown model family 'gtp'; did you mean 'gpt'"),
        ({"model": {**written["model"], "width": 33}}, "config.json: .*width 33 is not a multiple"),
        ({"model": {**written["model"], "layers": 3}}, r"not the weights of this model \(GPT\).* missing"),
        ({"muonlab": 2}, "expected format 1, got 2: made by a newer muonlab"),
        ({"tokenizer": {**written["tokenizer"], "sha256": "0" * 64}}, "tokenizer.json: does not match the model"),
    ):
        config.write_text(json.dumps({**written, **entries}))
        with pytest.raises(InputError, match=message):
            load_exported(out)
    config.write_text("{")
    with pytest.raises(InputError, match=r"config.json: cannot be read"):
        load_exported(out)
    config.write_text(json.dumps(written))
    (out / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"model.safetensors: cannot be read"):
        load_exported(out)


def test_a_folder_is_whole_or_not_there_and_takes_nobodys_place(tmp_path, monkeypatch):
    run = made(SMALL, ByteTokenizer())
    (tmp_path / "mine").mkdir()
    for to in ("safetensors", "hf"):
        with pytest.raises(InputError, match="mine: exists already"):
            export(run, tmp_path / "mine", to)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file is not a folder; choose another one with --out"):
        export(run, tmp_path / "file/new")

    def fails(weights, path, **_):
        save_file(weights, path)
        raise OSError("no space left")

    monkeypatch.setattr("muonlab.evaluate.export.save_file", fails)
    with pytest.raises(RunError, match="new: cannot be written: no space left"):
        export(run, tmp_path / "new")

    def another_is_first(weights, path, **_):
        save_file(weights, path)
        (tmp_path / "new").mkdir()

    monkeypatch.setattr("muonlab.evaluate.export.save_file", another_is_first)
    with pytest.raises(InputError, match="new: exists already"):
        export(run, tmp_path / "new")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["file", "mine", "new"]


# -- for transformers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extras", EXTRAS)
def test_transformers_computes_the_same_logits(extras, modules, tmp_path):
    run = made({**SMALL, **EXTRAS[extras]}, ByteTokenizer())
    export(run, tmp_path / extras, "hf")
    model = in_transformers(tmp_path / extras)
    x = tokens(2, 24)
    with torch.no_grad():
        expected = run.model(x)
        assert expected.std() > 0.1  # something to compare
        assert (model(x).logits - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
        # in parts, with a cache; and rows of different length, padded on either side
        first = model(x[:, :9], use_cache=True)
        parts = [first.logits]
        for begin, end in ((9, 10), (10, 17), (17, 24)):
            parts.append(model(x[:, begin:end], past_key_values=first.past_key_values).logits)
        torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=1e-4)
        short, mask = x.clone(), torch.ones_like(x)
        short[0], mask[0] = torch.cat([x.new_full((11,), 7), x[0, :13]]), torch.cat([mask.new_zeros(11), mask[0, :13]])
        padded = model(short, attention_mask=mask).logits
        torch.testing.assert_close(padded[0, 11:], expected[0, :13], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(padded[1], expected[1], atol=1e-4, rtol=1e-4)
        for real in (range(13), (*range(6), *range(17, 24))):  # pads at the end; in the middle
            short[0], mask[0] = 7, 0
            short[0, list(real)], mask[0, list(real)] = x[0, :13], 1
            found = model(short, attention_mask=mask).logits[0, list(real)]
            torch.testing.assert_close(found, expected[0, :13], atol=1e-4, rtol=1e-4)


def test_labels_are_shifted_once(modules, tmp_path):
    run = made(SMALL, ByteTokenizer())
    export(run, tmp_path / "hf", "hf")
    model, x = in_transformers(tmp_path / "hf"), tokens(3, 20)
    with torch.inference_mode():
        model(x)
    labels = x.clone()
    labels[0, :7] = -100
    logits = run.model(x)
    wanted = [F.cross_entropy(logits[b, t - 1], labels[b, t]) for b in range(3) for t in range(1, 20) if labels[b, t] != -100]
    output = model(x, labels=labels)
    torch.testing.assert_close(output.loss, torch.stack(wanted).mean())
    model.train()
    model(x, labels=labels).loss.backward()  # also after inference, whose tensors know no gradients
    assert all(p.grad is not None for p in model.parameters())


def test_generate_writes_what_full_passes_would(modules, tmp_path):
    run = made({**SMALL, **EXTRAS["windows"]}, ByteTokenizer())
    export(run, tmp_path / "hf", "hf")
    model = in_transformers(tmp_path / "hf")
    x = torch.full((2, 8), 256)
    x[0], x[1, 3:] = tokens(1, 8)[0] % 256, tokens(1, 5, seed=1)[0] % 256
    mask = torch.ones_like(x)
    mask[1, :3] = 0
    greedy = {"max_new_tokens": 12, "do_sample": False, "attention_mask": mask}
    found = model.generate(x, **greedy)
    assert torch.equal(found, model.generate(x, **greedy, use_cache=False))
    for row, prompt in zip(found, (x[0], x[1, 3:]), strict=True):
        text = prompt
        for token in row[8:]:
            with torch.no_grad():
                scores = run.model(text[None])[0, -1]
            assert token == scores[: ByteTokenizer.vocab_size].argmax()  # the rows behind stand for nothing
            text = torch.cat([text, token[None]])
            if token == ByteTokenizer.end:
                break
    with pytest.raises(ValueError, match=r"expected at most 24 tokens in a row, the model's context, got 25"):
        model.generate(x, max_new_tokens=30, do_sample=False, min_new_tokens=30)
    with pytest.raises(ValueError, match="expected a cache that grows"):
        model.generate(x, max_new_tokens=2, cache_implementation="static")


def test_a_model_saved_by_transformers_is_read_again(modules, tmp_path):
    run = made({**SMALL, **EXTRAS["values"]}, ByteTokenizer())
    export(run, tmp_path / "hf", "hf")
    in_transformers(tmp_path / "hf").save_pretrained(tmp_path / "again")
    again, x = in_transformers(tmp_path / "again"), tokens(1, 12)
    assert again.state_dict().keys() == run.model.state_dict().keys()
    torch.testing.assert_close(again(x).logits, run.model(x))
    half = in_transformers(tmp_path / "again", dtype=torch.bfloat16)
    assert half.embed.weight.dtype == torch.bfloat16
    assert F.cosine_similarity(half(x).logits.flatten(), run.model(x).flatten(), dim=0) > 0.99


@pytest.mark.slow
def test_transformers_needs_no_muonlab(tmp_path):
    run = made({**SMALL, **EXTRAS["values"]}, ByteTokenizer())
    export(run, tmp_path / "hf", "hf")
    program = (
        "import sys; sys.modules['muonlab'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained('hf', trust_remote_code=True)\n"
        "tokenizer = AutoTokenizer.from_pretrained('hf', trust_remote_code=True)\n"
        "inputs = tokenizer('Lily has', return_tensors='pt')\n"
        "print(inputs.input_ids.tolist(), model(**inputs).logits[0, -1].tolist())\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids, last = json.loads("[" + done.stdout.replace("]] [", "]], [") + "]")
    assert ids == [list(b"Lily has")]
    torch.testing.assert_close(torch.tensor(last), run.model(torch.tensor(ids))[0, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", [name for name in families() if name != "gpt"])
def test_a_family_without_code_for_transformers_is_refused(family, tmp_path):
    with pytest.raises(InputError, match=f"run: --to hf: expected a model of the family gpt, .* got {family}: take --to safet"):
        export(made({"family": family}), tmp_path / "hf", "hf")
    assert not list(tmp_path.iterdir())


def test_no_key_of_the_gpt_is_left_behind(modules, tmp_path):
    export(made(SMALL), tmp_path / "hf", "hf")
    known = set(inspect.signature(type(in_transformers(tmp_path / "hf")).config_class.__init__).parameters)
    assert set(GPTConfig.model_fields) - known == {"preset", "family", "window_block"}  # the last is in `windows`


# -- tokenizers -----------------------------------------------------------------------------------------------------


def read_by_transformers(tokenizer, folder, begins=False):
    folder.mkdir(exist_ok=True)
    for name, text in tokenizer_files(tokenizer, 24, begins).items():
        (folder / name).write_text(text, encoding="utf-8")
    return transformers.AutoTokenizer.from_pretrained(folder)


TEXTS = ["Lily has 19 roses.", "", "  two\n\nlines\t\0\x7f", "naïve 3 × 4 = 12 … 日本 🌹", "a <|endoftext|> b <s>"]


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("kind", ["bytes", "bpe", "marked"])
def test_texts_have_the_tokens_of_training(kind, begins, tmp_path):
    own = ByteTokenizer() if kind == "bytes" else train_bpe(TEXTS * 3, 300)
    if kind == "marked":  # a tokenizer.json that cuts, pads, and puts marks around a text: what muonlab does not use
        table = tokenizers.Tokenizer.from_str(own.content.decode())
        table.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", own.end)]
        )
        table.enable_truncation(3)
        table.enable_padding(length=9)
        own = HubTokenizer(table.to_str().encode(), "marked")
    other = read_by_transformers(own, tmp_path / "hf", begins)
    assert isinstance(other, transformers.PreTrainedTokenizerFast)
    assert other.eos_token_id == own.end == other.bos_token_id
    assert len(other) == own.vocab_size
    assert other.model_max_length == 24
    for text in TEXTS:
        ids = other(text).input_ids
        assert ids == [own.end] * begins + own.encode(text).tolist(), text
        assert other.decode([*ids, own.end], skip_special_tokens=True) == text
    assert other.decode([own.end]) == "<|endoftext|>"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.text(max_size=40))
def test_bytes_are_tokens_in_the_tokenizers_library_too(content, text):
    table = tokenizers.Tokenizer.from_str(json.dumps(byte_table(256)))
    table.encode_special_tokens = True
    assert table.encode(text).ids == list(text.encode())
    assert table.decode(list(content)) == content.decode(errors="replace")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    run = made({**SMALL, "width": 64}, ByteTokenizer())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))  # the texts find room, the weights do not
    try:
        with pytest.raises(RunError, match=r"models/a: cannot be written: .*(too large|Bus|space)"):
            export(run, tmp_path / "models" / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [], "no parent that was made for it either"
    export(run, tmp_path / "models" / "a")


@pytest.mark.parametrize("to", ["safetensors", "hf"])
def test_whoever_may_read_one_file_may_read_all(tmp_path, to):
    before = os.umask(0o027)
    try:
        export(made(SMALL, ByteTokenizer()), tmp_path / "a", to)
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "a").iterdir()} == {"0o640"}
