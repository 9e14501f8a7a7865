"""Lets concurrent callers that need the same result share one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Flight(Generic[Answer]):
    """A running call, and how many callers wait for it."""

    task: asyncio.Task[Answer]
    waiting: int = 0


class SingleFlight(Generic[Key, Answer]):
    """Shares a running call between all callers with the same key, as Go's `singleflight` does.

    A call is cancelled when its last caller is cancelled.
    """

    def __init__(self) -> None:
        self._flights: dict[Key, _Flight[Answer]] = {}

    async def run(self, key: Key, call: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """The result of `call`, or of the call with this key that is already running. Raises what that call raises."""
        flight = self._flights.get(key)
        if flight is None:
            task = asyncio.create_task(call())  # noqa: TID251 - the callers wait for it, and the last one cancels it
            flight = self._flights[key] = _Flight(task)
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if (flight.waiting == 0 or flight.task.done()) and self._flights.get(key) is flight:
                del self._flights[key]
            if flight.waiting == 0 and not flight.task.done():  # the last caller was cancelled
                flight.task.cancel()
                await asyncio.wait({flight.task})
