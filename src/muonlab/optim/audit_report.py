"""An audit in words: rows, what is off in sentences, a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from muonlab.optim.plan import kind_of

_SHOWN = 3  # names in a sentence
_FAR, _CUT, _STILL, _DEAD = 0.1, 0.1, 0.5, 0.25


@dataclass
class AuditRow:
    """What a step did to one parameter. Shares are between 0 and 1; what was not looked at is None."""

    name: str
    shape: tuple[int, ...]
    role: str
    by: str  # the name of its optimizer
    what: str  # "stepped", "frozen", "no gradient" (in this step), "never had a gradient", "left out"
    frozen: bool  # it asks for no gradient
    weight: float  # RMS before the step
    update: float  # RMS of the change, decay included
    finite: bool  # the weights, after the step
    clipped: float | None  # its gradient's norm at the step over that after the backward pass
    still: float | None  # share of entries that stay as they were, in half precision
    sigma: tuple[float, float] | None = None  # range of the update's singular values, at a learning rate of 1
    reached: float | None = None  # share of directions in which the update is not small: 1 for an orthogonal one
    dead: float | None = None  # share of the gradient's rows (outputs) that are zero
    rank: float | None = None  # share of directions in which the gradient is more than a thousandth of its largest

    @property
    def ratio(self) -> float | None:
        """RMS of the change over that of the weight."""
        return self.update / self.weight if self.weight else None

    @property
    def orthogonalized(self) -> bool | None:
        """Whether the update is flat over most of the directions that the gradient has (a gradient itself is over few). None where
        that was not to be, or was not measured, or the dtype rounds most of the update away."""
        if self.reached is None or not self.rank or (self.still or 0.0) > _STILL:
            return None
        return self.reached >= 0.5 * self.rank


def table(rows: Sequence[AuditRow]) -> list[str]:
    """Rows that differ in their layer's number only as one, with ranges."""
    kinds: dict[tuple, list[AuditRow]] = {}
    for row in rows:
        kinds.setdefault((kind_of(row.name), row.shape, row.role, row.by, row.what), []).append(row)
    names = "parameter  shape  role  by  step  weight RMS  change/weight  σ of the update  directions  orthogonal"
    header = tuple(names.split("  "))
    lines: list[tuple[str, ...]] = [header]
    for alike in kinds.values():
        first = alike[0]
        sigmas = [row.sigma for row in alike if row.sigma is not None]
        flat = [row.orthogonalized for row in alike if row.orthogonalized is not None]
        lines.append(
            (
                first.name if len(alike) == 1 else f"{kind_of(first.name)} (×{len(alike)})",
                "×".join(map(str, first.shape)) or "scalar",
                first.role,
                first.by,
                first.what,
                _range([row.weight for row in alike]),
                _range([row.ratio for row in alike if row.ratio is not None and first.what == "stepped"]),
                _range([value for sigma in sigmas for value in sigma]),
                _range([row.reached for row in alike if row.reached is not None]),
                "" if not flat else "yes" if all(flat) else f"{sum(flat)} of {len(flat)}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [text[0], "  ".join("-" * width for width in widths), *text[1:]]


def summary(rows: Sequence[AuditRow], clipped: float | None, left_out: bool) -> str:
    """One line: how many matrices were orthogonalized, how far weights moved, what became of the others."""
    if left_out:
        return "the step was left out"
    if not rows:
        return "nothing was looked at"
    stepped = [row for row in rows if row.what == "stepped"]
    flat = [row for row in stepped if row.orthogonalized]
    parts = []
    if looked := [row for row in stepped if row.orthogonalized is not None]:
        reached = [100 * row.reached for row in looked if row.reached is not None]
        largest = [row.sigma[1] for row in looked if row.sigma is not None]
        parts.append(
            f"{len(flat)} of {len(looked)} updates orthogonal (σ to {max(largest):.2g}, {_range(reached)} % of directions)"
        )
    by = [row.by for row in stepped if row.orthogonalized is None]
    parts += [f"{len(list(same))} by {name}" for name, same in groupby(sorted(by))]
    ratios = [row.ratio for row in stepped if row.ratio and len(row.shape) > 1]
    parts += [f"change/weight {_range(ratios)}"] if ratios else []
    parts += [f"gradients cut to {clipped:.2g} of their norm"] if clipped is not None and clipped < 0.999 else []
    others = [row.what for row in rows if row.what != "stepped"]
    parts += [f"{len(list(same))} {what}" for what, same in groupby(sorted(others))]
    return ", ".join(parts)


def doubts(rows: Sequence[AuditRow], clipped: float | None, left_out: bool) -> list[str]:
    """What is off, a sentence each."""
    if left_out:
        return ["the step was left out, for a gradient that is not finite: nothing was changed (nonfinite='raise' names it)"]
    said = [
        _said(rows, lambda r: not r.finite, "holds values that are not finite: lower the learning rate"),
        _said(rows, lambda r: r.frozen and r.what == "stepped", "frozen, yet stepped by an old gradient: zero_grad() first"),
        _said(rows, lambda r: r.what == "never had a gradient", "never had a gradient: has it a part in the loss?"),
        _said(
            rows,
            lambda r: r.orthogonalized is False,
            "has a matrix optimizer, but its update is not orthogonal: something else changes it, or the orthogonalizer is short",
        ),
        _said(rows, lambda r: (r.dead or 0.0) > _DEAD, "so many of its outputs have no gradient (dead units?)", lambda r: r.dead),
        _said(
            rows,
            lambda r: r.what == "stepped" and r.finite and (r.ratio or 0.0) > _FAR and len(r.shape) > 1,
            "moved by so much of its size in one step: lower its learning rate",
            lambda r: r.ratio,
        ),
        _said(
            rows,
            lambda r: r.what == "stepped" and (r.still or 0.0) > _STILL,
            "so many entries stay as they are: the change is below what the dtype holds (exact_bf16=True keeps it)",
            lambda r: r.still,
        ),
        _said(
            rows,
            lambda r: r.what == "stepped" and r.finite and r.update == 0.0 and not r.still,
            "did not move: its gradient or its learning rate is zero",
        ),
    ]
    if clipped is not None and clipped < _CUT:
        said.append(
            f"gradients were cut to {clipped:.2g} of their norm between backward pass and step (by clipping, or by a scaler): an "
            "orthogonalized update does not become smaller by it"
        )
    return [sentence for sentence in said if sentence]


def _said(
    rows: Sequence[AuditRow],
    off: Callable[[AuditRow], bool],
    what: str,
    figure: Callable[[AuditRow], float | None] = lambda row: None,
) -> str:
    found = sorted((row for row in rows if off(row)), key=lambda row: -(figure(row) or 0.0))
    if not found:
        return ""
    names = [row.name + (f" ({100 * value:.0f} %)" if (value := figure(row)) is not None else "") for row in found[:_SHOWN]]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{', '.join(names)}{more}: {what}"


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, high = (f"{value:.2g}" if value < 99.5 else f"{value:.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"
