"""Validates mail addresses, and converts their domain to ASCII, as DNS needs it."""

from __future__ import annotations

import re

import idna

_ADDRESS = re.compile(r"[^@\s<>\"(),:;\\\[\]\x00-\x1f\x7f]{1,64}@[^@\s<>\"(),:;\\\x00-\x1f\x7f]{1,253}")


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
