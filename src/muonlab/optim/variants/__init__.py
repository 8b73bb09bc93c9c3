"""The published optimizers, one file each: a factory that fills slots, its formula in one line, and its source.

A file here is found by itself: it defines `VARIANT`, and nothing else has to be told about it.
"""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from muonlab.names import choose
from muonlab.optim.rules import UpdateRule


@dataclass(frozen=True)
class Variant:
    """A named optimizer: its factory takes keyword options only, all with defaults.

    A factory that ends in `**muon` passes what it does not name on to `base`, the factory of Muon: the options of both are its own.
    """

    name: str
    formula: str
    source: str
    lr: float  # a sane first learning rate; docs/optimizers.md says where it comes from
    factory: Callable[..., UpdateRule]
    base: Callable[..., UpdateRule] | None = None

    def options(self) -> dict[str, inspect.Parameter]:
        """Option -> its parameter, in the order of the factory, then what it passes on."""
        own = dict(inspect.signature(self.factory).parameters)
        passes_on = [name for name, p in own.items() if p.kind is inspect.Parameter.VAR_KEYWORD]
        for name in passes_on:
            del own[name]
        inherited = dict(inspect.signature(self.base).parameters) if self.base and passes_on else {}
        return {**own, **{name: p for name, p in inherited.items() if name not in own}}

    def rule(self, **options: Any) -> UpdateRule:
        """The rule with these options. Raises ValueError for an option that this variant does not have."""
        for option in options:
            choose(f"option of optimizer {self.name!r}:", option, self.options())
        return self.factory(**options)


@cache
def variants() -> dict[str, Variant]:
    """name -> Variant, for every file in this package, sorted by name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        variant: Variant = importlib.import_module(f"{__name__}.{module.name}").VARIANT
        found[variant.name] = variant
    return dict(sorted(found.items()))


def variant(name: str) -> Variant:
    """The variant of that name. Raises ValueError, with the nearest name, if there is none."""
    return variants()[choose("optimizer", name, variants())]


def optimizers(pattern: str = "*") -> list[str]:
    """Names of all optimizers that match a shell pattern: `optimizers("norm*")`."""
    return [name for name in variants() if fnmatch.fnmatchcase(name, pattern)]
