"""Sends a burst of failed executions through the dispatcher, from encoded events to settled deliveries.

Intake and worker are connected as in the service, with a ledger on disk and one channel; the source gives batches from
memory instead of Kafka. Everything runs in one new process on one core.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from dispatcher.clock import SystemClock
from dispatcher.config.settings import load
from dispatcher.flyte.encode import EncodedMessage, Format, write
from dispatcher.intake.source import Batch
from dispatcher.ledger import Settlement
from dispatcher.model.delivery import Sent, State
from dispatcher.model.event import EntityId, Event, ExecutionError, ExecutionId
from dispatcher.model.phase import Phase
from dispatcher.observability import logs
from dispatcher.observability.metrics import Metrics
from dispatcher.runtime import event_loop
from dispatcher.runtime.parts import Wiring

BATCH = 500
PROJECTS = 40
"""Each project has its own recipient."""
TIMEOUT = 120.0
ERRORS = (
    "ValueError: no such column 'age'",
    "KeyError: 'customer'",
    "MemoryError: can't allocate 12 GiB",
)


@dataclass(frozen=True, slots=True)
class RunResult:
    """Number of messages, elapsed seconds and CPU seconds of one run."""

    messages: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        return self.messages / self.seconds

    @property
    def cpu_per_message(self) -> float:
        return self.cpu / self.messages


@dataclass(frozen=True, slots=True)
class StormResult:
    """Number of messages, seconds until the first of them arrived, and CPU seconds of one run."""

    messages: int
    first: float
    cpu: float


@dataclass(slots=True)
class _Batch:
    messages: Sequence[EncodedMessage]
    undecodable: Sequence[tuple[str, str]] = ()
    skipped: int = 0

    def position(self, message: EncodedMessage) -> str:
        return f"bench/0@{message.summary}"

    async def commit(self) -> None:
        pass


@dataclass(slots=True)
class Topic:
    """A source of messages in memory, in batches."""

    messages: Sequence[EncodedMessage]

    async def batches(self) -> AsyncGenerator[Batch]:
        for first in range(0, len(self.messages), BATCH):
            yield _Batch(self.messages[first : first + BATCH])

    async def wait(self, duration: timedelta) -> bool:
        raise RuntimeError(f"intake had to wait {duration}: this measurement is void")

    def stop(self) -> None:
        pass

    async def unready_reason(self) -> str | None:
        return None


def events(count: int, errors: Sequence[str] = ERRORS[:1]) -> list[EncodedMessage]:
    """Terminal events of failed executions, each with its own launch plan. `errors`: the executions have them in turn."""
    now = SystemClock().now()
    frame = 'Traceback (most recent call last):\n\n  File "train.py", line 42, in main\n'
    found = [ExecutionError(code="USER:Unknown", message=f"{frame}{message}", kind="USER") for message in errors]
    return [
        write(
            Event(
                execution=ExecutionId(project=f"bench{number % PROJECTS}", domain="production", name=f"f{number:06}"),
                phase=Phase.FAILED,
                occurred_at=now,
                launch_plan=EntityId(
                    project=f"bench{number % PROJECTS}", domain="production", name=f"train.n{number}", version="v1"
                ),
                error=found[number % len(found)],
            ),
            Format.FLYTE_V2,
        )
        for number in range(count)
    ]


def carry(count: int, channel: str, section: Mapping[str, Any], recipient: str) -> RunResult:
    """Deliver `count` events, one message each, in this process. `recipient` has `{}` for the project's number."""
    logs.configure("json")
    with TemporaryDirectory() as folder:
        _write_settings(Path(folder), channel, section, recipient)
        return event_loop.run(_carry(Path(folder), channel, events(count)))


def _write_settings(folder: Path, channel: str, section: Mapping[str, Any], recipient: str) -> None:
    routes = [
        {
            "name": f"bench{project}",
            "match": {"project": f"bench{project}", "phase": "FAILED"},
            "notify": [{channel: [recipient.format(project)]}],
        }
        for project in range(PROJECTS)
    ]
    (folder / "routes.yaml").write_text(yaml.safe_dump({"routes": routes}))
    settings = {
        "ledger": {"url": "sqlite+aiosqlite:///ledger.db"},
        "rules": {"routes": "routes.yaml"},
        "channels": {channel: section},
    }
    (folder / "dispatcher.yaml").write_text(yaml.safe_dump(settings))


class _SentCounter(Metrics):
    """Counts sent deliveries with the metrics: querying the ledger instead would distort the measurement."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        self._target = 0
        self._reached = asyncio.Event()

    def settled(self, settlement: Settlement, lease_held: bool) -> None:  # noqa: FBT001 - as in the base class
        super().settled(settlement, lease_held)
        self.sent += lease_held and isinstance(settlement.outcome, Sent)
        if self.sent >= self._target:
            self._reached.set()

    async def reach(self, total: int) -> None:
        """Wait until `total` deliveries are sent. Raises TimeoutError."""
        self._target = total
        self._reached.clear()
        if self.sent < total:
            async with asyncio.timeout(TIMEOUT):
                await self._reached.wait()


async def _carry(folder: Path, channel: str, messages: list[EncodedMessage]) -> RunResult:
    settings, sent = load(folder / "dispatcher.yaml"), _SentCounter()
    wiring = Wiring(settings, SystemClock(), Random(), sent, asyncio.Event(), lambda _: None)
    async with wiring.parts() as parts, asyncio.TaskGroup() as group:
        await parts.ledger.migrate()
        (worker,), intake = parts.workers, parts.intake
        group.create_task(worker.run())
        await intake.run(Topic(messages[:1]))  # compiles the templates and loads libraries, as a service does once
        await sent.reach(1)
        event_loop.freeze_garbage_collector()
        cpu, began = cpu_seconds_used(), time.perf_counter()
        await intake.run(Topic(messages[1:]))
        await sent.reach(len(messages))
        result = RunResult(len(messages) - 1, time.perf_counter() - began, cpu_seconds_used() - cpu)
        counts = await parts.ledger.queries.counts()
        worker.stop()
    if counts != {(channel, State.SENT): len(messages)}:
        raise RuntimeError(f"{len(messages)} events became {counts}: this measurement is void")
    return result


def cpu_seconds_used() -> float:
    """CPU seconds that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
