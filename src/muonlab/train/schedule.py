"""Learning-rate schedules: a pure function of the optimizer step, so that a resume has nothing to restore."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from muonlab.optim.schedule import check_points, interpolate


class ScheduleConfig(BaseModel):
    """Warm-up, then constant, then a cooldown to a floor, then a tail at the floor. Counted in optimizer steps, never in
    micro-steps."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    warmup_steps: int = Field(0, ge=0, description="linear from 1/warmup_steps to 1 over the first steps")
    cooldown: float = Field(0.7, ge=0, le=1, description="last fraction of the steps (but for the tail) over which the rate falls")
    shape: Literal["linear", "cosine"] = Field("linear", description="of the cooldown")
    scalars: dict[str, list[tuple[float, float]]] = Field(
        {},
        description="{key: [[fraction of the steps, value], ...]}: other scalars of the optimizer, linear between the points, "
        "such as momentum or smoothing",
    )
    floor: float = Field(0.0, ge=0, le=1, description="where the cooldown ends, as a fraction of the peak")

    tail: float = Field(0.0, ge=0, lt=1, exclude_if=lambda x: x == 0.0, description="last fraction of the steps, at the floor")
    windows: list[PositiveInt] | Literal["smooth"] | None = Field(
        None,
        exclude_if=lambda x: x is None,
        description="sliding windows over the training, in blocks: a list of equal parts such as [3, 7, 11], or smooth: "
        "context·(4x³ − 6x² + 3x) at the fraction x of the steps, rounded up to a block",
    )

    @field_validator("windows")
    @classmethod
    def _any_part(cls, windows: list[int] | str | None) -> list[int] | str | None:
        if windows == []:
            raise ValueError("expected at least one part, got none")
        return windows

    @field_validator("scalars")
    @classmethod
    def _ascending(cls, scalars: dict[str, list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
        for key, points in scalars.items():
            check_points(points, key)
        return scalars

    def scalars_at(self, step: int, steps: int) -> dict[str, float]:
        """The scheduled scalars in optimizer step `step` = 0 … steps − 1."""
        return {key: interpolate(points, step / steps) for key, points in self.scalars.items()}

    def factor(self, step: int, steps: int) -> float:
        """What the peak learning rates are multiplied by in optimizer step `step` = 0 … steps − 1."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        x = step / ((1 - self.tail) * steps)  # 1 where the tail begins
        into = (x - (1 - self.cooldown)) / self.cooldown if self.cooldown else float(x >= 1)
        left = 1 - min(1.0, max(0.0, into))  # 1 before the cooldown, 0 at its end
        if self.shape == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        return warm * (self.floor + (1 - self.floor) * left)

    def window_at(self, step: int, steps: int, blocks: int) -> int:
        """The long window in optimizer step `step`, in blocks; `blocks`: those of a whole context."""
        x = step / steps
        if isinstance(self.windows, list):
            return self.windows[int(len(self.windows) * x)]
        return max(1, math.ceil(blocks * (4 * x**3 - 6 * x**2 + 3 * x)))
