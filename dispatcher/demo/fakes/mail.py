"""A local mail relay, by aiosmtpd: takes what a strict relay takes, and shows it.

Beside aiosmtpd's own checks: CRLF line ends and line lengths (RFC 5322, 2.1.1), and the headers that
every mail must have (3.6).
"""

from __future__ import annotations

import asyncio
import ssl
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from types import TracebackType
from typing import Any, Self

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail that was taken."""

    sender: str
    recipients: tuple[str, ...]
    raw: bytes

    @property
    def parsed(self) -> EmailMessage:
        return message_from_bytes(self.raw, policy=default)

    @property
    def subject(self) -> str:
        return str(self.parsed["subject"])

    @property
    def message_id(self) -> str:
        return str(self.parsed["message-id"])

    def part(self, kind: str) -> str:
        """The text of the `plain` or the `html` part."""
        body = self.parsed.get_body((kind,))
        return "" if body is None else str(body.get_content()).replace("\r\n", "\n")


@dataclass(slots=True)
class MailReceiver:
    """The relay, on a free loopback port while the block lasts."""

    login: tuple[str, str] | None = None
    """Username and password that senders must show, after STARTTLS where TLS is offered."""
    tls: ssl.SSLContext | None = None
    """Offers, and then requires, STARTTLS."""
    implicit_tls: ssl.SSLContext | None = None
    refuse: Mapping[str, str] = field(default_factory=dict)
    """Recipients to refuse, each with the words."""
    script: list[tuple[str, str]] = field(default_factory=list)
    """One-off answers: step (`mail`, `rcpt`, `data`) and words; `drop` closes the connection, `take and drop` after taking;
    `wait` says nothing for a while, and then goes on."""
    arrived: Callable[[Mail], None] = lambda _: None
    mails: list[Mail] = field(default_factory=list)
    connections: int = 0
    _server: asyncio.Server | None = None
    _open: set[SMTP] = field(default_factory=set)

    @property
    def port(self) -> int:
        port: int = self._listening.sockets[0].getsockname()[1]
        return port

    @property
    def _listening(self) -> asyncio.Server:
        if self._server is None:
            raise RuntimeError("the receiver is not open")
        return self._server

    async def __aenter__(self) -> Self:
        return await self.start(0)

    async def start(self, port: int) -> Self:
        """Listen on that port; 0 takes a free one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._protocol, "127.0.0.1", port, ssl=self.implicit_tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.close()
        for protocol in self._open:
            if protocol.transport is not None:
                protocol.transport.close()
        await asyncio.sleep(0)  # noqa: TID251 - lets the transports close
        await self._listening.wait_closed()

    def _protocol(self) -> SMTP:
        self.connections += 1
        options: dict[str, Any] = {}
        if self.login is not None:
            options = {
                "authenticator": self._authenticate,
                "auth_required": True,
                "auth_require_tls": self.tls is not None,
            }
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # it can't know that implicit TLS, or loopback, guards the login
            protocol = SMTP(
                self,
                hostname="inbox.localhost",
                ident="Inbox",
                tls_context=self.tls,
                require_starttls=self.tls is not None,
                enable_SMTPUTF8=True,
                timeout=60,
                loop=asyncio.get_running_loop(),
                **options,
            )
        self._open.add(protocol)
        return protocol

    def _authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, shown: Any
    ) -> AuthResult:
        expected = tuple(part.encode() for part in self.login or ())
        right = isinstance(shown, LoginPassword) and (shown.login, shown.password) == expected
        return AuthResult(success=right, handled=False)

    # aiosmtpd's hooks

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if (words := await self._misstep("mail", server)) is not None:
            return words
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if (words := await self._misstep("rcpt", server)) is not None:
            return words
        if address in self.refuse:
            return self.refuse[address]
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        raw = bytes(envelope.original_content or b"")
        step = self.script[0] if self.script and self.script[0][0] == "data" else None
        if step is not None and step[1] != "take and drop":
            words = await self._misstep("data", server)
            return words or "451 try later"
        trouble = _trouble(raw)
        if trouble is not None:
            return f"554 5.6.0 {trouble}"
        mail = Mail(envelope.mail_from or "", tuple(envelope.rcpt_tos), raw)
        self.mails.append(mail)
        self.arrived(mail)
        if step is not None:
            await self._misstep("data", server)
        return f"250 2.0.0 OK queued as {len(self.mails)}"

    async def _misstep(self, step: str, server: SMTP) -> str | None:
        """What the script says about this step, if anything."""
        if not self.script or self.script[0][0] != step:
            return None
        words = self.script.pop(0)[1]
        if words == "wait":
            await asyncio.sleep(1)  # noqa: TID251 - a server's own slowness
            return None
        if words in {"drop", "take and drop"}:
            if isinstance(server.transport, asyncio.Transport):
                server.transport.abort()
            return "421 dropped"
        return words


def _trouble(raw: bytes) -> str | None:
    if raw.replace(b"\r\n", b"").count(b"\n") or raw.replace(b"\r\n", b"").count(b"\r"):
        return "bare CR or LF"
    if any(len(line) > 998 for line in raw.split(b"\r\n")):
        return "a line is longer than 998 bytes"
    headers = message_from_bytes(raw, policy=default)
    missing = [name for name in ("Date", "From", "To", "Subject", "Message-ID") if headers[name] is None]
    if missing:
        return f"no {' and no '.join(missing)}"
    if any(part.defects for part in headers.walk()):
        return "malformed MIME"
    return None
