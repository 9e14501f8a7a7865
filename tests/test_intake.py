"""Batches on their way into a real ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dispatcher.clock import SystemClock
from dispatcher.delivery import State
from dispatcher.encode import Format, write
from dispatcher.encode import Written as Message
from dispatcher.errors import LedgerUnavailable
from dispatcher.event import Options
from dispatcher.intake import PORTION, Heard, Intake
from dispatcher.ledger import Ledger, Recorded, Written
from dispatcher.plan import Planner
from dispatcher.rules import RuleBook
from dispatcher.source import Batch, RawMessage
from tests.support.builders import a_launch_plan, a_notification, an_event
from tests.support.samples import sample


@dataclass
class OneBatch:
    """A source of one batch, which is that batch too."""

    messages: Sequence[Message]
    spoilt: Sequence[tuple[str, str]] = ()
    foreign: int = 0
    told: list[Heard] = field(default_factory=list)
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
    source = OneBatch([write(event, Format.NATIVE) for event in events], spoilt=[("t/0@7", "unreadable")], foreign=5000)
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
    assert [(entry.event.execution.name, new) for entry, new in heard.told_apart()] == [
        ("twice", True),
        ("once", True),
        ("twice", False),
    ]
    assert capsys.readouterr().out.count("] recorded ") == 2


@dataclass
class Several:
    """A source of some batches, one after another."""

    ones: Sequence[OneBatch]
    rests: int = 0

    async def batches(self) -> AsyncGenerator[Batch]:
        for one in self.ones:
            yield one

    async def wait(self, span: timedelta) -> bool:
        self.rests += 1
        return True

    def stop(self) -> None:
        pass

    async def trouble(self) -> str | None:
        return None


def three_ends() -> Several:
    options = Options(notifications=(a_notification(),))
    plan = a_launch_plan()  # or their starts would be looked for
    events = [an_event(name=f"e{number}", options=options, launch_plan=plan) for number in range(3)]
    ends = [write(event, Format.NATIVE) for event in events]
    return Several([OneBatch([end]) for end in ends])


def into(ledger: Ledger, told: list[Heard], rules: Callable[[], RuleBook] = lambda: RuleBook({})) -> Intake:
    planner = Planner(addresses={"email": str}, fallbacks={}, render=lambda *_, **__: {"text": "hi"})
    return Intake(ledger, rules, planner, SystemClock(), recorded=told.append)


async def test_a_batch_is_decided_while_the_one_before_is_being_written(tmp_path: Path) -> None:
    source, told = three_ends(), list[Heard]()
    decided, second = list[int](), asyncio.Event()

    def rules() -> RuleBook:
        decided.append(len(told))
        if len(decided) == 2:
            second.set()
        return RuleBook({})

    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        record = ledger.record

        async def slow(*heard: Any, **more: Any) -> Written:
            await second.wait()
            return await record(*heard, **more)

        ledger.record = slow  # type: ignore[method-assign]  # passes on, later
        async with asyncio.timeout(20):
            await into(ledger, told, rules).run(source)

    assert decided[:2] == [0, 0]
    assert [len(one.committed_after) for one in source.ones] == [1, 1, 1]
    assert [heard.recorded[0].event.execution.name for heard in told] == ["e0", "e1", "e2"]


async def test_what_comes_after_a_batch_that_waits_for_the_ledger_waits_too(tmp_path: Path) -> None:
    source, told = three_ends(), list[Heard]()
    tries = list[str]()
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        record = ledger.record

        async def failing(heard: Sequence[Recorded], *rest: Any, **more: Any) -> Written:
            tries.append(heard[0].event.execution.name)
            if len(tries) < 3:
                raise LedgerUnavailable("away")
            return await record(heard, *rest, **more)

        ledger.record = failing  # type: ignore[method-assign]  # fails at first
        await into(ledger, told).run(source)

    assert tries == ["e0", "e0", "e0", "e1", "e2"]
    assert source.rests == 2


async def test_a_mistake_in_one_record_ends_intake_though_nothing_else_comes(tmp_path: Path) -> None:
    class Silent(Several):
        async def batches(self) -> AsyncGenerator[Batch]:
            yield self.ones[0]
            await asyncio.sleep(60)

    source = Silent(three_ends().ones)
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:

        async def broken(*_: Any, **__: Any) -> Written:
            raise RuntimeError("a mistake of ours")

        ledger.record = broken  # type: ignore[method-assign]
        with pytest.raises(ExceptionGroup) as raised:
            async with asyncio.timeout(20):
                await into(ledger, []).run(source)

    assert "a mistake of ours" in str(raised.value.exceptions[0])
    assert source.ones[0].committed_after == []


async def test_a_start_that_is_still_being_written_tells_whose_the_next_batchs_end_is(tmp_path: Path) -> None:
    start, end = (
        Message(b"", headers, value, "") for headers, value in map(sample, ("v2-execution-start", "v2-workflow-failed"))
    )
    source, told = Several([OneBatch([start]), OneBatch([end])]), list[Heard]()
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        record = ledger.record

        async def slow(*heard: Any, **more: Any) -> Any:
            await asyncio.sleep(0.05)
            return await record(*heard, **more)

        ledger.record = slow  # type: ignore[method-assign]  # passes on, later
        await into(ledger, told).run(source)

    assert [len(heard.started) for heard in told] == [1, 0]
    (entry,) = told[1].recorded
    assert str(entry.event.launch_plan) == "flytesnacks/production/train.daily@v1.4.2"
