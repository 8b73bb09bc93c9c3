"""Schedules for the live scalars of parameter groups other than the learning rate: momentum, smoothing, floor, …"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from muonlab.names import choose
from muonlab.optim.checks import check_scalars

Points = Sequence[tuple[float, float]]


def interpolate(points: Points, x: float) -> float:
    """The piecewise linear function through `points` (x ascending); constant before the first and after the last."""
    before = points[0]
    for point in points:
        if x <= point[0]:
            if point[0] == before[0]:
                return point[1]
            share = (x - before[0]) / (point[0] - before[0])
            return before[1] + share * (point[1] - before[1])
        before = point
    return before[1]


def check_points(points: Any, what: str) -> None:
    """Raises ValueError unless `points` are pairs of finite numbers, the first of them not descending, the second in the range of
    the scalar `what`."""
    fits = isinstance(points, Sequence) and len(points) > 0 and all(isinstance(p, Sequence) and len(p) == 2 for p in points)
    fits = fits and all(isinstance(x, Real) and math.isfinite(x) for p in points for x in p)
    if not fits or any(a[0] > b[0] for a, b in pairwise(points)):
        raise ValueError(f"{what}: expected pairs such as [[0, 0.5], [3000, 0.2]] in ascending order, got {points!r}")
    for _, value in points:
        check_scalars({what: value})


def _scalar(value: Any) -> bool:
    return isinstance(value, Real | Tensor) and not isinstance(value, bool)


class ScalarSchedule:
    """Sets `key` in every group that has it, from breakpoints (step, value); `step()` after each optimizer step, as in torch.

    The update-smoothing record: `ScalarSchedule(opt, "smoothing", [(0, 0.5), (3000, 0.2)])`; modded-nanogpt's momentum warm-up:
    `ScalarSchedule(opt, "momentum", [(0, 0.85), (300, 0.95)])`. Raises ValueError where no group has the key.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, key: str, points: Points) -> None:
        check_points(points, key)
        self.optimizer, self.key, self.points, self.last_step = optimizer, key, [(float(x), float(y)) for x, y in points], 0
        choose("scalar to schedule:", key, sorted({k for group in optimizer.param_groups for k, v in group.items() if _scalar(v)}))
        self._set()

    def step(self) -> None:
        self.last_step += 1
        self._set()

    def _set(self) -> None:
        value = interpolate(self.points, self.last_step)
        for group in self.optimizer.param_groups:
            if self.key in group:
                group[self.key] = value

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self.last_step, "key": self.key, "points": self.points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["key"] != self.key:
            raise ValueError(f"schedule of {state['key']!r} given to a schedule of {self.key!r}")
        self.last_step, self.points = int(state["last_step"]), [(float(x), float(y)) for x, y in state["points"]]
        self._set()
