"""Builds the bytes of a mail, and its envelope (sender and recipients).

This module formats headers and parts itself: the standard library's EmailMessage would need more time than all other
steps of a delivery. The tests parse the mails with the standard library.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import format_datetime, formataddr
from functools import lru_cache
from html import escape
from typing import Any

from channels.common.text import cut
from channels.contract import Content, Message
from channels.email.addresses import split_sender
from channels.email.config import EmailConfig

WIDTH = 76
"""Maximum length of a header line that contains an encoded word (RFC 2047, 2)."""
MAX_ENCODED_WORD = 75
_BREAKS = re.compile(r"[\r\n\0\v\f\x1c-\x1e\x85\u2028\u2029]+")
_NOT_IN_A_LABEL = re.compile(r"[^a-z0-9_-]+")
_NOT_IN_LABELS = re.compile(r"[^a-z0-9_.-]+|\.{2,}")
_MAX_LABEL = 60
NOTE_IN_HTML = 400
"""The HTML shows at most this many characters of the note: it has 2,000 bytes or so beyond `limits.HTML` before Gmail clips
it. The text part has the whole note."""
MAX_LINE = 998
"""Maximum number of octets in a line, without the line end (RFC 5322, 2.1.1)."""
_BODY = re.compile(r"<body\b[^>]*>", re.IGNORECASE)
_SAFE = bytes(range(ord(" "), 0x7F)) + b"\t\n"
# Matches lines that mailboxes or relays would change: lines that start with `From `, have only a dot or end with a
# blank. Also matches MIME boundaries. The pattern starts with the previous line's end, because this makes the search
# fast.
_UNSAFE_LINE = re.compile(r"\n(?:From |\.\n|--=_|(?<=[ \t]\n))")


@dataclass(frozen=True, slots=True, kw_only=True)
class MailMessage:
    """A mail and its envelope, ready to be sent.

    If the address of a recipient has non-ASCII characters before the @, the address of every recipient has: such a mail
    needs SMTPUTF8 at the relay and at every server behind it.
    """

    key: str
    """The delivery's key. It is sent as envelope id, which delivery reports contain (RFC 3461, 4.4)."""
    sender: str
    """The envelope sender: the address that bounces are sent to. If empty, no bounces are sent."""
    recipients: tuple[str, ...]
    notify: tuple[str, ...]
    """The events about which the relay sends a report (DSN) to the envelope sender: `failure`, `delay`, `success`, or
    `never`. If empty, the relay decides."""
    message_id: str
    content: bytes
    """The mail's bytes, signed if the settings have a DKIM key."""


class MessageBuilder:
    """Builds mails with the sender, headers and DKIM key of the settings."""

    def __init__(self, config: EmailConfig) -> None:
        self._config = config
        self._bounces = config.bounces
        self._domain = split_sender(config.sender).address.rpartition("@")[2]
        self._fixed_headers: list[str] = []
        if config.reply_to:
            self._fixed_headers.append(f"Reply-To: {_folded(config.reply_to)}")
        if config.list_unsubscribe:
            self._fixed_headers.append(_header("List-Unsubscribe", f"<{config.list_unsubscribe}>"))
        if config.list_unsubscribe_post:
            self._fixed_headers.append("List-Unsubscribe-Post: List-Unsubscribe=One-Click")

    def build(self, message: Message) -> list[MailMessage]:
        """Return the message as one mail, or as two if only some recipients have an ASCII address.

        A mail that names a non-ASCII address needs SMTPUTF8 at every server (RFC 6531, 3.1). So the recipients with an
        ASCII address get a separate mail, which names only them. The other mail names everybody. Both have the same
        Message-ID, because no recipient gets both.
        """
        plain = tuple(filter(str.isascii, message.recipients))
        if plain in {(), message.recipients}:
            return [self._mail(message, message.recipients)]
        others = tuple(recipient for recipient in message.recipients if not recipient.isascii())
        return [self._mail(replace(message, recipients=plain), plain), self._mail(message, others)]

    def _mail(self, message: Message, envelope: tuple[str, ...]) -> MailMessage:
        return MailMessage(
            key=message.key,
            sender=self._bounces,
            recipients=envelope,
            notify=self._config.dsn,
            message_id=f"<{message.key}@{self._domain}>",
            content=self.render(message),
        )

    def render(self, message: Message) -> bytes:
        """Return the mail's bytes, signed if the settings have a DKIM key."""
        config = self._config
        headers = [*self._fixed_headers, *thread_headers(message.content.get("about"), self._domain)]
        mail = compose(message, config.sender, headers, recipients_visible=config.recipients_visible)
        if config.dkim is None:
            return mail
        from channels.email.dkim import sign  # noqa: PLC0415 - dkimpy may not be installed

        dkim = config.dkim
        return sign(mail, domain=dkim.domain or self._domain, selector=dkim.selector, key_file=dkim.key_file)


def thread_headers(about: Mapping[str, Any] | None, domain: str) -> tuple[str, ...]:
    """Return the headers that let mail programs group the mails about a launch plan; none if the launch plan is
    unknown.

    The List-Id is derived from the launch plan (RFC 2919). References and In-Reply-To name a message that does not
    exist: its id is a hash of the launch plan's name. So no earlier mail has to be found, and every recipient sees the
    same thread.
    """
    if not about or not about.get("launch_plan"):
        return ()
    return _list_and_thread(*(str(about.get(part, "")) for part in ("launch_plan", "domain", "project")), domain)


@lru_cache(maxsize=256)
def _list_and_thread(launch_plan: str, domain: str, project: str, mail_domain: str) -> tuple[str, ...]:
    """Return the List-Id and thread headers. The result is cached, because there are many mails and few launch plans.

    `domain`: the launch plan's domain in Flyte. `mail_domain`: the mail domain of `from`.
    """
    names = (launch_plan, domain, project)
    labels = (
        _list_id_label(launch_plan, _NOT_IN_LABELS),
        _list_id_label(domain, _NOT_IN_A_LABEL),
        _list_id_label(project, _NOT_IN_A_LABEL),
    )
    root = hashlib.sha256("\0".join(names).encode(errors="replace")).hexdigest()[:32]
    return (
        _header("List-Id", f"<{'.'.join(filter(None, labels))}.{mail_domain}>"),
        _header("In-Reply-To", f"<thread-{root}@{mail_domain}>"),
        _header("References", f"<thread-{root}@{mail_domain}>"),
    )


def _header(name: str, value: str) -> str:
    """Format one header. If the name and the value are longer than RFC 5322 (2.1.1) recommends for a line, the value
    gets its own line.
    """
    return f"{name}: {value}" if len(name) + len(value) <= 76 else f"{name}:\r\n {value}"


def _list_id_label(name: str, invalid: re.Pattern[str]) -> str:
    """Convert a name to a part of a List-Id. If characters had to be replaced, a hash is appended, so that different
    names stay different.
    """
    label = invalid.sub("-", name.lower())[:_MAX_LABEL].strip(".-")
    if label == name:
        return label
    digits = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:6]
    return f"{label}-{digits}" if label else digits


def compose(
    message: Message, sender: str, extra_headers: Sequence[str] = (), *, recipients_visible: bool = True
) -> bytes:
    """Return the mail's bytes with CRLF line ends. The mail contains the content as text and as HTML (RFC 2046, 5.1.4).

    A part that relays would not change is sent unencoded. Any other part is encoded as quoted-printable, in lines of up
    to 76 characters.

    `sender`: an address with or without a name, as in `EmailConfig.sender`. `extra_headers`: additional headers,
    folded, without their final line end.
    """
    content = message.content
    author, domain = _author(sender)
    boundary = f"=_{message.key}"
    headers = [
        f"Date: {_date((message.released_at or message.created_at).replace(microsecond=0))}",
        f"From: {author}",
        f"To: {_folded(message.recipients) if recipients_visible else 'undisclosed-recipients:;'}",
        f"Subject: {_subject(content)}",
        f"Message-ID: <{message.key}@{domain}>",
        "MIME-Version: 1.0",
        "Auto-Submitted: auto-generated",
        *extra_headers,
        f'Content-Type: multipart/alternative;\r\n boundary="{boundary}"',
    ]
    text, html = str(content["text"]), str(content["html"])
    if message.note:
        text, html = f"{message.note}\n\n{text}", _html_with_note(html, message.note)
    parts = [_part("plain", text), _part("html", html)]
    opening = f"\r\n--{boundary}\r\n".encode()
    body = b"".join(opening + part for part in parts)
    return "\r\n".join(headers).encode() + b"\r\n" + body + f"\r\n--{boundary}--\r\n".encode()


def _html_with_note(html: str, note: str) -> str:
    """Return the HTML with the note as the first line of its body. The colours suit light and dark mail programs."""
    opening = _BODY.search(html)
    start = opening.end() if opening is not None else 0
    shown = f'<p style="margin:0;padding:8px 12px;background:#f4f4f6;color:#616061;font:13px/18px sans-serif">{escape(cut(note, NOTE_IN_HTML))}</p>'
    return f"{html[:start]}{shown}{html[start:]}"


def message_id(key: str, sender: str) -> str:
    """Return a delivery's Message-ID (RFC 5322, 3.6.4). It is in the sender's domain, and the same at every attempt."""
    return f"<{key}@{_author(sender)[1]}>"


@lru_cache(maxsize=16)
def _date(timestamp: datetime) -> str:
    """Format a date for a header. The result is cached, because all mails of one batch have the same date."""
    return format_datetime(timestamp)


@lru_cache(maxsize=16)
def _author(sender: str) -> tuple[str, str]:
    """Return a sender's From header and mail domain. The result is cached, because the sender is the same in every
    mail.
    """
    name, address = split_sender(sender)
    return formataddr((name, address)), address.rpartition("@")[2].encode("idna").decode()


def _subject(content: Content) -> str:
    text = _BREAKS.sub(" ", str(content["subject"])).strip()
    if text.isascii() and text.isprintable() and len(text) <= 66 and "=?" not in text:
        return text
    return encoded_words(text, first_line=WIDTH - len("Subject: "))


def encoded_words(text: str, *, first_line: int = WIDTH) -> str:
    """Encode a header's non-ASCII text as base64 encoded words, one on each line (RFC 2047, 2).

    An encoded word has at most 75 characters, and a line at most `WIDTH`. No character is split between two words.
    Characters that UTF-8 can't encode become question marks. `first_line`: the number of characters that fit on the
    first line, after the header's name. The standard library's Header gives the same result, but takes forty times as
    long.
    """
    octets = text.encode(errors="replace")
    words = []
    start, line_length = 0, first_line
    while start < len(octets):
        end = min(start + (min(line_length, MAX_ENCODED_WORD) - len("=?utf-8?b??=")) // 4 * 3, len(octets))
        while end < len(octets) and octets[end] & 0xC0 == 0x80:  # don't end the word inside a character
            end -= 1
        words.append(f"=?utf-8?b?{binascii.b2a_base64(octets[start:end], newline=False).decode()}?=")
        start, line_length = end, WIDTH - 1
    return "\r\n ".join(words)


def _folded(addresses: Sequence[str]) -> str:
    return ",\r\n ".join(addresses)


def _part(kind: str, text: str) -> bytes:
    """Return a MIME part with its headers. All line ends become CRLF."""
    if _needs_no_encoding(text):
        encoding, octets = "7bit", text.removesuffix("\n").encode().replace(b"\n", b"\r\n") + b"\r\n"
    else:
        encoding, octets = "quoted-printable", _quoted(text.replace("\0", "").splitlines())
    head = f'Content-Type: text/{kind}; charset="utf-8"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n'
    return head.encode() + octets


def _quoted(lines: Sequence[str]) -> bytes:
    """Encode lines as quoted-printable (RFC 2045, 6.7). `From` at the start of a line is encoded too, because mailboxes
    would change it.
    """
    text = "\r\n" + "\r\n".join(lines) + "\r\n"
    octets = binascii.b2a_qp(text.encode(errors="replace"), istext=True)
    return octets.replace(b"\r\nFrom ", b"\r\nF=\r\nrom ").removeprefix(b"\r\n")


def _needs_no_encoding(text: str) -> bool:
    """True if the text is 7bit (RFC 2045, 2.7) and needs no encoding, because no relay or mailbox would change it.

    A change would break the mail's DKIM signature.
    """
    if not text.isascii() or text.encode().translate(None, _SAFE) or _UNSAFE_LINE.search(f"\n{text}\n"):
        return False
    start = 0
    while len(text) - start > MAX_LINE:
        start = text.rfind("\n", start, start + MAX_LINE + 1) + 1  # go on after the last line end within the limit
        if start == 0:
            return False
    return True
