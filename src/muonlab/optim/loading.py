"""Matching a saved state dict to an optimizer: by parameter name where both have names, else by position."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor

from muonlab.optim.apply import CONSTRAINTS, constraint
from muonlab.optim.checks import check_scalars
from muonlab.optim.elementwise import SGD
from muonlab.optim.groups import Groups
from muonlab.optim.momentum import Momentum
from muonlab.optim.routing import plain_name
from muonlab.optim.shadow import MANTISSA
from muonlab.optim.stacks import at, members_of, state_like
from muonlab.optim.variants import variants

_PER_PARAMETER = ("lr_mul", "wd_mul")  # group keys that may be lists with one value per parameter
RATES_MOVED = (
    "the groups were saved in another order than they have now, and torch's schedulers save rates by place: make the scheduler "
    "anew, with last_epoch, in place of loading its state"
)
_NOT_COPIED = ("params", "param_names", *_PER_PARAMETER)


def match(optimizer: Groups, state_dict: dict[str, Any]) -> tuple[dict[Tensor, Any], list[dict[str, Any]]]:
    """(state per parameter, new keys per group) for `optimizer`; nothing is changed. ValueError where it cannot fit."""
    saved_groups = copy.deepcopy(state_dict["param_groups"])
    ours, theirs = _names(optimizer.param_groups), _names(saved_groups)
    if ours is not None and theirs is not None:
        found = _by_name(ours, theirs, saved_groups)
    else:
        found = _by_position(optimizer.param_groups, saved_groups)
    state: dict[Tensor, Any] = {}
    new_groups: list[dict[str, Any]] = []
    places = iter(found)
    for group in optimizer.param_groups:
        sources = [next(places) for _ in group["params"]]  # (index in the file, saved group, place in it)
        new = _merge([saved for _, saved, _ in sources], group)
        for key in _PER_PARAMETER:
            own = group[key]
            values = [at(saved[key], place) if key in saved else at(own, j) for j, (_, saved, place) in enumerate(sources)]
            new[key] = values[0] if len(set(values)) == 1 else values
        new_groups.append(new)
        check_scalars({**group, **new})
        rule = optimizer.rule_of({**group, **new})
        for p, (index, _, _) in zip(group["params"], sources, strict=True):
            entry = state_dict["state"].get(index)
            if entry:
                if isinstance(rule, SGD) and "momentum_buffer" in entry:  # from before its momentum was set to 0
                    rule = rule.fitted({"momentum": 1.0})
                state[p] = _checked(optimizer, p, rule, entry)
    return state, new_groups


def _names(groups: list[dict[str, Any]]) -> list[str] | None:
    if not all("param_names" in group for group in groups):
        return None
    names = [plain_name(name) for group in groups for name in group["param_names"]]
    prefix = "module."  # DistributedDataParallel's
    return [name.removeprefix(prefix) for name in names] if all(name.startswith(prefix) for name in names) else names


def _places(groups: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any], int]]:
    return [(index, group, j) for group in groups for j, index in enumerate(group["params"])]


def _by_name(ours: list[str], theirs: list[str], saved_groups: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any], int]]:
    if set(ours) != set(theirs):
        missing, extra = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
        raise ValueError(
            f"state dict does not fit the parameters: {len(missing)} missing {missing[:3]}, {len(extra)} unknown {extra[:3]}. "
            "Load it into an optimizer of the same model."
        )
    by_name = dict(zip(theirs, _places(saved_groups), strict=True))
    return [by_name[name] for name in ours]


def rates_moved(groups: list[dict[str, Any]], saved_groups: list[dict[str, Any]]) -> bool:
    """Whether the groups were saved in another order, and with other initial rates at their places."""
    before = [group.get("initial_lr") for group in saved_groups]
    return None not in before and before != [group.get("initial_lr") for group in groups]


def _by_position(groups: list[dict[str, Any]], saved_groups: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any], int]]:
    sizes, saved_sizes = [len(g["params"]) for g in groups], [len(g["params"]) for g in saved_groups]
    if sizes != saved_sizes:
        raise ValueError(
            f"state dict has groups of {saved_sizes} parameters, the optimizer of {sizes}. Without parameter names "
            "both need the same groups in the same order; pass model.named_parameters() to be independent of order."
        )
    return _places(saved_groups)


def _merge(saved_groups: list[dict[str, Any]], group: dict[str, Any]) -> dict[str, Any]:
    """The scalars for one of our groups: those of the saved groups that its parameters were in, which must agree."""
    merged: dict[str, Any] = {}
    for saved in saved_groups:
        for key, value in saved.items():
            if key in _NOT_COPIED:
                continue
            value = tuple(value) if isinstance(value, list) else value
            if key in merged and merged[key] != value:
                names = group.get("param_names", ["?"])
                raise ValueError(
                    f"parameters of one group ({names[0]} ...) were saved in groups with different {key}: "
                    f"{merged[key]} and {value}. Give them groups of their own."
                )
            merged[key] = value
    return merged


def _checked(optimizer: Groups, p: Tensor, rule: Any, entry: dict[str, Any]) -> dict[str, Tensor]:
    expected = {}
    if isinstance(entry.get("step"), int | float):  # MuonWithAuxAdam's and old torch's Adam count in numbers
        entry = {**entry, "step": torch.tensor(float(entry["step"]))}
    for shape, member in members_of(p, 0, rule, optimizer._spec(p)):
        like = state_like(member, shape, rule, optimizer._exact, device="meta")
        expected |= {k: v.shape for k, v in like.items()}
    known = {*expected, *_known_names()}
    own = {k: v.shape for k, v in entry.items() if isinstance(v, Tensor) and (k in known or k.partition(".")[0] in known)}
    if not own:
        return copy.deepcopy(entry)  # only what others put there, saved before the first step
    if expected != own:
        raise ValueError(
            f"state of a parameter of shape {tuple(p.shape)}: expected {_text(expected)}, got {_text(own)}. "
            f"It was saved by another rule or for another shape than {rule.describe()!r}."
        )
    # A copy in the saved dtype: the stack converts it to the dtype that the rule keeps. What is not the rule's, but was put there
    # by somebody else, is carried along as it is.
    others = {k: v for k, v in entry.items() if k not in expected}
    return copy.deepcopy(others) | {k: entry[k].detach().to(p.device, copy=True) for k in expected}


@cache
def _known_names() -> set[str]:
    """What any rule here calls its state, constraints and exact weights included."""
    applies = [constraint(name) for name in CONSTRAINTS] + [constraint("unit_norm", every=2)]
    rules = [v.rule() for v in variants().values()] + [SGD(momentum=0.9), Momentum(dtype="bfloat16"), *applies]
    return {MANTISSA} | {name for rule in rules for name in rule.init(torch.empty(1, 1, 1, device="meta"))}


def _text(shapes: dict[str, torch.Size]) -> str:
    return ", ".join(f"{k} {tuple(v)}" for k, v in sorted(shapes.items())) or "nothing"
