"""TLS for the listener, with a certificate that may be replaced while we run."""

from __future__ import annotations

import ssl
from pathlib import Path

import structlog

from dispatcher.errors import SettingsError
from dispatcher.web.config import Tls

log = structlog.get_logger(__name__)


class Certificate:
    """Gives each new connection the certificate that lies in the files then."""

    def __init__(self, tls: Tls) -> None:
        """Raises SettingsError where the files are no certificate with its key."""
        self._tls = tls
        self._stamp = self._stamped()
        try:
            self._newest = self._read()
        except OSError as error:  # ssl.SSLError is one
            raise SettingsError(f"http.tls: cert_file and key_file are no pair that can be used: {error}") from None
        self.context = self._newest
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called at each handshake. Files that are being replaced may not fit together for a moment: then the old holds."""
        stamp = self._stamped()
        if stamp != self._stamp:
            try:
                self._newest, self._stamp = self._read(), stamp
            except OSError as error:
                log.warning("the new certificate can't be used: the old one is", reason=str(error))
        connection.context = self._newest

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._tls.cert_file, self._tls.key_file)
        return context

    def _stamped(self) -> tuple[tuple[int, int], ...]:
        return tuple(_stamp(file) for file in (self._tls.cert_file, self._tls.key_file))


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_ino)
