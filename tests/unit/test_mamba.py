"""Mamba-2: the chunked scan against the recurrence, decoding against the parallel form, and what Muon makes of in_proj."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import muonlab
from muonlab.models import ssd as scans
from muonlab.models.causal_conv import KERNELS as CONV_KERNELS
from muonlab.models.causal_conv import causal_conv, kernel_conv
from muonlab.models.mamba import GatedNorm, Mamba2, MambaConfig
from muonlab.models.ssd import chunked_scan, kernel_scan, ssd
from muonlab.streams import stream_seed

from ..reference import mamba as reference

SMALL = MambaConfig(layers=2, width=32, ssm_head_width=16, ssm_state=8, ssm_groups=2, chunk=8, context=24)
VOCABULARY = 50


def build(config=SMALL, seed=0, device="cpu"):
    model = config.build(VOCABULARY)
    model.initialize(lambda name: torch.Generator().manual_seed(stream_seed(seed, "init", name)))
    return model.to(device)


def some_tokens(*shape, seed=1, device="cpu"):
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def normal(*shape, seed=2, dtype=torch.float64, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def scan_inputs(t, *, batch=2, heads=4, groups=2, p=3, n=5, device="cpu"):
    """x, dt, A, B, C, D and a state, float64: step sizes and decays from small to large."""
    a = -torch.linspace(0.2, 16, heads, dtype=torch.float64, device=device)
    return (
        normal(batch, t, heads, p, seed=1, device=device),
        F.softplus(normal(batch, t, heads, seed=2, device=device) - 1),
        a,
        normal(batch, t, groups, n, seed=3, device=device),
        normal(batch, t, groups, n, seed=4, device=device),
        normal(heads, seed=5, device=device),
        normal(batch, heads, p, n, seed=6, device=device),
    )


# -- the scan -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "chunk"), [(1, 8), (5, 8), (16, 8), (19, 8), (19, 1), (19, 64)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_chunked_scan_is_the_recurrence(t, chunk, groups, device):
    *inputs, state = scan_inputs(t, groups=groups)
    for first in (None, state):
        wanted = reference.recurrence(*inputs, first)
        found = chunked_scan(*(u.to(device) for u in inputs), None if first is None else first.to(device), chunk=chunk)
        torch.testing.assert_close(tuple(u.cpu() for u in found), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("t", "chunk"), [(8, 8), (11, 4), (3, 8)])
def test_its_gradients_are_those_of_the_recurrence(t, chunk, device):
    gradients = []
    for scan, where in ((lambda *inputs: chunked_scan(*inputs, chunk=chunk), device), (reference.recurrence, "cpu")):
        inputs = [u.clone() for u in scan_inputs(t, device=where)]
        inputs[1][0, 1] = 0  # a step of size 0 has a gradient too
        inputs = [u.requires_grad_() for u in inputs]
        y, last = scan(*inputs)
        ((y * normal(*y.shape, seed=7, device=where)).sum() + (last * normal(*last.shape, seed=8, device=where)).sum()).backward()
        gradients.append([u.grad.cpu() for u in inputs])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-10)


def test_its_gradients_are_those_of_finite_differences():
    inputs = [u.requires_grad_() for u in scan_inputs(5, batch=1, heads=2, groups=1, p=2, n=2)]
    assert torch.autograd.gradcheck(lambda *u: chunked_scan(*u, chunk=2), inputs)
    assert torch.autograd.gradcheck(lambda *u: chunked_scan(*u, chunk=2)[1], inputs)  # the last state alone
    assert torch.autograd.gradcheck(lambda *u: chunked_scan(*u, chunk=2)[0], inputs)  # the outputs alone


DOCUMENTS = torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3], [4] * 8 + [5] * 11])


def one_after_the_other(*inputs):
    """The recurrence for each document by itself; the first one goes on from the state. The state is that of the last."""
    x, dt, a, b, c, d, state = inputs
    ys, states = [], []
    for row, documents in enumerate(DOCUMENTS):
        parts, last = [], state[row : row + 1]
        for document in documents.unique():
            here = documents == document
            of_document = (u[row : row + 1, here] for u in (x, dt, b, c))
            x_, dt_, b_, c_ = of_document
            y, last = reference.recurrence(x_, dt_, a, b_, c_, d, last if document == documents[0] else None)
            parts.append(y)
        ys.append(torch.cat(parts, dim=1))
        states.append(last)
    return torch.cat(ys), torch.cat(states)


@pytest.mark.parametrize("chunk", [1, 4, 8, 64])
def test_each_document_begins_from_nothing(chunk, device):
    found = []
    chunked = lambda *inputs: chunked_scan(*inputs, DOCUMENTS.to(device), chunk=chunk)  # noqa: E731
    for scan, where in ((chunked, device), (one_after_the_other, "cpu")):
        inputs = [u.requires_grad_() for u in scan_inputs(19, device=where)]
        y, last = scan(*inputs)
        ((y * normal(*y.shape, seed=7, device=where)).sum() + (last * normal(*last.shape, seed=8, device=where)).sum()).backward()
        found.append([u.cpu() for u in (y, last, *(u.grad for u in inputs))])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-10)


def test_decays_of_one_document_do_not_round_those_of_the_next(device):
    *inputs, _ = (u.float() for u in scan_inputs(16, batch=1, device=device))
    documents, large = torch.tensor([[0] * 5 + [1] * 11], device=device), inputs[1].clone()
    large[:, :5] *= 1e12
    results = [chunked_scan(inputs[0], dt, *inputs[2:], None, documents, chunk=16) for dt in (inputs[1], large)]
    assert torch.equal(results[0][0][:, 5:], results[1][0][:, 5:])
    assert torch.equal(results[0][1], results[1][1])


def test_chunk_sizes_agree(device):
    *inputs, state = (u.float() for u in scan_inputs(200, heads=2, groups=1, p=16, n=16, device=device))
    results = [chunked_scan(*inputs, state, chunk=chunk) for chunk in (16, 64, 100, 128, 256)]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-4)


def test_a_large_decay_does_not_blur_the_small_ones_behind_it(device):
    """In one chunk, a step that forgets everything (exp(−20000)), then steps that forget nearly nothing."""
    x, _, _, b, c, d, state = scan_inputs(64, heads=2, groups=1, p=8, n=8)
    dt, a = torch.full((2, 64, 2), 1e-3, dtype=torch.float64), torch.tensor([-2.0, -20.0], dtype=torch.float64)
    dt[:, 10] = 1000.0
    inputs = (x, dt, a, b, c, d, state)
    wanted, _ = reference.recurrence(*inputs)
    y, _ = chunked_scan(*(u.float().to(device) for u in inputs), chunk=64)
    torch.testing.assert_close(y[:, 11:].double().cpu(), wanted[:, 11:], rtol=2e-5, atol=2e-4)  # of values around 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_step_sizes_give_no_infinity(dtype, device):
    for size in (0.0, 1e-30, 1e4, 1e30):
        x, dt, a, b, c, d, state = (u.float() for u in scan_inputs(20, device=device))
        x, b, c = (u.to(dtype).requires_grad_() for u in (x, b, c))
        dt = torch.full_like(dt, size).requires_grad_()
        y, last = chunked_scan(x * 1e-3 / max(size, 1), dt, a, b, c, d, state, chunk=8)
        (y.float().sum() + last.sum()).backward()
        assert all(u.isfinite().all() for u in (y, last, x.grad, b.grad, c.grad)), size


def test_what_autograd_keeps_grows_linearly_with_the_length():
    def kept(t):
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.untyped_storage().nbytes()
            return tensor

        layer = Mamba2(MambaConfig(width=32, ssm_head_width=16, ssm_state=8, chunk=16))
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            layer(normal(1, t, 32, dtype=torch.float32))
        return total

    sizes = [kept(t) for t in (128, 256, 512)]
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])


def test_shapes_that_do_not_fit_are_refused():
    x, dt, a, b, c, d, _ = scan_inputs(6)
    with pytest.raises(ValueError, match="g a divisor of h"):
        ssd(x[:, :, :3], dt[:, :, :3], a, b, c, d, chunk=4)
    with pytest.raises(ValueError, match=r"got \(2, 6, 4, 3\)"):
        ssd(x, dt[:, :5], a, b, c, d, chunk=4)
    with pytest.raises(ValueError, match="ssm_head_width: expected a divisor of expand · width, 64, got 48"):
        MambaConfig(width=32, ssm_head_width=48)
    with pytest.raises(ValueError, match="ssm_groups: expected a divisor of the number of heads, 4, got 3"):
        MambaConfig(width=32, ssm_head_width=16, ssm_groups=3)


def test_the_kernels_of_mamba_ssm_agree(device):
    if not (scans.KERNELS and torch.device(device).type == "cuda"):
        pytest.skip("mamba-ssm (pip install 'muonlab[mamba]') or a CUDA device is not here: only the plain scan is tested")
    gradients = []
    for scan in (kernel_scan, chunked_scan):
        inputs = [u.float().to(device).requires_grad_() for u in scan_inputs(200, heads=4, groups=2, p=64, n=64)]
        y, last = scan(*inputs, chunk=64)
        (y.square().mean() + last.square().mean()).backward()
        gradients.append([y, last, *(u.grad for u in inputs)])
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() <= 5e-3 * other.norm()  # the kernels multiply in TF32


# -- the convolution ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 4])
def test_the_convolution_is_torchs(width, device):
    gradients = []
    for own in (True, False):
        u, weight, bias = (normal(*s, seed=i, device=device).requires_grad_() for i, s in enumerate([(2, 9, 6), (6, width), (6,)]))
        y = causal_conv(u, weight, bias) if own else F.silu(F.conv1d(u.mT, weight[:, None], bias, groups=6)).mT
        (y * normal(*y.shape, device=device)).sum().backward()
        gradients.append([y, u.grad, weight.grad, bias.grad])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


def test_the_convolution_of_a_document_takes_in_no_other(device):
    documents = torch.tensor([[0, 0, 0, 0, 1, 2, 2, 2, 3], [3] * 9], device=device)
    gradients = []
    for together in (True, False):
        u, weight, bias = (normal(*s, seed=i, device=device).requires_grad_() for i, s in enumerate([(2, 12, 6), (6, 4), (6,)]))
        if together:
            y = causal_conv(u, weight, bias, documents)
        else:
            rows = []
            for row, ids in enumerate(documents):
                parts = []
                for document in ids.unique():
                    own = u[row, 3:][ids == document]
                    before = u[row, :3] if document == ids[0] else u.new_zeros(3, 6)
                    parts.append(causal_conv(torch.cat([before, own])[None], weight, bias)[0])
                rows.append(torch.cat(parts))
            y = torch.stack(rows)
        (y * normal(*y.shape, device=device)).sum().backward()
        gradients.append([y, u.grad, weight.grad, bias.grad])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


def test_the_kernel_of_causal_conv1d_agrees(device):
    if not (CONV_KERNELS and torch.device(device).type == "cuda"):
        pytest.skip("causal-conv1d (pip install 'muonlab[mamba]') or a CUDA device is not here: only the plain form is tested")
    gradients = []
    for conv in (kernel_conv, lambda *inputs: causal_conv(*(u.cpu() for u in inputs)).to(device)):
        inputs = [normal(*s, seed=i).float().to(device).requires_grad_() for i, s in enumerate([(2, 103, 64), (64, 4), (64,)])]
        y = conv(*inputs)
        y.square().mean().backward()
        gradients.append([y, *(u.grad for u in inputs)])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_gated_norm_is_torchs(groups, device):
    gradients = []
    for own in (True, False):
        norm = GatedNorm(12, groups).double().to(device)
        y, z = (normal(2, 5, 12, seed=i, device=device).requires_grad_() for i in range(2))
        norm.gains = torch.nn.Parameter(normal(12, seed=3, device=device))
        if own:
            result = norm(y, z)
        else:
            gated = (y * F.silu(z)).unflatten(-1, (groups, -1))
            result = F.rms_norm(gated, gated.shape[-1:], eps=1e-5).flatten(-2) * norm.gains
        (result * normal(*result.shape, device=device)).sum().backward()
        gradients.append([result, y.grad, z.grad, norm.gains.grad])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)


# -- the layer ------------------------------------------------------------------------------------------------


def test_the_layer_is_the_papers(device):
    layer = build().blocks[0].mamba
    x = normal(2, 21, 32)
    wanted = reference.layer(layer.state_dict(), x, heads=4, groups=2, n=8)
    layer, x = layer.to(device), x.to(device)
    torch.testing.assert_close(layer(x.float()).double().cpu(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.double()(x).cpu(), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_layer_is_that_of_transformers(groups, device):
    modeling = pytest.importorskip("transformers.models.mamba2.modeling_mamba2", reason="transformers: the extra 'clients'")
    config = SMALL.model_copy(update={"ssm_groups": groups})
    layer = build(config, device=device).blocks[0].mamba.double()
    sizes = {"hidden_size": 32, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": groups, "num_hidden_layers": 1}
    theirs = modeling.Mamba2Mixer(modeling.Mamba2Config(**sizes, chunk_size=4, use_bias=False), layer_idx=0).double().to(device)
    names = {"conv1d.weight": "conv.weight", "conv1d.bias": "conv.bias", "norm.weight": "norm.gains"}
    ours = layer.state_dict()
    theirs.load_state_dict({name: ours[names.get(name, name)] for name in theirs.state_dict()})
    x = normal(2, 21, 32, device=device)
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-5, atol=1e-6)  # the scan of transformers is in float32


def test_the_model_has_as_many_parameters_as_that_of_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers: the extra 'clients'")
    with torch.device("meta"):
        ours = MambaConfig().build(50288)
        theirs = transformers.Mamba2ForCausalLM(
            transformers.Mamba2Config(
                hidden_size=768, num_heads=24, num_hidden_layers=24, vocab_size=50288, n_groups=1, tie_word_embeddings=True
            )
        )
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("t", [0, 7, 15, 22])
def test_position_t_cannot_see_t_plus_1(t, device):
    layer = build(device=device).blocks[0].mamba
    x = normal(1, 24, 32, dtype=torch.float32, device=device)
    changed = x.clone()
    changed[:, t + 1 :] += 1
    a, b = layer(x), layer(changed)
    torch.testing.assert_close(a[:, : t + 1], b[:, : t + 1], rtol=0, atol=1e-6)
    assert not torch.allclose(a[:, t + 1 :], b[:, t + 1 :])


# -- decoding -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("prompt", [0, 1, 2, 8, 20])
def test_steps_after_a_prompt_are_the_parallel_form(prompt, device):
    model, tokens = build(device=device), some_tokens(2, 29, device=device)
    wanted = model(tokens)
    logits, states = model.extend(tokens[:, :prompt]) if prompt else (wanted[:, :0], model.empty_states(2))
    rows = [logits]
    for t in range(prompt, 29):
        row, states = model.step(tokens[:, t], states)
        rows.append(row[:, None])
    torch.testing.assert_close(torch.cat(rows, dim=1), wanted, rtol=0, atol=1e-4)
    _, together = model.extend(tokens)
    torch.testing.assert_close(states, together, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_prompt_can_come_in_parts(device):
    model, tokens = build(device=device), some_tokens(2, 29, device=device)
    wanted, last = model.extend(tokens)
    states, rows = None, []
    for part in tokens.split([2, 1, 10, 16], dim=1):
        logits, states = model.extend(part, states)
        rows.append(logits)
    torch.testing.assert_close(torch.cat(rows, dim=1), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(states, last, rtol=0, atol=1e-4)


# -- parameters -----------------------------------------------------------------------------------------------


def test_decay_parameters_stay_in_float32(device):
    model, tokens = build(device=device), some_tokens(2, 24, device=device)
    before, wanted = model.blocks[1].mamba.A_log.clone(), model(tokens)
    model.bfloat16()
    layer = model.blocks[1].mamba
    assert {p.dtype for p in (layer.A_log, layer.dt_bias, layer.D)} == {torch.float32}
    assert layer.in_proj.weight.dtype == torch.bfloat16
    assert torch.equal(layer.A_log, before)  # not even rounded on the way
    logits = model(tokens)
    assert F.cosine_similarity(logits.flatten(), wanted.flatten(), dim=0) > 0.999
    assert model.double().blocks[1].mamba.A_log.dtype == torch.float64


def test_first_values_are_the_papers(device):
    config = MambaConfig(layers=4, width=256, ssm_head_width=4, ssm_state=16)
    model = build(config, device=device)
    for block in model.blocks:
        layer = block.mamba
        dt, a = F.softplus(layer.dt_bias.double()), layer.A_log.exp()
        assert 0.999e-3 < dt.min() < 2e-3
        assert 0.05 < dt.max() < 0.1001
        assert abs(dt.log().mean() - 0.5 * (torch.tensor(1e-4).log().item())) < 0.5  # log-uniform: half below 0.01
        assert 1 <= a.min() < 2
        assert 15 < a.max() <= 16
        assert torch.equal(layer.D, torch.ones(128, device=device))
        bounds = {"in_proj": 256**-0.5, "out_proj": 512**-0.5 / 2, "conv": 4**-0.5}  # 2 = sqrt(4 layers)
        for name, bound in bounds.items():
            weight = getattr(layer, name).weight
            assert 0.98 * bound < weight.abs().max() <= bound, name
    assert abs(model.embed.weight.std() - 0.02) < 0.001


def test_muon_orthogonalizes_each_block_of_in_proj_apart(device):
    """After one step from zero momentum, each block moved by its gradient's polar factor: singular values all alike."""
    model = build(MambaConfig(layers=1, width=32, ssm_head_width=16, ssm_state=8, chunk=8), device=device)
    optimizer = muonlab.optimizer(model, "muon", lr=0.1, scale="none", orthogonalizer="svd")
    roles = {row.name: row.role for row in optimizer.plan}
    matrices = {name.removeprefix("blocks.0.mamba.") for name, role in roles.items() if role == "matrix"}
    assert matrices == {"in_proj.weight.0", "in_proj.weight.1", "in_proj.weight.2", "out_proj.weight"}  # a row for each shape
    assert roles["embed.weight"] == "embedding"
    vectors = ("A_log", "dt_bias", "D", "conv.weight", "conv.bias", "norm.gains")
    assert {roles[f"blocks.0.mamba.{name}"] for name in vectors} == {"vector"}
    weight = model.blocks[0].mamba.in_proj.weight
    before = weight.detach().clone()
    F.cross_entropy(
        model(some_tokens(4, 24, device=device)).flatten(0, 1), some_tokens(4, 24, seed=3, device=device).flatten()
    ).backward()
    optimizer.step()
    moved = (before - weight.detach()) / 0.1
    for block in moved.split([64, 64, 8, 8, 4]):  # z, x, B, C, dt
        values = torch.linalg.svdvals(block)
        torch.testing.assert_close(values, torch.ones_like(values), rtol=1e-3, atol=1e-3)
    assert torch.linalg.svdvals(moved).max() > 1.3  # the whole is no polar factor


def test_vectors_are_not_decayed():
    plan = muonlab.optimizer(build(), "muon", weight_decay=0.1).plan
    assert {row.decay for row in plan if row.role == "vector"} == {0.0}
    assert all(row.decay > 0 for row in plan if row.role == "matrix")


def test_decays_keep_their_gradient_where_step_sizes_are_large(device):
    """Beside the diagonal, whose weights do not depend on A, what is left is small: float32 sums of both would lose it."""
    stream = torch.Generator().manual_seed(2)
    x, B, C = (torch.randn(s, generator=stream).to(device) for s in ((2, 128, 4, 8), (2, 128, 1, 8), (2, 128, 1, 8)))
    found = {}
    for dtype in (torch.float32, torch.float64):
        A = -torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=dtype, device=device).requires_grad_()
        dt = torch.full((2, 128, 4), 3.0, dtype=dtype, device=device)
        y, _ = ssd(x.to(dtype), dt, A, B.to(dtype), C.to(dtype), torch.zeros(4, dtype=dtype, device=device), chunk=64)
        (found[dtype],) = torch.autograd.grad(y.square().sum(), A)
    torch.testing.assert_close(found[torch.float32].double(), found[torch.float64], rtol=1e-3, atol=0)


def test_no_positions_are_refused():
    empty = torch.zeros(1, 0, 2, 4)
    with pytest.raises(ValueError, match="at least one position"):
        ssd(empty, torch.zeros(1, 0, 2), -torch.ones(2), torch.zeros(1, 0, 1, 4), torch.zeros(1, 0, 1, 4), torch.ones(2), chunk=64)
