"""Messages that the ledger can't write are rejected one by one; a ledger that can't write at all rejects nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from dispatcher.clock import SystemClock
from dispatcher.errors import LedgerFailed, LedgerRefuses, LedgerUnavailable, SlowedDown
from dispatcher.flyte.encode import EncodedMessage, Format, write
from dispatcher.intake.pipeline import BatchResult, Intake
from dispatcher.intake.source import Batch, RawMessage
from dispatcher.ledger import Ledger, RecordedEvent, brake
from dispatcher.ledger.brake import INTERVAL, Brake
from dispatcher.model.delivery import State
from dispatcher.model.event import ExecutionId, Options
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rules import RuleBook
from tests.support.builders import NOW, a_delivery, a_notification, an_event
from tests.support.ledgers import execute

POISON = {
    "sqlite": """
        CREATE TRIGGER poison BEFORE INSERT ON events WHEN NEW.name LIKE 'poison%'
        BEGIN SELECT RAISE(ABORT, 'poison'); END
    """,
    "postgresql": "ALTER TABLE events ADD CONSTRAINT poison CHECK (name NOT LIKE 'poison%')",
}
"""Makes the ledger refuse the events of some executions."""


@pytest.fixture
async def ledger(ledger_url: str) -> AsyncIterator[Ledger]:
    async with Ledger(ledger_url) as opened:
        await execute(ledger_url, POISON[ledger_url.partition("+")[0]])
        yield opened


@pytest.fixture(autouse=True)
def lines() -> Iterator[list[Any]]:
    """The log lines, without tracebacks: to format those would take seconds."""
    with structlog.testing.capture_logs() as captured:
        yield captured


@dataclass
class OneBatch:
    messages: Sequence[EncodedMessage]
    undecodable: Sequence[tuple[str, str]] = ()
    skipped: int = 0
    committed: bool = False

    def position(self, message: RawMessage) -> str:
        return f"t/0@{self.messages.index(message)}"

    async def commit(self) -> None:
        self.committed = True


@dataclass
class Batches:
    """A source of some batches. `waiting` is called for each wait, and ends the source if it returns False."""

    given: Sequence[OneBatch]
    waiting: Callable[[timedelta], bool] = lambda _: False
    pauses: list[float] = field(default_factory=list)

    async def batches(self) -> AsyncGenerator[Batch]:
        for batch in self.given:
            yield batch

    async def wait(self, duration: timedelta) -> bool:
        self.pauses.append(duration.total_seconds())
        return self.waiting(duration)

    def stop(self) -> None:
        raise NotImplementedError

    async def unready_reason(self) -> str | None:
        return None


def batch(*names: str) -> OneBatch:
    options = Options(notifications=(a_notification(),))
    return OneBatch([write(an_event(name=name, options=options), Format.NATIVE) for name in names])


def an_intake(ledger: Ledger) -> tuple[Intake, list[BatchResult]]:
    results: list[BatchResult] = []
    planner = Planner(addresses={"email": str, "slack": str}, fallbacks={})
    contents = Contents(lambda *_, **__: {"text": "hi"})
    return Intake(ledger, RuleBook, planner, contents, SystemClock(), on_batch=results.append), results


def recorded(results: list[BatchResult]) -> list[str]:
    return [entry.event.execution.name for result in results for entry in result.recorded]


def rejected(results: list[BatchResult]) -> list[str | None]:
    return [entry.event for result in results for entry in result.rejected]


def of_poison(number: int) -> str:
    return f"flytesnacks/production/poison{number}/FAILED"


@pytest.mark.parametrize("at", [{0, 1, 50, 99}, {*range(70, 101)} - {87}])
async def test_only_the_messages_that_cant_be_written_are_rejected(
    ledger: Ledger, at: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Batches([batch(*(f"poison{number}" if number in at else f"good{number}" for number in range(101)))])
    intake, results = an_intake(ledger)
    if len(at) > 20:
        monkeypatch.setattr(Brake, "give_up", lambda *_, **__: None)
    await intake.run(source)

    assert source.given[0].committed
    assert not source.pauses
    assert sorted(recorded(results)) == sorted(f"good{number}" for number in {*range(101)} - at)
    assert rejected(results) == [of_poison(number) for number in sorted(at)]
    assert sum(result.messages for result in results) == 101
    assert await ledger.queries.counts() == {("email", State.WAITING): 101 - len(at)}
    (stored,) = await ledger.rejected.of_executions([ExecutionId.parse(of_poison(min(at)).removesuffix("/FAILED"))])
    assert stored.reason.startswith("the ledger can't write it: ")
    assert "poison" in stored.reason
    assert stored.whole


async def test_a_message_whose_write_fails_once_is_recorded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    record, errors = ledger.record, [LedgerFailed("DataError", "once")]

    async def fail_once(*arguments: object, **keywords: object) -> object:
        if errors:
            raise errors.pop()
        return await record(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(ledger, "record", fail_once)
    intake, results = an_intake(ledger)
    await intake.run(Batches([batch("good")]))

    assert recorded(results) == ["good"]
    assert not rejected(results)


async def test_a_value_that_the_driver_cant_encode_is_no_outage(ledger: Ledger) -> None:
    entry = RecordedEvent(
        event=an_event(name="good"),
        position="",
        verdict="",
        reason="",
        considered=[],
        deliveries=[a_delivery(attempt=2**70)],
    )
    with pytest.raises(LedgerFailed, match=r"^(DataError: invalid input for query|OverflowError: Python int)"):
        await ledger.record([entry], [], now=NOW)


on_sqlite = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
AWAY = [("deliveries", "rules"), ("attempts", "answer")]


@pytest.mark.parametrize(("table", "column"), AWAY)
async def test_a_ledger_without_a_column_rejects_nothing_and_goes_on_when_it_is_back(
    postgres_url: str, table: str, column: str
) -> None:
    async with Ledger(postgres_url) as ledger:
        await execute(postgres_url, POISON["postgresql"], f"ALTER TABLE {table} RENAME COLUMN {column} TO taken_away")
        intake, results = an_intake(ledger)
        source = Batches([batch("good0", "poison1", "good2")])
        await intake.run(source)

        assert not rejected(results)
        assert source.pauses == [1]
        assert "taken_away" not in str(await intake.brake.unready_reason())
        assert column in str(await intake.brake.unready_reason())

        source.waiting = lambda _: len(source.pauses) < 6
        await intake.run(source)
        assert source.pauses == [1, 1, 2, 4, 8, 15]

        await execute(postgres_url, f"ALTER TABLE {table} RENAME COLUMN taken_away TO {column}")
        assert await intake.brake.unready_reason() is None
        await intake.run(source)

        assert sorted(set(recorded(results))) == ["good0", "good2"]
        assert rejected(results) == [of_poison(1)]
        assert source.given[0].committed


@on_sqlite
async def test_after_twenty_rejections_in_a_row_one_a_minute_is_rejected_until_one_is_recorded(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0

    def later(duration: timedelta) -> bool:
        nonlocal now
        now += duration.total_seconds()
        return len(source.pauses) < 16

    monkeypatch.setattr(brake, "loop_time", lambda: now)
    intake, results = an_intake(ledger)
    numbers = iter(range(100))
    poison = [batch(*(f"poison{next(numbers)}" for _ in range(10))) for _ in range(3)]
    source = Batches(poison, later)
    await intake.run(source)

    assert [one.committed for one in poison] == [True, True, False]
    minutes = (now - 1000.0) / INTERVAL
    assert 3 <= minutes < 4
    assert len(rejected(results)) == 20 + int(minutes)

    source = Batches([batch("poison90", "good", "poison91", "poison92")], later)
    pauses = len(source.pauses)
    await intake.run(source)

    assert recorded(results) == ["good"]  # it does not wait for the message before it
    assert rejected(results)[-3:] == [of_poison(91), of_poison(92), of_poison(90)]
    assert len(source.pauses) == pauses + 1
    assert source.given[0].committed


@on_sqlite
async def test_after_half_of_a_batch_one_a_minute_is_rejected(ledger: Ledger) -> None:
    names = [name for number in range(12) for name in (f"good{number}", f"poison{number}")]
    intake, results = an_intake(ledger)
    await intake.run(Batches([batch(*names)]))

    assert len(recorded(results)) == 12
    assert len(rejected(results)) == 12
    assert intake.brake.slow  # the last was half of the batch, and none was recorded since


async def test_only_errors_of_one_kind_count_as_a_row() -> None:
    async def rehearse() -> None:
        pass

    some = Brake(rehearse)
    for number in range(60):
        some.give_up(LedgerFailed("DataError" if number % 20 else "OverflowError", "x"))
    assert not some.slow

    for _ in range(1):
        some.give_up(LedgerFailed("DataError", "x"))
    assert some.slow
    with pytest.raises(SlowedDown, match=r"many were given up because of DataError: now one in 60 seconds is"):
        some.give_up(LedgerFailed("OverflowError", "x"))
    some.worked()
    some.give_up(LedgerFailed("DataError", "x"))


async def test_an_unavailable_ledger_is_no_refusal() -> None:
    async def unavailable() -> None:
        raise LedgerUnavailable("away")

    async def refuses() -> None:
        raise LedgerFailed("ProgrammingError", "no such column")

    some = Brake(unavailable)
    with pytest.raises(LedgerUnavailable, match="away"):
        await some.test()
    assert some.reason is None

    some.rehearse = refuses
    with pytest.raises(LedgerRefuses):
        await some.test()
    assert some.reason == "the ledger can't write a canned event: ProgrammingError: no such column"


async def test_a_rehearsal_leaves_nothing_in_the_ledger(ledger: Ledger, ledger_url: str) -> None:
    tables = ("events", "deliveries", "attempts", "contents", "rejected", "destinations", "delivery_recipients")
    await an_intake(ledger)[0].brake.test()

    engine = create_async_engine(ledger_url)
    async with engine.begin() as connection:
        assert [await connection.scalar(text(f"SELECT count(*) FROM {table}")) for table in tables] == [0] * 7
    await engine.dispose()
