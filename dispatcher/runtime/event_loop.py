"""The service's event loop: uvloop if it is installed, otherwise asyncio's own."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
SWITCH_INTERVAL = 0.0005
"""Seconds after which a thread must give up the interpreter lock if another thread waits for it."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` like `asyncio.run`, but with uvloop if it is installed.

    uvloop is faster, and a send spends half of its time in the event loop (bench/mail.py).

    Also shortens the interpreter's switch interval. SQLite's thread releases the interpreter lock at each statement;
    while the event loop is busy, it would wait 5 ms (Python's default) each time to get the lock back.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        from uvloop import new_event_loop  # noqa: PLC0415 - uvloop is not available for Windows and PyPy
    except ModuleNotFoundError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


def freeze_garbage_collector() -> None:
    """Exempt all objects that exist now from garbage collection. Call this once, after everything is loaded.

    The hot path creates many short-lived objects and few reference cycles. Without this, the collector would scan all
    objects from the start-up again and again, and intake would be an eighth slower (bench/intake.py).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
