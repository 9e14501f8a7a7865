"""Runs the dispatcher like a user: in a separate process, with a settings file, stopped by signals."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import yaml

from tests.support.forked import ForkedProcess, fork

COMMAND = [sys.executable, "-m", "dispatcher"]
ROUTING_KEY = "0123456789abcdef0123456789abcdef"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Replica:
    """One running `dispatcher serve`."""

    def __init__(self, process: ForkedProcess | Process, log: Path, url: str) -> None:
        self.process = process
        self.url = url
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def stop(self, number: int = signal.SIGTERM, *, seconds: float = 40) -> int:
        """Send the signal, wait, and return the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(seconds):
            return await self.process.wait()


async def launch(folder: Path, settings: Mapping[str, Any], *, name: str = "dispatcher") -> Replica:
    """Start a replica, and don't wait for it. `channels` defaults to one that nobody can be reached by."""
    port = free_port()
    file = folder / f"{name}.yaml"
    http = {**settings.get("http", {}), "listen": f"127.0.0.1:{port}"}
    file.write_text(yaml.safe_dump({"channels": {"webhook": {}}, **settings, "http": http}))
    log = folder / f"{name}.log"
    process = await fork(["serve", "--config", str(file)], out=log, err=log)
    return Replica(process, log, f"http://127.0.0.1:{port}")


async def start(folder: Path, settings: Mapping[str, Any], *, name: str = "dispatcher") -> Replica:
    """Start a replica like `launch`, and wait until it is ready."""
    replica = await launch(folder, settings, name=name)
    try:
        await _ready(replica)
    except BaseException:
        replica.process.kill()
        await replica.process.wait()
        raise
    return replica


@asynccontextmanager
async def serving(folder: Path, settings: Mapping[str, Any], *, name: str = "dispatcher") -> AsyncIterator[Replica]:
    """Run a replica during the block. It must stop with status 0 afterwards."""
    replica = await start(folder, settings, name=name)
    try:
        yield replica
        status = await replica.stop()
        assert status == 0, replica.log[-3000:]
    finally:
        if replica.process.returncode is None:
            replica.process.kill()
            await replica.process.wait()


async def _ready(replica: Replica) -> None:
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        while True:
            assert replica.process.returncode is None, replica.log[-3000:]
            try:
                async with session.get(f"{replica.url}/readyz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.1)


async def command(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, stdin: str | None = None
) -> tuple[int, str, str]:
    """Run a dispatcher command; returns its exit status, standard output and standard error.

    With an environment, a folder or a standard input of its own, the command is started as a user does it. Otherwise it is
    forked, which is faster. `stdin`: what the command reads from standard input.
    """
    if env is None and cwd is None and stdin is None:
        return await _run_forked(arguments)
    given = None if stdin is None else PIPE
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdin=given, stdout=PIPE, stderr=PIPE, env=env, cwd=cwd
    )
    async with asyncio.timeout(90):
        out, err = await process.communicate(None if stdin is None else stdin.encode())
    return process.returncode or 0, out.decode(), err.decode()


async def _run_forked(arguments: Sequence[str]) -> tuple[int, str, str]:
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        process = await fork(arguments, out=files[0], err=files[1])
        try:
            async with asyncio.timeout(90):
                status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
        out, err = (file.read_text() for file in files)
        return status, out, err


async def ask(config: Path, *arguments: str) -> Any:
    """Run a command with --json and return its parsed output."""
    status, out, err = await command(*arguments, "--config", str(config), "--json")
    assert status == 0, err
    return json.loads(out)
