"""What is said on a connection to a relay, and what it answers (RFC 5321, 4.2), whatever any of it means.

aiosmtplib opens a connection, encrypts it and logs in. It reads one answer to one command, though, and throws away what
comes sooner, so what follows is heard here: asyncio lets a transport change the protocol that listens to it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import NamedTuple, cast

from aiosmtplib import SMTP

LONGEST_ANSWER = 32 * 1024
"""Bytes; an answer of many recipients' worth is far shorter."""
FAREWELL = 2.0
"""Seconds that a relay has to answer QUIT."""


class Reply(NamedTuple):
    """One answer, its lines joined by line ends."""

    code: int
    text: str


class Trouble(Exception):
    """There will be no answer, and the connection can't be used any more."""


class Gone(Trouble):
    """The connection is closed."""


class Silent(Trouble):
    """No answer came in time."""


class Babble(Trouble):
    """What came is no SMTP, or answers nothing that was asked."""


class Talk(asyncio.Protocol):
    """Says commands, and hears their answers in the order of the commands (RFC 2920, 3.2)."""

    def __init__(self, smtp: SMTP, timeout: float) -> None:
        """Takes the connection over; `smtp` must have an answer to all that it said. `timeout`: seconds for an answer."""
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._replies: deque[Reply] = deque()
        self._begun: list[bytes] = []
        """The lines of an answer that is not whole yet, and what has come of the next line."""
        self._rest = b""
        self._trouble: Trouble | None = None
        self._listener: asyncio.Future[None] | None = None
        self._transport = cast("asyncio.Transport", smtp.transport)
        self._transport.set_protocol(self)

    @property
    def quiet(self) -> bool:
        """Whether the connection stands, and nothing came that nobody has asked for: a farewell, as a rule."""
        return not (self._replies or self._begun or self._rest or self._trouble or self._transport.is_closing())

    def say(self, words: bytes) -> None:
        """Say one command or several, whole with their line ends, or a mail. Raises Gone or Babble, and then nothing was said."""
        if self._trouble is not None:
            raise self._trouble
        if self._transport.is_closing():
            raise Gone
        if not self.quiet:
            raise Babble("an answer to nothing that was asked")
        self._transport.write(words)

    async def hear(self, patience: float | None = None) -> Reply:
        """The next answer; `patience`: seconds, where they are not the usual ones. Raises Gone, Silent or Babble."""
        if not self._replies:
            if self._trouble is not None:
                raise self._trouble
            self._listener = self._loop.create_future()
            alarm = self._loop.call_later(patience or self._timeout, self._fail, Silent())
            try:
                await self._listener
            finally:
                alarm.cancel()
                self._listener = None
        return self._replies.popleft()

    async def leave(self) -> None:
        """Say goodbye, and hang up once the relay has heard it."""
        with suppress(Trouble):
            self.say(b"QUIT\r\n")
            await self.hear(FAREWELL)
        self._transport.close()

    def close(self, *, politely: bool = False) -> None:
        """Hang up; `politely`: with a goodbye, and without waiting for the answer."""
        if politely and self.quiet:
            self._transport.write(b"QUIT\r\n")
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._begun.append(line)
            if line[3:4] != b"-":
                self._heard(self._begun)
                self._begun = []
        if len(self._rest) + sum(map(len, self._begun)) > LONGEST_ANSWER:
            self._fail(Babble("an answer without an end"))

    def eof_received(self) -> None:
        self._fail(Gone())

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._fail(Gone())

    def _heard(self, lines: list[bytes]) -> None:
        text = "\n".join(line[4:].strip().decode(errors="replace") for line in lines)
        code = lines[-1][:3]
        if not code.isdigit():
            self._fail(Babble(b" ".join(lines).decode(errors="replace")))
        elif self._trouble is None:
            self._replies.append(Reply(int(code), text))
            if self._listener is not None and not self._listener.done():
                self._listener.set_result(None)

    def _fail(self, trouble: Trouble) -> None:
        """What was heard before can still be read; after it comes the trouble."""
        if self._trouble is None:
            self._trouble = trouble
        if self._listener is not None and not self._listener.done():
            self._listener.set_exception(self._trouble)
