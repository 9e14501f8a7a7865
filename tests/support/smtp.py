"""SMTP relays for tests: `ScriptedRelay` misbehaves as scripted, `LoginRelay` supports every login mechanism.

`ScriptedRelay` implements SMTP (RFC 5321) itself, because a real server can't be made to misbehave. `LoginRelay` is
aiosmtpd.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from aiosmtpd.smtp import SMTP, AuthResult

from dispatcher.demo.fakes.mail import Mail, MailReceiver
from tests.support.servers import wait_for_disconnect
from tests.support.waiting import until

DROP = "drop"
TAKE_AND_DROP = "take and drop"
HANG = "hang"
HALF = "half"
MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2")
_USUAL_REPLIES = {"MAIL": "250 OK", "RCPT": "250 OK", "RSET": "250 flushed", "QUIT": "221 bye", "DATA": "354 go on"}


@dataclass(slots=True)
class ScriptedRelay:
    """A relay on a free loopback port; `async with` starts and stops it."""

    extensions: Sequence[str] = ("SIZE 10000000", "8BITMIME")
    """The service extensions in the reply to EHLO."""
    max_connections: int = 1000
    """Further connections get the reply 421 and are closed."""
    script: list[tuple[str, str]] = field(default_factory=list)
    """Replies to use once: (step, reply), in this order. The step is `connect`, a command's name, or `mail` for the dot
    that ends a mail. The reply is a line, or `DROP` (close the connection) or `HANG` (send nothing). For `mail` also
    `TAKE_AND_DROP` (accept the mail, then close) and `HALF` (accept it, send half a reply, then close)."""
    always: Mapping[str, str] = field(default_factory=dict)
    """Replies by step, or by a whole command line, used every time."""
    accepts_data_without_recipients: bool = False
    """True: DATA gets the reply 354 although no recipient was accepted, as RFC 2920 (3.1) allows."""
    ignores_pipelined_commands: bool = False
    """True: of several commands in one packet only the first is read, even if PIPELINING is in `extensions`."""
    mail_delay: float = 0
    """Seconds before the reply to a mail."""
    mails: list[Mail] = field(default_factory=list)
    """The accepted mails."""
    received: list[bytes] = field(default_factory=list)
    """Every mail that was received completely, accepted or not."""
    mails_without_recipients: list[bytes] = field(default_factory=list)
    """The mails that were received after DATA without recipients."""
    sessions: list[list[str]] = field(default_factory=list)
    """The commands of each connection."""
    refused_connections: int = 0
    """Connections above `max_connections`."""
    open: int = 0
    """Connections that are open now."""
    peak_open: int = 0
    """The highest value of `open`."""
    port: int = 0
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0, limit=2**20)
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
    def commands(self) -> list[str]:
        """Every command, connection by connection."""
        return [command for session in self.sessions for command in session]

    def hang_up(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.close()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition is true; fails after ten seconds."""
        await until(condition, 10)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._limit_connections(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self._writers.discard(writer)

    async def _limit_connections(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.open >= self.max_connections:
            self.refused_connections += 1
            writer.write(b"421 4.7.0 too many connections from you\r\n")
            return
        self.open += 1
        self.peak_open = max(self.open, self.peak_open)
        try:
            await self._run_session(reader, writer)
        finally:
            self.open -= 1

    async def _run_session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands: list[str] = []
        self.sessions.append(commands)
        if not await self._reply("connect", "220 scripted ESMTP", reader, writer):
            return
        sender, recipients = None, list[str]()
        while line := (await self._read_command(reader)).decode().rstrip("\r\n"):
            commands.append(line)
            name = line.partition(" ")[0].upper()
            if (name == "RCPT" and sender is None) or (
                name == "DATA" and not recipients and not self._accepts_data(sender)
            ):
                writer.write(b"503 5.5.1 not in this order\r\n")
                continue
            reply = await self._reply(name, self._usual(name), reader, writer, line=line)
            if not reply:
                return
            if name in {"MAIL", "RSET"}:
                sender, recipients = _address(line) if name == "MAIL" and reply.startswith("250") else None, []
            elif name == "RCPT" and reply.startswith("250"):
                recipients.append(_address(line))
            elif name == "QUIT" or reply.startswith("421"):
                return
            elif name == "DATA" and reply.startswith("354"):
                raw = await _read_mail(reader)
                mail = Mail(sender or "", tuple(recipients), raw) if recipients else None
                sender, recipients = None, []
                if mail is None:
                    self.mails_without_recipients.append(raw)
                    writer.write(b"554 5.5.1 no valid recipients\r\n")
                    continue
                self.received.append(raw)
                if self.mail_delay:
                    await asyncio.sleep(self.mail_delay)
                if not await self._reply("mail", "250 2.0.0 queued", reader, writer, mail):
                    return

    async def _reply(
        self,
        step: str,
        usual: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        mail: Mail | None = None,
        line: str = "",
    ) -> str:
        """Send the scripted or the usual reply. Returns it; empty if the connection must be closed."""
        reply = self.always.get(line) or self.always.get(step, usual)
        if self.script and self.script[0][0] == step:
            reply = self.script.pop(0)[1]
        if mail is not None and reply.startswith(("250", TAKE_AND_DROP, HALF)):
            self.mails.append(mail)
        if reply == HANG:
            await wait_for_disconnect(reader, self._released)
        if reply == HALF:
            writer.write(b"250 2.0")
            await writer.drain()
        if reply in {DROP, TAKE_AND_DROP, HANG, HALF}:
            return ""
        writer.write(f"{reply}\r\n".encode())
        await writer.drain()
        return reply

    async def _read_command(self, reader: asyncio.StreamReader) -> bytes:
        return (
            (await reader.read(2**16)).partition(b"\n")[0]
            if self.ignores_pipelined_commands
            else await reader.readline()
        )

    def _accepts_data(self, sender: str | None) -> bool:
        return self.accepts_data_without_recipients and sender is not None

    def _usual(self, name: str) -> str:
        return self._ehlo_reply() if name == "EHLO" else _USUAL_REPLIES.get(name, "502 5.5.1 not implemented")

    def _ehlo_reply(self) -> str:
        lines = ["scripted", *self.extensions]
        return "\r\n".join(f"250{' ' if line is lines[-1] else '-'}{line}" for line in lines)


async def _read_mail(reader: asyncio.StreamReader) -> bytes:
    """Read a mail up to its final dot, and undo the dot stuffing (RFC 5321, 4.5.2)."""
    lines = []
    while (line := await reader.readuntil(b"\n")) != b".\r\n":
        lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
    return b"".join(lines)


def _address(line: str) -> str:
    return line.partition("<")[2].partition(">")[0]


@dataclass
class LoginRelay(MailReceiver):
    """aiosmtpd with the login mechanisms PLAIN, LOGIN, CRAM-MD5 and XOAUTH2."""

    mechanisms: Sequence[str] = MECHANISMS
    """The mechanisms in the reply to EHLO."""
    tokens: set[str] = field(default_factory=set)
    """The valid access tokens."""
    used: list[str] = field(default_factory=list)
    """The mechanism of each successful login."""
    refusal: str = "535 5.7.8 Authentication credentials invalid"

    def _login_options(self) -> dict[str, Any]:
        return {**super()._login_options(), "auth_exclude_mechanism": set(MECHANISMS) - set(self.mechanisms)}

    def _authenticate(self, server: SMTP, session: Any, envelope: Any, mechanism: str, credentials: Any) -> AuthResult:
        result = super()._authenticate(server, session, envelope, mechanism, credentials)
        return self._result(mechanism, right=result.success)

    async def auth_CRAM__MD5(self, server: SMTP, _arguments: list[str]) -> AuthResult:  # noqa: N802 - aiosmtpd finds it by this name
        challenge = "<17.4@login.test>"
        response = await server.challenge_auth(challenge)
        name, _, digest = response.decode().rpartition(" ") if isinstance(response, bytes) else ("", "", "")
        username, password = self.login or ("", "")
        right = hmac.new(password.encode(), challenge.encode(), "md5").hexdigest()
        return self._result("CRAM-MD5", right=(name, digest) == (username, right))

    async def auth_XOAUTH2(self, server: SMTP, arguments: list[str]) -> AuthResult:  # noqa: N802 - aiosmtpd finds it by this name
        user, bearer, *_ = base64.b64decode(arguments[1]).decode().split("\x01")
        username = (self.login or ("", ""))[0]
        right = user == f"user={username}" and bearer.removeprefix("auth=Bearer ") in self.tokens
        if not right:  # XOAUTH2 sends the error as a challenge, and the client replies with an empty line
            await server.challenge_auth('{"status":"401","schemes":"bearer"}')
        return self._result("XOAUTH2", right=right)

    def _result(self, mechanism: str, *, right: bool) -> AuthResult:
        if right:
            self.used.append(mechanism)
        return AuthResult(success=right, handled=False, message=None if right else self.refusal)


def headers(raw: bytes) -> Iterator[tuple[str, str]]:
    """The headers of a mail, unfolded, in their order."""
    head = raw.partition(b"\r\n\r\n")[0].decode().replace("\r\n ", " ").replace("\r\n\t", " ")
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        yield name, value.strip()
