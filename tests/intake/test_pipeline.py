"""Intake of batches, with a real ledger."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from dispatcher.clock import SystemClock
from dispatcher.flyte.encode import EncodedMessage, Format, write
from dispatcher.intake.pipeline import CHUNK, BatchResult, Intake
from dispatcher.intake.source import Batch, RawMessage
from dispatcher.ledger import Deed, Ledger
from dispatcher.model.delivery import State
from dispatcher.model.event import Options
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rules import RuleBook
from tests.support.builders import a_notification, a_silence, an_event
from tests.support.ledger_steps import an_action


@dataclass
class OneBatch:
    """A source with a single batch; the object is both."""

    messages: Sequence[EncodedMessage]
    undecodable: Sequence[tuple[str, str]] = ()
    skipped: int = 0
    results: list[BatchResult] = field(default_factory=list)
    committed_after: list[int] = field(default_factory=list)

    def position(self, message: RawMessage) -> str:
        return f"batch@{len(message.value or b'')}"

    async def commit(self) -> None:
        self.committed_after.append(len(self.results))

    async def batches(self) -> AsyncGenerator[Batch]:
        yield self

    async def wait(self, duration: timedelta) -> bool:
        raise AssertionError(f"a dependency was unavailable for {duration}")

    def stop(self) -> None:
        pass

    async def unready_reason(self) -> str | None:
        return None


def an_intake(ledger: Ledger, source: OneBatch) -> Intake:
    planner, contents = Planner(addresses={"email": str}, fallbacks={}), Contents(lambda *_, **__: {"text": "hi"})
    return Intake(ledger, lambda: RuleBook({}), planner, contents, SystemClock(), on_batch=source.results.append)


async def test_a_large_batch_is_recorded_in_chunks_and_committed_once_all_are_recorded(tmp_path: Path) -> None:
    options = Options(notifications=(a_notification(),))
    events = [an_event(name=f"e{number}", options=options) for number in range(2 * CHUNK + 1)]
    source = OneBatch(
        [write(event, Format.NATIVE) for event in events], undecodable=[("t/0@7", "unreadable")], skipped=5000
    )
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        await an_intake(ledger, source).run(source)
        counts = await ledger.queries.counts()

    assert counts == {("email", State.WAITING): len(events)}
    assert [len(result.recorded) + len(result.rejected) for result in source.results] == [CHUNK, CHUNK, 2]
    assert sum(result.messages for result in source.results) == len(events) + 1 + 5000
    assert source.committed_after == [3]


async def test_a_batch_of_skipped_messages_only_is_counted_and_committed(tmp_path: Path) -> None:
    source = OneBatch([], skipped=5000)
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        await an_intake(ledger, source).run(source)

    assert [(result.messages, len(result.recorded)) for result in source.results] == [(5000, 0)]
    assert source.committed_after == [1]


async def test_of_two_copies_in_a_batch_the_first_is_new_and_logged_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(notifications=(a_notification(),))
    copy, other = (write(an_event(name=name, options=options), Format.NATIVE) for name in ("twice", "once"))
    source = OneBatch([copy, other, copy])
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        await an_intake(ledger, source).run(source)

    (result,) = source.results
    assert [(entry.event.execution.name, new) for entry, new in result.new_or_duplicate()] == [
        ("twice", True),
        ("once", True),
        ("twice", False),
    ]
    assert capsys.readouterr().out.count("] recorded ") == 2


async def test_between_two_events_other_tasks_run(tmp_path: Path) -> None:
    trace: list[str] = []

    async def busy() -> None:
        trace.append("other task")

    def render(*_: object, **__: object) -> dict[str, str]:
        if threading.current_thread() is threading.main_thread():
            tasks.create_task(busy())
            trace.append("event")
        return {"text": "hi"}

    options = Options(notifications=(a_notification(),))
    messages = [write(an_event(name=f"e{number}", options=options), Format.NATIVE) for number in range(3)]
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger, asyncio.TaskGroup() as tasks:
        intake = replace(an_intake(ledger, OneBatch([])), contents=Contents(render))
        await intake.evaluate((one.headers, one.value, "here") for one in messages[:1])  # in another thread
        await intake.evaluate((one.headers, one.value, "here") for one in messages[1:])

    assert trace == ["event", "other task", "event", "other task"]


async def test_a_silence_that_somebody_else_adds_is_loaded_before_the_next_event_is_recorded(tmp_path: Path) -> None:
    message = write(an_event(options=Options(notifications=(a_notification(),))), Format.NATIVE)
    ends = SystemClock().now() + timedelta(hours=1)
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        intake = an_intake(ledger, OneBatch([]))
        other, mine = (a_silence(name, ends_at=ends, matcher={"project": name}) for name in ("another", "flytesnacks"))
        for silence in (other, mine):
            await ledger.silences.add(silence, an_action(Deed.SILENCE))
        result = await intake.ingest([(message.headers, message.value, "here")])

    assert len(result.new) == 1
    assert [one.silences for one in result.recorded] == [(mine,)]
    assert intake.silences.book.version == 2
