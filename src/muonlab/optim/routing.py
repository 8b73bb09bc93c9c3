"""Routing: model -> a role for every parameter -> groups. Every parameter is covered exactly once, with a reason.

Roles: `matrix` (hidden weights: the Muon family), `embedding`, `head`, `vector` (gains, biases, everything else: AdamW). Who says
so, in this order: the caller, the model, what is known of architectures (architectures.py), the structure.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch import nn

from muonlab.names import choose
from muonlab.optim.architectures import Known, plain_name, plain_path
from muonlab.optim.architectures import known as known_of
from muonlab.optim.ends import first_layers, heads_of
from muonlab.optim.matrices import PLAIN, MatrixSpec
from muonlab.optim.questions import QUESTIONS, question_of

ROLES = ("matrix", "embedding", "head", "vector")
_ADAPTER = re.compile(r"\.lora_B\.[^.]+\.weight$")
Owners = list[tuple[nn.Module, str, str]]  # the modules that hold a parameter: module, its path, the parameter's name in it


@dataclass(frozen=True)
class Assignment:
    name: str
    parameter: nn.Parameter
    role: str
    why: str
    spec: MatrixSpec = PLAIN
    spec_told: bool = False  # by the caller or the model
    question: str = ""  # the name of the open question that it belongs to


def assign(
    model: nn.Module, roles: Mapping[str, str] | None = None, specs: Mapping[str, MatrixSpec | Mapping[str, Any]] | None = None
) -> list[Assignment]:
    """One assignment per parameter, in the model's order.

    The caller's `roles` come first ({pattern: role}: shell patterns on the full name, or the name of a question; the last match
    wins), then what the model declares in `model.roles()` (the same form), then what is known of its architecture, then what its
    modules show. So with `specs`, {pattern: MatrixSpec or a mapping of its fields, which are added to what is known}, and
    `model.specs()`. Raises ValueError for a pattern that matches nothing, an unknown role or field, or a `matrix` that is none.
    """
    named = [(plain_name(name), p) for name, p in model.named_parameters()]
    names = [name for name, _ in named]
    if not names:
        raise ValueError(f"expected a model with parameters, got {type(model).__name__} without any")
    owners = _owners(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    chains = {name: _chain(modules, owners[name]) for name in names}
    asked = {name: question for name in names if (question := question_of(chains[name])) is not None}
    kinds = {question.name: [name for name in asked if asked[name] is question] for question in asked.values()}
    given = _expand(roles or {}, names, kinds, "given by the caller as")
    from_model = _expand(_declared(model, "roles"), names, kinds, "declared by the model as")
    heads, first = heads_of(model), first_layers(model)
    entries = {name: known_of(chains[name], p) for name, p in named}
    found = []
    known: dict[str, MatrixSpec] = {}
    for name, p in named:
        entry = entries[name]
        known[name] = _spec_by_structure(name, p, owners[name]) if entry is None or entry[1] is None else entry[1]
    known.update(_of_adapters(known))
    told = set()
    for patterns in (_declared(model, "specs"), specs or {}):
        for pattern, fields in patterns.items():
            for name in match_pattern(pattern, names, kinds):
                told.add(name)
                known[name] = fields if isinstance(fields, MatrixSpec) else _with_fields(pattern, known[name], fields)
    for name, p in named:
        role, why = given.get(name) or from_model.get(name) or _by_knowledge(entries[name], p, owners[name], heads, first)
        if name in asked and role == "matrix" and name not in given:
            why = f"{why}; {asked[name].name}: {asked[name].answer}"
        if role == "matrix":
            try:
                known[name].shapes(p)
            except ValueError as error:
                raise ValueError(f"{name}: role 'matrix': {error}, or use role 'vector'") from None
        question = asked[name].name if name in asked else ""
        found.append(Assignment(name, p, role, why, known[name], name in told, question))
    return found


def own_method(model: nn.Module, name: str) -> Callable[[], Any] | None:
    """The model's method of that name, by which it says something. A submodule, a list or a number of that name is none."""
    found = getattr(model, name, None)
    return found if callable(found) and not isinstance(found, nn.Module) else None


def _declared(model: nn.Module, what: str) -> Mapping[str, Any]:
    ask = own_method(model, what)
    if ask is None:
        return {}
    found = ask()
    if not isinstance(found, Mapping):
        raise TypeError(f"{type(model).__name__}.{what}(): expected a mapping {{pattern: ...}}, got {found!r}")
    return found


def _with_fields(pattern: str, spec: MatrixSpec, fields: Mapping[str, Any]) -> MatrixSpec:
    for field in fields:
        choose(f"field of the MatrixSpec for {pattern!r}:", field, MatrixSpec.__dataclass_fields__)
    return replace(spec, **fields)


def _spec_by_structure(name: str, p: nn.Parameter, owners: Owners) -> MatrixSpec:
    """How the module stores its weight: transposed in Hugging Face's Conv1D; queries, keys and values in one tensor."""
    for module, _, _ in owners:
        if type(module).__name__ == "Conv1D" and p.ndim == 2:
            return MatrixSpec(transposed=True)
        if isinstance(module, nn.MultiheadAttention) and name.endswith("in_proj_weight"):
            return MatrixSpec(split=3)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups > 1 and p.ndim > 2:
            return MatrixSpec(split=module.groups)
    return PLAIN


def _of_adapters(known: Mapping[str, MatrixSpec]) -> dict[str, MatrixSpec]:
    """What LoRA adds to a fused layer is fused alike: B's outputs are the layer's. They are stored (out, rank) for any layer."""
    found = {}
    for name, spec in known.items():
        base = known.get(_ADAPTER.sub(".base_layer.weight", name), PLAIN) if _ADAPTER.search(name) else PLAIN
        if base.split != 1 and base.axis == "output" and spec == PLAIN and not base.batch_dims:
            found[name] = MatrixSpec(split=base.split, groups=base.groups)
    return found


def match_pattern(pattern: str, names: list[str], kinds: Mapping[str, list[str]] = MappingProxyType({})) -> list[str]:
    """The names that a shell pattern matches, or those of a question (kinds: its name -> its parameters), where no parameter itself
    is called so. Raises ValueError, naming the nearest one, if there are none."""
    if pattern in kinds and pattern not in names:
        return kinds[pattern]
    matched = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not matched:
        near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
        question = " (a question's name: no parameter belongs to it)" if pattern in {q.name for q in QUESTIONS} else ""
        raise ValueError(f"pattern {pattern!r}{question} matches none of the {len(names)} parameters; near it: {near or names[:3]}")
    return matched


def _expand(
    patterns: Mapping[str, str], names: list[str], kinds: Mapping[str, list[str]], source: str
) -> dict[str, tuple[str, str]]:
    expanded = {}
    for pattern, role in patterns.items():
        choose("role", role, ROLES)
        for name in match_pattern(pattern, names, kinds):
            expanded[name] = (role, f"{source} {pattern!r}")
    return expanded


def _owners(model: nn.Module) -> dict[str, Owners]:
    """First name of each parameter -> all who hold it: more than one where weights are tied."""
    first = {id(p): plain_name(name) for name, p in model.named_parameters()}
    owners: dict[str, Owners] = {name: [] for name in first.values()}
    for path, module in model.named_modules(remove_duplicate=False):
        for own, p in module.named_parameters(recurse=False):
            owners[first[id(p)]].append((module, path, own))
    return owners


def _chain(modules: Mapping[str, nn.Module], owners: Owners) -> list[tuple[nn.Module, str]]:
    """The modules that hold a parameter, the nearest first, and its path from each."""
    chain = []
    for _, path, own in owners:
        inner, outer = own, path
        while True:
            chain.append((modules[outer], plain_path(inner)))
            if not outer:
                break
            outer, _, last = outer.rpartition(".")
            inner = f"{last}.{inner}"
    return chain


def _by_knowledge(
    entry: tuple[Known, MatrixSpec | None] | None,
    p: nn.Parameter,
    owners: Owners,
    heads: Mapping[int, str],
    first: Mapping[int, str],
) -> tuple[str, str]:
    """What is known of the architecture, and where that says nothing of the role, the structure."""
    if entry is not None and entry[0].role is not None:
        return entry[0].role, f"known: {entry[0].why}"
    role, why = _by_structure(p, owners, heads, first)
    return role, why if entry is None or role != "matrix" else f"{why}, known: {entry[0].why}"


def _by_structure(p: nn.Parameter, owners: Owners, heads: Mapping[int, str], first: Mapping[int, str]) -> tuple[str, str]:
    for module, _, _ in owners:
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and p.ndim == 2:
            tied = " (tied)" if len(owners) > 1 else ""
            return "embedding", f"weight of an Embedding{tied}"
    if p.ndim < 2:
        return "vector", f"{p.ndim}-D"
    if p.is_complex():
        return "vector", "complex numbers, entry by entry"
    for module, path, _ in owners:
        if id(module) in heads:
            return "head", f"{path or type(module).__name__} turns features into logits: {heads[id(module)]}"
        if id(module) in first:
            return "embedding", first[id(module)]
    if p.ndim > 2:
        return _of_more_dimensions(p, owners)
    if 1 in p.shape:
        return "vector", "one row or column"
    return "matrix", "2-D hidden weight"


def _of_more_dimensions(p: nn.Parameter, owners: Owners) -> tuple[str, str]:
    """Convolutions are matrices (out, in·k·k), but for depthwise ones (Jordan's advice for Muon: its README)."""
    for module, _, own in owners:
        if own != "weight" or not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        if p.shape[1] == 1:
            return "vector", "depthwise convolution"
        return "matrix", "convolution, as a matrix (out, in·k)"
    return "vector", f"{p.ndim}-D: role 'matrix' would orthogonalize it"
