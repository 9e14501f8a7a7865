"""Runs `dispatcher` commands in processes that are forked from one which has imported the product.

The imports take most of a command's time. Each test process has one such process, the fork server of `multiprocessing`. It
starts with the first command and ends with the test process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.support.every_module", __name__])
_STARTING = threading.Lock()


async def run_forked(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Run a command in this process's folder and environment.

    Returns its exit status, standard output and standard error. Raises TimeoutError after 90 seconds.
    """
    await asyncio.to_thread(_start_server)
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        process = _FORKS.Process(target=_run, args=(arguments, {**os.environ}, Path.cwd(), files))
        process.start()
        loop.add_reader(process.sentinel, ended.set)
        try:
            async with asyncio.timeout(90):
                await ended.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            loop.remove_reader(process.sentinel)
            process.join()
            status = process.exitcode or 0
            process.close()
        out, err = (file.read_text() for file in files)
    return status, out, err


def _start_server() -> None:
    with _STARTING:
        _started_server()


@cache
def _started_server() -> None:
    """Start the fork server, and wait until it has imported the product. It forks in milliseconds from then on."""
    process = _FORKS.Process(target=int)
    process.start()
    process.join()
    process.close()


def _run(arguments: Sequence[str], environment: Mapping[str, str], folder: Path, files: Sequence[Path]) -> None:
    from dispatcher.cli import main

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = ["dispatcher", *arguments]
    main()
