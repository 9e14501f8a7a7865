"""TLS for the HTTP server, with a certificate that can be replaced while the service runs."""

from __future__ import annotations

import ssl
from pathlib import Path

import structlog

from dispatcher.errors import SettingsError
from dispatcher.web.config import Tls

log = structlog.get_logger(__name__)


class Certificate:
    """The certificate from the configured files. If the files change, new connections use the new certificate."""

    def __init__(self, tls: Tls) -> None:
        """Load the files. Raises SettingsError if they can't be read, or are not a certificate and its key."""
        self._tls = tls
        self._loaded_stamps = self._stamps()
        try:
            self._newest = self._load()
        except OSError as error:  # also catches ssl.SSLError, which is a subclass of OSError
            raise SettingsError(f"http.tls: cert_file and key_file are no pair that can be used: {error}") from None
        self.context = self._newest
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        """Choose the certificate for a new connection. OpenSSL calls this function at each TLS handshake.

        Changed files are loaded first. While the files are being replaced, the certificate and the key may not match;
        until they match, the old certificate is used.
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
    """Return the file's modification time and inode, to notice that it was replaced; zeros if it can't be read."""
    try:
        status = file.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_ino)
