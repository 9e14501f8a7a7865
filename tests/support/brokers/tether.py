"""Kills a process that this one started when this one ends, also if this one is killed."""

from __future__ import annotations

import subprocess


class Tether:
    """A shell that waits until this process ends, and then kills the other one.

    The shell reads from a pipe that only this process writes to. The pipe ends with this process, however it ends.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._shell = subprocess.Popen(
            ["sh", "-c", "read -r _; kill -9 $0", str(process.pid)], stdin=subprocess.PIPE, start_new_session=True
        )

    def cut(self) -> None:
        """End the shell. The other process is not killed any more."""
        self._shell.kill()
        self._shell.communicate()
