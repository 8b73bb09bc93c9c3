"""The hybrid: its parts against plain loops, what a position may see, how large its presets are."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import muonlab as ml
from muonlab.errors import InputError, Interrupted
from muonlab.models.attention import Attention, rotary_table
from muonlab.models.gpt import MLP
from muonlab.models.hybrid import HybridConfig
from muonlab.models.mamba import Mamba2, MambaConfig
from muonlab.models.multiscale import MultiScaleAttention, keys_of
from muonlab.models.recursive import RecursiveBlock, RecursiveProcessor
from muonlab.optim.routing import assign
from muonlab.streams import stream_seed
from muonlab.train.recipe import load_recipe
from muonlab.train.run import train
from muonlab.train.settings import read_toml
from tests.reference import hybrid as reference

ROOT = Path(__file__).parents[2]
PRESETS = sorted(path for family in ("hybrid", "mamba") for path in (ROOT / "src/muonlab/presets/model").glob(f"{family}-*.toml"))
SMALL = HybridConfig(
    layers=4, pattern="M*-R", width=32, head_width=16, context=24, ssm_head_width=16, ssm_state=8, chunk=8, vocab_size=50
)


def changed(**keys):
    return SMALL.model_copy(update=keys)


def moved(module, seed=0, by=0.3, device="cpu"):
    """The module in float64, its parameters moved off their first values, many of which are zero."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=stream) * by / max(1, p.shape[-1] / 16) ** 0.5)
    return module.double().to(device)


def build(config=SMALL, seed=0, fresh=False, device="cpu"):
    model = config.build(50)
    model.initialize(lambda name: torch.Generator().manual_seed(stream_seed(seed, "init", name)))
    return model.double().to(device) if fresh else moved(model, device=device)


def count(config):
    with torch.device("meta"):
        return sum(p.numel() for p in config.build(0).parameters())


def random(*shape, seed=1, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def some_tokens(*shape, seed=1, device="cpu"):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def rotation(length, device):
    return [table.to(device) for table in rotary_table(length, 16, 1024.0)]


def on_cpu(module):
    """The module's weights, for a reference."""
    return {name: p.cpu() for name, p in module.state_dict().items()}


def attend(attention, x, documents=None):
    cos, sin = rotation(x.shape[1], x.device)
    return attention(x, cos, sin, keys_of(x.shape[1], attention.scales, cos, sin, documents))


def packed(*rows):
    """Documents of these lengths in each row -> their numbers (B, T)."""
    return torch.tensor([[d for d, length in enumerate(row) for _ in range(length)] for row in rows])


# -- multi-scale attention ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [(1,), (1, 2, 4), (1, 3)])
def test_multi_scale_attention_matches_loops_over_tokens_and_blocks(scales, device):
    attention = moved(MultiScaleAttention(changed(scales=scales)), device=device)
    x = random(2, 13, 32, device=device)
    plain = [reference.multiscale(row, on_cpu(attention), 2, scales, 0.12, 1024.0) for row in x.cpu()]
    torch.testing.assert_close(attend(attention, x).cpu(), torch.stack(plain), rtol=1e-5, atol=1e-6)  # RoPE is float32


@pytest.mark.parametrize("scales", [(1,), (1, 2, 4), (1, 3), (1, 2, 20)])
def test_in_a_packed_row_blocks_count_from_the_beginning_of_their_document(scales, device):
    attention = moved(MultiScaleAttention(changed(scales=scales)), device=device)
    documents = packed([1, 9, 3], [2, 1, 4, 5, 1], [13], [7, 6])
    x = random(4, 13, 32, device=device)
    found = attend(attention, x, documents.to(device)).cpu()
    for row, numbers, y in zip(x.cpu(), documents.tolist(), found, strict=True):
        plain = reference.multiscale(row, on_cpu(attention), 2, scales, 0.12, 1024.0, numbers)
        torch.testing.assert_close(y, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_packed_row_has_as_many_keys_as_any_and_each_block_once():
    for length in (1, 2, 3, 4, 5, 8, 23):
        cos, sin = rotary_table(length, 16, 1024.0)
        keys = torch.compile(keys_of, backend="eager", fullgraph=True)  # which a shape that depends on the documents would end
        for seed in range(10):
            begins = torch.rand(1, length, generator=torch.Generator().manual_seed(seed)) < 0.3
            documents = begins.long().cumsum(1)
            mask = keys(length, (1, 2, 4), cos, sin, documents).mask
            assert mask.shape == (1, 1, length, length + (length - 1) // 2 + (length - 1) // 4)
            places = [numbers[:t].count(d) for numbers in documents.tolist() for t, d in enumerate(numbers)]
            assert mask.sum(-1).flatten().tolist() == [t + 1 + t // 2 + t // 4 for t in places]


def test_with_tokens_alone_it_is_the_attention_of_the_gpt(device):
    attention, gpt = moved(MultiScaleAttention(changed(scales=(1,))), device=device), Attention(SMALL).double().to(device)
    gpt.load_state_dict(attention.state_dict())
    x = random(2, 13, 32, device=device)
    torch.testing.assert_close(attend(attention, x), gpt(x, *rotation(13, device)))


def test_a_token_sees_itself_and_the_blocks_that_end_before_it():
    cos, sin = rotary_table(24, 16, 1024.0)
    for length in (1, 2, 3, 4, 5, 8, 24):
        mask = keys_of(length, (1, 2, 4), cos, sin).mask
        assert mask.shape == (length, length + (length - 1) // 2 + (length - 1) // 4)
        assert mask.sum(1).tolist() == [t + 1 + t // 2 + t // 4 for t in range(length)]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_first_tokens_without_a_block_have_finite_outputs_and_gradients(length, device):
    attention, x = moved(MultiScaleAttention(SMALL), device=device), random(1, length, 32, device=device).requires_grad_()
    y = attend(attention, x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in [x.grad, *(p.grad for p in attention.parameters())])


# -- the recursive block ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("passes", "share"), [(1, True), (3, True), (3, False)])
def test_the_processor_matches_a_loop_over_tokens_and_passes(passes, share, device):
    processor = moved(RecursiveProcessor(changed(passes=passes, share_passes=share)), device=device)
    y, memory = random(7, 32), random(7, 32, seed=2)
    wanted = reference.processor(y, memory, on_cpu(processor), passes)
    found = processor(y.to(device), memory.to(device))
    torch.testing.assert_close(tuple(t.cpu() for t in found), wanted)


def test_the_processor_sees_each_token_alone(device):
    processor = moved(RecursiveProcessor(SMALL), device=device)
    y, memory, order = random(1, 9, 32, device=device), random(1, 9, 32, seed=2, device=device), torch.randperm(9).to(device)
    for out, shuffled in zip(processor(y, memory), processor(y[:, order], memory[:, order]), strict=True):
        torch.testing.assert_close(shuffled, out[:, order])


def test_the_recursive_block_is_mamba_step_by_step_then_passes_then_attention(device):
    block = moved(RecursiveBlock(SMALL), device=device)
    x, memory = random(1, 11, 32, device=device), random(1, 11, 32, seed=2, device=device)
    cos, sin = rotation(11, device)
    state, y = block.mamba.empty_state(1), []
    for token in x[0]:
        out, state = block.mamba.step((reference.unit(token) * block.norm1.gains)[None], state)
        y.append(token + out[0])
    y = torch.stack(y)
    z, handed_on = reference.processor(y.cpu(), memory[0].cpu(), on_cpu(block.processor), 3)
    z, handed_on = z.to(device), handed_on.to(device)
    normed = (reference.unit(z) * block.norm2.gains).cpu()
    attended = reference.multiscale(normed, on_cpu(block.attention), 2, [1, 2, 4], 0.12, 1024.0).to(device)
    gate = 2 / (1 + torch.exp(-reference.unit(y) @ block.fuse.weight.T))
    found, found_memory = block(x, memory, cos, sin, keys_of(11, (1, 2, 4), cos, sin))
    torch.testing.assert_close(found[0], y + gate * (z - y + attended), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_memory[0], handed_on, rtol=1e-5, atol=1e-5)


def test_the_memory_travels_from_one_recursive_block_to_the_next(device):
    model, tokens = build(changed(pattern="RM*R"), device=device), some_tokens(1, 24, device=device)
    before = model(tokens)
    forget = model.blocks[3].register_forward_pre_hook(lambda block, inputs: (inputs[0], torch.zeros_like(inputs[1]), *inputs[2:]))
    assert ((model(tokens) - before).abs().amax((0, 2)) > 1e-6).all()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("read"):
                p.zero_()
    deaf = model(tokens)
    forget.remove()
    torch.testing.assert_close(model(tokens), deaf, rtol=0, atol=0)  # what nobody reads makes no difference


@pytest.mark.parametrize("passes", [1, 3])
def test_a_fresh_block_keeps_half_of_the_memory_it_is_handed(passes, device):
    processor = build(changed(passes=passes), fresh=True, device=device).blocks[3].processor
    y, memory = random(1, 5, 32, device=device), random(1, 5, 32, seed=2, device=device)
    torch.testing.assert_close(processor(y, memory)[1] - processor(y, torch.zeros_like(memory))[1], memory / 2)


def test_a_fresh_recursive_block_is_its_mamba_layer(device):
    block = build(fresh=True, device=device).blocks[3]
    x = random(1, 11, 32, device=device)
    cos, sin = rotation(11, device)
    out, _ = block(x, torch.zeros_like(x), cos, sin, keys_of(11, (1, 2, 4), cos, sin))
    torch.testing.assert_close(out, x + block.mamba(block.norm1(x)))


def test_passes_share_one_mlp_or_have_their_own():
    shared, own = (count(changed(passes=5, share_passes=share)) for share in (True, False))
    assert own - shared == 4 * (8 * 32 * 32 + 3 * 32)  # MLP, gains, write and read


# -- the model ----------------------------------------------------------------------------------------------------------


def test_letters_place_the_layers_and_repeat():
    model = build(changed(layers=7, pattern="M*-R"))
    kinds = [RecursiveBlock if isinstance(block, RecursiveBlock) else type(block.branch) for block in model.blocks]
    assert kinds == [Mamba2, Attention, MLP, RecursiveBlock, Mamba2, Attention, MLP]


def test_the_model_is_its_layers_one_after_another(device):
    model, tokens = build(device=device), some_tokens(2, 10, device=device)
    cos, sin = rotation(10, device)
    mamba, attention, mlp, recursive = model.blocks
    x = reference.unit(model.embed.weight[tokens]) * model.norm_in.gains
    x = x + mamba.branch(reference.unit(x) * mamba.norm.gains)
    x = x + attention.branch(reference.unit(x) * attention.norm.gains, cos, sin)
    x = x + F.relu((reference.unit(x) * mlp.norm.gains) @ mlp.branch.up.weight.T) ** 2 @ mlp.branch.proj.weight.T
    x, _ = recursive(x, torch.zeros_like(x), cos, sin, keys_of(10, (1, 2, 4), cos, sin))
    logits = reference.unit(x) * model.norm_out.gains @ model.embed.weight.T
    torch.testing.assert_close(model(tokens).double(), 15 * logits / (logits**2 + 225).sqrt(), rtol=1e-5, atol=1e-5)


def test_an_untied_head_starts_at_zero(device):
    model = build(changed(tied=False), fresh=True, device=device)
    assert torch.equal(model(some_tokens(1, 4, device=device)), torch.zeros(1, 4, 50, device=device))
    assert model.roles()["head.weight"] == "head"


@pytest.mark.parametrize("keys", [{}, {"pattern": "R", "share_passes": False}, {"pattern": "RR", "passes": 1, "tied": False}])
def test_every_parameter_gets_a_gradient_and_a_role(keys, device):
    model = build(changed(**keys), device=device)
    model(some_tokens(2, 24, device=device)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()] == []
    roles = {assignment.name: assignment.role for assignment in assign(model)}
    vectors = ("gains", "A_log", "dt_bias", "D", "conv.weight", "bias", "read", "write", "depth.weight", "fuse.weight")
    for name, p in model.named_parameters():
        expected = {"embed.weight": "embedding", "head.weight": "head"}.get(name, "vector" if name.endswith(vectors) else "matrix")
        assert roles[name] == expected
        assert expected != "matrix" or min(p.shape) >= 16


@pytest.mark.parametrize("pattern", ["M", "*", "-", "R", "*-"])
def test_patterns_of_any_letters_train_with_muon(pattern, device):
    model = build(changed(pattern=pattern, layers=2), fresh=True, device=device).float()
    optimizer, tokens, losses = ml.optimizer(model, "muon", lr=0.02, aux_lr=0.01), some_tokens(4, 25, device=device), []
    for _ in range(15):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("pattern=MXR", r"model.pattern: expected the letters M \(Mamba-2\), .*R \(recursive block\), got 'X'"),
        ("pattern=", "got none"),
        ("pattern=MMMRR", "expected at most layers = 2 letters, got 5: set layers = 5"),
        ("scales=[2, 4]", r"model.scales: expected 1 and then growing numbers .* got \[2, 4\]"),
        ("scales=[1, 4, 4]", r"got \[1, 4, 4\]"),
        ("head_width=48", "model.head_width: expected a divisor of width, 64, and a multiple of 4, got 48"),
        ("ssm_head_width=48", "model.ssm_head_width: expected a divisor"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        load_recipe(ROOT / "recipes/hybrid-toy.toml", [f"model.{settings}"])


def test_an_interrupted_run_of_the_toy_goes_on_bit_for_bit(workdir):
    small = [
        "train.steps=8",
        "train.log_every=1",
        "train.eval_tokens=512",
        "train.batch=2",
        "data.source=text",
        'data.files=["corpus.txt"]',
    ]
    recipe = load_recipe(ROOT / "recipes/hybrid-toy.toml", small)

    def stop(progress):
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    whole = train(recipe, 1, "whole", threads=1)
    with pytest.raises(Interrupted):
        train(recipe, 1, "parts", threads=1, on_progress=stop)
    assert train(recipe, 1, "parts", threads=1, resume=True)["weights_sha256"] == whole["weights_sha256"]


# -- the presets --------------------------------------------------------------------------------------------------------

FIGURES = {
    "hybrid-small": 75e6,
    "hybrid-small-standard": 112e6,
    "hybrid-small-pro": 165e6,
    "hybrid-medium": 220e6,
    "mamba-small": 50e6,
    "mamba-medium": 150e6,
    "mamba-large": 400e6,
}


def preset(path):
    keys = read_toml(path)
    return {"hybrid": HybridConfig, "mamba": MambaConfig}[keys["family"]].model_validate(keys)


def test_every_preset_has_a_figure():
    assert {path.stem for path in PRESETS} == set(FIGURES)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_have_the_parameters_that_they_are_said_to_have(path):
    config = preset(path)
    assert config.vocab_size == 50257
    assert count(config) == pytest.approx(FIGURES[path.stem], rel=0.01)
    assert config.family == "mamba" or "R" in config.kinds


@torch.no_grad()
@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_no_preset_shows_a_position_its_future(path, device):
    """Every layer of the preset, but narrow. Each token is the last one in turn: all that follow are others."""
    model = build(preset(path).model_copy(update={"vocab_size": 50, "width": 128, "context": 9, "chunk": 4}), device=device)
    tokens = some_tokens(1, 9, device=device)
    before = model(tokens)
    assert before.isfinite().all()
    for t in range(8):
        others = tokens.clone()
        others[:, t + 1 :] = (others[:, t + 1 :] + 1 + some_tokens(1, 8 - t, seed=t, device=device) % 49) % 50
        after = model(others)
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert not torch.allclose(after[:, t + 1], before[:, t + 1])


@pytest.mark.parametrize("scales", [(1, 2, 4), (1, 3, 5)])
def test_documents_anywhere_in_a_row_are_as_if_each_was_alone(scales, device):
    model = build(changed(pattern="RM*-R", layers=5, scales=scales), device=device)
    documents = packed([1, 9, 2, 12], [3, 7, 1, 1, 5, 6, 1], [24]).to(device)
    tokens, targets = some_tokens(3, 24, device=device), some_tokens(3, 24, seed=2, device=device)
    together, loss = model(tokens, documents), 0.0
    for row in range(3):
        for document in documents[row].unique():
            here = documents[row] == document
            alone = model(tokens[row : row + 1, here])
            torch.testing.assert_close(together[row, here], alone[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(model.extend(tokens[row : row + 1, here])[0], alone, rtol=1e-5, atol=1e-5)
            loss = loss + F.cross_entropy(alone[0].double(), targets[row, here], reduction="sum") / targets.numel()
    parameters = dict(model.named_parameters())
    wanted = torch.autograd.grad(loss, parameters.values())
    found = torch.autograd.grad(model.loss(tokens, targets, documents), parameters.values())
    for name, one, other in zip(parameters, found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7, msg=name)
