"""What must hold for any size, order and position: searched by hypothesis."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from muonlab import orthogonalize
from muonlab.data.loader import Loader
from muonlab.errors import InputError
from muonlab.optim import Optimizer
from muonlab.optim.variants import variant
from muonlab.train.run_folder import format_row, parse_row
from muonlab.train.settings import flat, nested

FEW = settings(max_examples=40, deadline=None)


@FEW
@given(
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=4),
    context=st.integers(1, 12),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    stop=st.integers(0, 40),
)
def test_a_loader_repeats_no_window_within_an_epoch_and_resumes_anywhere(lengths, context, batch, seed, stop):
    bounds = np.cumsum([0, *lengths])
    segments = [np.arange(a, b, dtype=np.uint16) for a, b in itertools.pairwise(bounds)]
    try:
        one = Loader(segments, context=context, batch=batch, seed=seed)
    except InputError:
        assert sum(max(0, (n - context) // context) for n in lengths) < batch
        return
    seen: dict[int, list[int]] = {}
    for _ in range(stop):
        x, y, _ = one.next()
        assert (y == x + 1).all()
        seen.setdefault(one.epoch, []).extend(x.flatten().tolist())
    assert all(len(tokens) == len(set(tokens)) for tokens in seen.values())
    two = Loader(segments, context=context, batch=batch, seed=seed)
    two.load_state_dict(one.state_dict())
    for _ in range(10):
        assert torch.equal(one.next()[0], two.next()[0])


@FEW
@given(m=st.integers(1, 24), n=st.integers(1, 24), seed=st.integers(0, 1000), exponent=st.integers(-6, 6))
def test_singular_values_of_a_polar_factor_stay_below_the_published_maximum(m, n, seed, exponent, device):
    g = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device) * 10.0**exponent
    assert torch.linalg.svdvals(orthogonalize(g)).max() < 1.2


@FEW
@given(order=st.permutations(range(5)), cut=st.integers(0, 5), name=st.sampled_from(["muon", "normuon", "adamw"]))
def test_order_and_grouping_of_parameters_change_nothing(order, cut, name, device):
    shapes = [(4, 6), (6, 4), (4, 6), (5, 5), (4, 6)]
    tolerance = 1e-12 if device == "cpu" else 1e-10  # a GPU takes another kernel for a stack than for one matrix

    def stepped(groups):
        params = [nn.Parameter(torch.full(s, 0.5, dtype=torch.float64, device=device)) for s in shapes]
        chosen = [{"params": [params[i] for i in group]} for group in groups if group]
        optimizer = Optimizer(chosen, variant(name).rule(), lr=0.1, weight_decay=0.1)
        for t in range(2):
            for i, p in enumerate(params):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * t + i), dtype=torch.float64).to(device)
            optimizer.step()
        return params

    for p, q in zip(stepped([range(5)]), stepped([order[:cut], order[cut:]]), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@FEW
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    )
)
def test_rows_come_back_to_the_last_bit(row):
    row = {key: value for key, value in row.items() if key != "crc"}
    assert parse_row(format_row({"step": 1, **row})) == {"step": 1, **row}


KEYS = st.text("abc", min_size=1, max_size=2)


@FEW
@given(st.recursive(st.integers(), lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3), max_leaves=8))
def test_flat_and_nested_are_inverse(tree):
    if isinstance(tree, dict):
        assert nested(flat(tree)) == tree
