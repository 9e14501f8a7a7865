"""A fake mail relay that is as strict as a real relay.

The library aiosmtpd speaks SMTP. In addition, this module refuses mails with bare CR or LF characters, lines that are
too long (RFC 5322, 2.1.1), missing headers (RFC 5322, 3.6) or malformed MIME.
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
    """One mail that the relay accepted."""

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
        """Return the text of the mail's part `kind`, which is `plain` or `html`; empty if the mail has no such part."""
        body = self.parsed.get_body((kind,))
        return "" if body is None else str(body.get_content()).replace("\r\n", "\n")


@dataclass(slots=True)
class MailReceiver:
    """The fake relay, which listens on a free loopback port. `async with` starts and stops the relay."""

    login: tuple[str, str] | None = None
    """Username and password that senders must use. If `tls` is set, senders can log in only after STARTTLS."""
    tls: ssl.SSLContext | None = None
    """If set, the relay offers and requires STARTTLS."""
    implicit_tls: ssl.SSLContext | None = None
    refuse: Mapping[str, str] = field(default_factory=dict)
    """The recipients that the relay refuses. Each recipient maps to the reply that the relay then sends."""
    script: list[tuple[str, str]] = field(default_factory=list)
    """Scripted replies, in order. Each reply is a pair: the SMTP command (`mail`, `rcpt` or `data`) and the text to
    send. Three texts are not sent: `drop` closes the connection, `take and drop` accepts the mail and then closes the
    connection, and `wait` waits for one second before the normal reply (after `data`: before 451)."""
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
        """Listen on the port. 0 chooses a free port."""
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
        await asyncio.sleep(0)  # noqa: TID251 - no time passes: the event loop closes the transports
        await self._listening.wait_closed()

    def _protocol(self) -> SMTP:
        self.connections += 1
        with warnings.catch_warnings():
            # aiosmtpd warns about a login without STARTTLS. Here the login is safe: it uses implicit TLS or loopback.
            warnings.simplefilter("ignore", UserWarning)
            protocol = SMTP(
                self,
                hostname="inbox.localhost",
                ident="Inbox",
                tls_context=self.tls,
                require_starttls=self.tls is not None,
                enable_SMTPUTF8=True,
                timeout=60,
                loop=asyncio.get_running_loop(),
                **self._login_options(),
            )
        self._open.add(protocol)
        return protocol

    def _login_options(self) -> dict[str, Any]:
        if self.login is None:
            return {}
        return {
            "authenticator": self._authenticate,
            "auth_required": True,
            "auth_require_tls": self.tls is not None,
        }

    def _authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, given: Any
    ) -> AuthResult:
        expected = tuple(part.encode() for part in self.login or ())
        success = isinstance(given, LoginPassword) and (given.login, given.password) == expected
        return AuthResult(success=success, handled=False)

    async def handle_MAIL(  # noqa: N802 - aiosmtpd prescribes this name
        self, server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if (reply := await self._scripted("mail", server)) is not None:
            return reply
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(  # noqa: N802 - aiosmtpd prescribes this name
        self, server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if (reply := await self._scripted("rcpt", server)) is not None:
            return reply
        if address in self.refuse:
            return self.refuse[address]
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        raw = bytes(envelope.original_content or b"")
        step = self.script[0] if self.script and self.script[0][0] == "data" else None
        if step is not None and step[1] != "take and drop":
            reply = await self._scripted("data", server)
            return reply or "451 try later"
        problem = _problem(raw)
        if problem is not None:
            return f"554 5.6.0 {problem}"
        mail = Mail(envelope.mail_from or "", tuple(envelope.rcpt_tos), raw)
        self.mails.append(mail)
        self.arrived(mail)
        if step is not None:
            await self._scripted("data", server)
        return f"250 2.0.0 OK queued as {len(self.mails)}"

    async def _scripted(self, command: str, server: SMTP) -> str | None:
        """Return the next scripted reply if it is for this command. Returns None if the relay should reply normally."""
        if not self.script or self.script[0][0] != command:
            return None
        reply = self.script.pop(0)[1]
        if reply == "wait":
            await asyncio.sleep(1)  # noqa: TID251 - a fake server waits in real time
            return None
        if reply in {"drop", "take and drop"}:
            if isinstance(server.transport, asyncio.Transport):
                server.transport.abort()
            return "421 dropped"
        return reply


def _problem(raw: bytes) -> str | None:
    """Return why a strict relay would refuse the mail; None if the relay would accept the mail."""
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
