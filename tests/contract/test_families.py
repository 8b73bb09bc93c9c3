"""What every model family promises, found by itself: the smallest recipe of each family in recipes/."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import muonlab
from muonlab.models.counting import size_of
from muonlab.models.family import families
from muonlab.streams import stream_seed
from muonlab.train.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
VOCABULARY = 61


@cache
def smallest() -> dict[str, Recipe]:
    """family -> its recipe with the fewest parameters."""
    found: dict[str, Recipe] = {}
    for path in sorted(RECIPES.glob("*.toml")):
        recipe = load_recipe(path)
        best = found.get(recipe.model.family)
        if best is None or parameters(recipe) < parameters(best):
            found[recipe.model.family] = recipe
    return found


def parameters(recipe: Recipe) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in recipe.model.build(1).parameters())


def build(family, seed=0, device="cpu", **changes):
    model = smallest()[family].model.model_copy(update=changes).build(VOCABULARY)
    model.initialize(lambda name: torch.Generator().manual_seed(stream_seed(seed, name)))
    return model.to(device)


def moved(model):
    """The model with all parameters moved off their first values, many of which are zero, so that nothing is hidden."""
    stream = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=stream).to(p.device), alpha=0.05)
    return model


def some_tokens(*shape, seed=1, device="cpu"):
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def test_every_family_has_a_recipe():
    assert set(smallest()) == set(families())


@pytest.mark.parametrize("family", families())
def test_a_position_sees_no_later_token(family, device):
    model = moved(build(family, device=device)).double()
    tokens = some_tokens(1, 24, device=device)
    with torch.no_grad():
        before = model(tokens)
        for t in range(tokens.shape[1] - 1):
            changed = tokens.clone()
            changed[:, t + 1 :] = (
                changed[:, t + 1 :] + 1 + some_tokens(1, 24 - t - 1, seed=t, device=device) % (VOCABULARY - 1)
            ) % VOCABULARY
            after = model(changed)
            torch.testing.assert_close(after[:, : t + 1], before[:, : t + 1], rtol=0, atol=1e-9)
            assert (after[:, t + 1] - before[:, t + 1]).abs().max() > 1e-6  # and it does see its own


@pytest.mark.parametrize("family", families())
def test_a_position_sees_its_past(family, device):
    model = moved(build(family, device=device)).double()
    tokens = some_tokens(1, 24, device=device)
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % VOCABULARY
    with torch.no_grad():
        assert ((model(changed) - model(tokens)).abs().amax((0, 2))[4:] > 1e-9).all()


@pytest.mark.parametrize("family", families())
def test_first_weights_follow_seed_and_name_alone(family):
    one, same, other = (dict(build(family, seed).named_parameters()) for seed in (0, 0, 1))
    drawn = [name for name in one if not torch.equal(one[name], other[name])]
    assert drawn
    assert all(one[name].isfinite().all() and torch.equal(one[name], same[name]) for name in one)
    assert len({one[name].flatten()[:2].sum().item() for name in drawn}) == len(drawn)  # no two share a stream


@pytest.mark.parametrize("family", families())
def test_muon_trains_it_and_every_parameter_gets_a_gradient(family, device):
    recipe, model = smallest()[family], build(family, device=device)
    optimizer = recipe.optimizer.build(model)
    names = {name for name, _ in model.named_parameters()}
    # a parameter that holds matrices of several shapes has a row for each: name.0, name.1, ...
    assert {row.name if row.name in names else row.name.rpartition(".")[0] for row in optimizer.plan} == names
    assert any(row.role == "matrix" for row in optimizer.plan)
    tokens = some_tokens(4, 33, device=device)
    losses, touched = [], set()
    for _ in range(20):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        touched |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert touched == names


@pytest.mark.parametrize("family", families())
def test_bf16_autocast_gives_float32_logits_near_those_of_float32(family, device):
    model, tokens = moved(build(family, device=device)), some_tokens(2, 24, device=device)
    with torch.no_grad():
        plain = model(tokens)
        with torch.autocast(device, torch.bfloat16):
            mixed = model(tokens)
    assert plain.dtype == mixed.dtype == torch.float32
    assert F.cosine_similarity(plain.flatten(), mixed.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("family", families())
def test_its_loss_is_the_cross_entropy_of_its_logits(family, device):
    model, tokens = moved(build(family, device=device)).double(), some_tokens(2, 25, device=device)
    x, y = tokens[:, :-1], tokens[:, 1:]
    plain = F.cross_entropy(model(x).double().flatten(0, 1), y.flatten())
    loss = model.loss(x, y)
    torch.testing.assert_close(loss.double(), plain, rtol=1e-6, atol=0)
    for (name, p), g in zip(model.named_parameters(), torch.autograd.grad(plain, list(model.parameters())), strict=True):
        (own,) = torch.autograd.grad(model.loss(x, y), p)
        torch.testing.assert_close(own, g, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("family", families())
def test_any_optimizer_takes_it(family, device):
    for name in muonlab.optimizers():
        model = build(family, device=device)
        optimizer = muonlab.optimizer(model, name)
        model(some_tokens(1, 8, device=device)).square().mean().backward()
        optimizer.step()
        assert all(p.isfinite().all() for p in model.parameters()), name


@pytest.mark.parametrize("family", families())
def test_its_size_is_counted_without_building_it(family):
    config = smallest()[family].model
    size = size_of(config, VOCABULARY)
    assert size.parameters == sum(p.numel() for p in config.build(VOCABULARY).parameters())
    assert 6 * size.matmul_parameters <= size.flops_per_token < 40 * size.matmul_parameters


# -- documents in one row ---------------------------------------------------------------------------------------------

# Beginnings anywhere, and documents shorter than a block of multi-scale attention: the lengths in each row.
LENGTHS = [[3, 7, 1, 9, 2, 3], [1, 10, 5, 1, 1, 6, 1], [25], [2, 22, 1], [5, 6, 14]]
DOCUMENTS = torch.tensor([[2 * d + (d > 2) for d, length in enumerate(row) for _ in range(length)] for row in LENGTHS])


def apart():
    """The families that keep documents apart: all but those of somebody who left that out."""
    return [family for family in families() if build(family).keeps_documents_apart()]


def alone(model, tokens):
    """Logits (B, T, V) with each document computed by itself."""
    logits = torch.empty(*tokens.shape, VOCABULARY, dtype=torch.float64, device=tokens.device)
    for row, documents in enumerate(DOCUMENTS.to(tokens.device)):
        for document in documents.unique():
            here = documents == document
            logits[row, here] = model(tokens[row : row + 1, here])[0].double()
    return logits


@pytest.mark.parametrize("family", apart())
def test_documents_in_one_row_are_as_if_each_was_alone(family, device):
    model, tokens = moved(build(family, device=device)).double(), some_tokens(*DOCUMENTS.shape, device=device)
    targets = some_tokens(*DOCUMENTS.shape, seed=2, device=device)
    targets[:, ::3] = -100
    expected = alone(model, tokens)
    plain = F.cross_entropy(expected.flatten(0, 1), targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(model(tokens, DOCUMENTS.to(device)).double(), expected, rtol=1e-5, atol=1e-6)
    loss = model.loss(tokens, targets, DOCUMENTS.to(device))
    torch.testing.assert_close(loss.double(), plain, rtol=1e-6, atol=0)
    parameters = dict(model.named_parameters())
    for (name, _), own, one in zip(
        parameters.items(),
        torch.autograd.grad(loss, parameters.values()),
        torch.autograd.grad(plain, parameters.values()),
        strict=True,
    ):
        torch.testing.assert_close(own, one, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", apart())
def test_changing_one_document_changes_no_other_to_the_bit(family, precision, device):
    model, tokens = moved(build(family, context=200, device=device)), some_tokens(1, 200, device=device)
    lengths = [37, 3, 90, 1, 40, 29]  # across chunks of 64, and blocks of 2 and 4
    documents = torch.repeat_interleave(torch.arange(6, device=device), torch.tensor(lengths, device=device))[None]
    targets = some_tokens(1, 200, seed=3, device=device)

    def losses(tokens):
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=precision == torch.bfloat16):
            each = [model.loss(tokens, targets.masked_fill(documents != d, -100), documents).item() for d in range(6)]
            return each, model(tokens, documents)

    before, logits = losses(tokens)
    for document in range(6):
        own = documents == document
        after, changed = losses(torch.where(own, (tokens + 7) % VOCABULARY, tokens))
        assert [a == b for a, b in zip(after, before)] == [d != document for d in range(6)]
        assert torch.equal(changed[~own], logits[~own])
