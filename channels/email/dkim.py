"""Signs mail with DKIM (RFC 6376). dkimpy is an optional dependency, which is imported only if a key is configured."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

from channels.contract import Misconfigured

SIGNED_HEADERS = (
    "from",
    "to",
    "subject",
    "date",
    "message-id",
    "reply-to",
    "in-reply-to",
    "references",
    "list-id",
    "list-unsubscribe",
    "list-unsubscribe-post",
    "auto-submitted",
    "mime-version",
    "content-type",
)
"""The headers that the signature covers, because readers and programs rely on them (RFC 6376, 5.4.1; RFC 8058, 4)."""
MIN_KEY_BITS = 1024
_DISABLED_LOGGER = logging.getLogger(f"{__name__}.dkimpy")
_DISABLED_LOGGER.disabled = True
"""This logger is given to dkimpy and is disabled, because dkimpy logs the content that it signs."""


def read_key(file: Path) -> bytes:
    """Return the RSA key in the file, in PEM. Raises `ValueError` if the file has no usable key; the error never
    contains the key.
    """
    from dkim.crypto import UnparsableKeyError, parse_pem_private_key  # noqa: PLC0415 - dkimpy may not be installed

    try:
        pem = file.read_bytes()
        bits = parse_pem_private_key(pem)["modulus"].bit_length()
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}") from None
    except (UnparsableKeyError, ValueError, IndexError, TypeError):
        raise ValueError(f"{file} holds no RSA key in PEM without a passphrase") from None
    if bits < MIN_KEY_BITS:
        raise ValueError(f"{file} holds a key of {bits} bits, and {MIN_KEY_BITS} are the least (RFC 8301, 3.2)")
    return pem


def sign(mail: bytes, *, domain: str, selector: str, key_file: Path) -> bytes:
    """Return the mail with a DKIM-Signature header in front. This takes some 30 ms with a 2048-bit key.

    The signature contains the current time, so it differs at each attempt; all other bytes of the mail stay the same.
    `From` is signed once more than the mail contains it, so that a second `From`, added later, breaks the signature
    (RFC 6376, 8.15).

    Raises `Misconfigured` if the key can't be read, so that no mail is sent unsigned.
    """
    import dkim  # noqa: PLC0415 - imported late: dkimpy may not be installed

    try:
        key = _cached_key(key_file, key_file.stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        raise Misconfigured(f"the mail can't be signed: {error}; see channels.email.dkim.key_file") from None

    present = {line.split(b":", 1)[0].lower().decode() for line in mail.partition(b"\r\n\r\n")[0].split(b"\r\n")}
    headers = [name for name in SIGNED_HEADERS if name in present] + ["from"]
    signature: bytes = dkim.sign(
        mail,
        selector.encode(),
        domain.encode(),
        key,
        canonicalize=(b"relaxed", b"relaxed"),
        include_headers=[name.encode() for name in headers],
        logger=_DISABLED_LOGGER,
    )
    return signature + mail


@lru_cache(maxsize=8)
def _cached_key(file: Path, modified_at: int) -> bytes:
    """Return the key in the file. The key is cached, and read again when the file's modification time has changed."""
    del modified_at
    return read_key(file)
