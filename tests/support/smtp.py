"""SMTP relays for tests: a scripted one that counts, refuses and hangs up, and one that knows every login.

The scripted one speaks SMTP by itself (RFC 5321), because a relay's misbehaviour is what it is for; it offers what it
is told to. The other is aiosmtpd.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from aiosmtpd.smtp import SMTP, AuthResult

from dispatcher.demo.fakes.mail import Mail, MailReceiver
from tests.support.servers import until_gone

DROP = "drop"
TAKE_AND_DROP = "take and drop"
HANG = "hang"
HALF = "half"
_ANSWERS = {"MAIL": "250 OK", "RCPT": "250 OK", "RSET": "250 flushed", "QUIT": "221 bye", "DATA": "354 go on"}


@dataclass(slots=True)
class ScriptedRelay:
    """A relay on a free loopback port while the block lasts."""

    offers: Sequence[str] = ("SIZE 10000000", "8BITMIME")
    most_connections: int = 1000
    """It answers 421 to more than these at once."""
    script: list[tuple[str, str]] = field(default_factory=list)
    """One-off answers, each given when its step comes: `connect`, a command's name, or `mail` for the dot that ends one.
    Words, or `drop`, `hang`, and for `mail` also `take and drop`, and `half`: taken, and an answer that breaks off."""
    always: Mapping[str, str] = field(default_factory=dict)
    """Answers by step, or by a whole command, given every time."""
    wants_mail_for_nobody: bool = False
    """It answers 354 to DATA although it has accepted no recipient, as RFC 2920 (3.1) allows."""
    deaf: bool = False
    """Of what is said at once it hears the first command alone, whatever it offers."""
    pause: float = 0
    """Seconds that it takes for each mail."""
    mails: list[Mail] = field(default_factory=list)
    offered: list[bytes] = field(default_factory=list)
    """Every mail that came in whole, taken or not."""
    empty: list[bytes] = field(default_factory=list)
    """What came as the mail for nobody."""
    conversations: list[list[str]] = field(default_factory=list)
    """What was said on each connection."""
    refused: int = 0
    """Connections above `most_connections`."""
    open: int = 0
    most_open: int = 0
    port: int = 0
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._released.set()
        self.hang_up()
        await self.until(lambda: not self._writers)
        await self._server.wait_closed()

    @property
    def said(self) -> list[str]:
        """Every command, connection by connection."""
        return [command for conversation in self.conversations for command in conversation]

    def hang_up(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.close()

    async def until(self, what: Any) -> None:
        """Wait until something is so; fails after ten seconds."""
        async with asyncio.timeout(10):
            while not what():
                self._changed.clear()
                await self._changed.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self._writers.discard(writer)
            self._changed.set()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.open >= self.most_connections:
            self.refused += 1
            writer.write(b"421 4.7.0 too many connections from you\r\n")
            return
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            await self._converse(reader, writer)
        finally:
            self.open -= 1

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said: list[str] = []
        self.conversations.append(said)
        if not await self._answer("connect", "220 scripted ESMTP", reader, writer):
            return
        sender, recipients = None, list[str]()
        while line := (await self._next(reader)).decode().rstrip("\r\n"):
            said.append(line)
            self._changed.set()
            name = line.partition(" ")[0].upper()
            if (name == "RCPT" and sender is None) or (name == "DATA" and not recipients and not self._lenient(sender)):
                writer.write(b"503 5.5.1 not in this order\r\n")
                continue
            answer = await self._answer(name, self._usual(name), reader, writer, line=line)
            if not answer:
                return
            if name in {"MAIL", "RSET"}:
                sender, recipients = _address(line) if name == "MAIL" and answer.startswith("250") else None, []
            elif name == "RCPT" and answer.startswith("250"):
                recipients.append(_address(line))
            elif name == "QUIT" or answer.startswith("421"):
                return
            elif name == "DATA" and answer.startswith("354"):
                raw = await _content(reader)
                taken = Mail(sender or "", tuple(recipients), raw) if recipients else None
                sender, recipients = None, []
                if taken is None:
                    self.empty.append(raw)
                    writer.write(b"554 5.5.1 no valid recipients\r\n")
                    continue
                self.offered.append(raw)
                if self.pause:
                    await asyncio.sleep(self.pause)
                if not await self._answer("mail", "250 2.0.0 queued", reader, writer, taken):
                    return

    async def _answer(
        self,
        step: str,
        usual: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        mail: Mail | None = None,
        line: str = "",
    ) -> str:
        """Answer as scripted or as usual; what was said, nothing where it hung up."""
        words = self.always.get(line) or self.always.get(step, usual)
        if self.script and self.script[0][0] == step:
            words = self.script.pop(0)[1]
        if mail is not None and words.startswith(("250", TAKE_AND_DROP, HALF)):
            self.mails.append(mail)
        self._changed.set()
        if words == HANG:
            await until_gone(reader, self._released)
        if words == HALF:
            writer.write(b"250 2.0")
            await writer.drain()
        if words in {DROP, TAKE_AND_DROP, HANG, HALF}:
            return ""
        writer.write(f"{words}\r\n".encode())
        await writer.drain()
        return words

    async def _next(self, reader: asyncio.StreamReader) -> bytes:
        return (await reader.read(2**16)).partition(b"\n")[0] if self.deaf else await reader.readline()

    def _lenient(self, sender: str | None) -> bool:
        return self.wants_mail_for_nobody and sender is not None

    def _usual(self, name: str) -> str:
        return self._hello() if name == "EHLO" else _ANSWERS.get(name, "502 5.5.1 not implemented")

    def _hello(self) -> str:
        lines = ["scripted", *self.offers]
        return "\r\n".join(f"250{' ' if line is lines[-1] else '-'}{line}" for line in lines)


async def _content(reader: asyncio.StreamReader) -> bytes:
    """A mail up to its dot, as it was before its dots were doubled."""
    lines = []
    while (line := await reader.readuntil(b"\n")) != b".\r\n":
        lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
    return b"".join(lines)


def _address(line: str) -> str:
    return line.partition("<")[2].partition(">")[0]


@dataclass(slots=True)
class LoginRelay(MailReceiver):
    """aiosmtpd with every login that there is; it offers these."""

    offers: Sequence[str] = ("PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2")
    tokens: set[str] = field(default_factory=set)
    """The access tokens that it takes."""
    used: list[str] = field(default_factory=list)
    """The mechanisms of the logins that it took."""
    refusal: str = "535 5.7.8 Authentication credentials invalid"

    def _protocol(self) -> SMTP:
        protocol = MailReceiver._protocol(self)
        for name in set(protocol._auth_methods) - set(self.offers):
            del protocol._auth_methods[name]
        return protocol

    def _authenticate(self, server: SMTP, session: Any, envelope: Any, mechanism: str, shown: Any) -> AuthResult:
        result = MailReceiver._authenticate(self, server, session, envelope, mechanism, shown)
        return self._judged(mechanism, right=result.success)

    async def auth_CRAM__MD5(self, server: SMTP, _arguments: list[str]) -> AuthResult:  # noqa: N802 - aiosmtpd's way
        challenge = "<17.4@login.test>"
        shown = await server.challenge_auth(challenge)
        name, _, digest = shown.decode().rpartition(" ") if isinstance(shown, bytes) else ("", "", "")
        username, password = self.login or ("", "")
        right = hmac.new(password.encode(), challenge.encode(), "md5").hexdigest()
        return self._judged("CRAM-MD5", right=(name, digest) == (username, right))

    async def auth_XOAUTH2(self, server: SMTP, arguments: list[str]) -> AuthResult:  # noqa: N802 - aiosmtpd's way
        user, bearer, *_ = base64.b64decode(arguments[1]).decode().split("\x01")
        username = (self.login or ("", ""))[0]
        right = user == f"user={username}" and bearer.removeprefix("auth=Bearer ") in self.tokens
        if not right:  # the error as a challenge; the client answers with an empty line
            await server.challenge_auth('{"status":"401","schemes":"bearer"}')
        return self._judged("XOAUTH2", right=right)

    def _judged(self, mechanism: str, *, right: bool) -> AuthResult:
        if right:
            self.used.append(mechanism)
        return AuthResult(success=right, handled=False, message=None if right else self.refusal)


def headers(raw: bytes) -> Iterator[tuple[str, str]]:
    """The headers as they stand in the mail, unfolded."""
    head = raw.partition(b"\r\n\r\n")[0].decode().replace("\r\n ", " ").replace("\r\n\t", " ")
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        yield name, value.strip()
