"""Tools of the fault tests: replicas that can be killed, events with rules, and direct queries of the ledger."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from aiokafka import AIOKafkaProducer
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from dispatcher.flyte.encode import Format, write
from dispatcher.ledger.schema import attempts, deliveries
from dispatcher.model.delivery import State
from dispatcher.model.event import Event, Options
from tests.support.builders import a_notification, an_event
from tests.support.next_version import NextVersion
from tests.support.service import COMMAND
from tests.support.standins import SERVICES

CHANNELS = 500
"""The Slack channels that the events' deliveries are spread over."""


def an_event_for(number: int, *channels: str, spread: int = CHANNELS) -> Event:
    """A terminal event whose Options have one rule, and so one delivery, for each of the channels."""
    recipients = {
        "email": f"person-{number}@example.com",
        "slack": f"C{number % spread:07d}",
        "pagerduty": f"service-{number % SERVICES}",
    }
    notifications = tuple(a_notification(recipients[channel], channel=channel) for channel in channels)
    return an_event(name=f"run{number}", options=Options(notifications=notifications))


class Replica:
    """`dispatcher serve`, started several times with the same settings: one process after the other."""

    def __init__(
        self, name: str, folder: Path, settings: Mapping[str, Any], *, version: NextVersion | None = None
    ) -> None:
        """`version`: the version to run; None for this one."""
        self.name = name
        self._version = version
        self.started_at: list[float] = []
        """The start time of each process."""
        self._config = folder / f"{name}.yaml"
        self._config.write_text(yaml.safe_dump({**settings, "log": "json"}))
        self._log = folder / f"{name}.log"
        self._log_offset = 0
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()[-3000:]

    @property
    def log_lines(self) -> list[dict[str, Any]]:
        """All log lines of all processes, parsed."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    async def start(self) -> None:
        """Start a process, without waiting until it is ready."""
        self.started_at.append(time.time())
        self._log_offset = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as sink:
            self._process = await asyncio.create_subprocess_exec(
                *COMMAND,
                "serve",
                "--config",
                str(self._config),
                stdout=sink,
                stderr=sink,
                env=self._version.environment if self._version else None,
                cwd=self._version.folder if self._version else None,
            )

    async def ready(self) -> None:
        """Wait until the current process logs `ready`: only then does it handle SIGTERM."""
        assert self._process is not None
        async with asyncio.timeout(60):
            while b'"event":"ready"' not in self._log.read_bytes()[self._log_offset :]:
                assert self._process.returncode is None, f"{self.name} did not start: {self.log}"
                await asyncio.sleep(0.1)

    async def kill(self) -> None:
        process = self._process
        assert process is not None
        assert process.returncode is None, f"{self.name} had already ended: {self.log}"
        process.kill()
        await process.wait()

    async def stop(self, *, seconds: float = 40) -> float:
        """Send SIGTERM and wait for exit status 0. Returns the seconds that this took."""
        process = self._process
        assert process is not None
        await self.ready()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(seconds):
            status = await process.wait()
        assert status == 0, f"{self.name} ended with {status}: {self.log}"
        return time.monotonic() - began

    async def remove(self) -> None:
        """Kill the process if it still runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def replicas(*given: Replica) -> AsyncIterator[Sequence[Replica]]:
    """Start the replicas; kill those that still run at the end of the block."""
    try:
        for replica in given:
            await replica.start()
        yield given
    finally:
        for replica in given:
            await replica.remove()


Publish = Callable[[Event], Awaitable[None]]


@asynccontextmanager
async def publishing(servers: str, topic: str) -> AsyncIterator[Publish]:
    """Publish events to Kafka. At the end of the block Kafka has acknowledged all, even if it was restarted meanwhile."""
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=5, request_timeout_ms=120_000)
    await producer.start()
    pending: list[asyncio.Future[Any]] = []

    async def publish(event: Event) -> None:
        message = write(event, Format.NATIVE)
        sent = await producer.send(topic, message.value, key=message.key, headers=list(message.headers))
        pending.append(sent)
        if len(pending) >= 5000:
            await _wait_for_all(pending)

    try:
        yield publish
        await _wait_for_all(pending)
    finally:
        await producer.stop()


async def _wait_for_all(pending: list[asyncio.Future[Any]]) -> None:
    waiting, pending[:] = list(pending), []
    for future in waiting:
        await future


@dataclass(frozen=True, slots=True)
class Row:
    """One delivery in the ledger, with its attempts."""

    key: str
    channel: str
    state: State
    attempt: int
    attempts: tuple[tuple[float, float, str], ...]
    """The recorded attempts: start, end and outcome."""

    @property
    def unrecorded(self) -> int:
        """Attempts that were started but not recorded, because their worker was killed."""
        return self.attempt - len(self.attempts)


class LedgerReader:
    """Reads the ledger's tables directly, without the dispatcher's code."""

    def __init__(self, url: str) -> None:
        self._engine: AsyncEngine = create_async_engine(url)

    async def aclose(self) -> None:
        await self._engine.dispose()

    async def states(self) -> Counter[str]:
        query = select(deliveries.c.state, func.count()).group_by(deliveries.c.state)
        async with self._engine.connect() as connection:
            return Counter(dict(iter(await connection.execute(query))))

    async def claimed_by(self, pid: int) -> Counter[str]:
        """The number of deliveries that a process has claimed and not settled, by channel."""
        query = (
            select(deliveries.c.channel, func.count())
            .where(deliveries.c.lease.like(f"%:{pid}:%"), deliveries.c.state == State.WAITING)
            .group_by(deliveries.c.channel)
        )
        async with self._engine.connect() as connection:
            return Counter(dict(iter(await connection.execute(query))))

    async def rows(self) -> dict[str, Row]:
        recorded: dict[str, list[tuple[float, float, str]]] = {}
        async with self._engine.connect() as connection:
            for row in await connection.execute(select(attempts)):
                attempt = (row.started_at.timestamp(), row.ended_at.timestamp(), row.outcome)
                recorded.setdefault(row.delivery, []).append(attempt)
            query = select(deliveries.c.key, deliveries.c.channel, deliveries.c.state, deliveries.c.attempt)
            return {
                row.key: Row(row.key, row.channel, State(row.state), row.attempt, tuple(recorded.get(row.key, ())))
                for row in await connection.execute(query)
            }

    async def settled(self, count: int, *, seconds: float) -> Counter[str]:
        """Wait until there are `count` deliveries and none is waiting, for at most `seconds`. Returns the states."""
        deadline = time.monotonic() + seconds
        while True:
            states = await self.states()
            if (states.total() >= count and not states[State.WAITING]) or time.monotonic() > deadline:
                return states
            await asyncio.sleep(0.5)


@asynccontextmanager
async def reading_ledger(url: str) -> AsyncIterator[LedgerReader]:
    reader = LedgerReader(url)
    try:
        yield reader
    finally:
        await reader.aclose()
