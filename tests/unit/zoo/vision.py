"""Walks the tables of timm's and torchvision's models, in a process of its own, with the folder of the two libraries as argument:
torchvision's wheel is built for CUDA, and what it takes to import it beside a CPU build of torch is no business of other tests.
Prints {name: what is wrong, or ""} as JSON."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

from tests.unit.zoo.timm_models import TIMM
from tests.unit.zoo.torchvision_models import TORCHVISION
from tests.unit.zoo.walk import Image, check_routing, check_steps

ZOO = {
    **{f"timm's {name}": entry for name, entry in TIMM.items()},
    **{f"torchvision's {name}": e for name, e in TORCHVISION.items()},
}


@contextlib.contextmanager
def _narrower(by: int) -> Iterator[None]:
    """Layers that are built in here have so many times fewer channels, but for colors and classes."""

    def less(n: int) -> int:
        return n if n <= 7 else max(1, n // by)

    def patched(kind: type, *names: str) -> Any:
        init, order = kind.__init__, kind.__init__.__code__.co_varnames[1:]

        def narrow(self: Any, *args: Any, **kwargs: Any) -> None:
            given = {**dict(zip(order, args, strict=False)), **kwargs}
            given = {key: less(value) if key in names else value for key, value in given.items()}
            if given.get("groups", 1) > 1:
                given["groups"] = math.gcd(given["groups"], given["in_channels"])
            init(self, **given)

        return mock.patch.object(kind, "__init__", narrow)

    with contextlib.ExitStack() as stack:
        for kind in (nn.Conv2d, nn.Linear, nn.modules.batchnorm._NormBase):
            stack.enter_context(patched(kind, "in_channels", "out_channels", "in_features", "out_features", "num_features"))
        yield


def libraries(folder: str) -> tuple[Any, Any, Any]:
    """timm, torchvision's models, and what keeps the operators that they ask for."""
    if folder:
        sys.path.append(folder)
    library = None
    try:
        import torchvision
    except RuntimeError:  # a wheel for CUDA beside a CPU build of torch: its operators are missing, and nobody here calls them
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm
    import torchvision.models

    return timm, torchvision.models, library


def wrong(entry: Image, timm: Any, tv: types.ModuleType) -> str:
    try:
        with torch.device("meta"):
            check_routing(entry.make(timm, tv), entry.expected)
        if entry.size:
            torch.manual_seed(0)
            with _narrower(entry.narrow) if entry.narrow > 1 else contextlib.nullcontext():
                model = entry.make(timm, tv)
            images = torch.randn(2, 3, entry.size, entry.size, generator=torch.Generator().manual_seed(1))
            check_steps(model.train(), lambda model: model(images))
    except Exception:
        return traceback.format_exc(limit=-3)
    return ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    timm, tv, _library = libraries(sys.argv[1])
    print(json.dumps({name: wrong(entry, timm, tv) for name, entry in ZOO.items() if not sys.argv[2:] or name in sys.argv[2:]}))
