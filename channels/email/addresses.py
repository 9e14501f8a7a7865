"""Validates mail addresses and host names, and converts domains to ASCII, as DNS needs them."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

import idna

_NAMED_ADDRESS = re.compile(r"([^<>]*)<([^<>]*)>")
_QUOTED_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?:{_LABEL}\.)+(?!\d+$){_LABEL}")
_ADDRESS = re.compile(r"[^@\s<>\"(),:;\\\[\]\x00-\x1f\x7f]{1,64}@[^@\s<>\"(),:;\\\x00-\x1f\x7f]{1,253}")


class Sender(NamedTuple):
    """The author of mails: a name to display, which may be empty, and an address."""

    name: str
    address: str


def split_sender(text: str) -> Sender:
    """Parse `flyte@example.com` or `Flyte <flyte@example.com>`; the address is not validated.

    The name may contain an @ and may be a quoted string (RFC 5322, 3.2.4). `email.utils.parseaddr` would take
    `Flyte @ Example` for an address.
    """
    if (match := _NAMED_ADDRESS.fullmatch(text.strip())) is None:
        return Sender("", text.strip())
    name = match[1].strip()
    if quoted := _QUOTED_STRING.fullmatch(name):
        name = re.sub(r"\\(.)", r"\1", quoted[1])
    return Sender(name, match[2].strip())


def is_host_name(text: str) -> bool:
    """True if the text is a fully qualified host name in ASCII, such as `dispatcher.example.com`."""
    return len(text) <= 253 and _HOST_NAME.fullmatch(text) is not None


def address_literal(address: str) -> str:
    """Return an IP address as EHLO names it if there is no host name (RFC 5321, 4.1.3): `[192.0.2.1]` or
    `[IPv6:2001:db8::1]`. Raises `ValueError` if the text is no IP address.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return f"[IPv6:{parsed}]" if parsed.version == 6 else f"[{parsed}]"


def hello_name(text: str) -> str:
    """Return a name for EHLO, with a host name's domain in ASCII. Raises `ValueError` if the text is neither a fully
    qualified host name nor an address literal.
    """
    if text.startswith("[") and text.endswith("]"):
        return address_literal(text[1:-1].removeprefix("IPv6:"))
    name = text if text.isascii() else _ascii_domain(text)
    if not is_host_name(name):
        raise ValueError("not a host name with a domain")
    return name


def mail_address(text: str) -> str:
    """Return the address with its domain in lower case and in ASCII. Raises `ValueError` if the text is no mail
    address.

    Non-ASCII domains are encoded by IDNA 2008 (RFC 5891, mapped by UTS 46), because the older IDNA 2003 would turn `ß`
    into `ss`. The part before the @ is not changed (RFC 5321, 2.4).
    """
    if not _ADDRESS.fullmatch(text):
        raise ValueError("not a mail address")
    local, _, domain = text.rpartition("@")
    return f"{local}@{_ascii_domain(domain)}"


def _ascii_domain(domain: str) -> str:
    if domain.isascii():
        if not all(1 <= len(label) <= 63 for label in domain.split(".")):
            raise ValueError("not a mail address: no such domain can exist")
        return domain.lower()
    try:
        return idna.encode(domain, uts46=True).decode().lower()
    except idna.IDNAError:
        raise ValueError("not a mail address: no such domain can exist") from None
