"""SIGINT and SIGTERM as a flag: a run stops between two steps, with everything saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    signum: int | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within: the first signal sets the flag, a second one acts as usual. Outside the main thread nothing is caught."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(signum: int, _: FrameType | None) -> None:
        request.signum = signum
        for s, handler in before.items():
            signal.signal(s, handler)

    before = {s: signal.getsignal(s) for s in _SIGNALS}
    try:
        for s in _SIGNALS:
            signal.signal(s, ask)
        yield request
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
