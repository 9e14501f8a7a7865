"""Checks certificate files, keeps a TLS context until they change, and explains why a certificate is refused."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from channels.common.secret import ExistingFile

_STRICT_CODES = range(80, 95)
"""OpenSSL's codes for certificates that are refused only by the strict checks (`VERIFY_X509_STRICT`), such as `Missing
Authority Key Identifier`. Python uses these checks from 3.13 on. Authorities in companies often leave extensions out."""


class ReloadingContext:
    """Caches a TLS context until one of its certificate files changes, because creating a context takes tens of
    milliseconds.
    """

    def __init__(self, files: Iterable[Path | None], create: Callable[[], ssl.SSLContext]) -> None:
        self._files = [file for file in files if file is not None]
        self._create = create
        self._cached: tuple[tuple[float, ...], ssl.SSLContext] | None = None

    def context(self) -> ssl.SSLContext:
        """Return the cached context, or a new one if a file has changed. Raises `OSError` (or its subclass
        `ssl.SSLError`) or `ValueError` if a file can't be used.
        """
        modified_at = tuple(file.stat().st_mtime for file in self._files)
        if self._cached is None or self._cached[0] != modified_at:
            self._cached = (modified_at, self._create())
        return self._cached[1]


def untrusted_certificate(error: ssl.SSLCertVerificationError, ca_file: str) -> str:
    """Return why a server's certificate is not trusted, and what to do. `ca_file`: the setting that names the
    certificates to trust.

    If the certificate or its authority's lacks an extension that RFC 5280 (4.2.1) demands, no setting helps.
    """
    if error.verify_code in _STRICT_CODES:
        return (
            f"{error.verify_message}; RFC 5280 demands this, and Python checks it from 3.13 on: have the authority issue "
            "a certificate that keeps to it"
        )
    return f"{error.verify_message}; see {ca_file}"


def _certificates(path: Path) -> Path:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(f"{path} has no certificate that can be read: PEM is expected") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    return path


CaFile = Annotated[ExistingFile, AfterValidator(_certificates)]
"""A PEM file with certificates to trust."""


def check_certificate(cert_file: Path, key_file: Path | None) -> None:
    """Raise `ValueError` if the files are not a certificate and its key, without a passphrase.

    `key_file`: None if `cert_file` contains the key too.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_cert_chain(cert_file, key_file, password=lambda: "")  # OpenSSL would ask at the terminal
    except ssl.SSLError as error:
        reason = (error.reason or "no PEM").replace("_", " ").lower()
        raise ValueError(
            f"cert_file and key_file are not a certificate and its key, as PEM without a passphrase ({reason})"
        ) from None
    except OSError as error:
        raise ValueError(f"cert_file or key_file can't be read: {error.strerror}") from None
