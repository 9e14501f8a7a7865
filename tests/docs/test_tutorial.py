"""Runs docs/tutorial.md from beginning to end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.brokers import Broker
from tests.support.pages import ROOT, blocks
from tests.support.service import free_port
from tests.support.waiting import until

PAGE = ROOT / "docs" / "tutorial.md"


@pytest.mark.broker
async def test_every_step_of_the_tutorial_succeeds(broker: Broker, tmp_path: Path) -> None:
    ports = {"1025": str(free_port()), "8080": str(free_port())}
    topic = f"tutorial-{os.getpid()}"
    script = ["set -eu"]
    for block in blocks(PAGE, "console", "yaml"):
        text = block.text.replace("tutorial", topic)
        for given, free in ports.items():
            text = text.replace(given, free)
        if block.language == "yaml":
            assert block.file is not None, block
            file = tmp_path / block.file
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        else:  # without `make`: this test already runs in the environment that it sets up
            script += [line[2:] for line in text.splitlines() if not line.startswith(("$ make ", "$ export PATH="))]
    output = tmp_path / "output.txt"
    with output.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", "\n".join(script), cwd=tmp_path, stdout=sink, stderr=STDOUT, start_new_session=True,
            env=os.environ | {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            },
        )  # fmt: skip
    try:
        async with asyncio.timeout(100):
            status = await process.wait()
    finally:
        with suppress(ProcessLookupError):  # background processes that are left if a step failed
            os.killpg(process.pid, signal.SIGKILL)
    assert status == 0, output.read_text()
    assert output.read_text().count("250 OK") == 2, "both were sent, as explain shows"
    assert (tmp_path / "mails-later.txt").read_text().count("MemoryError") >= 1


async def test_the_tutorials_broker_ends_with_its_parent_even_if_that_is_killed() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.brokers",
        cwd=ROOT, env=os.environ | {"BROKER": "light", "KAFKA_BOOTSTRAP_SERVERS": ""}, stdout=PIPE,
    )  # fmt: skip
    assert parent.stdout is not None
    async with asyncio.timeout(30):
        address = re.search(r"127\.0\.0\.1:(\d+)", (await parent.stdout.readline()).decode())
    assert address

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(address[1]))) == 0

    assert listens()
    parent.kill()
    await parent.wait()
    await until(lambda: not listens(), 10)
