"""Runs the service with uvloop if uvloop is installed, otherwise with asyncio's own event loop."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
SWITCH_INTERVAL = 0.0005
"""Seconds after which a thread must give up the interpreter lock if another thread waits for the lock."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` like `asyncio.run`, but with uvloop if it is installed.

    uvloop is faster, and a send spends half of its time in the event loop (bench/mail.py).

    Also sets the interpreter's switch interval to `SWITCH_INTERVAL`. SQLite's thread releases the interpreter lock at
    each statement. With Python's default interval, it would then wait 5 ms for the lock while the event loop is busy.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        from uvloop import new_event_loop  # noqa: PLC0415 - imported here, because uvloop may not be installed
    except ModuleNotFoundError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


def freeze_garbage_collector() -> None:
    """Exclude all objects that exist now from garbage collection. Call this once, after everything is loaded.

    Intake and delivery create many short-lived objects and few reference cycles. Without this function, the collector
    would scan all objects from the start-up again and again, which makes intake one eighth slower (bench/intake.py).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
