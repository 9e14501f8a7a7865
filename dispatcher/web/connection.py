"""One HTTP connection that doesn't wait for ever: uvicorn's, with an end to its patience.

uvicorn bounds how long an idle connection is kept, not how long a request may take to arrive or an answer to leave.
A few hundred clients that send a byte now and then (slow-loris) would hold all its connections.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a client may take, and how many of them there may be."""

    head: timedelta = timedelta(seconds=10)
    """From a request's first byte, or the connection, to the end of its headers."""
    body: timedelta = timedelta(seconds=60)
    """From there to the end of its body."""
    rest: timedelta = timedelta(seconds=5)
    """For what is still sent after we have answered: most clients read the answer only then."""
    reading: timedelta = timedelta(seconds=60)
    """Without taking anything of an answer that is longer than the buffers."""
    connections: int = 500
    """Past these the one that has been idle for longest is ended."""


_Awaited = Literal["head", "body", "rest"]


class Connection(H11Protocol):
    """Ends when its client keeps us waiting."""

    patience = Patience()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._awaited: _Awaited | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._reader_alarm: asyncio.TimerHandle | None = None
        self.idle_since: float | None = self.loop.time()
        """Of the loop's clock; None while a request is being answered."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._await("head")
        if len(self.connections) > self.patience.connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        begins = self._awaited is None and self.conn.their_state is h11.IDLE
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            if begins:
                self._await("head")
            return
        self.idle_since = None
        self._await_the_rest()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_the_rest()
        if self.cycle.response_complete:
            self.idle_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._await(None)
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader_alarm = self.loop.call_later(self.patience.reading.total_seconds(), self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader_alarm is not None:
            self._reader_alarm.cancel()
            self._reader_alarm = None

    def _make_room(self) -> None:
        ours = (one for one in self.connections if isinstance(one, Connection) and not one.transport.is_closing())
        idle = [(one.idle_since, id(one), one) for one in ours if one.idle_since is not None]
        min(idle)[2].transport.abort()  # ourselves, where nobody else is

    def _await_the_rest(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:  # a second request has begun to arrive
            self._await("head")
        elif self.conn.their_state is not h11.SEND_BODY:
            self._await(None)
        elif self.cycle.response_complete:
            self._await("rest")
        else:
            self._await("body")

    def _await(self, what: _Awaited | None) -> None:
        """Give the client its time for what we wait for now; anew only where that is something else."""
        if what == self._awaited:
            return
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._awaited = what
        if what is not None:
            span: timedelta = getattr(self.patience, what)
            self._alarm = self.loop.call_later(span.total_seconds(), self.transport.abort)
