"""An HTTP connection with timeouts, on top of uvicorn's.

uvicorn limits how long an idle connection is kept, but not how long a request may take to arrive or a response to be
read. Without these timeouts, a few hundred clients that send a byte now and then (slowloris) would occupy all
connections.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Timeouts of a connection, and the maximum number of connections."""

    headers: timedelta = timedelta(seconds=10)
    """Maximum time from the connection's start, or from a later request's first byte, to the end of the headers."""
    body: timedelta = timedelta(seconds=60)
    """Maximum time from the end of the headers to the end of the request's body."""
    unread_body: timedelta = timedelta(seconds=5)
    """Maximum time from the end of the response to the end of the request's body. Used if the response is complete
    first; most clients read it only after they have sent the whole body."""
    stalled_response: timedelta = timedelta(seconds=60)
    """Maximum time for which the send buffer may stay full because the client doesn't read the response."""
    connections: int = 500
    """Maximum number of connections. If there are more, the connection that has been idle longest is closed."""


_Stage = Literal["headers", "body", "unread_body"]


class Connection(H11Protocol):
    """A connection that is closed when its client exceeds a timeout."""

    limits = ConnectionLimits()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stage: _Stage | None = None
        """The part of a request whose timeout is running; None between requests and while a response is computed."""
        self._receive_timeout: asyncio.TimerHandle | None = None
        self._send_timeout: asyncio.TimerHandle | None = None
        self.idle_since: float | None = self.loop.time()
        """Event loop time since which the connection is idle; None while a request is being answered."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn declares it
        super().connection_made(transport)
        self._enter("headers")
        if len(self.connections) > self.limits.connections:
            self._close_longest_idle()

    def data_received(self, data: bytes) -> None:
        starts_request = self._stage is None and self.conn.their_state is h11.IDLE
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            if starts_request:
                self._enter("headers")
            return
        self.idle_since = None
        self._update_stage()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_stage()
        if self.cycle.response_complete:
            self.idle_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter(None)
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        delay = self.limits.stalled_response.total_seconds()
        self._send_timeout = self.loop.call_later(delay, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timeout is not None:
            self._send_timeout.cancel()
            self._send_timeout = None

    def _close_longest_idle(self) -> None:
        """Close the connection that has been idle longest. If all other connections are busy, this is the new one."""
        connected = (one for one in self.connections if isinstance(one, Connection) and not one.transport.is_closing())
        idle = [(one.idle_since, id(one), one) for one in connected if one.idle_since is not None]
        min(idle)[2].transport.abort()

    def _update_stage(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:  # the next request has begun to arrive
            self._enter("headers")
        elif self.conn.their_state is not h11.SEND_BODY:
            self._enter(None)
        elif self.cycle.response_complete:
            self._enter("unread_body")
        else:
            self._enter("body")

    def _enter(self, stage: _Stage | None) -> None:
        """Start the timeout of a new stage; the timeout of the current stage keeps running."""
        if stage == self._stage:
            return
        if self._receive_timeout is not None:
            self._receive_timeout.cancel()
            self._receive_timeout = None
        self._stage = stage
        if stage is not None:
            timeout: timedelta = getattr(self.limits, stage)
            self._receive_timeout = self.loop.call_later(timeout.total_seconds(), self.transport.abort)
