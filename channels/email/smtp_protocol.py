"""Sends SMTP commands on a connection and reads the replies in order (RFC 5321, 4.2). It does not interpret the
replies.

aiosmtplib connects, starts TLS and logs in. aiosmtplib can't be used for pipelining, because it reads one reply per
command and discards replies that arrive earlier. So `SmtpProtocol` then replaces aiosmtplib's protocol on the same
transport.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import NamedTuple, cast

from aiosmtplib import SMTP

MAX_REPLY_BYTES = 32 * 1024
"""Maximum number of bytes in a reply. A longer reply is a protocol error, because normal replies are far shorter, even
those for many recipients."""
QUIT_TIMEOUT = 2.0
"""Maximum number of seconds to wait for the reply to QUIT."""


class Reply(NamedTuple):
    """One reply of the relay. If the reply has several lines, `text` contains them separated by line ends."""

    code: int
    text: str


class ConnectionFailed(Exception):
    """No further reply can be read, and the connection can't be used again."""


class Disconnected(ConnectionFailed):
    """The relay or the dispatcher has closed the connection."""


class ReplyTimeout(ConnectionFailed):
    """No reply arrived within the timeout."""


class ProtocolError(ConnectionFailed):
    """The relay sent data that is not SMTP, a reply that is too long, or a reply without a command."""


class SmtpProtocol(asyncio.Protocol):
    """Sends commands to the relay, and reads the replies in the order of the commands (RFC 2920, 3.2)."""

    def __init__(self, smtp: SMTP, timeout: float) -> None:
        """Take over the connection of `smtp`. No reply may be pending. `timeout`: maximum number of seconds for each
        reply.
        """
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._replies: deque[Reply] = deque()
        self._partial_lines: list[bytes] = []
        """The lines received so far of a reply with several lines, until its last line arrives."""
        self._buffer = b""
        """The received part of a line whose end has not arrived yet."""
        self._error: ConnectionFailed | None = None
        self._waiter: asyncio.Future[None] | None = None
        """The future on which `read_reply` waits for a reply; None while `read_reply` is not waiting."""
        self._transport = cast("asyncio.Transport", smtp.transport)
        self._transport.set_protocol(self)

    @property
    def usable(self) -> bool:
        """True if the connection is open and has no unread data.

        A relay that is about to close the connection usually sends the reply 421 first, without a command.
        """
        return not (self._replies or self._partial_lines or self._buffer or self._error or self._transport.is_closing())

    def write(self, data: bytes) -> None:
        """Send one or more complete commands with their line ends, or the text of a mail.

        Raises `Disconnected` or `ProtocolError`; nothing was sent in these cases.
        """
        if self._error is not None:
            raise self._error
        if self._transport.is_closing():
            raise Disconnected
        if not self.usable:
            raise ProtocolError("a reply without a command")
        self._transport.write(data)

    async def read_reply(self, seconds: float | None = None) -> Reply:
        """Wait for the next reply. `seconds`: maximum time to wait; if None, the connection's usual timeout.

        Raises `Disconnected`, `ReplyTimeout` or `ProtocolError`.
        """
        if not self._replies:
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(seconds or self._timeout, self._fail, ReplyTimeout())
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        return self._replies.popleft()

    async def quit(self) -> None:
        """Send QUIT, wait for the reply, and close the connection."""
        with suppress(ConnectionFailed):
            self.write(b"QUIT\r\n")
            await self.read_reply(QUIT_TIMEOUT)
        self._transport.close()

    def close(self, *, send_quit: bool = False) -> None:
        """Close the connection without waiting for replies. `send_quit`: if true, QUIT is sent before closing."""
        if send_quit and self.usable:
            self._transport.write(b"QUIT\r\n")
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._partial_lines.append(line)
            if line[3:4] != b"-":
                self._reply_received(self._partial_lines)
                self._partial_lines = []
        if len(self._buffer) + sum(map(len, self._partial_lines)) > MAX_REPLY_BYTES:
            self._fail(ProtocolError("a reply that is too long"))

    def eof_received(self) -> None:
        self._fail(Disconnected())

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._fail(Disconnected())

    def _reply_received(self, lines: list[bytes]) -> None:
        text = "\n".join(line[4:].strip().decode(errors="replace") for line in lines)
        code = lines[-1][:3]
        if not code.isdigit():
            self._fail(ProtocolError(b" ".join(lines).decode(errors="replace")))
        elif self._error is None:
            self._replies.append(Reply(int(code), text))
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def _fail(self, error: ConnectionFailed) -> None:
        """Record the connection's first error. Replies that arrived before the error can still be read."""
        if self._error is None:
            self._error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._error)
