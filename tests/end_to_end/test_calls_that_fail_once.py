"""Each call out of intake, claim and settle raises once before it and once after it: nothing is lost, nothing stops.

The calls are every SQL statement and commit on PostgreSQL, FlyteAdmin, the channel, and the commit of the source.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import pytest
import structlog
from sqlalchemy import Engine, event

from channels.email.channel import EmailChannel
from dispatcher.clock import SystemClock
from dispatcher.config.settings import Settings
from dispatcher.delivering.options import WorkerOptions
from dispatcher.delivering.worker import DeliveryWorker
from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.flyte.admin.client import FlyteAdmin
from dispatcher.flyte.encode import EncodedMessage, Format, write
from dispatcher.intake.pipeline import Intake
from dispatcher.intake.source import Batch, RawMessage
from dispatcher.ledger import Ledger
from dispatcher.ledger.engine import Database
from dispatcher.model.delivery import State
from dispatcher.model.retry import RetryPolicy
from dispatcher.observability.metrics import Metrics
from dispatcher.rules import RuleBook
from dispatcher.runtime import components
from dispatcher.runtime.components import Components
from dispatcher.runtime.wiring import make_contents, make_planner, open_channels
from tests.support.builders import a_launch_plan, an_event
from tests.support.flyte_admin import a_finished_execution, admin_client
from tests.support.smtp import ScriptedRelay
from tests.support.waiting import until

SECONDS = 30
"""A case that takes longer has stopped something."""
SENT = Counter({State.SENT: 1, State.DEAD: 2})
"""The states of an event's deliveries: one mail, and two to channels that are not configured."""


class Queue:
    """A source of batches of one message, which come again until they are committed."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Message | None] = asyncio.Queue()
        self._stopped = asyncio.Event()

    def put(self, message: EncodedMessage) -> Message:
        batch = Message([message])
        self._waiting.put_nowait(batch)
        return batch

    async def batches(self) -> AsyncGenerator[Batch]:
        while not self._stopped.is_set():
            batch = await self._waiting.get()
            if batch is None:
                return
            try:
                yield batch
            finally:
                if not batch.committed:
                    self._waiting.put_nowait(batch)

    async def wait(self, duration: timedelta) -> bool:
        await asyncio.sleep(min(duration.total_seconds(), 0.01))
        return not self._stopped.is_set()

    def stop(self) -> None:
        self._stopped.set()
        self._waiting.put_nowait(None)

    async def unready_reason(self) -> str | None:
        return None


@dataclass
class Message:
    messages: list[EncodedMessage]
    undecodable: tuple[()] = ()
    skipped: int = 0
    committed: bool = False

    def position(self, message: RawMessage) -> str:
        return f"t/0@{message.value!r}"[-60:]

    async def commit(self) -> None:
        self.committed = True


@dataclass
class Faults:
    """Raises once at a chosen call, before or after it."""

    seen: list[str] = field(default_factory=list)
    """The calls since `seen` was cleared, each once, in order."""
    armed: tuple[str, str] | None = None
    """The call, and `before` or `after`."""

    def at(self, call: str, when: str) -> None:
        if call not in self.seen:
            self.seen.append(call)
        if self.armed == (call, when):
            self.armed = None
            raise ZeroDivisionError(f"{when} {call}")

    def wrap(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        original = getattr(owner, name)

        async def method(*arguments: Any, **keywords: Any) -> Any:
            self.at(f"{owner.__name__}.{name}", "before")
            result = await original(*arguments, **keywords)
            self.at(f"{owner.__name__}.{name}", "after")
            return result

        monkeypatch.setattr(owner, name, method)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    some = Faults()
    calls = [(FlyteAdmin, "look_up"), (EmailChannel, "send"), (Message, "commit"), (Database, "write")]
    calls += [(Ledger, name) for name in ("record", "claim", "settle", "thread", "rehearse")]
    for owner, name in calls:
        some.wrap(monkeypatch, owner, name)

    def before(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        some.at(_named(statement), "before")

    def after(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        some.at(_named(statement), "after")

    event.listen(Engine, "before_cursor_execute", before)
    event.listen(Engine, "after_cursor_execute", after)
    yield some
    event.remove(Engine, "before_cursor_execute", before)
    event.remove(Engine, "after_cursor_execute", after)


def _named(statement: str) -> str:
    """The statement without white space, so that a report can name it."""
    return re.sub(r"\s+", " ", statement)


async def test_no_call_that_fails_once_loses_or_stops_anything(
    faults: Faults, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "FIRST_PAUSE", 0.01)
    for module in ("worker", "attempt"):
        monkeypatch.setattr(f"dispatcher.delivering.{module}.POLL_INTERVAL", timedelta(seconds=0.05))
    monkeypatch.setattr("dispatcher.model.retry.FLOOR", timedelta(seconds=0.01))
    stopping, queue, clock = asyncio.Event(), Queue(), SystemClock()
    some = Components(stopping, Metrics())
    async with (
        ScriptedRelay() as relay,
        LocalFlyteAdmin() as server,
        admin_client(server) as admin,
        Ledger(postgres_url) as ledger,
    ):
        mail = {"host": "127.0.0.1", "port": relay.port, "security": "none", "from": "flyte@example.com"}
        settings = Settings.model_validate({"channels": {"email": mail}})
        channels = open_channels(settings)
        planner = make_planner(settings, channels)
        contents = make_contents(settings, planner.contacts)
        worker = DeliveryWorker(
            WorkerOptions(
                name="email",
                channel=channels["email"],
                ledger=ledger,
                planner=planner,
                contents=contents,
                policy=RetryPolicy(initial=timedelta(seconds=0.02)),
                clock=clock,
                rng=Random(7),
                worker_id="test",
                concurrency=3,
                lease=timedelta(seconds=1),
            )
        )
        intake = Intake(ledger, RuleBook, planner, contents, clock, look_up=admin.look_up)
        names = (f"run{number}" for number in range(1000))

        async def deliver() -> None:
            """Publish one event, and wait until its message is committed and its mails are sent."""
            happened = an_event(name=next(names), launch_plan=a_launch_plan())
            server.add(a_finished_execution(happened.execution))
            message = queue.put(write(happened, Format.NATIVE))

            async def delivered() -> bool:
                return message.committed and await states(happened.key) == SENT and faults.armed is None

            await until(delivered, SECONDS)

        async def states(key: str) -> Counter[str]:
            return Counter(
                row["state"] for row in await reader.fetch("SELECT state FROM deliveries WHERE event = $1", key)
            )

        reader = await asyncpg.connect(postgres_url.replace("+asyncpg", ""))  # without the hooks on SQLAlchemy
        with structlog.testing.capture_logs():  # to format the tracebacks would take seconds
            async with asyncio.TaskGroup() as group:
                group.create_task(some.run("intake", lambda: intake.run(queue)))
                group.create_task(some.run("worker", worker.run))
                for _ in range(2):  # what happens only once is over then
                    await deliver()
                faults.seen.clear()
                await deliver()
                table = list(faults.seen)
                assert len(table) > 12
                for call in table:
                    for when in ("before", "after"):
                        faults.armed = (call, when)
                        await deliver()
                stopping.set()
                queue.stop()
                worker.stop()
        assert await reader.fetchval("SELECT count(*) FROM rejected") == 0
        await reader.close()
