"""Part 6, decode: tokens/s of cached generation, and how far its logits are from the full forward pass's.

python benchmarks/gpu_parts/decode.py --out FILE [--tiny] [--seconds N]

Random weights, random prompts, the likeliest token each time, under bf16 autocast as `muonlab generate` computes. `extend` alone:
the model and an argmax, nothing copied to the host. `generator`: what a user gets, sampling and end-of-text bookkeeping included.
Agreement: the text so far in one forward pass, against the logits that came one token at a time, in float32 and in bf16.
"""

from __future__ import annotations

import random
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from part import Part, main, seconds_of, wait

GPT = {"layers": 12, "width": 768, "head_width": 128, "context": 1024, "vocab_size": 50304}  # the preset gpt-124m
MAMBA = {"family": "mamba", "layers": 24, "width": 768, "context": 1024, "vocab_size": 50257}
TINY = {"layers": 2, "width": 64, "context": 64, "vocab_size": 512}
MODELS = {"gpt-124m": (GPT, TINY | {"head_width": 32}), "mamba-130m": (MAMBA, TINY | {"family": "mamba", "ssm_head_width": 32})}
BATCHES, TINY_BATCHES = (1, 64), (1, 4)
PROMPT, NEW, TINY_PROMPT, TINY_NEW = 128, 256, 8, 8  # tokens
AGREE = 1e-2  # the largest difference of two float32 logits that counts as rounding; the logits' size is about 1


def decode(part: Part) -> None:
    words = []
    for name, (whole, tiny) in MODELS.items():
        models: list[Any] = []

        def build(table: dict[str, Any] = tiny if part.tiny else whole, models: list[Any] = models) -> dict[str, Any]:
            models.append(built(table, part.device))
            return {"parameters": sum(p.numel() for p in models[0].parameters())}

        if part.case(name, build) is None:
            continue
        model = models.pop()
        for batch in TINY_BATCHES if part.tiny else BATCHES:
            row = part.case(f"{name}, batch {batch}", lambda model=model, batch=batch: measured(model, batch, part))
            words += [f"{name} x {batch}: {row['tokens_per_second']:,.0f} tokens/s"] if row else []
            part.say(", ".join(words))
        row = part.case(f"{name}, agreement", lambda model=model: agreement(model, part))
        words += [f"off by {row['bf16']:.1g} in bf16, {row['float32']:.1g} in float32"] if row else []
        part.say(", ".join(words))


def built(table: dict[str, Any], device: str) -> Any:
    import torch

    from muonlab.train.recipe import Recipe

    model = Recipe.model_validate({"model": table}).model.build(table["vocab_size"])
    model.initialize(lambda name: torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in model.parameters():  # what begins at zero would hide what it multiplies
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return model.to(device).eval()


def computing(device: str, bf16: bool = True) -> AbstractContextManager[object]:
    import torch

    return torch.autocast(device, torch.bfloat16) if bf16 else nullcontext()


def measured(model: Any, batch: int, part: Part) -> dict[str, Any]:
    import torch

    length, new = (TINY_PROMPT, TINY_NEW) if part.tiny else (PROMPT, NEW)
    prompts = torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(2)).to(part.device)
    found: dict[str, Any] = {"batch": batch, "prompt": length, "new": new}
    with torch.inference_mode(), computing(part.device):
        for _ in range(2):  # the first warms up
            wait(part.device)
            start = time.perf_counter()
            logits, states = model.extend(prompts)
            wait(part.device)
            read = time.perf_counter() - start
            newest = logits[:, -1:].argmax(-1)

            def write(newest: Any = newest, states: Any = states) -> None:
                for _ in range(new):
                    logits, states = model.extend(newest, states)
                    newest = logits[:, -1:].argmax(-1)

            seconds = seconds_of(write, part.device)
    found |= {"tokens_per_second": batch * new / seconds, "ms_a_token": 1e3 * seconds / new}
    found |= {"prompt_tokens_per_second": batch * length / read}
    return found | {"generator_tokens_per_second": generator(model, prompts.tolist(), new, part)}


def generator(model: Any, prompts: list[list[int]], new: int, part: Part) -> float:
    from muonlab.data.tokenizers import ByteTokenizer
    from muonlab.evaluate.generation import TextGenerator

    writer = TextGenerator(model, ByteTokenizer(), batch=len(prompts), computing=lambda: computing(part.device))
    writer.complete(prompts, max_tokens=new, seed=0)
    return writer.work.tokens_per_second


def agreement(model: Any, part: Part) -> dict[str, Any]:
    """The largest difference of two logits, and the largest logit. Raises RuntimeError where float32 is off by more."""
    import torch

    length = 12 if part.tiny else 192
    draw = random.Random(3)
    tokens = torch.tensor([[draw.randrange(256) for _ in range(length)] for _ in range(4)], device=part.device)
    found: dict[str, Any] = {}
    with torch.inference_mode():
        for name, bf16 in (("float32", False), ("bf16", True)):
            with computing(part.device, bf16):
                whole = model(tokens).float()
                pieces, states = [], None
                for piece in (tokens[:, : length // 2], *tokens[:, length // 2 :].split(1, dim=1)):
                    logits, states = model.extend(piece, states)
                    pieces.append(logits.float())
            found[name] = (torch.cat(pieces, dim=1) - whole).abs().max().item()
            found["largest_logit"] = whole.abs().max().item()
    if not found["float32"] <= AGREE:
        raise RuntimeError(f"cached logits are off by {found['float32']:.3g} in float32")
    return found


if __name__ == "__main__":
    main("decode", decode, needs=("numpy", "pydantic", "safetensors", "tomli_w"))
