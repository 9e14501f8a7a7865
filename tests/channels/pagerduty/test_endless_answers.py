"""Answers that take too long, are too large, or never end: they cost one thread for a time, and nothing else."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from channels.contract import ChannelError, InDoubt, Later, Message
from channels.pagerduty.channel import PagerDutyChannel, PagerDutyConfig
from dispatcher.flyte.encode import Format, write
from dispatcher.model.event import Options
from tests.support.builders import a_notification, an_event
from tests.support.service import serving

KEY = "0123456789abcdef" * 2
PAYLOAD = {"summary": "train.daily failed", "source": "p/d/n", "severity": "error"}
OK = b"HTTP/1.1 202 Accepted\r\n"


@asynccontextmanager
async def dripping_server(
    start: bytes, piece: bytes, pause: float, arrived: asyncio.Event | None = None
) -> AsyncIterator[str]:
    """A server that answers each request with `start`, and then with `piece` after each pause, until the block ends.

    Sets `arrived` when a request has arrived.
    """
    tasks: list[asyncio.Task[Any] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await reader.readuntil(b"\r\n\r\n")
            if arrived is not None:
                arrived.set()
            writer.write(start)
            while True:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
        writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for task in tasks:
            if task is not None:
                task.cancel()


def channel_to(url: str, **options: Any) -> PagerDutyChannel:
    services = {"ml": {"routing_key": KEY}}
    return PagerDutyChannel(
        PagerDutyConfig.model_validate({"events_url": url, "services": services, "timeout": 0.3, **options})
    )


async def attempt(channel: PagerDutyChannel) -> ChannelError | None:
    message = Message(
        key="k1",
        recipients=("ml",),
        content={"event_action": "trigger", "payload": PAYLOAD},
        created_at=datetime(2026, 11, 20, tzinfo=UTC),
    )
    try:
        await channel.send(message)
    except ChannelError as error:
        return error
    return None


@pytest.fixture(autouse=True)
async def imported_client() -> None:
    """Imports pdpyras, so that the first send of a test is not slower than the others."""
    await asyncio.to_thread(__import__, "channels.pagerduty.client")


ENDLESS = {
    "body": (OK + b"Content-Length: 1000000\r\n\r\n", b"x"),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "size of a chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "headers": (OK, b"X-A: b\r\n"),
    "one header": (OK, b"X"),
    "status line": (b"", b"H"),
    "answers before the answer": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize(("start", "piece"), ENDLESS.values(), ids=ENDLESS)
async def test_an_answer_that_drips_is_in_doubt_when_the_timeout_is_over(start: bytes, piece: bytes) -> None:
    async with dripping_server(start, piece, pause=0.05) as url:
        channel = channel_to(url)
        started = time.monotonic()
        error = await attempt(channel)
        assert isinstance(error, InDoubt), error
        assert "did not answer" in error.reason
        assert time.monotonic() - started < 2
        await channel.aclose()


async def test_threads_that_hang_are_limited_and_free_again_when_their_answers_end() -> None:
    async with dripping_server(OK, b"X", pause=0.05) as url:
        channel = channel_to(url, connections=20, timeout=0.4)
        errors = [error for _ in range(3) for error in await asyncio.gather(*(attempt(channel) for _ in range(20)))]
        refused = [error for error in errors if isinstance(error, Later)]
        # 20 threads for `connections` and 32 more: the last 8 of 60 attempts find no thread
        assert (len(refused), all(error.provider_wide for error in refused)) == (8, True)
    async with asyncio.timeout(5):
        while not isinstance(error := await attempt(channel), Later) or "can't be reached" not in error.reason:
            await asyncio.sleep(0.05)  # the threads have ended with their connections, so there is a new attempt
    await channel.aclose()


@pytest.mark.parametrize("encoding", [b"identity", b"gzip"])
async def test_an_answer_that_never_ends_is_read_to_64_kib(encoding: bytes) -> None:
    piece = b"x" * 65536 if encoding == b"identity" else gzip.compress(bytes(10_000_000), 1)
    async with dripping_server(OK + b"Content-Encoding: %s\r\n\r\n" % encoding, piece, pause=0) as url:
        channel = channel_to(url, timeout=5)
        started = time.monotonic()
        assert await attempt(channel) is None  # the status says that PagerDuty took the event
        assert time.monotonic() - started < 1
        await channel.aclose()


HANGING = """
import asyncio, sys
from tests.channels.pagerduty.test_endless_answers import attempt, channel_to

async def main():
    channel = channel_to(sys.argv[1], timeout=0.2)
    print(type(await attempt(channel)).__name__)
    await channel.aclose()

asyncio.run(main())
"""


async def test_a_process_ends_although_threads_wait_for_answers() -> None:
    async with dripping_server(OK, b"X", pause=0.05) as url:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "ignore", "-c", HANGING, url, stdout=subprocess.PIPE
        )
        try:
            async with asyncio.timeout(20):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
    assert (process.returncode, output) == (0, b"InDoubt\n")


async def test_the_service_stops_within_shutdown_timeout_although_pagerduty_drips(tmp_path: Path) -> None:
    event = an_event(options=Options(notifications=(a_notification("ml", channel="pagerduty"),)))
    message = write(event, Format.NATIVE)
    headers = {name.replace("ce_", "ce-", 1): value.decode() for name, value in message.headers}
    arrived = asyncio.Event()
    async with dripping_server(OK, b"X", pause=0.5, arrived=arrived) as url:
        section = {"events_url": f"{url}/v2/enqueue", "services": {"ml": {"routing_key": KEY}}, "timeout": 60}
        settings = {"channels": {"pagerduty": section}, "shutdown_timeout": "1s"}
        async with serving(tmp_path, settings) as replica, aiohttp.ClientSession() as session:
            async with session.post(f"{replica.url}/events", data=message.value, headers=headers) as response:
                assert response.status == 202
            await asyncio.wait_for(arrived.wait(), 20)
            started = time.monotonic()
            assert await replica.stop() == 0
            assert time.monotonic() - started < 4  # 1 s and the end of the interpreter
