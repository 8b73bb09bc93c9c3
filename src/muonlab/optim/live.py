"""Live scalars on the device: what a parameter group holds as numbers, once more in a tensor that graphs read.

A CUDA graph replays, and a compiled step runs, with the numbers that it was made with. So both read lr, weight_decay, momentum
and the rest from a tensor, and every assignment to the group (by a scheduler, or by hand) fills that tensor too: nothing is
captured or compiled again, and the group goes on holding plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

# What makes a step leave everything as it was, once the gradients are zero: no rate, no decay, and means that keep what they hold.
_STILL = {"lr": 0.0, "weight_decay": 0.0} | dict.fromkeys(("momentum", "beta2", "betas", "smoothing", "shampoo_beta"), 1.0)

PER_PARAMETER = ("lr_mul", "wd_mul")  # keys that may be lists, with one value per parameter


def _numbers(value: Any) -> list[float] | None:
    """A scalar's numbers (two for betas), or None for what is no scalar. A tensor counts as zero here: it is read itself."""
    if isinstance(value, Tensor):
        return [0.0] if value.numel() == 1 else None
    values = value if isinstance(value, tuple | list) else [value]
    return [float(v) for v in values] if all(isinstance(v, Real) and not isinstance(v, bool) for v in values) else None


class Live:
    """One group's scalars on one device.

    `read` gives each as a tensor without dimensions (betas as a pair), in float64 (float32 on Apple's GPUs, which lack it).
    """

    def __init__(self, group: Mapping[str, Any], names: Iterable[str], watched: Iterable[str], device: torch.device) -> None:
        """names: the scalars that are read. watched: what else decides the step (the drop-in's nesterov, …)."""
        self.group = 0  # its index
        self.stale = False  # a change that filling cannot follow: what was compiled is compiled anew
        self.constants: dict[str, Any] = {}  # of those names what is no number
        self._watched = {*names, *watched}
        self._given: dict[str, Tensor] = {}  # tensors of the user's own, in the place of numbers
        self._factors: list[tuple[str, list[int], Tensor]] = []
        values: list[float] = []
        still: list[float] = []
        places: dict[str, list[int]] = {}
        for name in dict.fromkeys(names):
            value = group[name]
            found = None if name in PER_PARAMETER and isinstance(value, list | tuple) else _numbers(value)
            if found is None:
                self.constants[name] = value
                continue
            if isinstance(value, Tensor):
                self._given[name] = value
            places[name] = list(range(len(values), len(values) + len(found)))
            values += found
            still += [_STILL.get(name, float("nan"))] * len(found)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.values = torch.tensor(values, dtype=dtype, device=device)
        self._still = torch.tensor(still, dtype=dtype, device=device)
        self._always = self._still.isnan()  # eps and the like are the same in a step that is not taken
        self._cells = {name: [self.values[i] for i in where] for name, where in places.items()}
        self._places = places
        self._momentum = values[places["momentum"][0]] if "momentum" in places else 0.0

    def check(self) -> None:
        """Raises RuntimeError where the user gave a tensor for a scalar that lies elsewhere: a graph would have to wait for it."""
        for key, tensor in self._given.items():
            if tensor.device != self.values.device:
                raise RuntimeError(
                    f"expected {key} as a number or a tensor on {self.values.device}, got a tensor on {tensor.device}: a graph "
                    "cannot read it there. Numbers are live too: assign group['lr'] between replays."
                )

    def read(self, taken: Tensor | None) -> dict[str, Any]:
        """name -> scalar, or where `taken` (a flag on the device) is false what makes the step none."""
        values = self.values if taken is None else torch.where(taken | self._always, self.values, self._still)
        every = values.unbind(0)
        found: dict[str, Any] = dict(self.constants)
        for name, where in self._places.items():
            scalars = [every[i] for i in where]
            if name in self._given:
                own = self._given[name].to(values.dtype).reshape(())
                scalars = [own if taken is None else torch.where(taken, own, _STILL.get(name, own))]
            found[name] = scalars[0] if len(scalars) == 1 else tuple(scalars)
        return found

    def factors(self, name: str, places: list[int], dtype: torch.dtype) -> Tensor | None:
        """The list of that name at these places of the group, as a tensor that follows it. None where it is one number for all."""
        if not isinstance(self.constants.get(name), list | tuple):
            return None
        made = torch.tensor([self.constants[name][i] for i in places], dtype=dtype, device=self.values.device)
        self._factors.append((name, places, made))
        return made

    def follow(self, name: str, value: Any) -> None:
        """The group was given another value."""
        for key, places, tensor in self._factors:
            if key == name:
                found = [value[i] if isinstance(value, list | tuple) else value for i in places]
                tensor.copy_(torch.tensor(found, dtype=tensor.dtype))
        cells, numbers = self._cells.get(name), _numbers(value)
        if name not in self._watched or (name in PER_PARAMETER and cells is None) or value is self._given.get(name, self):
            return
        if name == "momentum" and numbers is not None and bool(numbers[0]) != bool(self._momentum):
            self._momentum, self.stale = numbers[0], True  # with one, SGD has a buffer
        own = isinstance(value, Tensor) or name in self._given
        if own or cells is None or numbers is None or len(cells) != len(numbers):
            self.stale = True
            return
        for cell, number in zip(cells, numbers, strict=True):
            cell.fill_(number)


class LiveGroup(dict[str, Any]):
    """A parameter group, an ordinary dict in every way, that tells what mirrors it of every assignment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mirrors: list[Live] = []

    def _told(self, key: str) -> None:
        for live in self.mirrors:
            live.follow(key, self[key])

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._told(key)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Any) -> LiveGroup:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.update(other)
        return self

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[dict[str, Any]]]:
        return dict, (dict(self),)  # pickled and copied as what it looks like: mirrors belong to a process and a device
