"""Batches on their way into a real ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from dispatcher.clock import SystemClock
from dispatcher.flyte.encode import EncodedMessage, Format, write
from dispatcher.intake.pipeline import A_WHILE, IDLE_TURN, PORTION, TURNS, BatchResult, Intake
from dispatcher.intake.source import Batch, RawMessage
from dispatcher.ledger import Ledger
from dispatcher.model.delivery import State
from dispatcher.model.event import Options
from dispatcher.planning.planner import Planner
from dispatcher.rules import RuleBook
from tests.support.builders import a_notification, an_event


@dataclass
class OneBatch:
    """A source of one batch, which is that batch too."""

    messages: Sequence[EncodedMessage]
    undecodable: Sequence[tuple[str, str]] = ()
    foreign: int = 0
    told: list[BatchResult] = field(default_factory=list)
    committed_after: list[int] = field(default_factory=list)

    def position(self, message: RawMessage) -> str:
        return f"batch@{len(message.value or b'')}"

    async def commit(self) -> None:
        self.committed_after.append(len(self.told))

    async def batches(self) -> AsyncGenerator[Batch]:
        yield self

    async def wait(self, span: timedelta) -> bool:
        raise AssertionError(f"something was away for {span}")

    def stop(self) -> None:
        pass

    async def trouble(self) -> str | None:
        return None


def an_intake(ledger: Ledger, source: OneBatch) -> Intake:
    planner = Planner(addresses={"email": str}, fallbacks={}, render=lambda *_, **__: {"text": "hi"})
    return Intake(ledger, lambda: RuleBook({}), planner, SystemClock(), recorded=source.told.append)


async def test_a_large_batch_is_recorded_in_portions_and_committed_once_all_of_it_is_there(tmp_path: Path) -> None:
    options = Options(notifications=(a_notification(),))
    events = [an_event(name=f"e{number}", options=options) for number in range(2 * PORTION + 1)]
    source = OneBatch(
        [write(event, Format.NATIVE) for event in events], undecodable=[("t/0@7", "unreadable")], foreign=5000
    )
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        await an_intake(ledger, source).run(source)
        counts = await ledger.counts()

    assert counts == {("email", State.WAITING): len(events)}
    assert [len(heard.recorded) + len(heard.rejected) for heard in source.told] == [PORTION, PORTION, 2]
    assert sum(heard.messages for heard in source.told) == len(events) + 1 + 5000
    assert source.committed_after == [3]


async def test_a_batch_of_nothing_but_foreign_messages_is_counted_and_committed(tmp_path: Path) -> None:
    source = OneBatch([], foreign=5000)
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        await an_intake(ledger, source).run(source)

    assert [(heard.messages, len(heard.recorded)) for heard in source.told] == [(5000, 0)]
    assert source.committed_after == [1]


async def test_of_two_copies_in_a_batch_the_first_is_new_and_the_log_tells_of_it_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(notifications=(a_notification(),))
    copy, other = (write(an_event(name=name, options=options), Format.NATIVE) for name in ("twice", "once"))
    source = OneBatch([copy, other, copy])
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        await an_intake(ledger, source).run(source)

    (heard,) = source.told
    assert [(entry.event.execution.name, new) for entry, new in heard.new_or_duplicate()] == [
        ("twice", True),
        ("once", True),
        ("twice", False),
    ]
    assert capsys.readouterr().out.count("] recorded ") == 2


@pytest.mark.parametrize(
    ("turns", "work", "a_while", "least", "most"),
    [
        pytest.param(TURNS // 2, 2 * IDLE_TURN, 60, TURNS // 2, TURNS // 2, id="until it is done"),
        pytest.param(100, 2 * IDLE_TURN, 60, TURNS, TURNS, id="some turns at most"),
        pytest.param(100, A_WHILE, A_WHILE, 1, 2, id="a while at most"),
        pytest.param(100, 0, 60, 1, TURNS - 1, id="until hardly anybody has anything to do"),
    ],
)
async def test_between_two_events_what_is_on_its_way_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: int, work: float, a_while: float, least: int, most: int
) -> None:
    monkeypatch.setattr(
        "dispatcher.intake.pipeline.A_WHILE", a_while
    )  # a busy machine can take that long over a few turns
    story: list[str] = []

    async def busy() -> None:
        for _ in range(turns):
            story.append("turn")
            until = time.perf_counter() + work
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)

    def render(*_: object, **__: object) -> dict[str, str]:
        if not story:
            tasks.create_task(busy())
        story.append("event")
        return {"text": "hi"}

    options = Options(notifications=(a_notification(),))
    messages = [write(an_event(name=f"e{number}", options=options), Format.NATIVE) for number in range(2)]
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger, asyncio.TaskGroup() as tasks:
        planner = Planner(addresses={"email": str}, fallbacks={}, render=render)
        intake = replace(an_intake(ledger, OneBatch([])), planner=planner)
        await intake.understand((one.headers, one.value, "here") for one in messages)
        turns_between = story[1:].index("event")

    assert least <= turns_between <= most
