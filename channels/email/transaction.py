"""Sends one mail over one connection: the commands MAIL, RCPT for each recipient, and DATA (RFC 5321, 3.3).

If the relay offers PIPELINING (RFC 2920), these commands are sent together, so a mail takes two round trips instead of
four or more. Each reply has the same meaning with and without pipelining.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from aiosmtplib import SMTP

from channels.contract import Answer, ChannelError, InDoubt, Later, Never, Receipt
from channels.email.mime import MailMessage
from channels.email.smtp_protocol import ConnectionFailed, Disconnected, ProtocolError, Reply, ReplyTimeout
from channels.email.smtp_replies import CLOSING, LOGIN_FAILED, answer, excerpt, most_retryable, refusal_error

if TYPE_CHECKING:
    from channels.email.relay import Connection

_START_MAIL_INPUT = 354
_OK = 250
_RECIPIENT_ACCEPTED = frozenset({250, 251})
"""Reply codes which mean that the relay accepted a recipient. With 251, the relay forwards the mail itself (RFC 5321,
3.4)."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CLOSED_EARLY = "the relay closed the connection before taking the mail"


class StaleConnection(Exception):
    """The relay closed the connection before it received the mail's first command, so nothing was sent."""


@dataclass(frozen=True, slots=True)
class Extensions:
    """The SMTP extensions that the relay announced in its reply to EHLO."""

    pipelining: bool
    """True if several commands may be sent without waiting for each reply (RFC 2920)."""
    smtputf8: bool
    dsn: bool
    size: int | None
    """The maximum size of a mail in bytes (RFC 1870). 0 if the relay names no limit, None if it lacks the extension
    SIZE."""

    @classmethod
    def of(cls, smtp: SMTP) -> Self:
        limit = smtp.esmtp_extensions.get("size", "").strip()
        return cls(
            pipelining=smtp.supports_extension("pipelining"),
            smtputf8=smtp.supports_extension("smtputf8"),
            dsn=smtp.supports_extension("dsn"),
            size=(int(limit) if limit.isdecimal() else 0) if smtp.supports_extension("size") else None,
        )


async def send_mail(connection: Connection, mail: MailMessage) -> Receipt:
    """Send the mail to those recipients that the relay accepts.

    Afterwards `connection.ready` is true if another mail can be sent on the connection. Raises `Later`, `Never` or
    `InDoubt`, and `StaleConnection` if the relay had already closed the connection.
    """
    recipients, failures = _supported_recipients(connection.extensions, mail)
    content = mail.render(recipients)
    _check_size(connection.extensions, content)
    commands = [
        _mail_command(connection.extensions, mail, recipients, content),
        *_rcpt_commands(connection.extensions, mail, recipients),
    ]
    envelope = _Envelope(connection, commands)
    connection.ready = connection.clean = False
    await _send_sender(connection, envelope)
    failures |= await _send_recipients(envelope, recipients)
    if len(failures) == len(mail.recipients):
        connection.ready = await envelope.abort()
        raise most_retryable(failures)
    await _send_data_command(connection, envelope)
    receipt_answer = await _send_content(connection, content)
    connection.ready = connection.clean = True
    in_order = {name: failures[name] for name in mail.recipients if name in failures}
    return Receipt(answer=receipt_answer, reference={"message_id": mail.message_id}, failures=in_order)


def _supported_recipients(extensions: Extensions, mail: MailMessage) -> tuple[tuple[str, ...], dict[str, ChannelError]]:
    """Return the recipients to whom the relay can send, and an error for each other recipient.

    If the part of an address before the @ has non-ASCII characters, the relay needs SMTPUTF8 (RFC 6531, 3.2). Without
    SMTPUTF8, the mail to the other recipients must not contain that address either.
    """
    if extensions.smtputf8 or all(map(str.isascii, mail.recipients)):
        return mail.recipients, {}
    reason = (
        "the relay can't carry mail to addresses beyond ASCII (no SMTPUTF8): use an ASCII address, or another relay"
    )
    failures: dict[str, ChannelError] = {name: Never(reason) for name in mail.recipients if not name.isascii()}
    supported = tuple(filter(str.isascii, mail.recipients))
    if not supported:
        raise most_retryable(failures)
    return supported, failures


def _check_size(extensions: Extensions, content: bytes) -> None:
    """Raise `Never` if the mail is larger than the relay allows (RFC 1870, 4). The size is checked before any command
    is sent.
    """
    if extensions.size and extensions.size < len(content):
        advice = "shorten the template, or raise the relay's limit"
        raise Never(f"the mail has {len(content)} bytes and the relay takes {extensions.size}: {advice}")


def _mail_command(extensions: Extensions, mail: MailMessage, recipients: Sequence[str], content: bytes) -> bytes:
    parameters = []
    if extensions.size is not None:
        parameters.append(f" SIZE={len(content)}")
    if not all(map(str.isascii, recipients)):
        parameters.append(" BODY=8BITMIME SMTPUTF8")
    if extensions.dsn:
        parameters.append(f" RET=HDRS ENVID={mail.key}")
    return _command(f"MAIL FROM:<{mail.sender}>{''.join(parameters)}")


def _rcpt_commands(extensions: Extensions, mail: MailMessage, recipients: Sequence[str]) -> list[bytes]:
    notify = f" NOTIFY={','.join(mail.notify).upper()}" if mail.notify and extensions.dsn else ""
    return [_command(f"RCPT TO:<{recipient}>{notify}") for recipient in recipients]


def _command(text: str) -> bytes:
    if _CONTROL.search(text):  # a line break would let the address start a new SMTP command
        raise Never("an address has characters in it that no address can have")
    return f"{text}\r\n".encode()


class _Envelope:
    """Sends the commands from MAIL to DATA: together if the relay offers PIPELINING, else each command after the
    previous reply.
    """

    def __init__(self, connection: Connection, commands: list[bytes]) -> None:
        self._connection = connection
        self._pipelined = connection.extensions.pipelining and not connection.loses_commands
        self._unsent = [*commands, b"DATA\r\n"]
        self._pending_replies = 0
        """Number of commands that were sent and whose reply was not read yet."""

    async def next_reply(self) -> Reply:
        """Send the next command if necessary, and read its reply. Raises `Disconnected`, `ReplyTimeout` or
        `ProtocolError`.
        """
        if not self._pending_replies:
            count = len(self._unsent) if self._pipelined else 1
            self._connection.protocol.write(b"".join(self._unsent[:count]))
            del self._unsent[:count]
            self._pending_replies = count
        try:
            reply = await self._connection.protocol.read_reply()
        except ReplyTimeout:
            self._connection.loses_commands |= self._pipelined
            raise
        self._pending_replies -= 1
        return reply

    async def abort(self, *, sender_accepted: bool = True) -> bool:
        """Read the pending replies and end the transaction without sending a mail. Return True if the connection stays
        usable.

        A relay may reply 354 to DATA although it accepted no recipient. Then a line with only a dot is sent, which ends
        the transaction with an empty mail (RFC 2920, 3.1).
        """
        reply = None
        try:
            while self._pending_replies:
                reply = await self.next_reply()
            if reply is not None and reply.code == _START_MAIL_INPUT:
                if not sender_accepted:  # the relay might deliver the empty mail, so close instead
                    return False
                self._connection.protocol.write(b".\r\n")
                reply = await self._connection.protocol.read_reply()
        except ConnectionFailed:
            return False
        return reply is None or reply.code != CLOSING


async def _send_sender(connection: Connection, envelope: _Envelope) -> None:
    try:
        reply = await envelope.next_reply()
    except ReplyTimeout:
        raise Later("the relay gives no answer", provider_wide=True) from None
    except ProtocolError as error:
        raise Later(f"the relay speaks no SMTP: {excerpt(str(error))}", provider_wide=True) from None
    except Disconnected:
        raise StaleConnection from None
    if reply.code == _OK:
        return
    if reply.code == CLOSING:
        if connection.mails > 1:
            raise StaleConnection
    elif reply.code not in LOGIN_FAILED:
        connection.ready = await envelope.abort(sender_accepted=False)
    raise refusal_error("sender", reply.code, reply.text)


async def _send_recipients(envelope: _Envelope, recipients: Sequence[str]) -> dict[str, ChannelError]:
    """Read the replies to the RCPT commands. Return the recipients that the relay refused, each with its error."""
    failures: dict[str, ChannelError] = {}
    for recipient in recipients:
        reply = await _next_reply_or_later(envelope)
        if reply.code in _RECIPIENT_ACCEPTED:
            continue
        failure = refusal_error("recipient", reply.code, reply.text)
        if isinstance(failure, Later) and failure.provider_wide:
            raise failure
        failures[recipient] = failure
    return failures


async def _send_data_command(connection: Connection, envelope: _Envelope) -> None:
    reply = await _next_reply_or_later(envelope)
    if reply.code != _START_MAIL_INPUT:
        connection.ready = reply.code != CLOSING
        raise refusal_error("mail", reply.code, reply.text)


async def _next_reply_or_later(envelope: _Envelope) -> Reply:
    """Read the next command's reply. Raises `Later` if the connection fails, because the mail was not sent yet."""
    try:
        return await envelope.next_reply()
    except ConnectionFailed:
        raise Later(_CLOSED_EARLY) from None


async def _send_content(connection: Connection, content: bytes) -> Answer:
    """Send the text of the mail and return the relay's answer.

    Raises `Later` if the connection fails before the last line is sent, and `InDoubt` if it fails afterwards.
    """
    try:
        connection.protocol.write(_dot_stuffed(content))
    except ConnectionFailed:
        raise Later(_CLOSED_EARLY) from None
    try:
        reply = await connection.protocol.read_reply()
    except ConnectionFailed:
        raise InDoubt("the connection broke while the mail was handed over: it may have been taken") from None
    if reply.code != _OK:
        connection.ready = reply.code != CLOSING
        raise refusal_error("mail", reply.code, reply.text)
    return answer(reply.code, reply.text)


def _dot_stuffed(content: bytes) -> bytes:
    """Double each dot at the start of a line, and append the line with a single dot that ends the mail (RFC 5321,
    4.5.2).
    """
    return (b"." if content.startswith(b".") else b"") + content.replace(b"\r\n.", b"\r\n..") + b".\r\n"
