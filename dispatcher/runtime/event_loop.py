"""The event loop that the service runs on: uvloop where it is installed, asyncio's own elsewhere."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
SWITCH_INTERVAL = 0.0005
"""Seconds that a thread may keep the interpreter while another asks for it."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, on the fastest loop there is: half of what a send costs is the loop's (bench/mail.py).

    SQLite's thread gets the interpreter when it asks: it lets go of it at each statement, and would wait for 5 ms each
    time while the loop is busy.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        from uvloop import new_event_loop  # noqa: PLC0415 - there is none for Windows and PyPy
    except ModuleNotFoundError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


def freeze_garbage_collector() -> None:
    """Exempt all objects that exist now from garbage collection. Call once, when everything is loaded.

    The hot path makes many short-lived objects and few cycles; looking through all that start-up made, again and
    again, costs intake an eighth of its speed (bench/intake.py).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
