"""The proofs' machinery: replicas that come and go, events that owe, and the ledger's own account of it all."""

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
"""Slack channels that the events' deliveries are spread over."""


def an_owing_event(number: int, *channels: str, spread: int = CHANNELS) -> Event:
    """A terminal event whose own Options owe one delivery on each of the channels."""
    recipients = {
        "email": f"person-{number}@example.com",
        "slack": f"C{number % spread:07d}",
        "pagerduty": f"service-{number % SERVICES}",
    }
    notifications = tuple(a_notification(recipients[channel], channel=channel) for channel in channels)
    return an_event(name=f"run{number}", options=Options(notifications=notifications))


class Replica:
    """`dispatcher serve`, again and again: one process after the other, with the same settings."""

    def __init__(
        self, name: str, folder: Path, settings: Mapping[str, Any], *, version: NextVersion | None = None
    ) -> None:
        """`version`: another one than this."""
        self.name = name
        self._version = version
        self.births: list[float] = []
        """When each of its processes was started."""
        self._config = folder / f"{name}.yaml"
        self._config.write_text(yaml.safe_dump({**settings, "log": "json"}))
        self._log = folder / f"{name}.log"
        self._log_began = 0
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()[-3000:]

    @property
    def said(self) -> list[dict[str, Any]]:
        """All that it has logged, as data."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    async def start(self) -> None:
        """Start a process; not waited for until it is ready."""
        self.births.append(time.time())
        self._log_began = self._log.stat().st_size if self._log.exists() else 0
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
        """Wait until the latest process says so: only then does it know what SIGTERM means."""
        assert self._process is not None
        async with asyncio.timeout(60):
            while b'"event":"ready"' not in self._log.read_bytes()[self._log_began :]:
                assert self._process.returncode is None, f"{self.name} did not start: {self.log}"
                await asyncio.sleep(0.1)

    async def kill(self) -> None:
        process = self._process
        assert process is not None
        assert process.returncode is None, f"{self.name} had ended by itself: {self.log}"
        process.kill()
        await process.wait()

    async def stop(self, *, seconds: float = 40) -> float:
        """Ask it to stop; how many seconds that took. It must end well."""
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
        """Leave nothing behind, whatever happened."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def replicas(*given: Replica) -> AsyncIterator[Sequence[Replica]]:
    """Started; none is left behind."""
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
    """Hand events to Kafka; at the end of the block it has them all, however often it went away meanwhile."""
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=5, request_timeout_ms=120_000)
    await producer.start()
    underway: list[asyncio.Future[Any]] = []

    async def publish(event: Event) -> None:
        message = write(event, Format.NATIVE)
        sent = await producer.send(topic, message.value, key=message.key, headers=list(message.headers))
        underway.append(sent)
        if len(underway) >= 5000:
            await _all(underway)

    try:
        yield publish
        await _all(underway)
    finally:
        await producer.stop()


async def _all(underway: list[asyncio.Future[Any]]) -> None:
    waiting, underway[:] = list(underway), []
    for future in waiting:
        await future


@dataclass(frozen=True, slots=True)
class Row:
    """One delivery as the ledger has it at the end."""

    key: str
    channel: str
    state: State
    attempt: int
    spans: tuple[tuple[float, float, str], ...]
    """Its attempts that left a row: when they began and ended, and how."""

    @property
    def untold(self) -> int:
        """Attempts that were begun, and whose worker did not live to write how they ended."""
        return self.attempt - len(self.spans)


class Truth:
    """The ledger's account, read past the product."""

    def __init__(self, url: str) -> None:
        self._engine: AsyncEngine = create_async_engine(url)

    async def aclose(self) -> None:
        await self._engine.dispose()

    async def states(self) -> Counter[str]:
        query = select(deliveries.c.state, func.count()).group_by(deliveries.c.state)
        async with self._engine.connect() as connection:
            return Counter(dict(iter(await connection.execute(query))))

    async def held_by(self, pid: int) -> Counter[str]:
        """How many deliveries a process has claimed and not settled, by channel."""
        query = (
            select(deliveries.c.channel, func.count())
            .where(deliveries.c.lease.like(f"%:{pid}:%"), deliveries.c.state == State.WAITING)
            .group_by(deliveries.c.channel)
        )
        async with self._engine.connect() as connection:
            return Counter(dict(iter(await connection.execute(query))))

    async def rows(self) -> dict[str, Row]:
        spans: dict[str, list[tuple[float, float, str]]] = {}
        async with self._engine.connect() as connection:
            for row in await connection.execute(select(attempts)):
                span = (row.started_at.timestamp(), row.ended_at.timestamp(), row.outcome)
                spans.setdefault(row.delivery, []).append(span)
            query = select(deliveries.c.key, deliveries.c.channel, deliveries.c.state, deliveries.c.attempt)
            return {
                row.key: Row(row.key, row.channel, State(row.state), row.attempt, tuple(spans.get(row.key, ())))
                for row in await connection.execute(query)
            }

    async def settled(self, count: int, *, seconds: float) -> Counter[str]:
        """Wait until so many deliveries are there and none waits; the states as they then, or at last, are."""
        with_patience = time.monotonic() + seconds
        while True:
            states = await self.states()
            if (states.total() >= count and not states[State.WAITING]) or time.monotonic() > with_patience:
                return states
            await asyncio.sleep(0.5)


@asynccontextmanager
async def the_truth(url: str) -> AsyncIterator[Truth]:
    truth = Truth(url)
    try:
        yield truth
    finally:
        await truth.aclose()
