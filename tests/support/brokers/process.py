"""A broker's process: started on ports of its own, killed, frozen, stopped."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens; all different, since they are held together."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class Process:
    """A program with its output in a file. One life: starting anew makes a new one."""

    def __init__(self, command: Sequence[str | Path], output: Path) -> None:
        self._output = output
        self._said_before = output.stat().st_size if output.exists() else 0
        with output.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until it is ready. Raises RuntimeError, with its last words, where it dies or takes too long."""
        end = time.monotonic() + seconds
        while not ready():
            if self._process.poll() is not None or time.monotonic() > end:
                self.signal(signal.SIGKILL)
                raise RuntimeError(f"the broker did not start: {self.said()[-2000:]}")
            time.sleep(0.02)

    def said(self) -> str:
        """What this life has printed."""
        with self._output.open("rb") as log:
            log.seek(self._said_before)
            return log.read().decode(errors="replace")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            self._process.send_signal(number)

    def end(self, number: signal.Signals, patience: float = 30) -> None:
        """Send the signal and wait for the end; the patience over, kill."""
        self.signal(number)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
