"""Keeps a TLS context, and builds a new one when the certificate files change."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from pathlib import Path


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
