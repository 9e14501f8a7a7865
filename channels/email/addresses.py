"""Mail addresses: which texts are one, and how the wire writes it."""

from __future__ import annotations

import re

import idna

_ADDRESS = re.compile(r"[^@\s<>\"(),:;\\\[\]\x00-\x1f\x7f]{1,64}@[^@\s<>\"(),:;\\\x00-\x1f\x7f]{1,253}")


def mail_address(text: str) -> str:
    """The address with its domain as DNS has it: lower case, and IDNA 2008 for what is beyond ASCII (RFC 5891,
    mapped by UTS 46), so that `ß` is not taken for `ss`. What is before the @ stays as it is (RFC 5321, 2.4).

    Raises ValueError where no such address can exist.
    """
    if not _ADDRESS.fullmatch(text):
        raise ValueError("not a mail address")
    local, _, domain = text.rpartition("@")
    return f"{local}@{_in_dns(domain)}"


def _in_dns(domain: str) -> str:
    if domain.isascii():
        if not all(1 <= len(label) <= 63 for label in domain.split(".")):
            raise ValueError("not a mail address: no such domain can exist")
        return domain.lower()
    try:
        return idna.encode(domain, uts46=True).decode().lower()
    except idna.IDNAError:
        raise ValueError("not a mail address: no such domain can exist") from None
