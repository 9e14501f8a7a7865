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
    """A running call, and the number of callers that wait for its result."""

    task: asyncio.Task[Answer]
    waiting: int = 0


class SingleFlight(Generic[Key, Answer]):
    """Lets all callers with the same key share one running call, as Go's `singleflight` does.

    If all callers that wait for a call are cancelled, the call is cancelled too.
    """

    def __init__(self) -> None:
        self._flights: dict[Key, _Flight[Answer]] = {}

    async def run(self, key: Key, call: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """Run `call`. If a call with the same key is running already, wait for that call instead.

        Returns the call's result, or raises its exception.
        """
        flight = self._flights.get(key)
        if flight is None:
            task = asyncio.create_task(call())  # noqa: TID251 - all callers share this task, so no TaskGroup owns it
            flight = self._flights[key] = _Flight(task)
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if (flight.waiting == 0 or flight.task.done()) and self._flights.get(key) is flight:
                del self._flights[key]
            if flight.waiting == 0 and not flight.task.done():  # all callers were cancelled, so stop the call
                flight.task.cancel()
                await asyncio.wait({flight.task})
