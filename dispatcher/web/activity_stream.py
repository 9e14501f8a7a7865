"""What happens, as it happens: read from the ledger, so that it tells of every replica's doings; as server-sent events.

However many listen, the ledger is asked once a second. What is told has an id that stays the same; whoever comes back
with the last one gets what he missed, and some of the last seconds once more: replicas' clocks and transactions overlap.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from dispatcher.errors import LedgerUnavailable
from dispatcher.ledger.queries import Activity, Queries
from dispatcher.ledger.search import Cursor

EVERY = 1.0
"""Seconds between looks."""
HEARTBEAT = 15.0
"""Seconds of silence after which we say that we are still here: proxies close what is silent."""
AT_ONCE = 200
"""Of each kind in one look; who comes back after more than that has to search."""
REMEMBERED = 4 * 3 * AT_ONCE
STREAMS = 32
"""Listeners at once, in this process."""
OVERLAP = timedelta(seconds=5)

Shown = Callable[[Activity], str]
"""A happening as one event's data."""


class Feed:
    """The listeners' share of one look at the ledger."""

    def __init__(self, queries: Queries, stopping: asyncio.Event, *, streams: int = STREAMS) -> None:
        self._views = queries
        self._stopping = stopping
        self._room = streams
        self._looking = asyncio.Lock()
        self._looked = float("-inf")
        self._told: OrderedDict[str, tuple[int, Activity]] = OrderedDict()
        self._number = 0

    def response(self, shown: Shown, *, after: str | None) -> Response | None:
        """The stream of what happens from now on, or after the event of that id; None where too many listen already.

        Raises ValueError for an id that is none of ours.
        """
        last = Cursor.parse(after) if after else None
        if self._room <= 0:
            return None
        return _Stream(self._events(shown, last), self._listening)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        self._room -= 1
        try:
            yield
        finally:
            self._room += 1

    async def _events(self, shown: Shown, last: Cursor | None) -> AsyncIterator[str]:
        """Ends when the service stops."""
        yield "retry: 2000\n\n"
        quiet = 0.0
        seen, number = await self._begin(last)
        for happening in seen:
            yield _event(happening, shown)
        known = {happening.id for happening in seen}
        while not self._stopping.is_set():
            news = [(at, one) for at, one in await self._since(number) if one.id not in known]
            number = max([number, *(at for at, _ in news)])
            for _, happening in news:
                yield _event(happening, shown)
            quiet = 0.0 if news else quiet + EVERY
            if quiet >= HEARTBEAT:
                yield ": still here\n\n"
                quiet = 0.0
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await self._stopping.wait()

    async def _begin(self, last: Cursor | None) -> tuple[list[Activity], int]:
        """What was missed, and the number of the newest that is known."""
        with suppress(LedgerUnavailable):
            await self._look()
            number = self._number
            if last is None:
                return [], number
            missed = await self._views.latest(limit=AT_ONCE, since=last.at - OVERLAP)
            return [one for one in missed if one.id != last.key], number
        return [], self._number

    async def _since(self, number: int) -> list[tuple[int, Activity]]:
        with suppress(LedgerUnavailable):
            await self._look()
        return [entry for entry in self._told.values() if entry[0] > number]

    async def _look(self) -> None:
        """Ask the ledger, if nobody has within the last second."""
        async with self._looking:
            now = asyncio.get_running_loop().time()
            if now - self._looked < EVERY / 2:
                return
            for happening in await self._views.latest(limit=AT_ONCE):
                if happening.id not in self._told:
                    self._number += 1
                    self._told[happening.id] = (self._number, happening)
            while len(self._told) > REMEMBERED:
                self._told.popitem(last=False)
            self._looked = now


class _Stream(StreamingResponse):
    """Counts as a listener for as long as it is sent."""

    def __init__(self, events: AsyncIterator[str], listening: Callable[[], AbstractContextManager[None]]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._listening = listening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._listening():
            await super().__call__(scope, receive, send)


def event_id(happening: Activity) -> str:
    """What a listener shows to go on from here."""
    return str(Cursor(happening.at, happening.id))


def _event(happening: Activity, shown: Shown) -> str:
    lines = "".join(f"data: {line}\n" for line in shown(happening).splitlines())
    return f"id: {event_id(happening)}\nevent: {happening.kind}\n{lines}\n"
