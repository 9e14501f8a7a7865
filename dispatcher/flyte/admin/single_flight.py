"""The same question, asked by several at once, is asked once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Flight(Generic[Answer]):
    task: asyncio.Task[Answer]
    waiting: int = 0


class Merged(Generic[Key, Answer]):
    """Questions on their way, by key. A question lives as long as somebody waits for its answer."""

    def __init__(self) -> None:
        self._flights: dict[Key, _Flight[Answer]] = {}

    async def ask(self, key: Key, question: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """The answer, or what the question raises; one that is on its way already is shared."""
        flight = self._flights.get(key)
        if flight is None:
            task = asyncio.create_task(question())  # noqa: TID251 - those who wait for it are its parents, see below
            flight = self._flights[key] = _Flight(task)
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if (flight.waiting == 0 or flight.task.done()) and self._flights.get(key) is flight:
                del self._flights[key]
            if flight.waiting == 0 and not flight.task.done():  # the last one was cancelled, and takes it along
                flight.task.cancel()
                await asyncio.wait({flight.task})
