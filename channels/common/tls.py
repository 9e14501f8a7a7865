"""TLS by certificates in files, which may be renewed while we run."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from pathlib import Path


class Certificates:
    """A context for TLS, made once and again where a file has changed: making one costs tens of milliseconds."""

    def __init__(self, files: Iterable[Path | None], make: Callable[[], ssl.SSLContext]) -> None:
        self._files = [file for file in files if file is not None]
        self._make = make
        self._made: tuple[tuple[float, ...], ssl.SSLContext] | None = None

    def context(self) -> ssl.SSLContext:
        """Raises OSError, of which ssl's own errors are, or ValueError where the files can't be used."""
        stamps = tuple(file.stat().st_mtime for file in self._files)
        if self._made is None or self._made[0] != stamps:
            self._made = (stamps, self._make())
        return self._made[1]
