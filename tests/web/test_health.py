"""The health pages while a process starts, runs, drains, and is forced to stop."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dispatcher.demo.fakes.inbox import MailReceiver
from dispatcher.flyte.encode import Format, write
from tests.support.builders import a_failure
from tests.support.postgres import Cluster
from tests.support.service import Replica, free_port, launch, serving
from tests.support.service import ask as listed
from tests.support.waiting import until


@asynccontextmanager
async def starting(folder: Path, settings: dict[str, Any]) -> AsyncIterator[Replica]:
    """A process that was just started and may not be ready."""
    replica = await launch(folder, {**settings, "http": {"console": True}})
    try:
        yield replica
    finally:
        if replica.process.returncode is None:
            replica.process.kill()
            await replica.process.wait()


async def ask(replica: Replica, path: str) -> tuple[int, dict[str, Any]] | None:
    """The status and the JSON body; None if there is no answer."""
    with suppress(aiohttp.ClientConnectionError):
        async with aiohttp.ClientSession() as session, session.get(f"{replica.url}{path}") as answer:
            return answer.status, await answer.json()
    return None


async def until_answered(replica: Replica, path: str, status: int) -> dict[str, Any]:
    async def answered() -> tuple[int, dict[str, Any]] | None:
        assert replica.process.returncode is None, replica.log[-3000:]
        answer = await ask(replica, path)
        return answer if answer is not None and answer[0] == status else None

    answer: tuple[int, dict[str, Any]] = await until(answered, 60)
    return answer[1]


async def publish(replica: Replica, name: str) -> int:
    message = write(a_failure(name), Format.NATIVE)
    headers = {name.replace("ce_", "ce-", 1): value.decode() for name, value in message.headers}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{replica.url}/events", data=message.value, headers=headers) as answer,
    ):
        return answer.status


@pytest.fixture
async def slow_relay() -> AsyncIterator[MailReceiver]:
    """A relay that answers the first mail slowly."""
    async with MailReceiver(script=[("mail", "wait"), ("rcpt", "wait")]) as receiver:
        yield receiver


def mail(port: int) -> dict[str, Any]:
    return {"email": {"host": "127.0.0.1", "port": port, "security": "none", "from": "Flyte <f@example.com>"}}


async def test_a_process_without_its_ledger_is_alive_but_not_ready_and_says_why(tmp_path: Path) -> None:
    cluster = Cluster()
    try:
        async with starting(tmp_path, {"ledger": {"url": cluster.url}}) as replica:
            await until_answered(replica, "/healthz", 200)
            why = (await until_answered(replica, "/readyz", 503))["why"]
            assert why["service"] == "starting: the ledger is not open yet"
            assert "Connection refused" in why["ledger"]
            assert await publish(replica, "early") == 503
            async with aiohttp.ClientSession() as session, session.get(f"{replica.url}/console/health") as answer:
                page = await answer.text()
                assert answer.status == 200
                assert "Only this replica's own state is" in page
                assert "this replica: starting: the ledger is not open yet" in page
            await asyncio.to_thread(cluster.start)
            await until_answered(replica, "/readyz", 200)
            assert await publish(replica, "later") == 202
            assert await replica.stop() == 0
    finally:
        cluster.remove()


async def test_a_process_that_waits_for_its_ledger_stops_on_a_signal(tmp_path: Path) -> None:
    settings = {"ledger": {"url": f"postgresql://u@127.0.0.1:{free_port()}/x"}}
    async with starting(tmp_path, settings) as replica:
        await until_answered(replica, "/healthz", 200)
        assert await replica.stop(seconds=10) == 0
    assert "Traceback" not in replica.log


async def test_a_draining_process_is_alive_but_not_ready_and_finishes_its_deliveries(
    tmp_path: Path, slow_relay: MailReceiver
) -> None:
    async with serving(tmp_path, {"channels": mail(slow_relay.port), "shutdown_timeout": "30s"}) as replica:
        assert await publish(replica, "one") == 202
        async with asyncio.timeout(20):
            while len(slow_relay.script) == 2:
                await asyncio.sleep(0.02)
        replica.process.send_signal(signal.SIGTERM)
        assert (await until_answered(replica, "/readyz", 503))["why"]["service"] == "stopping"
        assert (await ask(replica, "/healthz") or (0,))[0] == 200
        async with asyncio.timeout(30):
            assert await replica.process.wait() == 0
    assert len(slow_relay.mails) == 1
    assert "shutdown_timeout is over" not in replica.log


async def test_a_second_signal_forces_the_shutdown(tmp_path: Path) -> None:
    connected = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as relay:
        port = relay.sockets[0].getsockname()[1]
        async with serving(tmp_path, {"channels": mail(port), "shutdown_timeout": "60s"}) as replica:
            assert await publish(replica, "one") == 202
            await asyncio.wait_for(connected.wait(), 20)
            replica.process.send_signal(signal.SIGTERM)
            await until_answered(replica, "/readyz", 503)
            began = time.monotonic()
            assert await replica.stop(seconds=10) == 0
            assert time.monotonic() - began < 5
            waiting = await listed(tmp_path / "dispatcher.yaml", "deliveries", "list")
    assert [(one["state"], one["attempt"]) for one in waiting] == [
        ("waiting", 0)
    ]  # released, without counting the attempt


async def test_readiness_checks_run_at_the_same_time(tmp_path: Path) -> None:
    from starlette.requests import Request

    from dispatcher.web import health

    async def silent() -> str | None:
        await asyncio.Event().wait()
        return None

    page = health.ReadyPage({str(number): silent for number in range(5)})
    began = time.monotonic()
    answer = await page.get(Request({"type": "http"}))
    assert answer.status_code == 503
    assert time.monotonic() - began < health.TIMEOUT + 2
