"""A delivery that the worker can't handle is dead after three tries, and its neighbours go on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from channels.contract import Answer, Message, Never, Receipt
from dispatcher.clock import SystemClock
from dispatcher.delivering.worker import DeliveryWorker
from dispatcher.ledger import Filter, Ledger, RecordedEvent, Settlement
from dispatcher.model.delivery import STUMBLED, Delivery, Kind, State
from dispatcher.model.rate_limit import Rate, RateLimit
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from tests.support.builders import a_delivery, an_event, some_contacts
from tests.support.ledgers import execute
from tests.support.workers import ScriptedChannel, a_worker, running

NEIGHBOURS = 12
Meanwhile = Callable[[DeliveryWorker, ScriptedChannel], Awaitable[None]]
on_sqlite = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


@pytest.fixture
async def ledger(ledger_url: str) -> AsyncIterator[Ledger]:
    async with Ledger(ledger_url) as opened:
        with structlog.testing.capture_logs():  # to format the tracebacks would take seconds
            yield opened


def deliveries(**fields: Any) -> tuple[list[Delivery], Delivery]:
    """Return some deliveries of one event with these fields, and the one of them that is to `poison`."""
    event, now = an_event(), SystemClock().now()
    names = [f"#n{number}" for number in range(NEIGHBOURS)]
    names.insert(NEIGHBOURS // 2, "poison")
    planned = [
        a_delivery(
            event,
            channel="slack",
            to=name,
            **{"content": {"text": name}, "created_at": now, "due_at": now, **fields},
        )
        for name in names
    ]
    return planned, planned[NEIGHBOURS // 2]


async def record(ledger: Ledger, planned: Sequence[Delivery]) -> None:
    entry = RecordedEvent(
        event=an_event(), position="p", verdict="matched", reason="", considered=[], deliveries=planned
    )
    await ledger.record([entry], [], now=SystemClock().now())


def taken(message: Message) -> Any:
    return Receipt(answer=Answer("ok", message.recipients[0]), reference={"to": message.recipients[0]})


@dataclass
class Run:
    """A worker, and what its channel was given."""

    ledger: Ledger
    answer: Callable[[Message], Any] = taken
    failures: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    """How often each message was sent, by its recipient."""

    async def deliver(
        self, *, channel: type[ScriptedChannel] = ScriptedChannel, meanwhile: Meanwhile | None = None, **options: Any
    ) -> None:
        """Run the worker until no delivery to Slack waits. `meanwhile` runs beside it, and has to end before."""
        scripted = channel(self.answer)
        worker = a_worker(self.ledger, scripted, on_failed=lambda: self.failures.append(""), **options)
        async with asyncio.timeout(60), running(worker):
            if meanwhile is not None:
                await meanwhile(worker, scripted)
            while ("slack", State.WAITING) in await self.ledger.queries.counts():
                await asyncio.sleep(0.05)
        self.sent = Counter(message.recipients[0] for message in scripted.sent)

    async def check_neighbours(self) -> None:
        """Each neighbour was sent once."""
        assert {name: number for name, number in self.sent.items() if name != "poison"} == {
            f"#n{number}": 1 for number in range(NEIGHBOURS)
        }
        assert (await self.ledger.queries.counts())["slack", State.SENT] >= NEIGHBOURS

    async def check_dead(self, poison: Delivery, reason: str) -> None:
        """It is dead after three attempts that name the error."""
        history = await self.ledger.history.attempts(poison.key)
        assert [(one.outcome, one.status) for one in history] == [("retry", STUMBLED)] * 2 + [("dead", STUMBLED)]
        assert all(reason in one.reason for one in history), history
        assert [one.number for one in history] == [1, 2, 3]
        assert (await self.ledger.queries.counts())["slack", State.DEAD] == 1
        assert len(self.failures) == 3


async def test_a_row_that_cant_be_read_is_given_up_and_the_fallback_recipients_are_told(
    ledger: Ledger, ledger_url: str
) -> None:
    planned, poison = deliveries()
    await record(ledger, planned)
    body = "X'7b'" if ledger_url.startswith("sqlite") else "decode('7b', 'hex')"
    of_poison = f"(SELECT content FROM deliveries WHERE key = '{poison.key}')"
    await execute(ledger_url, f"UPDATE contents SET body = {body} WHERE content_hash = {of_poison}")
    contacts = some_contacts(oncall={"email": ["on-call@example.com"]})
    planner = Planner({"email": str}, {}, contacts=contacts, fallback_recipients={"slack": ["oncall"]})
    run = Run(ledger)
    await run.deliver(planner=planner)

    await run.check_neighbours()
    await run.check_dead(poison, "internal error: LedgerFailed: JSONDecodeError: ")
    (notice,) = await ledger.history.find(Filter(channel="email"), limit=9)
    assert notice.delivery.fallback_for == poison.key
    assert notice.delivery.reason.startswith("a recipient that can't be read could not be notified through slack: ")


POISON_DESTINATION = {
    "sqlite": """
        CREATE TRIGGER poison BEFORE INSERT ON destinations WHEN NEW.name = 'poison'
        BEGIN SELECT RAISE(ABORT, 'poisoned'); END
    """,
    "postgresql": "ALTER TABLE destinations ADD CONSTRAINT poisoned CHECK (name <> 'poison')",
}


async def test_a_row_that_cant_be_claimed_is_given_up(ledger: Ledger, ledger_url: str) -> None:
    planned, poison = deliveries()
    await record(ledger, planned)
    await execute(ledger_url, POISON_DESTINATION[ledger_url.partition("+")[0]])
    run = Run(ledger)
    await run.deliver(rate_limit=RateLimit(rate=Rate(1, "s")))

    await run.check_neighbours()
    await run.check_dead(poison, "poisoned")


@on_sqlite
async def test_a_message_that_cant_be_rendered_is_given_up(ledger: Ledger) -> None:
    planned, poison = deliveries(content=None, kind=Kind.RESOLVED_NOTICE)
    await record(ledger, planned)

    def render(*_: object, recipient: str = "", **__: object) -> dict[str, str]:
        return {"text": {"": ""}["no such key"]} if recipient == "poison" else {"text": recipient}

    run = Run(ledger)
    await run.deliver(contents=Contents(render))

    await run.check_neighbours()
    await run.check_dead(poison, "internal error: KeyError: 'no such key'")


@on_sqlite
async def test_a_channel_that_cant_name_a_destination_delivers_all_the_same(ledger: Ledger) -> None:
    class Nameless(ScriptedChannel):
        def destination(self, recipients: tuple[str, ...]) -> str:
            return {"#n1": "n" * 5000}[recipients[0]]

    planned, _ = deliveries()
    await record(ledger, planned)
    run = Run(ledger)
    await run.deliver(channel=Nameless, rate_limit=RateLimit(rate=Rate(1, "s"), burst=99))

    await run.check_neighbours()
    assert run.sent["poison"] == 1


POISON_ANSWER = {
    "sqlite": """
        CREATE TRIGGER poison BEFORE INSERT ON attempts WHEN NEW.answer = 'poison'
        BEGIN SELECT RAISE(ABORT, 'poisoned'); END
    """,
    "postgresql": "ALTER TABLE attempts ADD CONSTRAINT poisoned CHECK (answer <> 'poison')",
}


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        pytest.param(Receipt(answer=Answer("ok", "poison")), State.SENT, id="sent"),
        pytest.param(Never("no", answer=Answer("no", "poison")), State.DEAD, id="dead"),
    ],
)
async def test_an_answer_that_cant_be_written_is_left_out(
    ledger: Ledger, ledger_url: str, answer: Any, state: State
) -> None:
    planned, poison = deliveries()
    await record(ledger, planned)
    await execute(ledger_url, POISON_ANSWER[ledger_url.partition("+")[0]])
    run = Run(ledger, lambda message: answer if message.recipients[0] == "poison" else taken(message))
    await run.deliver()

    await run.check_neighbours()
    assert run.sent["poison"] == 1
    (attempt,) = await ledger.history.attempts(poison.key)
    assert "the ledger can't write the answer" in {attempt.answer, attempt.reason}
    (stored,) = await ledger.history.find(Filter(keys=[poison.key]), limit=1)
    assert stored.delivery.state is state


@on_sqlite
async def test_if_what_follows_cant_be_planned_the_outcome_is_settled_all_the_same(ledger: Ledger) -> None:
    class Broken(Planner):
        def notify_fallback(self, *_: object, **__: object) -> tuple[Delivery, ...]:
            raise ZeroDivisionError

    planned, poison = deliveries()
    await record(ledger, planned)
    run = Run(ledger, lambda message: Never("no") if message.recipients[0] == "poison" else taken(message))
    await run.deliver(planner=Broken(addresses={}, fallbacks={}))

    await run.check_neighbours()
    assert [one.outcome for one in await ledger.history.attempts(poison.key)] == ["dead"]


@on_sqlite
async def test_a_callback_that_fails_after_the_settlement_stops_nothing(ledger: Ledger) -> None:
    def on_settled(settlement: Settlement, _: bool) -> None:
        if settlement.delivery.recipients == ("poison",):
            raise ZeroDivisionError

    planned, _ = deliveries()
    await record(ledger, planned)
    run = Run(ledger)
    await run.deliver(on_settled=on_settled)

    await run.check_neighbours()
    assert run.sent["poison"] == 1
    assert len(run.failures) == 1


@pytest.mark.parametrize(("table", "column"), [("attempts", "answer"), ("deliveries", "addresses")])
async def test_a_ledger_without_a_column_gives_nothing_up_and_all_is_sent_when_it_is_back(
    postgres_url: str, table: str, column: str
) -> None:
    async def take_away(worker: DeliveryWorker, channel: ScriptedChannel) -> None:
        await execute(postgres_url, f"ALTER TABLE {table} RENAME COLUMN {column} TO taken_away")
        await record_later()
        async with asyncio.timeout(20):
            while worker.brake.reason is None:
                await asyncio.sleep(0.01)
        assert column in worker.brake.reason
        sent = len(channel.sent)
        await asyncio.sleep(2.5)
        assert len(channel.sent) == sent <= 2 * worker.options.concurrency  # nothing more was claimed
        await execute(postgres_url, f"ALTER TABLE {table} RENAME COLUMN taken_away TO {column}")

    async def record_later() -> None:
        if table == "attempts":
            await record(ledger, planned)

    planned, poison = deliveries()
    async with Ledger(postgres_url) as ledger:
        with structlog.testing.capture_logs():
            if table == "deliveries":
                await record(ledger, planned)
            run = Run(ledger)
            await run.deliver(meanwhile=take_away)

            await run.check_neighbours()
            assert run.sent["poison"] == 1
            assert await ledger.queries.counts() == {("slack", State.SENT): NEIGHBOURS + 1}
            assert not [one for one in await ledger.history.attempts(poison.key) if one.status == STUMBLED]
