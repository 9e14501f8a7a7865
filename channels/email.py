"""Mail, by aiosmtplib over kept connections. The message's bytes are put together here, once a send.

The standard library's EmailMessage costs more than all the rest of a delivery, so the few headers and the
two parts are written by hand; the tests read them back with the standard library's parser.
"""

from __future__ import annotations

import asyncio
import binascii
import ipaddress
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import format_datetime, formataddr, parseaddr
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from channels.contract import (
    EXCERPT,
    Answer,
    ChannelError,
    Content,
    Later,
    Message,
    Never,
    Receipt,
    Unknown,
    Unserved,
    Wire,
)
from channels.secret import SecretFile, one_of, reveal

if TYPE_CHECKING:
    from aiosmtplib import SMTP

OLDEST = 300.0
"""Seconds after which a connection is retired."""
MOST_MESSAGES = 100
"""Messages after which a connection is retired: many relays allow no more."""
WIDTH = 76
"""Characters of a header's line that holds an encoded word (RFC 2047, 2)."""
LONGEST_WORD = 75
_PORTS = {"none": 25, "starttls": 587, "tls": 465}
_ADDRESS = re.compile(r"[^@\s<>\"(),:;\\\[\]\x00-\x1f\x7f]{1,64}@[^@\s<>\"(),:;\\\x00-\x1f\x7f]{1,253}")
_BREAKS = re.compile(r"[\r\n\0\v\f\x1c-\x1e\x85\u2028\u2029]+")


class EmailConfig(BaseModel):
    """The relay, and who the mail is from."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    host: str
    port: int = Field(0, ge=0, le=65535)
    """0: 587 for starttls, 465 for tls, 25 for none."""
    security: Literal["none", "starttls", "tls"] = "starttls"
    """`starttls` is required, never merely tried (RFC 8314)."""
    username: str | None = None
    password: SecretStr | None = None
    password_file: SecretFile | None = None
    sender: str = Field(alias="from")
    """`flyte@example.com` or `Flyte <flyte@example.com>`."""
    connections: int = Field(5, ge=1, le=500)
    """Connections to the relay at once."""
    timeout: float = Field(30, gt=0, le=100)
    """Seconds for each step of the conversation with the relay."""
    ca_file: SecretFile | None = None
    """Certificates to trust, PEM; without it those of the system."""

    @field_validator("sender")
    @classmethod
    def _sender_is_an_address(cls, value: str) -> str:
        if _BREAKS.search(value) or not _ADDRESS.fullmatch(parseaddr(value)[1]):
            raise ValueError("not a mail address; write flyte@example.com or Flyte <flyte@example.com>")
        return value

    @model_validator(mode="after")
    def _no_password_in_the_clear(self) -> Self:
        one_of("password", self.password, self.password_file)
        if self.username is not None and self.password is None and self.password_file is None:
            raise ValueError("username without password or password_file")
        if self.security == "none" and self.username is not None and not _loopback(self.host):
            raise ValueError("security: none would send the password in the clear; use starttls or tls")
        return self


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(slots=True)
class _Line:
    """One connection to the relay."""

    smtp: SMTP
    opened_at: float
    messages: int = 0


class EmailChannel:
    """Mail through one relay. Content: `{"subject": str, "text": str, "html": str}`."""

    def __init__(self, config: EmailConfig) -> None:
        self._config = config
        self._port = config.port or _PORTS[config.security]
        self._from = parseaddr(config.sender)[1]
        self._room = asyncio.Semaphore(config.connections)
        self._idle: list[_Line] = []
        self._tls: ssl.SSLContext | None = None

    def address(self, recipient: str) -> str:
        if not _ADDRESS.fullmatch(recipient):
            raise Unserved("not a mail address")
        local, _, domain = recipient.rpartition("@")
        try:
            return f"{local}@{domain.encode('idna').decode().lower()}"
        except UnicodeError:
            raise Unserved("not a mail address: no such domain can exist") from None

    def destination(self, recipients: tuple[str, ...]) -> str:
        del recipients
        return ""

    def wire(self, message: Message) -> Wire:
        return Wire("message/rfc822", compose(message, self._config.sender))

    async def send(self, message: Message) -> Receipt:
        mail = compose(message, self._config.sender)
        async with self._room:
            while True:
                line, fresh = await self._line()
                try:
                    receipt = await self._hand_over(line, message, mail)
                except _Stale:
                    if fresh:
                        raise Later("the relay closed the connection before taking anything", everyone=True) from None
                    continue  # an idle connection that the relay has closed meanwhile: nothing was said on it
                self._keep(line)
                return receipt

    async def aclose(self) -> None:
        from aiosmtplib import SMTPException  # noqa: PLC0415 - kept out of the command line's start

        while self._idle:
            line = self._idle.pop()
            try:
                await line.smtp.quit(timeout=2)
            except (SMTPException, OSError):
                line.smtp.close()

    async def _line(self) -> tuple[_Line, bool]:
        """A connection, kept or new; and whether it is new."""
        now = asyncio.get_running_loop().time()
        while self._idle:
            line = self._idle.pop()
            if line.smtp.is_connected and now - line.opened_at < OLDEST and line.messages < MOST_MESSAGES:
                return line, False
            line.smtp.close()
        return _Line(await self._connect(), now), True

    def _keep(self, line: _Line) -> None:
        line.messages += 1
        self._idle.append(line)

    async def _connect(self) -> SMTP:
        import aiosmtplib  # noqa: PLC0415 - kept out of the command line's start

        config = self._config
        if config.security != "none" and self._tls is None:
            self._tls = ssl.create_default_context(cafile=config.ca_file)
        where = f"mail relay {config.host}:{self._port}"
        try:
            smtp = aiosmtplib.SMTP(
                hostname=config.host,
                port=self._port,
                username=config.username,
                password=reveal(config.password, config.password_file),
                use_tls=config.security == "tls",
                start_tls=config.security == "starttls",
                tls_context=self._tls,
                timeout=config.timeout,
                local_hostname=socket.gethostname() or "localhost",
            )
            await smtp.connect()
        except aiosmtplib.SMTPAuthenticationError as error:
            advice = "check channels.email.username and password"
            raise Later(f"{where} refused the login: {advice}", answer=_answer(error), everyone=True) from None
        except aiosmtplib.SMTPResponseException as error:
            raise Later(
                f"{where} does not take mail now: {_said(error)}", answer=_answer(error), everyone=True
            ) from None
        except (aiosmtplib.SMTPException, OSError) as error:
            raise Later(f"{where} {_unreachable(error)}", everyone=True) from None
        return smtp

    async def _hand_over(self, line: _Line, message: Message, mail: bytes) -> Receipt:
        """MAIL, RCPT for each, DATA. Leaves the connection ready for the next mail, or closed."""
        try:
            await self._mail(line, message.recipients, mail)
            failures = await self._recipients(line.smtp, message.recipients)
            if len(failures) == len(message.recipients):
                await self._reset(line)
                raise _most_hopeful(failures)
            answer = await self._data(line, mail)
        except BaseException:  # cancellation too: half a conversation must not spoil the next mail
            if line not in self._idle:
                line.smtp.close()
            raise
        return Receipt(answer=answer, reference={"message_id": message_id(message.key, self._from)}, failures=failures)

    async def _mail(self, line: _Line, recipients: Sequence[str], mail: bytes) -> None:
        import aiosmtplib  # noqa: PLC0415

        smtp = line.smtp
        options = []
        if smtp.supports_extension("size"):
            options.append(f"size={len(mail)}")
        if not all(map(str.isascii, recipients)) and smtp.supports_extension("smtputf8"):
            options.append("SMTPUTF8")
        try:
            await smtp.mail(self._from, options=options, encoding="utf-8" if "SMTPUTF8" in options else "ascii")
        except aiosmtplib.SMTPSenderRefused as error:
            if error.code == 421:
                raise Later(f"the relay closes: {_said(error)}", answer=_answer(error), everyone=True) from None
            await self._reset(line)
            if _transient(error.code):
                raise Later(f"the relay is busy: {_said(error)}", answer=_answer(error)) from None
            if error.code == 552:
                raise Never(f"the mail is too large for the relay: {_said(error)}", answer=_answer(error)) from None
            reason = f"the relay refuses the sender: {_said(error)}; check channels.email.from"
            raise Never(reason, answer=_answer(error)) from None
        except (aiosmtplib.SMTPServerDisconnected, aiosmtplib.SMTPTimeoutError, OSError):
            raise _Stale from None

    async def _recipients(self, smtp: SMTP, recipients: Sequence[str]) -> dict[str, ChannelError]:
        """Name each recipient; those that were not accepted, and why."""
        import aiosmtplib  # noqa: PLC0415

        failures: dict[str, ChannelError] = {}
        for recipient in recipients:
            if not recipient.isascii() and not smtp.supports_extension("smtputf8"):
                failures[recipient] = Never("the relay can't take addresses beyond ASCII (no SMTPUTF8)")
                continue
            try:
                await smtp.rcpt(recipient, encoding="utf-8" if not recipient.isascii() else "ascii")
            except aiosmtplib.SMTPRecipientRefused as error:
                if error.code == 421:
                    raise Later(f"the relay closes: {_said(error)}", answer=_answer(error), everyone=True) from None
                # 552 here means too many recipients, and is to be taken for 452 (RFC 5321, 4.5.3.1.10).
                kind = Later if _transient(error.code) or error.code == 552 else Never
                failures[recipient] = kind(f"the relay refused the recipient: {_said(error)}", answer=_answer(error))
            except (aiosmtplib.SMTPServerDisconnected, aiosmtplib.SMTPTimeoutError, OSError):
                raise Later("the relay closed the connection before taking the mail") from None
        return failures

    async def _data(self, line: _Line, mail: bytes) -> Answer:
        import aiosmtplib  # noqa: PLC0415

        try:
            response = await line.smtp.data(mail)
        except aiosmtplib.SMTPDataError as error:
            if error.code == 421:
                raise Later(f"the relay closes: {_said(error)}", answer=_answer(error), everyone=True) from None
            await self._reset(line)
            if _transient(error.code):
                raise Later(f"the relay did not take the mail: {_said(error)}", answer=_answer(error)) from None
            raise Never(f"the relay refused the mail: {_said(error)}", answer=_answer(error)) from None
        except (aiosmtplib.SMTPServerDisconnected, aiosmtplib.SMTPTimeoutError, OSError):
            raise Unknown("the connection broke while the mail was handed over: it may have been taken") from None
        return Answer(str(response.code), _excerpt(response.message))

    async def _reset(self, line: _Line) -> None:
        """Make the connection ready for another mail; one that can't be is closed."""
        import aiosmtplib  # noqa: PLC0415

        try:
            await line.smtp.rset()
        except (aiosmtplib.SMTPException, OSError):
            line.smtp.close()
        else:
            self._keep(line)


class _Stale(Exception):
    """The connection was dead before anything was said on it."""


def compose(message: Message, sender: str) -> bytes:
    """The mail as it goes over the wire: text and HTML of the same content (RFC 2046, 5.1.4), CRLF, lines up to 76.

    `sender`: an address, with a name or without, as `EmailConfig.sender` has it.
    """
    content = message.content
    author, domain = _author(sender)
    boundary = f"=_{message.key}"
    headers = [
        f"Date: {format_datetime(message.created_at)}",
        f"From: {author}",
        f"To: {_folded(message.recipients)}",
        f"Subject: {_subject(content)}",
        f"Message-ID: <{message.key}@{domain}>",
        "MIME-Version: 1.0",
        "Auto-Submitted: auto-generated",
        f'Content-Type: multipart/alternative; boundary="{boundary}"',
    ]
    parts = [_part("plain", content["text"]), _part("html", content["html"])]
    opening = f"\r\n--{boundary}\r\n".encode()
    body = b"".join(opening + part for part in parts)
    return "\r\n".join(headers).encode() + b"\r\n" + body + f"\r\n--{boundary}--\r\n".encode()


def message_id(key: str, sender: str) -> str:
    """The same for the same delivery at every attempt, at the sender's own domain (RFC 5322, 3.6.4)."""
    return f"<{key}@{_author(sender)[1]}>"


@lru_cache(maxsize=16)
def _author(sender: str) -> tuple[str, str]:
    """The From header and the domain of a sender, read once: it is the same in every mail."""
    name, address = parseaddr(sender)
    return formataddr((name, address)), address.rpartition("@")[2].encode("idna").decode()


def _subject(content: Content) -> str:
    text = _BREAKS.sub(" ", str(content["subject"])).strip()
    if text.isascii() and text.isprintable() and len(text) <= 66 and "=?" not in text:
        return text
    return encoded_words(text, room=WIDTH - len("Subject: "))


def encoded_words(text: str, *, room: int = WIDTH) -> str:
    """A header's text beyond ASCII, as base64 words on lines of their own (RFC 2047, 2).

    A word has at most 75 characters, a line `WIDTH`, and no word ends inside a character. `room`: how many
    characters the first line has left beside the header's name. What UTF-8 can't say becomes a question mark.
    The standard library's Header does the same at forty times the cost.
    """
    octets = text.encode(errors="replace")
    words = []
    start = 0
    while start < len(octets):
        end = min(start + (min(room, LONGEST_WORD) - len("=?utf-8?b??=")) // 4 * 3, len(octets))
        while end < len(octets) and octets[end] & 0xC0 == 0x80:  # inside a character
            end -= 1
        words.append(f"=?utf-8?b?{binascii.b2a_base64(octets[start:end], newline=False).decode()}?=")
        start, room = end, WIDTH - 1
    return "\r\n ".join(words)


def _folded(addresses: Sequence[str]) -> str:
    return ",\r\n ".join(addresses)


def _part(kind: str, text: str) -> bytes:
    text = text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    lines = text.replace("\n", "\r\n") + "\r\n"
    encoded = binascii.b2a_qp(lines.encode(errors="replace"), istext=True)
    head = f'Content-Type: text/{kind}; charset="utf-8"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n'
    return head.encode() + encoded


def _most_hopeful(failures: dict[str, ChannelError]) -> ChannelError:
    """All recipients failed: one that may still succeed speaks for all, else all speak."""
    for failure in failures.values():
        if isinstance(failure, Later):
            return failure
    first = next(iter(failures.values()))
    if len(failures) == 1:
        return first
    return Never(
        "; ".join(f"{recipient}: {failure.reason}" for recipient, failure in failures.items()), answer=first.answer
    )


def _transient(code: int) -> bool:
    return 400 <= code < 500


def _answer(error: object) -> Answer:
    return Answer(str(getattr(error, "code", "")), _excerpt(str(getattr(error, "message", ""))))


def _said(error: object) -> str:
    answer = _answer(error)
    return f"{answer.status} {answer.text}"


def _unreachable(error: Exception) -> str:
    """Why there is no connection; aiosmtplib sometimes wraps the cause."""
    for cause in (error, error.__cause__):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"has a certificate that is not trusted ({cause.verify_message}): see channels.email.ca_file"
    return f"can't be reached: {_excerpt(str(error)) or type(error).__name__}"


def _excerpt(text: str) -> str:
    return " ".join(text.split())[:EXCERPT]
