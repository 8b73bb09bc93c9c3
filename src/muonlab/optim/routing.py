"""Routing: model -> a role for every parameter -> groups. Every parameter is covered exactly once, with a reason.

Roles: `matrix` (hidden weights: the Muon family), `embedding`, `head`, `vector` (gains, biases, everything else: AdamW).
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from muonlab.names import choose
from muonlab.optim.matrices import PLAIN, MatrixSpec

ROLES = ("matrix", "embedding", "head", "vector")

# Modules that turn features into logits, by the names that public models give them.
_HEAD_NAMES = {"lm_head", "head", "unembed", "unembedding", "embed_out", "output_projection", "classifier", "score"}


@dataclass(frozen=True)
class Assignment:
    name: str
    parameter: nn.Parameter
    role: str
    why: str
    spec: MatrixSpec = PLAIN


def assign(model: nn.Module, roles: Mapping[str, str] | None = None) -> list[Assignment]:
    """One assignment per parameter, in the model's order.

    The caller's `roles` ({pattern: role}, shell patterns on the full name, the last match wins) come first, then what the model
    declares in `model.roles()` (the same form), then what its modules show. Raises ValueError for a pattern that matches
    nothing, an unknown role, or a `matrix` that is not 2-D.
    """
    names = [name for name, _ in model.named_parameters()]
    if not names:
        raise ValueError(f"expected a model with parameters, got {type(model).__name__} without any")
    declared = getattr(model, "roles", None)
    given = _expand(roles or {}, names, "given by the caller as")
    from_model = _expand(declared() if callable(declared) else {}, names, "declared by the model as")  # pyright: ignore
    owners = _owners(model)
    heads = _heads(model)
    found = []
    for name, p in model.named_parameters():
        spec = PLAIN
        for module, _ in owners[name]:
            if type(module).__name__ == "Conv1D" and p.ndim == 2:  # Hugging Face's: stored as (in, out)
                spec = MatrixSpec(transposed=True)
        role, why = given.get(name) or from_model.get(name) or _by_structure(p, owners[name], heads)
        if role == "matrix" and p.ndim != 2:
            raise ValueError(f"{name}: role 'matrix' needs a 2-D parameter, got shape {tuple(p.shape)}; use role 'vector'")
        found.append(Assignment(name, p, role, why, spec))
    return found


def match_pattern(pattern: str, names: list[str]) -> list[str]:
    """The names that a shell pattern matches. Raises ValueError, naming the nearest one, if there are none."""
    matched = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not matched:
        near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
        raise ValueError(f"pattern {pattern!r} matches none of the {len(names)} parameters; near it: {near or names[:3]}")
    return matched


def _expand(patterns: Mapping[str, str], names: list[str], source: str) -> dict[str, tuple[str, str]]:
    expanded = {}
    for pattern, role in patterns.items():
        choose("role", role, ROLES)
        for name in match_pattern(pattern, names):
            expanded[name] = (role, f"{source} {pattern!r}")
    return expanded


def _owners(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """First name of each parameter -> every (module, module path) that holds it: more than one where weights are tied."""
    first = {id(p): name for name, p in model.named_parameters()}
    owners: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in first.values()}
    for path, module in model.named_modules(remove_duplicate=False):
        for p in module.parameters(recurse=False):
            owners[first[id(p)]].append((module, path))
    return owners


def _heads(model: nn.Module) -> set[int]:
    """ids of the modules that turn features into logits: by Hugging Face's accessor and by name; where these find none, the
    last one with as many outputs as an embedding has rows (an attention projection can match one too, but comes before)."""
    accessor = getattr(model, "get_output_embeddings", None)
    found = {id(accessor())} - {id(None)} if callable(accessor) else set()
    rows = {m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)}
    alike = []
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.ndim != 2 or isinstance(module, nn.Embedding):
            continue
        if path.rsplit(".", 1)[-1] in _HEAD_NAMES:
            found.add(id(module))
        if weight.shape[0] in rows:
            alike.append(id(module))
    return found or set(alike[-1:])


def _by_structure(p: nn.Parameter, owners: list[tuple[nn.Module, str]], heads: set[int]) -> tuple[str, str]:
    for module, _ in owners:
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and p.ndim == 2:
            tied = " (tied)" if len(owners) > 1 else ""
            return "embedding", f"weight of an Embedding{tied}"
    if p.ndim < 2:
        return "vector", f"{p.ndim}-D"
    for module, path in owners:
        if id(module) in heads:
            return "head", f"{path or type(module).__name__} turns features into logits"
    if p.ndim > 2:
        return "vector", f"{p.ndim}-D: not a plain matrix"
    return "matrix", "2-D hidden weight"
