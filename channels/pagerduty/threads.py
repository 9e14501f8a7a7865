"""Runs blocking calls in daemon threads. A caller waits for its call only until a time limit.

A blocked thread can't be ended from outside. So the caller leaves it behind, and the interpreter does not wait for it at
exit, as it would for the threads of `concurrent.futures`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class NoFreeThread(Exception):
    """No thread became free within the time limit, so the call was not made."""


class Overtime(Exception):
    """The call did not end within the time limit. It goes on in its thread, and its result will be ignored."""


class DaemonThreads:
    """Runs each blocking call in a daemon thread."""

    def __init__(self, max_calls: int, max_threads: int) -> None:
        """`max_calls`: maximum number of calls that callers wait for. `max_threads`: maximum number of threads,
        including those whose callers no longer wait.
        """
        self._free = asyncio.Semaphore(max_calls)
        self._max_threads = max_threads
        self.threads = 0
        """Number of threads that have not ended."""

    async def run(self, call: Callable[[], T], limit: float) -> T:
        """Return the result of `call()`, or raise its exception.

        Waits at most `limit` seconds for a free thread, and then at most `limit` seconds for the call. Raises
        `NoFreeThread` or `Overtime`.
        """
        try:
            async with asyncio.timeout(limit):
                await self._free.acquire()
        except TimeoutError:
            raise NoFreeThread from None
        try:
            result = self._start(call)
            async with asyncio.timeout(limit) as timeout:
                return await result
        except TimeoutError:
            if not timeout.expired():
                raise  # the call's own exception
            raise Overtime from None
        finally:
            self._free.release()

    def _start(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Start the call in a new thread, and return the future of its result."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                settle = partial(result.set_result, call())
            except Exception as error:  # noqa: BLE001 - the caller gets it
                settle = partial(result.set_exception, error)
            with suppress(RuntimeError):  # the event loop is closed: no caller waits
                loop.call_soon_threadsafe(self._ended, result, settle)

        if self.threads >= self._max_threads:
            raise NoFreeThread
        try:
            threading.Thread(target=run, name="pagerduty", daemon=True).start()
        except RuntimeError:  # the system allows no more threads
            raise NoFreeThread from None
        self.threads += 1
        return result

    def _ended(self, result: asyncio.Future[T], settle: Callable[[], None]) -> None:
        self.threads -= 1
        if not result.cancelled():  # cancelled: the caller no longer waits
            settle()
