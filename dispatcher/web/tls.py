"""TLS for the listener, with a certificate that can be replaced while the service runs."""

from __future__ import annotations

import ssl
from pathlib import Path

import structlog

from dispatcher.errors import SettingsError
from dispatcher.web.config import Tls

log = structlog.get_logger(__name__)


class Certificate:
    """Loads the certificate from its files. Each new connection uses the files' current content."""

    def __init__(self, tls: Tls) -> None:
        """Raises SettingsError if the files are not a certificate with its key."""
        self._tls = tls
        self._loaded_stamps = self._stamps()
        try:
            self._newest = self._load()
        except OSError as error:  # ssl.SSLError is a subclass
            raise SettingsError(f"http.tls: cert_file and key_file are no pair that can be used: {error}") from None
        self.context = self._newest
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called at each handshake. While the files are being replaced, certificate and key may not match; until they
        match, the old certificate is used.
        """
        stamps = self._stamps()
        if stamps != self._loaded_stamps:
            try:
                self._newest, self._loaded_stamps = self._load(), stamps
            except OSError as error:
                log.warning("the new certificate can't be used: the old one stays in use", reason=str(error))
        connection.context = self._newest

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._tls.cert_file, self._tls.key_file)
        return context

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        return tuple(_stamp(file) for file in (self._tls.cert_file, self._tls.key_file))


def _stamp(file: Path) -> tuple[int, int]:
    """Return the modification time and inode, which change if the file is replaced; zeros if it can't be read."""
    try:
        status = file.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_ino)
