"""All that the dispatcher changes inside uvicorn: timeouts for connections, an answer to malformed bytes wherever they
are, and no signal handlers.

uvicorn limits how long an idle connection is kept open. It does not limit how long a client may take to send a request
or to read a response, and has no option for it. Without such limits, a few hundred clients that send a byte now and then
(slowloris) would occupy all connections. uvicorn's documentation does not describe these classes. So pyproject.toml has
an upper bound for uvicorn, and `check` refuses to serve if something is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from dispatcher.errors import DispatcherError
from dispatcher.web.limits import client_of, log_refusal

_USED = ("client", "conn", "connections", "cycle", "loop", "on_response_complete", "send_400_response", "transport")
"""What `Connection` uses of uvicorn's protocol class, beside the methods of every asyncio protocol."""


def check(config: uvicorn.Config) -> None:
    """Raise DispatcherError if this uvicorn has not all that this module uses. Must run in the event loop."""
    config.load()
    probe = H11Protocol(config, ServerState(), {})
    missing = [name for name in _USED if not hasattr(probe, name)]
    missing += [] if hasattr(uvicorn.Server, "capture_signals") else ["capture_signals"]
    if missing:
        raise DispatcherError(
            f"uvicorn {uvicorn.__version__} can't be used, because its connections would have no timeouts: "
            f"it lacks {', '.join(missing)}"
        )


class Server(uvicorn.Server):
    """uvicorn's server, without signal handlers: the service has its own."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    def close_listeners(self) -> None:
        """Close the listening sockets, which are still open if the server failed."""
        for one in getattr(self, "servers", ()):
            one.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Timeouts of a connection, and the maximum number of connections."""

    headers: timedelta = timedelta(seconds=10)
    """Maximum time until a request's headers are complete. For the first request of a connection, the time starts with
    the connection; for later requests, it starts with the request's first byte."""
    body: timedelta = timedelta(seconds=60)
    """Maximum time from the end of the headers to the end of the request's body."""
    unread_body: timedelta = timedelta(seconds=5)
    """Maximum time to wait for the rest of a request's body after the response is complete. The connection stays open
    for this time, because most clients read the response only after they have sent the whole body."""
    stalled_response: timedelta = timedelta(seconds=60)
    """Maximum time for which the send buffer may stay full because the client doesn't read the response."""
    connections: int = 500
    """Maximum number of connections. If there are more, the connection that has been idle longest is closed."""


_Stage = Literal["headers", "body", "unread_body"]


class Connection(H11Protocol):
    """uvicorn's HTTP connection, with timeouts: it is closed if its client exceeds a timeout of `limits`."""

    limits = ConnectionLimits()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stage: _Stage | None = None
        """The part of the request that is being received, and whose timeout is running. None between requests and while
        the response is computed."""
        self._receive_timeout: asyncio.TimerHandle | None = None
        self._send_timeout: asyncio.TimerHandle | None = None
        self.idle_since: float | None = self.loop.time()
        """Event loop time (seconds) at which the connection became idle; None while a request is being answered."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn declares it so
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

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP, and close the connection.

        uvicorn's own method assumes that no request is being answered. If the malformed bytes are in the body of a
        request, its page sees a client that has disconnected, so that it doesn't answer too. If the page has begun to
        answer, the connection is only closed.
        """
        log_refusal(client_of({"client": self.client}), msg)
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

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
        """Close the connection that has been idle longest, after a new connection has exceeded the maximum number.

        If all other connections are busy, the new connection is closed, because it is idle too.
        """
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
        """Stop the timeout of the previous stage and start the timeout of `stage`.

        If `stage` is already the current stage, its timeout keeps running.
        """
        if stage == self._stage:
            return
        if self._receive_timeout is not None:
            self._receive_timeout.cancel()
            self._receive_timeout = None
        self._stage = stage
        if stage is not None:
            timeout: timedelta = getattr(self.limits, stage)
            self._receive_timeout = self.loop.call_later(timeout.total_seconds(), self.transport.abort)
