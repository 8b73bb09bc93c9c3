"""The published optimizers, one file each: a factory that fills slots, its formula in one line, and its source.

A file here is found by itself: it defines `VARIANT`, and nothing else has to be told about it.
"""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

from muonlab.names import choose
from muonlab.optim.options import elsewhere
from muonlab.optim.rules import UpdateRule


class Variant(str):
    """An optimizer's name that knows the rest: formula, source, a sane first learning rate (docs/how-to/optimizer.md says where it
    comes from), and the factory, which takes keyword options only, all with defaults.

    A factory that ends in `**muon` passes what it does not name on to `base`, the factory of Muon: the options of both are its own.
    """

    name: str
    formula: str
    source: str
    lr: float
    factory: Callable[..., UpdateRule]
    base: Callable[..., UpdateRule] | None

    def __new__(
        cls,
        *,
        name: str,
        formula: str,
        source: str,
        lr: float,
        factory: Callable[..., UpdateRule],
        base: Callable[..., UpdateRule] | None = None,
    ) -> Variant:
        self = super().__new__(cls, name)
        vars(self).update(name=name, formula=formula, source=source, lr=lr, factory=factory, base=base)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self.name}.{name}: an optimizer's description is one for all and does not change")

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (self.name,)  # pickled as its name alone

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={p.default!r}" for key, p in self.options().items())
        return f"<{self.name}: {self.formula}; lr={self.lr!r}, {options}; {self.source}>"

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
            if option not in self.options() and (word := elsewhere(option, self.options())):
                raise ValueError(f"unknown option of optimizer {self.name!r}: {option!r}; {word}")
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


def optimizers(pattern: str = "*") -> list[Variant]:
    """All optimizers whose name matches a shell pattern: `optimizers("norm*")`. Each is its name, and has `formula`, `source`, `lr`
    and `options()`."""
    return [v for v in variants().values() if fnmatch.fnmatchcase(v.name, pattern)]
