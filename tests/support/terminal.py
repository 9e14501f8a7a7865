"""Runs `dispatcher` commands and returns what they write: in this process, or into a pipe and into a terminal.

`run`: one process imports the commands once and forks for each run, because an import takes most of a command's time. `python
-m tests.support.terminal` is that process; it reads the commands from standard input.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pty
import sys
import traceback
from asyncio.subprocess import PIPE
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import structlog


@dataclass(frozen=True, slots=True)
class Written:
    """What a command has written on standard output and standard error together."""

    pipe: str
    terminal: str
    statuses: tuple[int, int]
    """The exit statuses of the two runs."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command has written, and its exit status."""

    status: int
    out: str
    err: str


async def invoke(*arguments: str, stdin: str = "") -> Answer:
    """Run a command in this process, which is faster than `run`. An error that is no usage error is raised."""
    from typer.testing import CliRunner

    from dispatcher.cli import app

    with _log_settings_restored():
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments, stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


@contextmanager
def _log_settings_restored() -> Iterator[None]:
    """Undo what a command in the block configures. Its loggers are not cached, because those would stay as they are."""
    root, configure = logging.getLogger(), structlog.configure
    handlers, level = [*root.handlers], root.level

    def configure_uncached(**options: Any) -> None:
        configure(**{**options, "cache_logger_on_first_use": False})

    with patch.object(structlog, "configure", configure_uncached):
        try:
            yield
        finally:
            structlog.reset_defaults()
            root.handlers[:] = handlers
            root.setLevel(level)


async def run(commands: Sequence[Sequence[str]], env: Mapping[str, str] | None = None) -> list[Written]:
    """Run each command twice. The environment gets `env` in addition."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.terminal"),
        stdin=PIPE,
        stdout=PIPE,
        env={**os.environ, "TERM": "xterm-256color", **(env or {})},
    )
    async with asyncio.timeout(100):
        answer, _ = await process.communicate(json.dumps(commands).encode())
    assert process.returncode == 0
    return [Written(pipe, terminal, (first, second)) for (pipe, first), (terminal, second) in json.loads(answer)]


def _forked(arguments: Sequence[str], *, terminal: bool) -> tuple[str, int]:
    reading, writing = pty.openpty() if terminal else os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.stdout = open(1, "w", closefd=False, encoding=sys.stdout.encoding)
        sys.stderr = open(2, "w", closefd=False, encoding=sys.stdout.encoding, errors="backslashreplace")
        os._exit(_run(arguments))
    os.close(writing)
    written = b""
    try:
        while part := os.read(reading, 65536):
            written += part
    except OSError:  # how Linux reports that a terminal was closed
        pass
    os.close(reading)
    return written.decode(errors="surrogateescape"), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run(arguments: Sequence[str]) -> int:
    from dispatcher.cli import main

    sys.argv = ["dispatcher", *arguments]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    except Exception:  # noqa: BLE001 - as Python itself does at the end of a program
        traceback.print_exc()
        return 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    import dispatcher.cli
    import dispatcher.preview.terminal
    import dispatcher.runtime.service
    import dispatcher.workbench.sample  # noqa: F401

    given = json.load(sys.stdin)
    json.dump([[_forked(one, terminal=kind) for kind in (False, True)] for one in given], sys.stdout)
