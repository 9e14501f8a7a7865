"""Starts `dispatcher` commands as processes that are forked from one which has imported the product.

The imports take most of a command's time. Each test process has one such process, the fork server of `multiprocessing`. It
starts with the first command and ends with the test process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.support.every_module", __name__])
_STARTING = threading.Lock()


class ForkedProcess:
    """A running command, in the folder and the environment that the test process had. Used like asyncio's `Process`."""

    def __init__(self, arguments: Sequence[str], out: Path, err: Path) -> None:
        self._process = _FORKS.Process(target=_run, args=(arguments, {**os.environ}, Path.cwd(), out, err))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status; the negative number of the signal that ended the process; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait until the process has ended, and return its exit status."""
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(self._process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
        self._process.join()
        assert self.returncode is not None
        return self.returncode


async def fork(arguments: Sequence[str], *, out: Path, err: Path) -> ForkedProcess | Process:
    """Start a command whose standard output and standard error are appended to these files.

    If a test has set PYTHONPATH, the command is not forked: only a new interpreter reads that variable.
    """
    if "PYTHONPATH" in os.environ:
        with out.open("ab") as stdout, err.open("ab") as stderr:
            anew = (sys.executable, "-m", "dispatcher", *arguments)
            return await asyncio.create_subprocess_exec(*anew, stdout=stdout, stderr=stderr)
    await asyncio.to_thread(_start_server)
    return ForkedProcess(arguments, out, err)


def _start_server() -> None:
    with _STARTING:
        _started_server()


@cache
def _started_server() -> None:
    """Start the fork server, and wait until it has imported the product. It forks in milliseconds from then on."""
    process = _FORKS.Process(target=int)
    process.start()
    process.join()


def _run(arguments: Sequence[str], environment: Mapping[str, str], folder: Path, out: Path, err: Path) -> None:
    from dispatcher.cli import main

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = ["dispatcher", *arguments]
    main()
