"""What every family promises of `extend`: the same logits as the forward pass, whatever the parts a text comes in.

The models are those of test_families.py, and variants of each family's config, since that is where decoding goes wrong.
"""

from __future__ import annotations

import random

import pytest
import torch

from muonlab.models import decoding
from muonlab.models.family import Model, families
from muonlab.streams import stream_seed
from tests.contract.test_families import VOCABULARY, moved, smallest, some_tokens

CONTEXT = 40
VARIANTS = {
    "gpt": {
        "windows": {"layers": 4, "window_pattern": "SL", "window_block": 4, "context": 40},
        "extras": {
            "layers": 4,
            "head_width": 16,
            "kv_heads": 2,
            "tied": True,
            "value_embeddings": 2,
            "skips": ((2, 0), (3, 0), (3, 1)),
            "residual_scale": 0.5,
            "residual_scale_learned": "branch",
            "window_pattern": "LSS",
            "window_block": 8,
        },
        "plain": {"qk_norm": False, "kv_heads": 1, "logit_cap_form": "none", "bias": False},
    },
    "ngpt": {"gated": {"gated": True, "head_width": 16}},
    "mamba": {"groups": {"ssm_groups": 2, "conv_width": 3, "tied": False}, "no conv": {"conv_width": 1}},
    "hybrid": {
        "all": {"pattern": "M*-RR", "layers": 5, "tied": False, "share_passes": False, "passes": 2},
        "scales": {"pattern": "R", "layers": 3, "scales": (1, 3, 4, 12), "conv_width": 2},
        "one scale": {"pattern": "*R", "scales": (1,), "passes": 1},
        "no attention": {"pattern": "M-"},
    },
}
MODELS = [(family, name) for family in families() for name in ("recipe", *VARIANTS.get(family, ()))]
PARTS = {"at once": [40], "one by one": [1] * 40, "a prompt, then steps": [23] + [1] * 17, "parts": [1, 7, 8, 2, 1, 16, 5]}

every_model = pytest.mark.parametrize(("family", "variant"), MODELS, ids=["-".join(model) for model in MODELS])


def build(family, variant, dtype=torch.float32, device="cpu", **keys):
    own = VARIANTS.get(family, {}).get(variant, {})
    model = smallest()[family].model.model_copy(update={"context": CONTEXT, **own, **keys}).build(VOCABULARY)
    model.initialize(lambda name: torch.Generator().manual_seed(stream_seed(0, name)))
    if own.get("window_pattern"):
        model.set_window(2)
    if type(model).extend is Model.extend:
        pytest.skip("this family does not generate")
    return moved(model).to(device, dtype).eval()


def close(a, b, atol=1e-4):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def tensors(states):
    return [states] if isinstance(states, torch.Tensor) else [t for part in states for t in tensors(part)]


@every_model
@torch.no_grad()
def test_any_parts_give_the_logits_of_the_forward_pass(family, variant, device):
    model, tokens = build(family, variant, device=device), some_tokens(3, CONTEXT, device=device)
    wanted = model(tokens)
    assert wanted.std() > 0.05
    for parts in PARTS.values():
        states, found = None, []
        for part in tokens.split(parts, dim=1):
            logits, states = model.extend(part, states)
            assert logits.dtype == torch.float32
            found.append(logits)
        close(torch.cat(found, dim=1), wanted)


def drive(model, rows, seed, pads, device="cpu"):
    """The rows' logits, read in a random number of tokens each time: rows end at different times, and what has ended is dropped."""
    choose, states, logits = random.Random(seed), None, [[] for _ in rows]
    done, running = [0] * len(rows), list(range(len(rows)))
    while running:
        lengths = [min(choose.choice([0, 1, 1, 3, 9]), len(rows[i]) - done[i]) for i in running]
        tokens = torch.full((len(running), max(1, *lengths) + choose.randint(0, 2)), pads, device=device)
        for row, i, n in zip(tokens, running, lengths, strict=True):
            row[:n] = rows[i][done[i] : done[i] + n]
        found, states = model.extend(tokens, states, torch.tensor(lengths))
        for i, row, n in zip(running, found, lengths, strict=True):
            logits[i].append(row[:n])
            done[i] += n
        left = [at for at, i in enumerate(running) if done[i] < len(rows[i])]
        states, running = decoding.select(states, left), [running[at] for at in left]
    return [torch.cat(row) for row in logits]


@every_model
@torch.no_grad()
def test_rows_of_different_length_live_in_one_batch(family, variant, device):
    model = build(family, variant, device=device)
    rows = [some_tokens(n, seed=n, device=device) for n in (CONTEXT, 3, 17, 30)]
    for seed in range(2):
        for row, found in zip(rows, drive(model, rows, seed, pads=-1, device=device), strict=True):
            close(found, model(row[None])[0])


@every_model
@torch.no_grad()
def test_pads_never_reach_a_state(family, variant, device):
    model, lengths = build(family, variant, device=device), torch.tensor([3, 0, 2])
    old, new = some_tokens(3, 6, device=device), some_tokens(3, 9, seed=3, device=device)
    _, before = model.extend(old)
    states = []
    for pads in (0, VOCABULARY - 1):
        tokens = new.masked_fill(torch.arange(9, device=device) >= lengths[:, None].to(device), pads)
        logits, after = model.extend(tokens, before, lengths)
        states.append(after)
        close(logits[0, :3], model(torch.cat([old[:1], new[:1, :3]], dim=1))[0, 6:])
    for a, b in zip(*map(tensors, states), strict=True):
        assert torch.equal(a, b)
    answer = some_tokens(1, 4, seed=7, device=device)  # and the row of no new tokens is where it was
    wanted = model(torch.cat([old[1:2], answer], dim=1))[:, 6:]
    close(model.extend(answer, decoding.select(states[0], [1]))[0], wanted)


@every_model
@torch.no_grad()
def test_a_row_may_end_beside_one_that_begins(family, variant, device):
    model, text = build(family, variant, device=device), some_tokens(2, CONTEXT, device=device)
    _, states = model.extend(text[:, :38], None, torch.tensor([38, 1]))
    new = torch.stack([text[0].roll(-38), text[1].roll(-1)])[:, :30]
    logits, _ = model.extend(new, states, torch.tensor([2, 30]))
    wanted = model(text)
    close(logits[0, :2], wanted[0, 38:])
    close(logits[1], wanted[1, 1:31])


@every_model
@torch.no_grad()
def test_samples_of_one_prompt_share_nothing(family, variant, device):
    model, prompt, answers = (
        build(family, variant, device=device),
        some_tokens(2, 7, device=device),
        some_tokens(5, 20, seed=2, device=device),
    )
    _, states = model.extend(prompt)
    rows = torch.tensor([1, 0, 1, 1, 0])
    many = decoding.select(states, rows)
    found = [model.extend(answers[:, :1], many)]
    for t in range(1, 20):
        found.append(model.extend(answers[:, t : t + 1], found[-1][1]))
    wanted = model(torch.cat([prompt[rows], answers], dim=1))[:, 7:]
    close(torch.cat([logits for logits, _ in found], dim=1), wanted)


@every_model
@torch.no_grad()
def test_old_states_can_be_gone_on_from_again(family, variant, device):
    model, tokens = build(family, variant, device=device), some_tokens(2, 30, device=device)
    other = (tokens + 1) % VOCABULARY
    _, prompt = model.extend(tokens[:, :9])
    one = model.extend(tokens[:, 9:12], prompt)[1]  # grows the room
    two = model.extend(tokens[:, 12:13], one)[1]
    again = model.extend(other[:, 12:13], one)[1]  # goes another way from the same place
    once_more = model.extend(other[:, 12:14], decoding.select(one, [0, 1]))[1]
    for states, read, mixed in ((two, 13, 0), (again, 13, 1), (once_more, 14, 2)):
        text = torch.cat([tokens[:, :12], other[:, 12 : 12 + mixed], tokens[:, 12 + mixed :]], dim=1)
        close(model.extend(text[:, read:], states)[0], model(text)[:, read:])


@every_model
@torch.no_grad()
def test_it_decodes_in_bf16_as_it_reads(family, variant, device):
    model, tokens = build(family, variant, device=device), some_tokens(2, 24, device=device)
    with torch.autocast(device, torch.bfloat16):
        wanted = model(tokens)
        logits, states = model.extend(tokens[:, :20])
        found = [logits]
        for t in range(20, 24):
            logits, states = model.extend(tokens[:, t : t + 1], states)
            found.append(logits)
    found = torch.cat(found, dim=1)
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.999


@every_model
def test_what_does_not_fit_is_refused(family, variant):
    model = build(family, variant)
    _, states = model.extend(some_tokens(2, 30))
    for tokens, given, lengths, says in [
        (some_tokens(3, 2), states, None, "states: expected those of 3 rows"),
        (some_tokens(2, 2), states, torch.tensor([1]), "lengths: expected a number of tokens from 0 to 2 for each of 2 rows"),
        (some_tokens(2, 2), states, torch.tensor([1, 3]), "lengths: expected"),
        (some_tokens(2, 2), states, torch.tensor([1, -1]), "lengths: expected"),
        (some_tokens(2), states, None, "tokens: expected"),
        (some_tokens(2, 0), None, None, "tokens: expected"),
    ]:
        with pytest.raises(ValueError, match=says):
            model.extend(tokens, given, lengths)
    if model.longest is not None:
        assert model.longest == CONTEXT
        model.extend(some_tokens(2, 12), states, torch.tensor([10, 3]))
        with pytest.raises(ValueError, match=f"at most {CONTEXT} in a row, the model's context, got 30 read and 11 more"):
            model.extend(some_tokens(2, 12), states, torch.tensor([3, 11]))
        with pytest.raises(ValueError, match=f"at most {CONTEXT} in a row"):
            model.extend(some_tokens(1, CONTEXT + 1))


@every_model
def test_lengths_of_rows_stay_off_the_device(family, variant):
    """Tensors without memory cannot be read back: every step of decoding would wait for the device that does the products."""
    model = build(family, variant).to("meta")
    tokens = torch.zeros(2, 6, dtype=torch.int64, device="meta")
    _, states = model.extend(tokens, None, torch.tensor([6, 3]))
    logits, _ = model.extend(tokens[:1, :1].expand(3, 1), decoding.select(states, [1, 0, 1]))
    assert logits.shape == (3, 1, VOCABULARY)
    assert logits.device.type == "meta"


@every_model
def test_no_gradient_is_kept(family, variant, device):
    logits, states = build(family, variant, device=device).extend(some_tokens(1, 4, device=device))
    assert not any(t.requires_grad for t in (logits, *tensors(states)))
