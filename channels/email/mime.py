"""A mail's bytes, put together once a send, and its envelope.

The standard library's EmailMessage costs more than all the rest of a delivery, so the few headers and the
two parts are written by hand; the tests read them back with the standard library's parser.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import format_datetime, formataddr, parseaddr
from functools import lru_cache
from typing import Any

from channels.contract import Content, Message
from channels.email.config import EmailConfig

WIDTH = 76
"""Characters of a header's line that holds an encoded word (RFC 2047, 2)."""
LONGEST_WORD = 75
_BREAKS = re.compile(r"[\r\n\0\v\f\x1c-\x1e\x85\u2028\u2029]+")
_NOT_IN_A_LABEL = re.compile(r"[^a-z0-9_-]+")
_NOT_IN_LABELS = re.compile(r"[^a-z0-9_.-]+|\.{2,}")
_LONGEST_LABEL = 60
LONGEST_LINE = 998
"""Octets of a line without its end, in any mail (RFC 5322, 2.1.1)."""
_SAFE = bytes(range(ord(" "), 0x7F)) + b"\t\n"
# Lines that mailboxes and relays change, a boundary of ours, and blanks at an end; the line end is first as it is found quickly.
_UNSAFE_LINE = re.compile(r"\n(?:From |\.\n|--=_|(?<=[ \t]\n))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A mail and its envelope."""

    key: str
    """The delivery's: the envelope's id in bounces (RFC 3461, 4.4)."""
    sender: str
    """Where bounces go; empty for nowhere."""
    recipients: tuple[str, ...]
    notify: tuple[str, ...]
    """What the sender wants to hear of: `failure`, `delay`, `success`, or `never`."""
    message_id: str
    write: Callable[[tuple[str, ...]], bytes]
    """The mail's bytes, naming these recipients."""


class Stationery:
    """Writes letters as the settings want them."""

    def __init__(self, config: EmailConfig) -> None:
        self._config = config
        self._bounces = config.bounces
        self._domain = parseaddr(config.sender)[1].rpartition("@")[2]
        self._always: list[str] = []
        if config.reply_to:
            self._always.append(f"Reply-To: {_folded(config.reply_to)}")
        if config.list_unsubscribe:
            self._always.append(_header("List-Unsubscribe", f"<{config.list_unsubscribe}>"))

    def letter(self, message: Message) -> Letter:
        mail = self.write(message)

        def write(recipients: tuple[str, ...]) -> bytes:
            return mail if recipients == message.recipients else self.write(replace(message, recipients=recipients))

        return Letter(
            key=message.key,
            sender=self._bounces,
            recipients=message.recipients,
            notify=self._config.dsn,
            message_id=f"<{message.key}@{self._domain}>",
            write=write,
        )

    def write(self, message: Message) -> bytes:
        """The mail's bytes, signed if the settings have a key."""
        config = self._config
        headers = [*self._always, *about_headers(message.content.get("about"), self._domain)]
        mail = compose(message, config.sender, headers, recipients_visible=config.recipients_visible)
        if config.dkim is None:
            return mail
        from channels.email.dkim import signed  # noqa: PLC0415 - its library is optional

        dkim = config.dkim
        return signed(mail, domain=dkim.domain or self._domain, selector=dkim.selector, key_file=dkim.key_file)


def about_headers(about: Mapping[str, Any] | None, domain: str) -> tuple[str, ...]:
    """What tells a mail program which mails belong together; nothing where the launch plan isn't known.

    The List-Id is the launch plan's (RFC 2919). The thread's first message is one that never was: its id is made of
    the launch plan's name alone, so nothing has to be looked up, and nobody's thread depends on who was told first.
    """
    if not about or not about.get("launch_plan"):
        return ()
    return _list_and_thread(*(str(about.get(part, "")) for part in ("launch_plan", "domain", "project")), domain)


@lru_cache(maxsize=256)
def _list_and_thread(launch_plan: str, domain: str, project: str, ours: str) -> tuple[str, ...]:
    """A storm's mails are about few launch plans."""
    names = (launch_plan, domain, project)
    labels = (_plain(launch_plan, _NOT_IN_LABELS), _plain(domain, _NOT_IN_A_LABEL), _plain(project, _NOT_IN_A_LABEL))
    root = hashlib.sha256("\0".join(names).encode(errors="replace")).hexdigest()[:32]
    return (
        _header("List-Id", f"<{'.'.join(filter(None, labels))}.{ours}>"),
        _header("In-Reply-To", f"<thread-{root}@{ours}>"),
        _header("References", f"<thread-{root}@{ours}>"),
    )


def _header(name: str, value: str) -> str:
    """One header, its value on a line of its own where both are longer than RFC 5322 (2.1.1) likes."""
    return f"{name}: {value}" if len(name) + len(value) <= 76 else f"{name}:\r\n {value}"


def _plain(name: str, unfit: re.Pattern[str]) -> str:
    """A name as a List-Id can have it: told apart by a few digits where something had to be left out."""
    plain = unfit.sub("-", name.lower())[:_LONGEST_LABEL].strip(".-")
    if plain == name:
        return plain
    digits = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:6]
    return f"{plain}-{digits}" if plain else digits


def compose(
    message: Message, sender: str, headers_too: Sequence[str] = (), *, recipients_visible: bool = True
) -> bytes:
    """The mail as it goes over the wire: text and HTML of the same content (RFC 2046, 5.1.4), in lines ended by CRLF.

    A part in ASCII that arrives as it is goes out as it is, another one quoted-printable in lines up to 76.

    `sender`: an address, with a name or without, as `EmailConfig.sender` has it. `headers_too`: more headers, whole
    and folded, without their line ends.
    """
    content = message.content
    author, domain = _author(sender)
    boundary = f"=_{message.key}"
    headers = [
        f"Date: {_date(message.created_at.replace(microsecond=0))}",
        f"From: {author}",
        f"To: {_folded(message.recipients) if recipients_visible else 'undisclosed-recipients:;'}",
        f"Subject: {_subject(content)}",
        f"Message-ID: <{message.key}@{domain}>",
        "MIME-Version: 1.0",
        "Auto-Submitted: auto-generated",
        *headers_too,
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
def _date(moment: datetime) -> str:
    """A batch's mails were all made at once."""
    return format_datetime(moment)


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
    """In lines that all end by CRLF, whatever ended them before."""
    if _arrives_as_it_is(text):
        encoding, octets = "7bit", text.removesuffix("\n").encode().replace(b"\n", b"\r\n") + b"\r\n"
    else:
        encoding, octets = "quoted-printable", _quoted(text.replace("\0", "").splitlines())
    head = f'Content-Type: text/{kind}; charset="utf-8"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n'
    return head.encode() + octets


def _quoted(lines: Sequence[str]) -> bytes:
    """Quoted-printable (RFC 2045, 6.7), in which no line begins as mailboxes want to change it."""
    text = "\r\n" + "\r\n".join(lines) + "\r\n"
    octets = binascii.b2a_qp(text.encode(errors="replace"), istext=True)
    return octets.replace(b"\r\nFrom ", b"\r\nF=\r\nrom ").removeprefix(b"\r\n")


def _arrives_as_it_is(text: str) -> bool:
    """Whether the text needs no encoding (RFC 2045, 2.7) and nobody changes it on its way, so that a signature holds."""
    if not text.isascii() or text.encode().translate(None, _SAFE) or _UNSAFE_LINE.search(f"\n{text}\n"):
        return False
    start = 0
    while len(text) - start > LONGEST_LINE:
        start = text.rfind("\n", start, start + LONGEST_LINE + 1) + 1  # past as many lines as one could hold
        if start == 0:
            return False
    return True
