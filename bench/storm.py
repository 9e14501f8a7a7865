"""A storm of failed executions through the dispatcher: from bytes to messages that are sent and settled.

The rooms are wired as the service wires them, over a ledger on disk and one channel; the source hands out batches as
Kafka's does. It all runs in a process of its own, on one core.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from dispatcher.clock import SystemClock
from dispatcher.config.settings import load
from dispatcher.flyte.encode import EncodedMessage, Format, write
from dispatcher.intake.pipeline import Intake
from dispatcher.intake.source import Batch
from dispatcher.ledger import Ledger, Settlement
from dispatcher.model.delivery import Sent, State
from dispatcher.model.event import EntityId, Event, ExecutionError, ExecutionId
from dispatcher.model.phase import Phase
from dispatcher.observability import logs
from dispatcher.rules.files import LaunchPlanFiles
from dispatcher.runtime import event_loop
from dispatcher.runtime.service import Service, make_planner, open_channels

BATCH = 500
PROJECTS = 40
"""Each has a recipient of its own."""
PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class Ran:
    """How many messages, how long they took, and what they cost."""

    messages: int
    seconds: float
    cpu: float
    """Seconds of CPU."""

    @property
    def rate(self) -> float:
        return self.messages / self.seconds

    @property
    def cpu_each(self) -> float:
        return self.cpu / self.messages


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
    """Messages in memory, a batch at a time."""

    messages: Sequence[EncodedMessage]

    async def batches(self) -> AsyncGenerator[Batch]:
        for first in range(0, len(self.messages), BATCH):
            yield _Batch(self.messages[first : first + BATCH])

    async def wait(self, duration: timedelta) -> bool:
        raise RuntimeError(f"something was away for {duration}: this measurement is void")

    def stop(self) -> None:
        pass

    async def unready_reason(self) -> str | None:
        return None


def events(count: int) -> list[EncodedMessage]:
    """Executions that failed, each of a launch plan of its own."""
    now = SystemClock().now()
    words = (
        "Traceback (most recent call last):\n\n  File \"train.py\", line 42, in main\nValueError: no such column 'age'"
    )
    error = ExecutionError(code="USER:Unknown", message=words, kind="USER")
    return [
        write(
            Event(
                execution=ExecutionId(project=f"bench{number % PROJECTS}", domain="production", name=f"f{number:06}"),
                phase=Phase.FAILED,
                occurred_at=now,
                launch_plan=EntityId(
                    project=f"bench{number % PROJECTS}", domain="production", name=f"train.n{number}", version="v1"
                ),
                error=error,
            ),
            Format.FLYTE_V2,
        )
        for number in range(count)
    ]


def carry(count: int, channel: str, section: Mapping[str, Any], recipient: str) -> Ran:
    """So many events to one message each, in this process. `recipient`: of a project, with `{}` for its number."""
    logs.configure("json")
    with TemporaryDirectory() as folder:
        _write_settings(Path(folder), channel, section, recipient)
        return event_loop.run(_carry(Path(folder), channel, events(count)))


def _write_settings(folder: Path, channel: str, section: Mapping[str, Any], recipient: str) -> None:
    rules = folder / "rules"
    rules.mkdir()
    kind = {"email": "email", "slack": "slack", "pagerduty": "pager_duty"}[channel]
    for project in range(PROJECTS):
        told = {"phases": ["FAILED"], kind: {"recipients_email": [recipient.format(project)]}}
        plan = {"project": f"bench{project}", "domain": "production", "name": "*"}
        (rules / f"{project}.yaml").write_text(yaml.safe_dump({"launch_plan": plan, "notifications": [told]}))
    settings = {
        "ledger": {"url": "sqlite+aiosqlite:///ledger.db"},
        "rules": {"launch_plans": "rules"},
        "channels": {channel: section},
    }
    (folder / "dispatcher.yaml").write_text(yaml.safe_dump(settings))


@dataclass(slots=True)
class _Endings:
    """Counts what is sent and settled where the service is told of it: a look into the ledger is work of its own."""

    tell: Callable[[Settlement, bool], None]
    """Whom the courier told before."""
    sent: int = 0
    _awaited: int = 0
    _reached: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, ending: Settlement, held: bool) -> None:  # noqa: FBT001 - a callback's form
        self.tell(ending, held)
        self.sent += held and isinstance(ending.outcome, Sent)
        if self.sent >= self._awaited:
            self._reached.set()

    async def reach(self, total: int) -> None:
        """Wait until so many are sent. Raises TimeoutError."""
        self._awaited = total
        self._reached.clear()
        if self.sent < total:
            async with asyncio.timeout(PATIENCE):
                await self._reached.wait()


async def _carry(folder: Path, channel: str, owed: list[EncodedMessage]) -> Ran:
    settings = load(folder / "dispatcher.yaml")
    service = Service(settings)
    channels = open_channels(settings)
    planner = make_planner(settings, channels, service.metrics.template_failed)
    service.metrics.add_channel(channel)
    rules = LaunchPlanFiles(settings.rules.launch_plans)
    rules.load()
    async with Ledger(settings.ledger.url) as ledger, asyncio.TaskGroup() as rooms:
        await ledger.preallocate()
        courier = service._worker(channel, channels[channel], ledger, planner)  # noqa: SLF001 - as the service does
        courier.on_settled = endings = _Endings(courier.on_settled)
        service._workers = [courier]  # noqa: SLF001
        tell = {"direct_dispatch": service._direct_dispatches, "on_pending": service._wake_workers, "on_batch": service._batch_recorded}  # noqa: SLF001
        intake = Intake(ledger, lambda: rules.book, planner, SystemClock(), **tell)
        rooms.create_task(courier.run())
        await intake.run(Topic(owed[:1]))  # templates are compiled and libraries loaded, once in a service's life
        await endings.reach(1)
        event_loop.freeze_garbage_collector()
        cpu, began = spent(), time.perf_counter()
        await intake.run(Topic(owed[1:]))
        await endings.reach(len(owed))
        ran = Ran(len(owed) - 1, time.perf_counter() - began, spent() - cpu)
        counts = await ledger.counts()
        courier.stop()
    await channels[channel].aclose()
    if counts != {(channel, State.SENT): len(owed)}:
        raise RuntimeError(f"{len(owed)} events became {counts}: this measurement is void")
    return ran


def spent() -> float:
    """Seconds of CPU that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
