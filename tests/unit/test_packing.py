"""Packing: every document whole and once, labels shifted once, no target across documents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muonlab.data import packing
from muonlab.data.loader import IGNORED
from muonlab.data.packing import PackedLoader, Waste, pack, packed_batch, packed_validation_batches
from muonlab.data.prepared import Documents
from muonlab.errors import InputError


def documents(lengths, masked=None):
    """Document i holds the tokens 1000·i, 1000·i + 1, …: a target that is not its input plus one would be seen."""
    parts = [1000 * i + np.arange(n) for i, n in enumerate(lengths)]
    tokens = np.concatenate(parts).astype(np.uint32)
    index = np.stack([np.cumsum(lengths), masked or [0] * len(lengths)], axis=1)
    return Documents([(tokens, index)])


def pairs(batch):
    """All (input, target) that count."""
    chosen = batch.targets != IGNORED
    return list(zip(batch.inputs[chosen].tolist(), batch.targets[chosen].tolist()))


def one_epoch(loader):
    found = []
    while True:
        batch = loader.next()
        if loader.epoch:
            return found
        found += pairs(batch)


def optimum(lengths, context):
    """The fewest rows, by trying all ways: a plain search, for a handful of documents."""
    best = len(lengths)

    def place(rest, rows):
        nonlocal best
        if len(rows) >= best:
            return
        if not rest:
            best = len(rows)
            return
        for i, row in enumerate(rows):
            if row + rest[0] <= context:
                place(rest[1:], [*rows[:i], row + rest[0], *rows[i + 1 :]])
        place(rest[1:], [*rows, rest[0]])

    place(lengths, [])
    return best


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    context=st.integers(1, 24),
    seed=st.integers(0, 3),
    window=st.sampled_from([3, 1 << 14]),
)
def test_an_epoch_holds_every_pair_of_every_document_once(lengths, context, seed, window):
    if max(lengths) < 2:
        return
    before, packing.WINDOW = packing.WINDOW, window
    try:
        found = one_epoch(PackedLoader(documents(lengths), context=context, batch=1, seed=seed))
    finally:
        packing.WINDOW = before
    expected = [(1000 * i + t, 1000 * i + t + 1) for i, n in enumerate(lengths) for t in range(n - 1)]
    assert sorted(found) == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=7), st.integers(6, 12))
def test_best_fit_takes_at_most_a_row_more_than_need_be(lengths, context):
    inputs = [min(n, context) for n in lengths]
    rows = pack(np.array([(n + 1, 0) for n in inputs]), np.arange(len(inputs)), context)
    assert all(row[:, 2].sum() <= context for row in rows)
    assert len(rows) <= optimum(sorted(inputs, reverse=True), context) + 1


def test_a_row_holds_documents_side_by_side_and_no_target_of_a_neighbour():
    docs = documents([4, 3, 3], masked=[2, 0, 1])
    (row,) = pack(docs.sizes(), np.arange(3), 8)
    batch = packed_batch(docs, [row], 8)
    assert batch.inputs.tolist() == [[0, 1, 2, 1000, 1001, 2000, 2001, 0]]
    assert batch.targets.tolist() == [[IGNORED, 2, 3, 1001, 1002, 2001, 2002, IGNORED]]
    assert batch.documents is not None
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1, 2, 2, 3]]
    assert batch.counted() == 6
    assert all(t.dtype == torch.int64 for t in batch)


def test_targets_that_do_not_count_are_those_of_the_prompt():
    docs = documents([10], masked=[6])
    (row,) = pack(docs.sizes(), np.arange(1), 9)
    assert pairs(packed_batch(docs, [row], 9)) == [(5, 6), (6, 7), (7, 8), (8, 9)]
    assert docs.counts(0).tolist() == [False] * 6 + [True] * 4


def test_long_documents_are_cut_counted_and_pieces_without_targets_left_out():
    docs, waste = documents([30, 5], masked=[17, 0]), Waste()
    rows = pack(docs.sizes(), np.arange(2), 8, waste)
    found = [pair for row in rows for pair in pairs(packed_batch(docs, [row], 8))]
    assert sorted(found) == [(t, t + 1) for t in range(16, 29)] + [(1000 + t, 1001 + t) for t in range(4)]
    assert (waste.cut, waste.dropped, waste.documents) == (1, 2, 2)
    assert waste.used == 8 + 5 + 4
    assert waste.positions == 8 * len(rows)
    assert "1 documents are longer than a row and cut into pieces, of which 2 are left out" in str(waste)


def test_a_piece_with_a_single_target_is_kept():
    docs = documents([20], masked=[8])
    found = [pair for row in pack(docs.sizes(), np.arange(1), 8) for pair in pairs(packed_batch(docs, [row], 8))]
    assert sorted(found) == [(t, t + 1) for t in range(7, 19)]


def test_a_document_goes_into_the_fullest_row_that_has_room():
    rows = pack(np.array([(n + 1, 0) for n in (6, 3, 7)]), np.arange(3), 10)
    assert sorted(sorted(row[:, 2].tolist()) for row in rows) == [[3, 7], [6]]


def test_the_waste_is_what_the_rows_show():
    docs = documents(np.random.default_rng(0).integers(2, 90, 500).tolist())
    loader = PackedLoader(docs, context=128, batch=1, seed=0)
    waste, empty, total = loader.waste(), 0, 0
    for _ in range(waste.rows):
        batch = loader.next()
        assert batch.documents is not None
        empty += int((batch.targets == IGNORED).sum())
        total += batch.targets.numel()
    assert (empty, total) == (waste.positions - waste.used, waste.positions)
    assert waste.share == pytest.approx(empty / total)
    assert waste.share < 0.01, "random lengths pack well"
    assert str(waste).startswith("500 documents in")
    assert str(PackedLoader(docs, context=128, batch=1, seed=0).waste(400)).startswith("the first 500 documents"), "whole windows"


def test_the_order_depends_on_seed_and_epoch_alone():
    docs = documents([9] * 40)
    a, b, c = (PackedLoader(docs, context=16, batch=2, seed=s) for s in (1, 1, 2))
    first, again, other = ([loader.next().inputs.tolist() for _ in range(40)] for loader in (a, b, c))
    assert first == again != other
    assert a.epoch > 1
    assert first[:10] != first[10:20], "the second epoch has an order of its own"


@pytest.mark.parametrize("steps", range(0, 60, 7))
def test_position_is_state(monkeypatch, steps):
    monkeypatch.setattr(packing, "WINDOW", 7)
    docs = documents([3, 9, 30, 5, 6, 2, 8, 4, 12, 7, 7, 3, 20, 5, 6, 2, 8, 9, 1, 11])
    one, two = (PackedLoader(docs, context=12, batch=4, seed=5) for _ in range(2))
    for _ in range(steps):
        one.next()
    two.load_state_dict(one.state_dict())
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(one.next(), two.next()))


def test_validation_is_always_the_same_rows():
    docs = documents([5] * 12)
    batches = packed_validation_batches(docs, context=8, batch=2, tokens=40)
    assert [len(b.inputs) for b in batches] == [2, 2, 1]
    assert batches[0].inputs.tolist() == packed_validation_batches(docs, context=8, batch=2, tokens=40)[0].inputs.tolist()
    with pytest.raises(InputError, match=r"eval_tokens: expected 8 \(one row\) to 48 \(all 12 validation documents"):
        packed_validation_batches(docs, context=8, batch=2, tokens=56)
    with pytest.raises(InputError, match="no document is held out"):
        packed_validation_batches(Documents([]), context=8, batch=2, tokens=8)
    with pytest.raises(InputError, match="no document to train on"):
        PackedLoader(Documents([]), context=8, batch=1, seed=0)


def test_documents_of_several_shards_are_one_row():
    a, b = documents([3, 4]), documents([5, 2, 6])
    both = a + b
    assert len(both) == 5
    assert [both.tokens(i).tolist() for i in range(5)] == [p.tokens(i).tolist() for p in (a, b) for i in range(len(p))]
    assert both.sizes().tolist() == [[3, 0], [4, 0], [5, 0], [2, 0], [6, 0]]
    with pytest.raises(IndexError):
        both.tokens(5)
