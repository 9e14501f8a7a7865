"""One letter over one connection: MAIL, RCPT for each recipient, DATA (RFC 5321, 3.3).

Where the relay takes them together (PIPELINING, RFC 2920) they are one message to it, and a mail is two round trips
instead of four or more. Each answer means the same either way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from aiosmtplib import SMTP

from channels.contract import Answer, ChannelError, InDoubt, Later, Never, Receipt
from channels.email.mime import Letter
from channels.email.smtp_protocol import Babble, Gone, Reply, Silent, Trouble
from channels.email.smtp_replies import CLOSING, WANTS_A_LOGIN, answer, excerpt, most_hopeful, refused

if TYPE_CHECKING:
    from channels.email.relay import Line

_TAKES_DATA = 354
_TAKEN = 250
_SERVED = frozenset({250, 251})
"""251: it forwards the mail itself (RFC 5321, 3.4)."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CUT_OFF = "the relay closed the connection before taking the mail"


class Stale(Exception):
    """The relay closed the connection before anything was said on it."""


@dataclass(frozen=True, slots=True)
class Offers:
    """What the relay said that it can."""

    pipelining: bool
    """Several commands at once (RFC 2920)."""
    smtputf8: bool
    dsn: bool
    size: int | None
    """The largest mail that it takes; 0 where it names no limit; None where it doesn't want to hear of sizes (RFC 1870)."""

    @classmethod
    def of(cls, smtp: SMTP) -> Self:
        limit = smtp.esmtp_extensions.get("size", "").strip()
        return cls(
            pipelining=smtp.supports_extension("pipelining"),
            smtputf8=smtp.supports_extension("smtputf8"),
            dsn=smtp.supports_extension("dsn"),
            size=(int(limit) if limit.isdecimal() else 0) if smtp.supports_extension("size") else None,
        )


async def hand_over(line: Line, letter: Letter) -> Receipt:
    """Hand the letter over to whom the relay takes it for.

    `line.ready` says afterwards whether the connection can take another one. Raises Later, Never or Unknown, and
    Stale where the relay wanted to hear nothing at all.
    """
    served, failures = _carried(line.offers, letter)
    mail = letter.write(served)
    _check_size(line.offers, mail)
    envelope = _Envelope(line, [_mail(line.offers, letter, served, mail), *_rcpts(line.offers, letter, served)])
    line.ready = line.clean = False
    await _sender(line, envelope)
    failures |= await _recipients(envelope, served)
    if len(failures) == len(letter.recipients):
        line.ready = await envelope.call_off()
        raise most_hopeful(failures)
    await _data(line, envelope)
    taken = await _content(line, mail)
    line.ready = line.clean = True
    in_order = {name: failures[name] for name in letter.recipients if name in failures}
    return Receipt(answer=taken, reference={"message_id": letter.message_id}, failures=in_order)


def _carried(offers: Offers, letter: Letter) -> tuple[tuple[str, ...], dict[str, ChannelError]]:
    """Whom the relay can carry mail to, and why not the others.

    An address beyond ASCII has no ASCII form, so where the relay has no SMTPUTF8 its mail can't be sent (RFC 6531,
    3.2), and the others' mail must not name it either.
    """
    if offers.smtputf8 or all(map(str.isascii, letter.recipients)):
        return letter.recipients, {}
    reason = (
        "the relay can't carry mail to addresses beyond ASCII (no SMTPUTF8): use an ASCII address, or another relay"
    )
    failures: dict[str, ChannelError] = {name: Never(reason) for name in letter.recipients if not name.isascii()}
    served = tuple(filter(str.isascii, letter.recipients))
    if not served:
        raise most_hopeful(failures)
    return served, failures


def _check_size(offers: Offers, mail: bytes) -> None:
    """Raise Never for a mail above the relay's own limit (RFC 1870, 4), before anything is said."""
    if offers.size and offers.size < len(mail):
        advice = "shorten the template, or raise the relay's limit"
        raise Never(f"the mail has {len(mail)} bytes and the relay takes {offers.size}: {advice}")


def _mail(offers: Offers, letter: Letter, served: Sequence[str], mail: bytes) -> bytes:
    options = []
    if offers.size is not None:
        options.append(f" SIZE={len(mail)}")
    if not all(map(str.isascii, served)):
        options.append(" BODY=8BITMIME SMTPUTF8")
    if offers.dsn:
        options.append(f" RET=HDRS ENVID={letter.key}")
    return _command(f"MAIL FROM:<{letter.sender}>{''.join(options)}")


def _rcpts(offers: Offers, letter: Letter, served: Sequence[str]) -> list[bytes]:
    notify = f" NOTIFY={','.join(letter.notify).upper()}" if letter.notify and offers.dsn else ""
    return [_command(f"RCPT TO:<{recipient}>{notify}") for recipient in served]


def _command(words: str) -> bytes:
    if _CONTROL.search(words):  # whatever let it come so far: it would be read as another command
        raise Never("an address has characters in it that no address can have")
    return f"{words}\r\n".encode()


class _Envelope:
    """The commands before the mail itself: said at once where the relay takes that, else each after the last one's answer."""

    def __init__(self, line: Line, commands: list[bytes]) -> None:
        self._line = line
        self._together = line.offers.pipelining and not line.loses_commands
        self._unsaid = [*commands, b"DATA\r\n"]
        self._unheard = 0

    async def answer(self) -> Reply:
        """The answer to the next command. Raises Gone, Silent or Babble."""
        if not self._unheard:
            now = len(self._unsaid) if self._together else 1
            self._line.talk.say(b"".join(self._unsaid[:now]))
            del self._unsaid[:now]
            self._unheard = now
        try:
            reply = await self._line.talk.hear()
        except Silent:
            self._line.loses_commands |= self._together
            raise
        self._unheard -= 1
        return reply

    async def call_off(self, *, accepted: bool = True) -> bool:
        """No mail follows: hear what is said already. `accepted`: the sender was. Whether the connection can take another mail.

        A relay may want the mail although it serves nobody; it gets a lone dot, so that there is none (RFC 2920, 3.1).
        """
        reply = None
        try:
            while self._unheard:
                reply = await self.answer()
            if reply is not None and reply.code == _TAKES_DATA:
                if not accepted:  # for whom, it alone knows: hanging up is the only way to send nothing
                    return False
                self._line.talk.say(b".\r\n")
                reply = await self._line.talk.hear()
        except Trouble:
            return False
        return reply is None or reply.code != CLOSING


async def _sender(line: Line, envelope: _Envelope) -> None:
    try:
        reply = await envelope.answer()
    except Silent:
        raise Later("the relay gives no answer", everyone=True) from None
    except Babble as error:
        raise Later(f"the relay speaks no SMTP: {excerpt(str(error))}", everyone=True) from None
    except Gone:
        raise Stale from None
    if reply.code == _TAKEN:
        return
    if reply.code == CLOSING:
        if line.mails > 1:
            raise Stale
    elif reply.code not in WANTS_A_LOGIN:
        line.ready = await envelope.call_off(accepted=False)
    raise refused("sender", reply.code, reply.text)


async def _recipients(envelope: _Envelope, served: Sequence[str]) -> dict[str, ChannelError]:
    """Those that were not accepted, and why."""
    failures: dict[str, ChannelError] = {}
    for recipient in served:
        reply = await _before_the_mail(envelope)
        if reply.code in _SERVED:
            continue
        failure = refused("recipient", reply.code, reply.text)
        if isinstance(failure, Later) and failure.everyone:
            raise failure
        failures[recipient] = failure
    return failures


async def _data(line: Line, envelope: _Envelope) -> None:
    reply = await _before_the_mail(envelope)
    if reply.code != _TAKES_DATA:
        line.ready = reply.code != CLOSING
        raise refused("mail", reply.code, reply.text)


async def _before_the_mail(envelope: _Envelope) -> Reply:
    try:
        return await envelope.answer()
    except Trouble:
        raise Later(_CUT_OFF) from None


async def _content(line: Line, mail: bytes) -> Answer:
    """The mail itself. Until its last dot is on its way nothing was handed over; from then on, all may have been."""
    try:
        line.talk.say(_stuffed(mail))
    except Trouble:
        raise Later(_CUT_OFF) from None
    try:
        reply = await line.talk.hear()
    except Trouble:
        raise InDoubt("the connection broke while the mail was handed over: it may have been taken") from None
    if reply.code != _TAKEN:
        line.ready = reply.code != CLOSING
        raise refused("mail", reply.code, reply.text)
    return answer(reply.code, reply.text)


def _stuffed(mail: bytes) -> bytes:
    """Dots that begin a line doubled, and the dot that ends the mail (RFC 5321, 4.5.2)."""
    return (b"." if mail.startswith(b".") else b"") + mail.replace(b"\r\n.", b"\r\n..") + b".\r\n"
