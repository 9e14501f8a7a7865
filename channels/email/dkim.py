"""DKIM signatures (RFC 6376), by dkimpy: an optional dependency, imported only where a key is configured."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

from channels.contract import Later

SIGNED = (
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
    "auto-submitted",
    "mime-version",
    "content-type",
)
"""All that readers and programs go by (RFC 6376, 5.4.1)."""
FEWEST_BITS = 1024
_SILENT = logging.getLogger(f"{__name__}.dkimpy")
_SILENT.disabled = True
"""dkimpy logs what it signs."""


def read_key(file: Path) -> bytes:
    """The RSA key in PEM. Raises ValueError, saying what is wrong, for anything else; never shows it."""
    from dkim.crypto import UnparsableKeyError, parse_pem_private_key  # noqa: PLC0415 - optional

    try:
        pem = file.read_bytes()
        bits = parse_pem_private_key(pem)["modulus"].bit_length()
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}") from None
    except (UnparsableKeyError, ValueError, IndexError, TypeError):
        raise ValueError(f"{file} holds no RSA key in PEM without a passphrase") from None
    if bits < FEWEST_BITS:
        raise ValueError(f"{file} holds a key of {bits} bits, and {FEWEST_BITS} are the least (RFC 8301, 3.2)")
    return pem


def signed(mail: bytes, *, domain: str, selector: str, key_file: Path) -> bytes:
    """The mail with its DKIM-Signature in front.

    It names the time of signing, so it is not the same at each attempt; the mail below it is. `From` is signed
    once more than it occurs, so that nobody can add another one (RFC 6376, 8.15). Costs some 30 ms with 2048 bits.

    Raises Later (everyone) where the key is gone: unsigned mail must not go out.
    """
    import dkim  # noqa: PLC0415 - optional

    try:
        key = _key(key_file, key_file.stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        raise Later(f"the mail can't be signed: {error}; see channels.email.dkim.key_file", everyone=True) from None

    present = {line.split(b":", 1)[0].lower().decode() for line in mail.partition(b"\r\n\r\n")[0].split(b"\r\n")}
    headers = [name for name in SIGNED if name in present] + ["from"]
    signature: bytes = dkim.sign(
        mail,
        selector.encode(),
        domain.encode(),
        key,
        canonicalize=(b"relaxed", b"relaxed"),
        include_headers=[name.encode() for name in headers],
        logger=_SILENT,
    )
    return signature + mail


@lru_cache(maxsize=8)
def _key(file: Path, stamp: int) -> bytes:
    """The key, read again when its file changes."""
    del stamp
    return read_key(file)
