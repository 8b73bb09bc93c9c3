"""What transformers finds beside the weights: a config, the model's code, and the tokenizer in its own form."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from muonlab.data.tokenizers import HubTokenizer, Tokenizer
from muonlab.errors import InputError
from muonlab.evaluate.loading import LoadedRun
from muonlab.extras import needed
from muonlab.models.gpt import GPT

CODE = "modeling_muonlab_gpt"
_END = "<|endoftext|>"  # the name that the byte tokenizer's end of document gets
# Keys of the [model] table that say something else in transformers, or that the config has in another form.
_NOT_TAKEN = {"family", "vocab_size", "window_block"}


def hub_config(run: LoadedRun) -> dict[str, Any]:
    """config.json. Raises InputError for a family that we ship no code for."""
    model = run.model
    if not isinstance(model, GPT):
        raise InputError(
            f"{run.folder}: --to hf: expected a model of the family gpt, which there is code for transformers of, got "
            f"{run.described['recipe']['model'].get('family', type(model).__name__)}: take --to safetensors"
        )
    sizes = {key: value for key, value in model.config.model_dump(mode="json").items() if key not in _NOT_TAKEN}
    windows = {} if model.config.window_pattern is None else {"windows": model.window.tolist()}
    return {
        "architectures": ["MuonlabGPTForCausalLM"],
        "auto_map": {"AutoConfig": f"{CODE}.MuonlabGPTConfig", "AutoModelForCausalLM": f"{CODE}.MuonlabGPTForCausalLM"},
        "model_type": "muonlab_gpt",
        "dtype": str(model.embed.weight.dtype).removeprefix("torch."),
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.config.tied,
        **sizes,
        **windows,
        **_ends(run.known_tokenizer),
    }


def hub_files(run: LoadedRun, config: dict[str, Any]) -> dict[str, str]:
    """All files but the weights, by their names."""
    tokenizer = run.known_tokenizer
    generation: dict[str, Any] = _ends(tokenizer)
    if tokenizer is not None and tokenizer.vocab_size < run.model.vocab_size:
        generation["suppress_tokens"] = list(range(tokenizer.vocab_size, run.model.vocab_size))  # rows that stand for nothing
    texts = {
        "config.json": _json(config),
        "generation_config.json": _json(generation),
        f"{CODE}.py": files("muonlab.evaluate").joinpath("hub", f"{CODE}.py").read_text(encoding="utf-8"),
        "README.md": _README.format(run=run),
    }
    return texts if tokenizer is None else {**texts, **tokenizer_files(tokenizer, run.context, run.begins)}


def tokenizer_files(tokenizer: Tokenizer, context: int, begins: bool = False) -> dict[str, str]:
    """tokenizer.json and tokenizer_config.json, which give a text the tokens that it had in training, and no others: nothing is
    cut or padded, the end token stands before it where training's documents began with it (begins), and where it spells a special
    token, that is read letter by letter."""
    if isinstance(tokenizer, HubTokenizer):
        table: dict[str, Any] = json.loads(tokenizer.content)
        library = needed("tokenizers", f"tokenizer {tokenizer.name!r}").Tokenizer.from_str(tokenizer.content.decode())
        table |= {"truncation": None, "padding": None}
        if library.num_special_tokens_to_add(False):
            table["post_processor"] = None
        end = library.id_to_token(tokenizer.end)
    else:
        table, end = byte_table(tokenizer.end), _END
    if begins:
        table["post_processor"] = _beginning(end, tokenizer.end)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "model_max_length": context,
        "padding_side": "left",  # the one that generation needs
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
    return {"tokenizer.json": json.dumps(table, ensure_ascii=False), "tokenizer_config.json": _json(about)}


def _beginning(token: str, number: int) -> dict[str, Any]:
    """The post_processor that puts a token before a text (of a pair: before both)."""
    special, texts = {"SpecialToken": {"id": token, "type_id": 0}}, [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    known = {token: {"id": token, "ids": [number], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": [special, texts[0]], "pair": [special, *texts], "special_tokens": known}


def byte_table(end: int) -> dict[str, Any]:
    """The byte tokenizer as a tokenizer.json: a byte-level BPE without merges, in which the token of a byte is its value."""
    # GPT-2's letters for bytes: printable ones stand for themselves, the others are moved behind U+0100
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    letters = [chr(byte if byte in shown else next(moved)) for byte in range(256)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    special = {"id": end, "content": _END, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**special, "special": True}],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {letter: byte for byte, letter in enumerate(letters)},
            "merges": [],
        },
    }


def _ends(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """A text begins and ends with the end of a document; `generate` fills rows that are done with it, too."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {} if tokenizer is None else dict.fromkeys(keys, tokenizer.end)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"


_README = """---
library_name: transformers
---
# A GPT

Trained with muonlab, run `{run.described[id]}`, step {run.step}. Its code is `modeling_muonlab_gpt.py`, in this folder.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)  # this folder
tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=True)
inputs = tokenizer("Lily has", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0], skip_special_tokens=True))
```

At most {run.context} tokens in a row. Several prompts of different length need `tokenizer.pad_token = tokenizer.eos_token`, and
their attention mask.
"""
