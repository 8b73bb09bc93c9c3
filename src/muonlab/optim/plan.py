"""The plan: what happens to each parameter, and why, as a table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from muonlab.optim.groups import Groups
from muonlab.optim.matrices import PLAIN
from muonlab.optim.stacks import at, members_of


def kind_of(name: str) -> str:
    """A shell pattern of the parameters that differ from this one in numbers only: those of other layers."""
    return re.sub(r"\d+", "*", name)


@dataclass(frozen=True)
class PlanRow:
    name: str
    shape: tuple[int, ...]
    role: str
    why: str
    rule: str
    lr: float  # effective: group lr × lr_mul × the shape rule's factor
    decay: float  # fraction of the weight that one step takes away: lr × lr_mul × weight_decay × wd_mul
    trains: bool  # requires_grad
    matrices: str = ""  # the logical matrices that it holds, where they are not the parameter itself
    by: str = ""  # the name of its optimizer
    weights: int = 0  # in these matrices


class Plan:
    """Rows in the optimizer's order. `str()` folds layers that differ in their number only into one line."""

    def __init__(self, rows: list[PlanRow]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def folded(self) -> list[tuple[str, PlanRow]]:
        """(label, first row of its kind) for every kind of row."""
        kinds: dict[tuple, list[PlanRow]] = {}
        for row in self.rows:
            kinds.setdefault(
                (kind_of(row.name), row.shape, row.role, row.rule, row.lr, row.decay, row.trains, row.matrices), []
            ).append(row)
        return [(rows[0].name if len(rows) == 1 else f"{key[0]} (×{len(rows)})", rows[0]) for key, rows in kinds.items()]

    def __str__(self) -> str:
        header = ("parameter", "shape", "role", "lr", "decay/step", "rule", "why")
        table = [
            (
                label,
                ("×".join(map(str, row.shape)) or "scalar") + (f" = {row.matrices}" if row.matrices else ""),
                row.role if row.trains else f"{row.role} (frozen)",
                f"{row.lr:.4g}",
                f"{row.decay:.4g}",
                row.rule,
                row.why,
            )
            for label, row in self.folded()
        ]
        everything = [header, *table]
        widths = [max(len(line[i]) for line in everything) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in everything]
        return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:], "", self.summary()])

    def summary(self) -> str:
        """Which share of the weights each optimizer trains, and how much is frozen."""
        total = sum(row.weights for row in self.rows)
        shares: dict[str, int] = {}
        for row in self.rows:
            by = row.by if row.trains else "nobody (frozen)"
            shares[by] = shares.get(by, 0) + row.weights
        told = ", ".join(f"{100 * count / max(1, total):.1f} % by {by}" for by, count in shares.items())
        return f"{total:,} weights: {told}"


def plan_of(optimizer: Groups) -> Plan:
    """From the groups as they are now."""
    rows = []
    for name, p, group, j in optimizer.named():
        rule = optimizer.rule_of(group)
        spec, role, why = optimizer.about(p)
        lr = float(group["lr"]) * at(group["lr_mul"], j)
        decay = lr * float(group["weight_decay"]) * at(group["wd_mul"], j)
        for shape, member in members_of(p, j, rule, spec):
            seen = "" if member.spec in (None, PLAIN) else f"{len(member.which)} × {shape[0]}×{shape[1]} ({spec})"
            row = PlanRow(
                name + member.suffix,
                tuple(p.shape),
                role,
                why,
                rule.describe(),
                lr * rule.lr_factor(shape),
                decay,
                p.requires_grad,
                seen,
                group.get("rule", next(iter(optimizer.rules))).removeprefix("aux_"),
                len(member.which) * math.prod(shape),
            )
            rows.append(row)
    return Plan(rows)
