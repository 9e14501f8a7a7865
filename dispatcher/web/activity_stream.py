"""Events and attempts of all replicas as server-sent events, read from the ledger soon after they are written.

The ledger is queried once a second for all listeners together. Every entry has a stable id. A client that reconnects
with its last id gets the entries that it missed, and the last seconds before them again, because the clocks and
transactions of replicas overlap.
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

POLL_INTERVAL = 1.0
"""Seconds between queries."""
HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent, because proxies close silent connections."""
QUERY_LIMIT = 200
"""Maximum number of entries of each kind in one query. A client that missed more entries has to search for them."""
REMEMBERED = 4 * 3 * QUERY_LIMIT
STREAMS = 32
"""Maximum number of listeners of this process."""
OVERLAP = timedelta(seconds=5)

Format = Callable[[Activity], str]
"""Formats an entry as the data of a server-sent event."""


class ActivityStream:
    """Polls the ledger for recent activity and streams it to all listeners."""

    def __init__(self, queries: Queries, stopping: asyncio.Event, *, streams: int = STREAMS) -> None:
        self._queries = queries
        self._stopping = stopping
        self._free_streams = streams
        self._polling = asyncio.Lock()
        self._polled_at = float("-inf")
        """Event loop time of the last query."""
        self._recent: OrderedDict[str, tuple[int, Activity]] = OrderedDict()
        """The newest entries by id, each with a number in the order in which this process has read them."""
        self._newest_number = 0

    def response(self, format_entry: Format, *, after: str | None) -> Response | None:
        """A stream of the activity from now on, or after the entry with the id `after`; None if there are too many
        listeners.

        Raises ValueError if `after` is not an id of this stream.
        """
        last = Cursor.parse(after) if after else None
        if self._free_streams <= 0:
            return None
        return _StreamResponse(self._events(format_entry, last), self._listening)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        self._free_streams -= 1
        try:
            yield
        finally:
            self._free_streams += 1

    async def _events(self, format_entry: Format, last: Cursor | None) -> AsyncIterator[str]:
        """Server-sent events for one listener, until the service stops."""
        yield "retry: 2000\n\n"
        silence = 0.0
        missed, number = await self._missed(last)
        for entry in missed:
            yield _event(entry, format_entry)
        already_sent = {entry.id for entry in missed}
        while not self._stopping.is_set():
            news = [(at, entry) for at, entry in await self._since(number) if entry.id not in already_sent]
            number = max([number, *(at for at, _ in news)])
            for _, entry in news:
                yield _event(entry, format_entry)
            silence = 0.0 if news else silence + POLL_INTERVAL
            if silence >= HEARTBEAT:
                yield ": still here\n\n"
                silence = 0.0
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL):
                    await self._stopping.wait()

    async def _missed(self, last: Cursor | None) -> tuple[list[Activity], int]:
        """Entries since `last`, and the number of the newest entry read so far."""
        with suppress(LedgerUnavailable):
            await self._poll()
            number = self._newest_number
            if last is None:
                return [], number
            missed = await self._queries.latest(limit=QUERY_LIMIT, since=last.at - OVERLAP)
            return [entry for entry in missed if entry.id != last.key], number
        return [], self._newest_number

    async def _since(self, number: int) -> list[tuple[int, Activity]]:
        with suppress(LedgerUnavailable):
            await self._poll()
        return [numbered for numbered in self._recent.values() if numbered[0] > number]

    async def _poll(self) -> None:
        """Read the newest entries, unless another listener has just done so."""
        async with self._polling:
            now = asyncio.get_running_loop().time()
            if now - self._polled_at < POLL_INTERVAL / 2:
                return
            for entry in await self._queries.latest(limit=QUERY_LIMIT):
                if entry.id not in self._recent:
                    self._newest_number += 1
                    self._recent[entry.id] = (self._newest_number, entry)
            while len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)
            self._polled_at = now


class _StreamResponse(StreamingResponse):
    """Counts as a listener while it is being sent."""

    def __init__(self, events: AsyncIterator[str], listening: Callable[[], AbstractContextManager[None]]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._listening = listening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._listening():
            await super().__call__(scope, receive, send)


def event_id(entry: Activity) -> str:
    """The id of an entry, with which a client resumes the stream after it."""
    return str(Cursor(entry.at, entry.id))


def _event(entry: Activity, format_entry: Format) -> str:
    lines = "".join(f"data: {line}\n" for line in format_entry(entry).splitlines())
    return f"id: {event_id(entry)}\nevent: {entry.kind}\n{lines}\n"
