"""Streams the activity of all replicas (recorded events, attempts and rejected messages) as server-sent events.

Activity is read from the ledger, with one query per second for all connected clients together. Every entry has a
stable id. A client that reconnects with the id of its last entry gets the entries that it missed. It also gets the
entries of the few seconds before its last entry again: the clocks of replicas differ and their transactions overlap, so
an entry with an earlier time may have become visible later.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from dispatcher.clock import is_set_within, loop_time
from dispatcher.errors import LedgerUnavailable
from dispatcher.ledger.queries import Queries
from dispatcher.ledger.records import Activity, Cursor

POLL_INTERVAL = 1.0
"""Seconds between two queries of the ledger."""
HEARTBEAT = 15.0
"""Seconds without a new entry after which a comment is sent, because proxies close connections without traffic."""
QUERY_LIMIT = 200
"""Maximum number of entries of each kind (event, attempt, rejected message) that one query reads. A client that missed
more entries gets only the newest of them."""
REMEMBERED = 4 * 3 * QUERY_LIMIT
STREAMS = 32
"""Maximum number of clients to which this process streams at the same time."""
OVERLAP = timedelta(seconds=5)

Format = Callable[[Activity], str]
"""Formats an entry as the text in the `data` field of a server-sent event."""


class ActivityStream:
    """Polls the ledger for recent activity and streams the activity to all connected clients."""

    def __init__(self, queries: Queries, stopping: asyncio.Event, *, streams: int = STREAMS) -> None:
        self._queries = queries
        self._stopping = stopping
        self._free_streams = streams
        self._polling = asyncio.Lock()
        self._polled_at = float("-inf")
        """Event loop time (seconds) of the last query of the ledger."""
        self._recent: OrderedDict[str, tuple[int, Activity]] = OrderedDict()
        """Mapping from an entry's id to the entry and its number, for the newest entries. This process numbers the
        entries in the order in which it reads them."""
        self._newest_number = 0

    def response(self, format_entry: Format, *, after: str | None, allowed: Callable[[], bool]) -> Response | None:
        """Return a stream of the activity from now on, or of all activity after the entry with the id `after`.

        The stream ends once `allowed`, which is called every second and before entries are sent, returns false.
        Returns None if too many clients are connected. Raises ValueError if `after` is not an id of this stream.
        """
        last = Cursor.parse(after) if after else None
        if self._free_streams <= 0:
            return None
        return _StreamResponse(self._events(format_entry, last, allowed), self._listening)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        self._free_streams -= 1
        try:
            yield
        finally:
            self._free_streams += 1

    async def _events(
        self, format_entry: Format, last: Cursor | None, allowed: Callable[[], bool]
    ) -> AsyncIterator[str]:
        """Yield the server-sent events for one client until the service stops or the client is no longer allowed."""
        yield "retry: 2000\n\n"
        silence = 0.0
        missed, number = await self._missed(last)
        for entry in missed:
            yield _event(entry, format_entry)
        already_sent = {entry.id for entry in missed}
        while not self._stopping.is_set():
            news = [(at, entry) for at, entry in await self._since(number) if entry.id not in already_sent]
            number = max([number, *(at for at, _ in news)])
            if not allowed():
                return
            for _, entry in news:
                yield _event(entry, format_entry)
            silence = 0.0 if news else silence + POLL_INTERVAL
            if silence >= HEARTBEAT:
                yield ": still here\n\n"
                silence = 0.0
            await is_set_within(self._stopping, POLL_INTERVAL)

    async def _missed(self, last: Cursor | None) -> tuple[list[Activity], int]:
        """Return the entries that a client has missed since `last`, and the number of the newest entry in `_recent`."""
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
        """Read the newest entries from the ledger, unless this was just done for another client."""
        async with self._polling:
            now = loop_time()
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
    """A streaming response that reduces the number of free streams while it is being sent."""

    def __init__(self, events: AsyncIterator[str], listening: Callable[[], AbstractContextManager[None]]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._listening = listening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._listening():
            await super().__call__(scope, receive, send)


def event_id(entry: Activity) -> str:
    """Return the id of an entry. A client that reconnects sends this id, and the stream continues after the entry."""
    return str(Cursor(entry.at, entry.id))


def _event(entry: Activity, format_entry: Format) -> str:
    lines = "".join(f"data: {line}\n" for line in format_entry(entry).splitlines())
    return f"id: {event_id(entry)}\nevent: {entry.kind}\n{lines}\n"
