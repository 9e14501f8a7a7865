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

from channels.contract import Answer, ChannelError, InDoubt, Later, Misconfigured, Never, Receipt
from channels.email.answers import Step
from channels.email.mime import MailMessage
from channels.email.smtp_protocol import ConnectionFailed, Disconnected, ProtocolError, Reply, ReplyTimeout
from channels.email.smtp_replies import CLOSING, answer, excerpt, most_retryable, refusal_error

if TYPE_CHECKING:
    from channels.email.relay import Connection

_START_MAIL_INPUT = 354
_OK = 250
_RECIPIENT_ACCEPTED = frozenset({250, 251})
"""Reply codes which mean that the relay accepted a recipient. With 251, the relay forwards the mail itself (RFC 5321,
3.4)."""
_SIZE_LIMIT = re.compile(r"[0-9]{1,20}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CLOSED_EARLY = "the relay closed the connection before taking the mail"


class StaleConnection(Exception):
    """The relay closed the connection before it received the mail's first command, so nothing was sent."""


class Interrupted(Exception):
    """The relay closed the connection before it received the mail, but after it had refused some recipients.

    Postfix does so after 20 refusals (`smtpd_hard_error_limit`). `error`: the error to raise if the mail can't be sent
    to the other recipients over another connection.
    """

    def __init__(self, error: Later) -> None:
        super().__init__(error.reason)
        self.error = error


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
        limit = smtp.esmtp_extensions.get("size", "").strip()  # at most 20 digits (RFC 1870, 4)
        return cls(
            pipelining=smtp.supports_extension("pipelining"),
            smtputf8=smtp.supports_extension("smtputf8"),
            dsn=smtp.supports_extension("dsn"),
            size=(int(limit) if _SIZE_LIMIT.fullmatch(limit) else 0) if smtp.supports_extension("size") else None,
        )


async def send_mail(connection: Connection, mail: MailMessage, failures: dict[str, ChannelError]) -> Receipt:
    """Send the mail to those recipients that the relay accepts.

    `failures`: the recipients that the relay has refused so far, each with its error. They are left out, and recipients
    that the relay refuses now are added.

    Afterwards `connection.ready` is true if another mail can be sent on the connection. Raises `Later`, `Never` or
    `InDoubt`, `StaleConnection` if the relay had already closed the connection, and `Interrupted`.
    """
    _check_extensions(connection.extensions, mail)
    recipients = [name for name in mail.recipients if name not in failures]
    commands = [_mail_command(connection.extensions, mail), *_rcpt_commands(connection.extensions, mail, recipients)]
    envelope = _Envelope(connection, commands)
    connection.ready = connection.clean = False
    await _send_sender(connection, envelope)
    try:
        await _send_recipients(envelope, recipients, failures)
        if len(failures) == len(mail.recipients):
            connection.ready = await envelope.abort()
            raise most_retryable(failures)
        await _send_data_command(connection, envelope)
    except _ClosedEarly as closed:
        if set(recipients) & failures.keys():
            raise Interrupted(closed.error) from None
        raise closed.error from None
    receipt_answer = await _send_content(connection, mail.content)
    connection.ready = connection.clean = True
    in_order = {name: failures[name] for name in mail.recipients if name in failures}
    return Receipt(answer=receipt_answer, reference={"message_id": mail.message_id}, failures=in_order)


class _ClosedEarly(Exception):
    """The relay closed the connection, perhaps with the reply 421, before it received the mail."""

    def __init__(self, error: Later) -> None:
        super().__init__(error.reason)
        self.error = error


def _check_extensions(extensions: Extensions, mail: MailMessage) -> None:
    """Raise `Never` if the relay can't carry the mail, before any command is sent.

    Addresses with non-ASCII characters before the @ need SMTPUTF8 (RFC 6531, 3.2), and the mail must not be larger than
    the relay allows (RFC 1870, 4).
    """
    if not extensions.smtputf8 and not all(map(str.isascii, mail.recipients)):
        raise Never(
            "the relay can't carry mail to addresses beyond ASCII (no SMTPUTF8): use an ASCII address, or another relay"
        )
    if extensions.size and extensions.size < len(mail.content):
        advice = "shorten the template, or raise the relay's limit"
        raise Never(f"the mail has {len(mail.content)} bytes and the relay takes {extensions.size}: {advice}")


def _mail_command(extensions: Extensions, mail: MailMessage) -> bytes:
    parameters = []
    if extensions.size is not None:
        parameters.append(f" SIZE={len(mail.content)}")
    if not all(map(str.isascii, mail.recipients)):
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
    refusal = refusal_error("sender", reply.code, reply.text)
    if reply.code == CLOSING:
        if connection.mails > 1:
            raise StaleConnection
    elif not isinstance(refusal, Misconfigured):  # else close, because the next connection may have a better login
        connection.ready = await envelope.abort(sender_accepted=False)
    raise refusal


async def _send_recipients(envelope: _Envelope, recipients: Sequence[str], failures: dict[str, ChannelError]) -> None:
    """Read the replies to the RCPT commands, and add the recipients that the relay refuses to `failures`.

    Raises `Misconfigured` if the relay refuses the dispatcher instead of a recipient.
    """
    for recipient in recipients:
        reply = await _next_reply(envelope)
        if reply.code in _RECIPIENT_ACCEPTED:
            continue
        failure = _unless_closing("recipient", reply)
        if isinstance(failure, Misconfigured):
            raise failure
        failures[recipient] = failure


async def _send_data_command(connection: Connection, envelope: _Envelope) -> None:
    reply = await _next_reply(envelope)
    if reply.code != _START_MAIL_INPUT:
        failure = _unless_closing("mail", reply)
        connection.ready = True
        raise failure


async def _next_reply(envelope: _Envelope) -> Reply:
    """Read the next command's reply. Raises `_ClosedEarly` if the connection fails."""
    try:
        return await envelope.next_reply()
    except ConnectionFailed:
        raise _ClosedEarly(Later(_CLOSED_EARLY)) from None


def _unless_closing(step: Step, reply: Reply) -> ChannelError:
    """Return the error for a refusal. Raises `_ClosedEarly` instead if the relay closes the connection (421)."""
    error = refusal_error(step, reply.code, reply.text)
    if reply.code == CLOSING and isinstance(error, Later):
        raise _ClosedEarly(error)
    return error


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
