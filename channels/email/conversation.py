"""One letter over one connection: MAIL, RCPT for each recipient, DATA (RFC 5321, 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiosmtplib
from aiosmtplib import SMTP

from channels.contract import Answer, ChannelError, Later, Never, Receipt, Unknown
from channels.email.answers import CLOSING, WANTS_A_LOGIN, answer, excerpt, most_hopeful, refused
from channels.email.letter import Letter

if TYPE_CHECKING:
    from channels.email.relay import Line

_GONE = (aiosmtplib.SMTPServerDisconnected, aiosmtplib.SMTPTimeoutError, OSError)
_BABBLED = aiosmtplib.SMTPResponseException
"""Where it isn't a refusal: what came is no SMTP."""
_TAKES_DATA = 354
_TAKEN = 250


class Stale(Exception):
    """The relay closed the connection before anything was said on it."""


async def hand_over(line: Line, letter: Letter) -> Receipt:
    """Hand the letter over to whom the relay takes it for.

    `line.ready` says afterwards whether the connection can take another one. Raises Later, Never or Unknown, and
    Stale where the relay wanted to hear nothing at all.
    """
    smtp = line.smtp
    served, failures = _carried(smtp, letter)
    mail = letter.write(served)
    _check_size(smtp, mail)
    line.ready = False
    await _mail(line, letter, served, mail)
    failures |= await _recipients(smtp, letter, served)
    if len(failures) == len(letter.recipients):
        line.ready = smtp.is_connected
        raise most_hopeful(failures)
    taken = await _data(line, mail)
    line.ready = smtp.is_connected
    in_order = {name: failures[name] for name in letter.recipients if name in failures}
    return Receipt(answer=taken, reference={"message_id": letter.message_id}, failures=in_order)


def _carried(smtp: SMTP, letter: Letter) -> tuple[tuple[str, ...], dict[str, ChannelError]]:
    """Whom the relay can carry mail to, and why not the others.

    An address beyond ASCII has no ASCII form, so where the relay has no SMTPUTF8 its mail can't be sent (RFC 6531,
    3.2), and the others' mail must not name it either.
    """
    if smtp.supports_extension("smtputf8") or all(map(str.isascii, letter.recipients)):
        return letter.recipients, {}
    reason = (
        "the relay can't carry mail to addresses beyond ASCII (no SMTPUTF8): use an ASCII address, or another relay"
    )
    failures: dict[str, ChannelError] = {name: Never(reason) for name in letter.recipients if not name.isascii()}
    served = tuple(filter(str.isascii, letter.recipients))
    if not served:
        raise most_hopeful(failures)
    return served, failures


def _check_size(smtp: SMTP, mail: bytes) -> None:
    """Raise Never for a mail above the relay's own limit (RFC 1870, 4), before anything is said."""
    limit = smtp.esmtp_extensions.get("size", "").strip()
    if limit.isdecimal() and 0 < int(limit) < len(mail):
        advice = "shorten the template, or raise the relay's limit"
        raise Never(f"the mail has {len(mail)} bytes and the relay takes {limit}: {advice}")


async def _mail(line: Line, letter: Letter, served: tuple[str, ...], mail: bytes) -> None:
    smtp = line.smtp
    options = []
    if smtp.supports_extension("size"):
        options.append(f"SIZE={len(mail)}")
    if not all(map(str.isascii, served)):
        options += ["BODY=8BITMIME", "SMTPUTF8"]
    if smtp.supports_extension("dsn"):
        options += ["RET=HDRS", f"ENVID={letter.key}"]
    try:
        await smtp.mail(letter.sender, options=options)
    except aiosmtplib.SMTPSenderRefused as error:
        if error.code == CLOSING:
            if line.mails > 1:
                raise Stale from None
        else:
            line.ready = smtp.is_connected and error.code not in WANTS_A_LOGIN
        raise refused("sender", error.code, error.message) from None
    except aiosmtplib.SMTPTimeoutError:
        raise Later("the relay gives no answer", everyone=True) from None
    except _BABBLED as error:
        raise Later(f"the relay speaks no SMTP: {excerpt(error.message)}", everyone=True) from None
    except _GONE:
        raise Stale from None


async def _recipients(smtp: SMTP, letter: Letter, served: tuple[str, ...]) -> dict[str, ChannelError]:
    """Name each recipient; those that were not accepted, and why."""
    notify = f"NOTIFY={','.join(letter.notify).upper()}" if letter.notify and smtp.supports_extension("dsn") else ""
    failures: dict[str, ChannelError] = {}
    for recipient in served:
        encoding = "ascii" if recipient.isascii() else "utf-8"
        try:
            await smtp.rcpt(recipient, options=[notify] if notify else [], encoding=encoding)
        except aiosmtplib.SMTPRecipientRefused as error:
            failure = refused("recipient", error.code, error.message)
            if isinstance(failure, Later) and failure.everyone:
                raise failure from None
            failures[recipient] = failure
        except (*_GONE, _BABBLED):
            raise Later("the relay closed the connection before taking the mail") from None
    return failures


async def _data(line: Line, mail: bytes) -> Answer:
    """DATA and the mail. aiosmtplib's own `data` can't tell a connection that broke before the mail from one after."""
    smtp = line.smtp
    try:
        response = await smtp.execute_command(b"DATA")
    except (*_GONE, _BABBLED):
        raise Later("the relay closed the connection before taking the mail") from None
    if response.code != _TAKES_DATA:
        line.ready = smtp.is_connected
        raise refused("mail", response.code, response.message)
    if smtp.protocol is None:
        raise Later("the relay closed the connection before taking the mail")
    try:
        smtp.protocol.write(_stuffed(mail))
        response = await smtp.protocol.read_response(timeout=smtp.timeout)
    except (*_GONE, _BABBLED):
        raise Unknown("the connection broke while the mail was handed over: it may have been taken") from None
    if response.code != _TAKEN:
        line.ready = smtp.is_connected and response.code != CLOSING
        raise refused("mail", response.code, response.message)
    return answer(response.code, response.message)


def _stuffed(mail: bytes) -> bytes:
    """Dots that begin a line doubled, and the dot that ends the mail (RFC 5321, 4.5.2)."""
    return (b"." if mail.startswith(b".") else b"") + mail.replace(b"\r\n.", b"\r\n..") + b".\r\n"
