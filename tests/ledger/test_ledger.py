"""The ledger's promises, on real SQLite and real PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channels.contract import Answer, Receipt
from dispatcher.errors import LedgerUnavailable
from dispatcher.ledger import (
    Backlog,
    Claim,
    DeliveryFilter,
    DirectDispatch,
    Ledger,
    RecordedEvent,
    RecordResult,
    Rejected,
    Settlement,
)
from dispatcher.ledger.rows import LEASE_LOST
from dispatcher.model.delivery import (
    Dead,
    Delivery,
    NewVersion,
    OpenThread,
    Resolution,
    Retry,
    Sent,
    State,
    delivery_key,
)
from dispatcher.model.event import Event
from dispatcher.model.phase import Phase
from dispatcher.model.rate_limit import FAILURES_TO_OPEN, AdmissionControl, Feedback, Rate, RateLimit
from dispatcher.tracing import Span
from tests.support.builders import NOW, SECOND, a_delivery, a_launch_plan, an_event

MINUTE = timedelta(minutes=1)


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def ledger(ledger_url: str) -> AsyncIterator[Ledger]:
    async with Ledger(ledger_url) as opened:
        yield opened


def heard(*deliveries: Delivery, event: Event | None = None) -> RecordedEvent:
    return RecordedEvent(
        event=event or an_event(),
        position="flyte-cloudevents/0@7",
        verdict="matched",
        reason="1 rule matched",
        considered=[],
        deliveries=deliveries,
    )


def refused(identity: str = "a", **changes: Any) -> Rejected:
    facts: dict[str, Any] = {
        "id": identity,
        "position": "t/0@1",
        "received_at": NOW,
        "reason": "open_breakers JSON",
        "headers": [("ce_type", b"\xff")],
        "body": b"\0\xff",
        "size": 2,
        **changes,
    }
    return Rejected(**facts)


async def claim(
    ledger: Ledger, limit: int = 10, *, lease: str = "me", now: datetime = NOW, lasting: timedelta = MINUTE
) -> list[Delivery]:
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=now)
    return [*(await ledger.claim("email", limit, lease=lease, until=now + lasting, admission=admission)).deliveries]


def ended(delivery: Delivery, outcome: Sent | Retry | Dead, *follow_ups: Delivery) -> Settlement:
    return Settlement(delivery=delivery, outcome=outcome, started_at=NOW, ended_at=NOW + SECOND, follow_ups=follow_ups)


SENT = Sent(Receipt(answer=Answer("250", "queued as 42"), reference={"message_id": "<1@x>"}))


async def test_what_is_recorded_can_be_claimed_as_it_was(ledger: Ledger) -> None:
    delivery = a_delivery(content={"subject": "größer", "html": "<p>" * 1000})

    written = await ledger.record([heard(delivery)], [], now=NOW)

    assert written == RecordResult(frozenset({an_event().key}), [delivery])
    assert await claim(ledger) == [delivery._replace(attempt=1, lease="me", due_at=NOW + MINUTE)]


async def test_the_same_event_again_adds_nothing(ledger: Ledger) -> None:
    await ledger.record([heard(a_delivery())], [], now=NOW)

    again = await ledger.record([heard(a_delivery(to="somebody-else@example.com"))], [], now=NOW + MINUTE)

    assert (again.new, again.unclaimed) == (frozenset(), [])
    assert len(await ledger.find(DeliveryFilter(), limit=10)) == 1


async def test_the_same_event_twice_in_one_batch_counts_once(ledger: Ledger) -> None:
    written = await ledger.record([heard(a_delivery()), heard(a_delivery(to="late@example.com"))], [], now=NOW)

    assert len(written.new) == 1
    (filed,) = await ledger.find(DeliveryFilter(), limit=10)
    assert filed.delivery.recipients == ("dev-team@example.com",)


async def test_two_replicas_recording_the_same_batch_make_one(ledger: Ledger, ledger_url: str) -> None:
    events = [an_event(name=f"e{number}") for number in range(50)]
    batch = [heard(a_delivery(event), event=event) for event in events]
    async with Ledger(ledger_url) as other:
        one, two = await asyncio.gather(
            ledger.record(batch, [], now=NOW), other.record(list(reversed(batch)), [], now=NOW)
        )

    assert len(one.new) + len(two.new) == 50
    assert not one.new & two.new
    assert len(await ledger.find(DeliveryFilter(), limit=100)) == 50


async def test_a_claimed_delivery_is_nobody_elses_until_its_lease_runs_out(ledger: Ledger) -> None:
    await ledger.record([heard(a_delivery())], [], now=NOW)
    await claim(ledger)

    assert await claim(ledger, lease="other", now=NOW + MINUTE - SECOND) == []
    (taken,) = await claim(ledger, lease="other", now=NOW + MINUTE)
    assert (taken.attempt, taken.lease, taken.in_doubt) == (2, "other", True)


async def test_a_worker_that_lost_its_lease_cannot_settle(ledger: Ledger) -> None:
    await ledger.record([heard(a_delivery())], [], now=NOW)
    (lost,) = await claim(ledger)
    (taken,) = await claim(ledger, lease="other", now=NOW + MINUTE)

    assert not await ledger.settle(ended(lost, Dead("no"), a_delivery(to="fallback@example.com")))
    assert await ledger.settle(ended(taken, SENT))
    (filed,) = await ledger.find(DeliveryFilter(), limit=10)
    assert filed.delivery.state is State.SENT
    assert [attempt.number for attempt in await ledger.history(lost.key)] == [1, 2]


async def test_the_same_worker_cannot_settle_an_attempt_whose_lease_it_lost_to_itself(ledger: Ledger) -> None:
    await ledger.record([heard(a_delivery())], [], now=NOW)
    (first,) = await claim(ledger)
    await claim(ledger, now=NOW + MINUTE)

    assert not await ledger.settle(ended(first, Dead("too late")))


async def test_claims_never_exceed_their_limit_and_never_overlap(ledger: Ledger) -> None:
    events = [an_event(name=f"e{number}") for number in range(60)]
    await ledger.record([heard(a_delivery(event), event=event) for event in events], [], now=NOW)

    claims = await asyncio.gather(*(claim(ledger, 10, lease=f"w{worker}") for worker in range(8)))

    assert all(len(taken) <= 10 for taken in claims)
    keys = [delivery.key for taken in claims for delivery in taken]
    assert len(keys) == len(set(keys)) == 60


async def test_the_oldest_due_is_taken_first_and_what_is_not_due_waits(ledger: Ledger) -> None:
    deliveries = [a_delivery(to=f"{number}@example.com", due_at=NOW - number * SECOND) for number in (0, 5, -5)]
    await ledger.record([heard(*deliveries)], [], now=NOW)

    assert [delivery.recipients for delivery in await claim(ledger, 1)] == [("5@example.com",)]
    assert [delivery.recipients for delivery in await claim(ledger, 5)] == [("0@example.com",)]


async def test_a_retry_is_due_when_it_says_and_keeps_its_doubt(ledger: Ledger) -> None:
    await ledger.record([heard(a_delivery())], [], now=NOW)
    (delivery,) = await claim(ledger)
    await ledger.settle(ended(delivery, Retry(NOW + 9 * SECOND, "greylisted", Answer("451", "later"), in_doubt=True)))

    assert await claim(ledger, now=NOW + 8 * SECOND) == []
    (again,) = await claim(ledger, now=NOW + 9 * SECOND)
    assert (again.attempt, again.in_doubt, again.reason) == (2, True, "greylisted")
    (attempt,) = await ledger.history(delivery.key)
    assert (attempt.outcome, attempt.status, attempt.answer, attempt.latency) == ("in_doubt", "451", "later", SECOND)


async def test_a_sure_failure_leaves_no_doubt(ledger: Ledger) -> None:
    await ledger.record([heard(a_delivery())], [], now=NOW)
    (delivery,) = await claim(ledger)
    await ledger.settle(ended(delivery, Retry(NOW, "connection refused")))

    (again,) = await claim(ledger)
    assert not again.in_doubt


async def test_a_settled_delivery_is_not_claimed_again(ledger: Ledger) -> None:
    await ledger.record([heard(a_delivery(), a_delivery(to="b@example.com"))], [], now=NOW)
    one, other = await claim(ledger)
    await ledger.settle(ended(one, SENT))
    await ledger.settle(ended(other, Dead("550 no such user")))

    assert await claim(ledger, now=NOW + 100 * MINUTE) == []
    assert await ledger.counts() == {("email", State.SENT): 1, ("email", State.DEAD): 1}


async def test_follow_ups_are_written_with_the_settlement(ledger: Ledger) -> None:
    await ledger.record([heard(a_delivery())], [], now=NOW)
    (delivery,) = await claim(ledger)

    await ledger.settle(ended(delivery, SENT, a_delivery(to="refused@example.com", state=State.DEAD, reason="550")))

    (dead,) = await ledger.find(DeliveryFilter(states=frozenset({State.DEAD})), limit=5)
    assert dead.delivery.reason == "550"


class Traced(Span):
    """An event whose trace is known."""

    @property
    def trace(self) -> str:
        return "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 vendor=its-own"


async def test_all_that_is_owed_for_an_event_keeps_its_trace(ledger: Ledger) -> None:
    await ledger.record([replace(heard(a_delivery()), span=Traced())], [], now=NOW)
    (claimed,) = await claim(ledger)
    follow_up = a_delivery(to="fallback@example.com")
    await ledger.settle(ended(claimed, Dead("no such mailbox"), follow_up))
    (next_one,) = await claim(ledger)
    assert claimed.trace == next_one.trace == Traced().trace


async def test_many_settlements_at_once_are_all_written(ledger: Ledger) -> None:
    events = [an_event(name=f"e{number}") for number in range(40)]
    await ledger.record([heard(a_delivery(event), event=event) for event in events], [], now=NOW)
    claimed = await claim(ledger, 40)

    held = await asyncio.gather(*(ledger.settle(ended(delivery, SENT)) for delivery in claimed))

    assert held == [True] * 40
    assert await ledger.counts() == {("email", State.SENT): 40}


async def test_a_cancelled_settle_does_not_lose_the_others(ledger: Ledger) -> None:
    events = [an_event(name=f"e{number}") for number in range(20)]
    await ledger.record([heard(a_delivery(event), event=event) for event in events], [], now=NOW)
    tasks = [asyncio.create_task(ledger.settle(ended(delivery, SENT))) for delivery in await claim(ledger, 20)]
    await asyncio.sleep(0)
    tasks[0].cancel()

    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [True] * 19


async def test_a_released_delivery_is_due_when_it_says_and_its_attempt_is_uncounted(ledger: Ledger) -> None:
    await ledger.record([heard(a_delivery())], [], now=NOW)
    (delivery,) = await claim(ledger)

    await ledger.release(delivery._replace(in_doubt=True), due_at=NOW)

    (again,) = await claim(ledger, lease="other")
    assert (again.attempt, again.in_doubt) == (1, True)


async def test_deliveries_are_found_by_state_channel_execution_time_and_key(ledger: Ledger) -> None:
    one, two = an_event(name="one"), an_event(name="on")
    slack = a_delivery(two, channel="slack", to="#a", created_at=NOW + MINUTE)
    await ledger.record([heard(a_delivery(one), event=one), heard(slack, event=two)], [], now=NOW)

    async def found(**wanted: Any) -> list[str]:
        return [filed.delivery.channel for filed in await ledger.find(DeliveryFilter(**wanted), limit=10)]

    assert await found() == ["slack", "email"]
    assert await found(channel="slack") == ["slack"]
    assert await found(execution="flytesnacks/production/on") == ["slack"]
    assert await found(since=NOW + SECOND) == ["slack"]
    assert await found(states=frozenset({State.DEAD})) == []
    assert await found(keys=[slack.key[:10]]) == ["slack"]


async def test_events_come_back_as_they_were(ledger: Ledger) -> None:
    event = an_event(labels={"team": "a"}, error={"message": "boom\0\x1b[31m", "kind": "USER"})
    await ledger.record([heard(event=event)], [], now=NOW)

    assert await ledger.event(event.key) == event
    assert await ledger.event("no/such/event/FAILED") is None


async def test_rejected_messages_are_kept_once_with_their_bytes(ledger: Ledger) -> None:
    big = refused("big", body=b"x" * 100_000, size=100_000, received_at=NOW + SECOND, reason="nul \0 inside")

    await ledger.record([], [refused(), big], now=NOW)
    await ledger.record([], [refused(), big], now=NOW)

    newest, oldest = await ledger.find_rejected(limit=10)
    assert (newest.id, len(newest.body), newest.size, newest.whole) == ("big", 65536, 100_000, False)
    assert oldest == refused()
    assert await ledger.find_rejected(limit=10, id_starts="b") == [newest]


async def test_whom_an_event_told_is_known(ledger: Ledger) -> None:
    await ledger.record([heard(a_delivery(), a_delivery(channel="slack", to="#a"))], [], now=NOW)

    assert await ledger.notified(an_event().key) == {("email", "dev-team@example.com"), ("slack", "#a")}


async def test_times_keep_their_moment_whatever_zone_they_came_in(ledger: Ledger) -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-7)))
    await ledger.record([heard(a_delivery(created_at=elsewhere, due_at=elsewhere))], [], now=NOW)

    (filed,) = await ledger.find(DeliveryFilter(), limit=1)
    assert filed.delivery.created_at == NOW
    assert filed.delivery.created_at.utcoffset() == timedelta(0)


async def test_what_was_made_on_the_stroke_of_a_second_is_found_since_then(ledger: Ledger) -> None:
    """SQLite compares times as text: all of them need their microseconds."""
    assert NOW.microsecond == 0
    await ledger.record([heard(a_delivery())], (), now=NOW)
    assert await ledger.find(DeliveryFilter(since=NOW), limit=10)
    assert not await ledger.find(DeliveryFilter(since=NOW + timedelta(microseconds=1)), limit=10)


@pytest.mark.parametrize("length", [10, 10_000])
async def test_long_contents_come_back_as_they_were(ledger: Ledger, length: int) -> None:
    content = {"html": "<p>Käse & co.</p>" * length}
    await ledger.record([heard(a_delivery(content=content))], (), now=NOW)
    (found,) = await ledger.find(DeliveryFilter(), limit=10)
    assert found.delivery.content == content


async def test_a_redrive_puts_back_what_is_dead_and_fits_and_counts_anew(ledger: Ledger) -> None:
    await ledger.record([heard(a_delivery(), a_delivery(to="b@example.com"))], [], now=NOW)
    for delivery in await claim(ledger):
        await ledger.settle(ended(delivery, Dead("gave up")))
    (one, _) = await ledger.find(DeliveryFilter(), limit=5)

    assert await ledger.redrive(DeliveryFilter(channel="slack"), now=NOW + MINUTE) == 0
    assert await ledger.redrive(DeliveryFilter(keys=[one.delivery.key[:8]]), now=NOW + MINUTE) == 1

    (again,) = await claim(ledger, now=NOW + MINUTE)
    assert (again.key, again.attempt, again.retry_window_start, again.created_at) == (
        one.delivery.key,
        1,
        NOW + MINUTE,
        NOW,
    )
    assert await ledger.redrive(DeliveryFilter(), now=NOW + MINUTE) == 1


async def test_a_purge_forgets_what_is_old_and_settled_and_nothing_else(ledger: Ledger) -> None:
    old, open_one, young = an_event(name="old"), an_event(name="open"), an_event(name="young")
    same = {"subject": "the same content"}
    await ledger.record(
        [heard(a_delivery(old, content=same), event=old), heard(a_delivery(open_one), event=open_one)], [], now=NOW
    )
    await ledger.record([heard(a_delivery(young, content=same), event=young)], [], now=NOW + MINUTE)
    for delivery in await claim(ledger):
        if delivery.event != open_one.key:
            await ledger.settle(ended(delivery, SENT))

    assert await ledger.purge(NOW + SECOND, limit=10) == 1
    assert await ledger.purge(NOW + SECOND, limit=10) == 0

    left = await ledger.find(DeliveryFilter(), limit=10)
    assert {filed.delivery.event for filed in left} == {open_one.key, young.key}
    assert {filed.delivery.content["subject"] for filed in left} == {"failed", "the same content"}
    assert await ledger.event(old.key) is None


async def test_a_replayed_message_is_noted(ledger: Ledger) -> None:
    await ledger.record([], [refused()], now=NOW)
    await ledger.mark_replayed("a", now=NOW + MINUTE)
    (entry,) = await ledger.find_rejected(limit=5)
    assert entry.replayed_at == NOW + MINUTE


async def test_the_migrations_make_the_tables_that_the_code_expects(ledger_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import inspect
    from sqlalchemy.engine import Connection

    from dispatcher.ledger.engine import HEAD, Database, alembic_config
    from dispatcher.ledger.schema import metadata

    database = Database(ledger_url)
    await database.migrate()

    def differences(connection: Connection) -> list[Any]:
        assert ScriptDirectory.from_config(alembic_config(connection)).get_current_head() == HEAD

        def meant(made: Any, *_: object) -> bool:
            return bool(made.info.get("only", connection.dialect.name) == connection.dialect.name)

        context = MigrationContext.configure(connection, opts={"include_object": meant})
        return list(compare_metadata(context, metadata))

    def indexes(connection: Connection) -> set[str | None]:
        return {index["name"] for index in inspect(connection).get_indexes("events")}

    async with database.reading() as connection:
        assert await connection.run_sync(differences) == []
        assert ("ix_events_name" in await connection.run_sync(indexes)) == (not database.sqlite)
    await database.aclose()


async def test_a_ledger_from_a_newer_version_is_refused_in_plain_words(ledger_url: str) -> None:
    from sqlalchemy import text

    from dispatcher.errors import LedgerIncompatible
    from dispatcher.ledger.engine import Database

    database = Database(ledger_url)
    await database.migrate()
    async with database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999_00000000'"))
        await connection.execute(text("UPDATE compatibility SET oldest = '9999_00000000'"))
    with pytest.raises(LedgerIncompatible, match="made by a newer one"):
        await database.migrate()
    await database.aclose()


async def test_what_is_to_be_done_is_counted_by_channel(ledger: Ledger) -> None:
    waiting = [a_delivery(key=f"w{number}", due_at=NOW + number * MINUTE) for number in range(3)]
    dead = [a_delivery(key="d", channel="slack", state=State.DEAD)]
    older = a_delivery(key="o", channel="slack", created_at=NOW - MINUTE)
    await ledger.record([heard(*waiting, *dead, older)], [], now=NOW)
    assert len(await claim(ledger, 1)) == 1

    assert await ledger.backlog(now=NOW + SECOND) == {
        "email": Backlog(oldest=NOW, waiting=3, due=0, dead=0, open_breakers=0),
        "slack": Backlog(oldest=NOW - MINUTE, waiting=1, due=1, dead=1, open_breakers=0),
    }
    assert (await ledger.backlog(now=NOW + MINUTE))["email"].due == 2


async def test_counting_what_is_to_be_done_reads_no_settled_delivery(tmp_path: Path) -> None:
    from sqlalchemy import event

    asked: list[tuple[str, Any]] = []
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        await ledger.record([heard(a_delivery())], [], now=NOW)
        engine = ledger._database._engine.sync_engine
        event.listen(engine, "before_cursor_execute", lambda *facts: asked.append((facts[2], facts[3])))
        await ledger.backlog(now=NOW)
    asked = [(query, given) for query, given in asked if "FROM deliveries" in query]
    assert len(asked) == 3
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        for query, given in asked:
            plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query}", [str(one) for one in given])]
            indexes = {"ix_deliveries_backlog", "ix_deliveries_dead", "ix_deliveries_due"}
            assert any(index in step for step in plan for index in indexes), plan


async def test_a_claim_begins_at_what_is_due_however_much_waits(tmp_path: Path) -> None:
    asked: list[str] = []
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        await ledger.record([heard(a_delivery())], [], now=NOW)
        assert ledger._database._writer is not None
        assert ledger._database._writer._connection is not None
        driver: Any = ledger._database._writer._connection.connection.driver_connection
        driver.set_trace_callback(asked.append)
        await claim(ledger, 1)
    (query,) = [query for query in asked if "JOIN contents" in query]
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query}")]
    assert plan[0] == "SEARCH deliveries USING INDEX ix_deliveries_due (channel=? AND due_at<?)"
    others = {"TEMP B-TREE", "ix_deliveries_state_created_at", "ix_deliveries_backlog", "SCAN"}
    assert not [step for step in plan if any(one in step for one in others)]
    assert [step for step in plan if "ix_deliveries_thread_waiting (thread=? AND state=?)" in step], (
        "not the whole history"
    )


async def test_what_is_told_of_one_day_lies_together_among_all_that_is_told(tmp_path: Path) -> None:
    days = [
        [
            a_delivery(event, content={"of": [day, event.key]}, occurred_at=NOW + timedelta(days=day))
            for event in (an_event(name=f"run{day}{number}") for number in range(9))
        ]
        for day in (0, 1)
    ]
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        for pair in zip(*days, strict=True):
            batch = [heard(one, event=an_event(name=one.event.split("/")[2])) for one in pair]
            await ledger.record(batch, [], now=NOW)
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        bodies = database.execute("SELECT body FROM contents ORDER BY content_hash").fetchall()
    assert [orjson.loads(body)["of"][0] for (body,) in bodies] == [0] * 9 + [1] * 9


async def test_a_ping_writes_a_row(ledger: Ledger, ledger_url: str) -> None:
    from sqlalchemy import text

    from dispatcher.ledger.engine import Database

    for now in (NOW, NOW + MINUTE, NOW):
        await ledger.ping(now=now)
        database = Database(ledger_url)
        async with database.reading() as connection:
            query = text("SELECT extract(epoch FROM at) FROM checkpoints WHERE name = 'pinged'")
            if database.sqlite:
                query = text("SELECT unixepoch(at) FROM checkpoints WHERE name = 'pinged'")
            assert int(await connection.scalar(query)) == NOW.timestamp() + (now - NOW).total_seconds()
        await database.aclose()


async def test_a_purge_forgets_old_rejected_messages_too(ledger: Ledger) -> None:
    await ledger.record([], [refused(), refused("young", received_at=NOW + MINUTE)], now=NOW)

    assert await ledger.purge(NOW + SECOND, limit=10) == 1
    assert [entry.id for entry in await ledger.find_rejected(limit=5)] == ["young"]


def slack(to: str, number: int = 0, **facts: Any) -> Delivery:
    due = {"created_at": NOW, "due_at": NOW + number * SECOND / 1000}
    return a_delivery(channel="slack", to=to, key=f"{to}{number:03}", **due | facts)


async def claim_paced(ledger: Ledger, limit: int = 10, *, at: float = 1, rate_limit: RateLimit | None = None) -> Claim:
    now = NOW + at * SECOND
    admission = AdmissionControl(rate_limit=rate_limit or RateLimit(rate=Rate(1, "s"), burst=2), destination=lambda to: to[0], now=now)
    return await ledger.claim("slack", limit, lease="me", until=now + MINUTE, admission=admission)


async def test_a_destination_gets_its_burst_and_then_one_at_each_slot(ledger: Ledger) -> None:
    await ledger.record([heard(*(slack("#a", number) for number in range(250)), slack("#b", 300))], [], now=NOW)

    first = await claim_paced(ledger)
    assert [delivery.key for delivery in first.deliveries] == ["#a000", "#a001", "#b300"]
    assert first.next_at == NOW + 2 * SECOND
    for second in (2, 3, 4):
        slot = await claim_paced(ledger, at=second)
        assert [delivery.key for delivery in slot.deliveries] == [f"#a{second:03}"]
    assert (await claim_paced(ledger, at=4.5)).deliveries == []


async def test_replicas_share_a_destinations_bucket(ledger: Ledger, ledger_url: str) -> None:
    await ledger.record([heard(*(slack("#a", number) for number in range(40)))], [], now=NOW)
    await claim_paced(ledger)
    async with Ledger(ledger_url) as other:
        claims = await asyncio.gather(*(claim_paced(one, at=11) for one in (ledger, other) * 3))

    assert sorted(delivery.key for claim in claims for delivery in claim.deliveries) == [
        f"#a{n:03}" for n in range(2, 12)
    ]


async def test_what_a_worker_learns_of_a_destination_holds_for_all_and_survives(
    ledger: Ledger, ledger_url: str
) -> None:
    await ledger.record([heard(*(slack("#a", number) for number in range(3)), slack("#b"))], [], now=NOW)
    asked, *_ = (await claim_paced(ledger, 1)).deliveries
    wish = Feedback("#a", NOW + SECOND, retry_after=30 * SECOND)
    await ledger.settle(replace(ended(asked, Retry(NOW + 31 * SECOND, "slow down")), feedback=wish))

    async with Ledger(ledger_url) as other:
        others = await claim_paced(other, at=2)
        assert [delivery.key for delivery in others.deliveries] == ["#b000"]
        assert (await claim_paced(other, at=30.9)).deliveries == []
        assert len((await claim_paced(other, at=33)).deliveries) == 3


async def test_of_a_broken_destination_one_delivery_finds_out_and_its_success_frees_the_rest(ledger: Ledger) -> None:
    rate_limit = RateLimit(max_in_flight=9)
    await ledger.record([heard(*(slack("#a", number) for number in range(20)))], [], now=NOW)
    failing = (await claim_paced(ledger, FAILURES_TO_OPEN, rate_limit=rate_limit)).deliveries
    for delivery in failing:
        failed = ended(delivery, Retry(NOW + MINUTE, "busy"))
        await ledger.settle(replace(failed, feedback=Feedback("#a", NOW + SECOND)))

    assert (await claim_paced(ledger, at=2, rate_limit=rate_limit)).deliveries == []
    (probe,) = (await claim_paced(ledger, at=7, rate_limit=rate_limit)).deliveries
    assert probe.destination_failing
    await ledger.settle(replace(ended(probe, SENT), feedback=Feedback("#a", NOW + 8 * SECOND, succeeded=True)))
    freed = (await claim_paced(ledger, at=13, rate_limit=rate_limit)).deliveries
    assert (len(freed), {delivery.destination_failing for delivery in freed}) == (9, {False})


async def test_what_is_put_off_keeps_its_doubt(ledger: Ledger) -> None:
    await ledger.record([heard(slack("#a"), slack("#a", 1))], [], now=NOW)
    assert len((await claim_paced(ledger)).deliveries) == 2  # and their worker dies
    one_at_a_time = RateLimit(rate=Rate(1, "min"))
    first = await claim_paced(ledger, at=100, rate_limit=one_at_a_time)
    later = await claim_paced(ledger, at=200, rate_limit=one_at_a_time)
    assert [(len(claim.deliveries), claim.deliveries[0].in_doubt) for claim in (first, later)] == [(1, True)] * 2


async def test_a_conversation_goes_out_in_turn_and_nobody_else_waits_for_it(ledger: Ledger) -> None:
    told = [slack("#a", number, thread="incident 1", occurred_at=NOW + number * SECOND) for number in range(3)]
    await ledger.record([heard(*reversed(told), slack("#a", 7, thread="incident 2", occurred_at=NOW))], [], now=NOW)
    rate_limit = RateLimit(max_in_flight=9)

    first = (await claim_paced(ledger, rate_limit=rate_limit)).deliveries
    assert [delivery.key for delivery in first] == ["#a000", "#a007"]
    assert (await claim_paced(ledger, at=2, rate_limit=rate_limit)).deliveries == []
    await ledger.settle(ended(first[0], Retry(NOW + 5 * SECOND, "busy")))
    assert (await claim_paced(ledger, at=4, rate_limit=rate_limit)).deliveries == []  # its trigger is still being retried
    (again,) = (await claim_paced(ledger, at=5, rate_limit=rate_limit)).deliveries
    await ledger.settle(ended(again, Dead("no such channel")))
    (second,) = (await claim_paced(ledger, at=6, rate_limit=rate_limit)).deliveries
    assert (second.key, second.occurred_at) == ("#a001", NOW + SECOND)


async def test_an_ending_that_came_too_late_is_noted_as_such(ledger: Ledger) -> None:
    await ledger.record([heard(a_delivery())], [], now=NOW)
    (lost,) = await claim(ledger)
    (taken,) = await claim(ledger, lease="other", now=NOW + MINUTE)

    assert not await ledger.settle(ended(lost, Retry(NOW + 2 * MINUTE, "greylisted")))
    assert await ledger.settle(ended(taken, SENT))
    late, counted = await ledger.history(lost.key)
    assert (late.reason, counted.reason) == (f"{LEASE_LOST}: greylisted", "")


async def test_a_purge_forgets_destinations_that_were_not_heard_of_for_long(ledger: Ledger) -> None:
    await ledger.record([heard(slack("#a"), slack("#a", 1), slack("#a", 2))], [], now=NOW)
    await claim_paced(ledger)
    await ledger.purge(NOW + SECOND, limit=10)
    assert (await claim_paced(ledger, at=1.5)).deliveries == []  # the bucket was not full again


async def test_rejected_messages_are_found_by_the_execution_that_they_name(ledger: Ledger) -> None:
    execution = an_event().execution
    named = b'{"project":"flytesnacks","domain":"production","name":"akx7b9q2vjt5fm4c8h2d"}\xff'
    await ledger.record(
        [],
        [
            refused("understood", event=f"{execution}/FAILED"),
            refused("named", body=named, size=len(named)),
            refused("longer", body=named.replace(b"8h2d", b"8h2d2"), size=len(named) + 1),
            refused("elsewhere", body=named.replace(b"production", b"staging"), size=len(named) - 3),
            refused("neighbour", event=f"{execution}2/FAILED", body=named, size=len(named)),
        ],
        now=NOW,
    )

    found = await ledger.find_rejected(limit=10, execution=execution)

    assert {entry.id for entry in found} == {"understood", "named"}


async def test_an_executions_events_are_known_in_the_order_of_their_record(ledger: Ledger) -> None:
    aborted, failed, other = an_event(Phase.ABORTED), an_event(Phase.FAILED), an_event(name="akx7b9q2vjt5fm4c8h2d2")
    await ledger.record([heard(event=aborted)], [], now=NOW)
    await ledger.record([heard(event=failed), heard(event=other)], [], now=NOW + MINUTE)

    known = await ledger.stored_events(failed.execution)

    assert [entry.event for entry in known] == [aborted, failed]
    assert (known[0].recorded_at, known[0].position, known[0].reason) == (
        NOW,
        "flyte-cloudevents/0@7",
        "1 rule matched",
    )


async def test_the_first_start_is_remembered_and_a_purge_moves_it_forward(ledger: Ledger) -> None:
    assert await ledger.complete_since(now=NOW) == NOW
    await ledger.record_first_start(now=NOW)
    await ledger.record_first_start(now=NOW + MINUTE)
    assert await ledger.complete_since(now=NOW + MINUTE) == NOW
    await ledger.purge(NOW - MINUTE, limit=10)
    assert await ledger.complete_since(now=NOW + MINUTE) == NOW
    await ledger.purge(NOW + SECOND, limit=10)
    assert await ledger.complete_since(now=NOW + MINUTE) == NOW + SECOND


async def test_a_ledger_that_was_in_use_before_begins_with_its_oldest_event(ledger: Ledger) -> None:
    await ledger.record([heard()], [], now=NOW - MINUTE)
    assert await ledger.complete_since(now=NOW) == NOW - MINUTE
    await ledger.record_first_start(now=NOW)
    assert await ledger.complete_since(now=NOW) == NOW - MINUTE


async def test_what_was_swept_never_goes_back(ledger: Ledger) -> None:
    assert await ledger.reconciled_until() is None
    for until in (NOW, NOW + MINUTE, NOW - MINUTE):
        await ledger.set_reconciled_until(until)
    assert await ledger.reconciled_until() == NOW + MINUTE


async def test_events_are_known_that_were_recorded_or_rejected(ledger: Ledger) -> None:
    recorded, unresolved, unheard = (an_event(name=name).key for name in ("recorded", "rejected", "neither"))
    await ledger.record([heard(event=an_event(name="recorded"))], [refused(event=unresolved)], now=NOW)
    assert await ledger.seen_events([recorded, unresolved, unheard]) == {recorded, unresolved}
    assert await ledger.seen_events([]) == frozenset()


async def test_the_newest_event_is_the_one_recorded_last(ledger: Ledger) -> None:
    assert await ledger.newest() is None
    for minute, name in enumerate(("first", "second")):
        await ledger.record([heard(event=an_event(name=name))], [], now=NOW + minute * MINUTE)
    assert await ledger.newest() == (an_event(name="second").key, NOW + MINUTE)


# -- offers


@dataclass(slots=True)
class Hands:
    """A courier's, as the ledger knows them: what they offered, and what they got for it."""

    channel: str = "pagerduty"
    limit: int = 10
    at: float = 10
    rate_limit: RateLimit = field(default_factory=RateLimit)
    got: list[Delivery] | None = None

    def offer(self) -> dict[str, DirectDispatch]:
        return {
            self.channel: DirectDispatch(
                limit=self.limit, lease="me", until=self._until, admission=self._gate(), accept=self._take
            )
        }

    async def claim(self, ledger: Ledger) -> list[Delivery]:
        """The same by a claim."""
        claim = await ledger.claim(self.channel, self.limit, lease="me", until=self._until, admission=self._gate())
        return [*claim.deliveries]

    @property
    def _until(self) -> datetime:
        return NOW + self.at * SECOND + MINUTE

    def _gate(self) -> AdmissionControl:
        return AdmissionControl(rate_limit=self.rate_limit, destination=lambda to: to[0], now=NOW + self.at * SECOND)

    def _take(self, claimed: Sequence[Delivery]) -> None:
        assert self.got is None, "an offer is answered once"
        self.got = [*claimed]


async def test_what_is_offered_hands_for_is_claimed_as_it_is_written(ledger: Ledger) -> None:
    delivery = a_delivery(content={"subject": "größer", "lines": [1, 2.5, None]})
    entry = replace(heard(delivery), span=Traced())
    hands = Hands("email")

    written = await ledger.record([entry], [], now=NOW, direct_dispatch=hands.offer())

    assert written == RecordResult(frozenset({an_event().key}), [])
    assert hands.got == [delivery._replace(trace=Traced().trace, attempt=1, lease="me", due_at=NOW + 70 * SECOND)]
    assert await claim(ledger, now=NOW + 69 * SECOND) == []
    (again,) = await claim(ledger, now=NOW + 71 * SECOND)  # whoever had it is gone
    assert (again.attempt, again.in_doubt) == (2, True)
    assert not await ledger.settle(ended(hands.got[0], SENT))
    assert await ledger.settle(ended(again, SENT))


async def test_what_an_offer_takes_is_settled_as_what_was_claimed(ledger: Ledger) -> None:
    hands = Hands("email")
    await ledger.record([heard(a_delivery())], [], now=NOW, direct_dispatch=hands.offer())
    (delivery,) = hands.got or []

    assert await ledger.settle(ended(delivery, SENT))

    (filed,) = await ledger.find(DeliveryFilter(), limit=5)
    assert (filed.delivery.state, filed.delivery.attempt, filed.delivery.lease) == (State.SENT, 1, None)


async def test_an_offer_takes_no_more_than_it_has_hands_and_nothing_of_other_channels_or_dead(ledger: Ledger) -> None:
    hands = Hands("slack", limit=2)
    mail, dead = a_delivery(), slack("#dead", state=State.DEAD)

    written = await ledger.record(
        [heard(mail, dead, *(slack("#a", number) for number in range(3)))], [], now=NOW, direct_dispatch=hands.offer()
    )

    assert [delivery.key for delivery in hands.got or []] == ["#a000", "#a001"]
    assert [delivery.key for delivery in written.unclaimed] == [mail.key, "#a002"]


async def test_what_was_there_before_is_nobodys_anew(ledger: Ledger) -> None:
    await ledger.record([heard(a_delivery())], [], now=NOW)
    hands = Hands("email")

    written = await ledger.record([heard(a_delivery())], [], now=NOW, direct_dispatch=hands.offer())

    assert (hands.got, written.unclaimed) == ([], [])


async def test_of_a_conversation_its_beginning_alone_is_taken(ledger: Ledger) -> None:
    await ledger.record([failure("before", 1, to="known")], [], now=NOW)
    await ledger.record([success("well", 9, plan="late")], [], now=NOW)
    hands = Hands()
    entries = [
        failure("a", 2, to="known"),
        failure("b", 2, to="both"),
        failure("c", 3, to="both"),
        failure("d", 2, to="alone"),
        failure("e", 2, plan="late", to="too late"),
    ]

    written = await ledger.record(entries, [], now=NOW, direct_dispatch=hands.offer())

    assert [(delivery.recipients, delivery.opens_thread) for delivery in hands.got or []] == [(("alone",), True)]
    assert sorted(delivery.recipients[0] for delivery in written.unclaimed) == ["both", "both", "known", "too late"]


async def test_good_news_waits_for_a_claim_and_is_told_of(ledger: Ledger) -> None:
    await told(ledger, failure("a", 1))
    hands = Hands()

    written = await ledger.record([success("b", 2)], [], now=NOW, direct_dispatch=hands.offer())

    assert (hands.got, [delivery.resolves for delivery in written.unclaimed]) == ([], [True])


async def test_an_offer_spares_a_destination_as_a_claim_does(ledger: Ledger) -> None:
    hands = Hands("slack", at=1, rate_limit=RateLimit(rate=Rate(1, "s"), burst=2))

    written = await ledger.record(
        [heard(*(slack("#a", number) for number in range(4)), slack("#b"))], [], now=NOW, direct_dispatch=hands.offer()
    )

    assert [delivery.key for delivery in hands.got or []] == ["#a000", "#a001", "#b000"]
    assert [delivery.key for delivery in written.unclaimed] == ["#a002", "#a003"]
    assert (await claim_paced(ledger, at=1)).next_at == NOW + 2 * SECOND
    assert [delivery.key for delivery in (await claim_paced(ledger, at=2)).deliveries] == ["#a002"]


async def test_a_destination_that_asked_for_peace_gets_nothing_through_an_offer(ledger: Ledger) -> None:
    await ledger.record([heard(slack("#a"))], [], now=NOW)
    (delivery,) = (await claim_paced(ledger)).deliveries
    wish = Feedback("#a", NOW, retry_after=MINUTE)
    await ledger.settle(replace(ended(delivery, Retry(NOW + MINUTE, "slow down")), feedback=wish))
    hands = Hands("slack")

    event = an_event(name="next")
    await ledger.record([heard(slack("#a", 7, event=event), event=event)], [], now=NOW, direct_dispatch=hands.offer())

    assert hands.got == []


async def test_a_record_of_nothing_answers_and_asks_nothing_of_the_database(tmp_path: Path) -> None:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        hands, other_process = Hands(), sqlite3.connect(tmp_path / "ledger.db")
        with closing(other_process):
            other_process.execute("BEGIN IMMEDIATE")
            assert await ledger.record([], [], now=NOW, direct_dispatch=hands.offer()) == RecordResult()
    assert hands.got == []


async def test_an_offer_is_answered_where_nothing_could_be_written(tmp_path: Path) -> None:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        hands, other_process = Hands("email"), sqlite3.connect(tmp_path / "ledger.db")
        with closing(other_process):
            other_process.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerUnavailable):
                await ledger.record([heard(a_delivery())], [], now=NOW, direct_dispatch=hands.offer())
    assert hands.got == []


_PEOPLE = ("a", "b", "c")


@given(
    ends=st.lists(
        st.tuples(st.booleans(), st.sampled_from(_PEOPLE), st.sampled_from(("train", "score")), st.integers(0, 5)),
        max_size=6,
    ),
    before=st.integers(0, 6),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_what_an_offer_takes_a_claim_would_have_taken_the_same(
    tmp_path: Path, ends: list[tuple[bool, str, str, int]], before: int
) -> None:
    entries = [
        failure(f"{number}", at, to=to, plan=plan) if bad else success(f"{number}", at, plan=plan)
        for number, (bad, to, plan, at) in enumerate(ends)
    ]
    folder = mkdtemp(dir=tmp_path)
    url = f"sqlite+aiosqlite:///{folder}"
    hands = Hands()
    async with Ledger(f"{url}/offered.db") as offered, Ledger(f"{url}/claimed.db") as claimed:
        for ledger in (offered, claimed):
            await told(ledger, *entries[:before])
        written = await offered.record(entries[before:], [], now=NOW, direct_dispatch=hands.offer())
        again = await claimed.record(entries[before:], [], now=NOW)
        as_claimed = {delivery.key: delivery for delivery in await Hands().claim(claimed)}

    taken = {delivery.key: delivery for delivery in hands.got or []}
    assert taken.items() <= as_claimed.items()
    assert taken.keys() | {delivery.key for delivery in written.unclaimed} == {delivery.key for delivery in again.unclaimed}


# -- conversations


def failure(
    name: str, at: int, *, to: str = "ml", plan: str = "train.daily", about: str = "", state: State = State.WAITING
) -> RecordedEvent:
    """An execution failed `at` seconds after NOW, and somebody is to be told."""
    event = an_event(name=name, launch_plan=a_launch_plan(plan)).model_copy(update={"occurred_at": NOW + at * SECOND})
    delivery = a_delivery(
        event,
        channel="pagerduty",
        to=to,
        state=state,
        thread=f"{plan} {about} {to}",
        occurred_at=event.occurred_at,
        launch_plan=plan,
    )
    return heard(delivery, event=event)


def success(name: str, at: int, *, plan: str = "train.daily") -> RecordedEvent:
    """An execution succeeded `at` seconds after NOW; no rule asks for it."""
    event = an_event(Phase.SUCCEEDED, name=name, launch_plan=a_launch_plan(plan))
    event = event.model_copy(update={"occurred_at": NOW + at * SECOND})

    def close(opened: OpenThread) -> Delivery:
        return a_delivery(
            event,
            channel=opened.channel,
            to=opened.addresses[0],
            key=delivery_key(event.key, opened.thread, opened.addresses),
            thread=opened.thread,
            occurred_at=event.occurred_at,
            launch_plan=plan,
            resolves=True,
        )

    return replace(
        heard(event=event), resolution=Resolution(launch_plan=plan, occurred_at=event.occurred_at, plan_resolved_notice=close)
    )


async def told(ledger: Ledger, *entries: RecordedEvent) -> list[str]:
    """Record these one by one; what is then owed, in the order in which it may go, as `EXECUTION PHASE to ADDRESS`."""
    for entry in entries:
        await ledger.record([entry], [], now=NOW)
    return await carried(ledger)


async def carried(ledger: Ledger, *, now: datetime = NOW) -> list[str]:
    """Send all that may go, one conversation's turn after another."""
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=now)
    went = []
    while taken := (await ledger.claim("pagerduty", 10, lease="me", until=now + MINUTE, admission=admission)).deliveries:
        for delivery in sorted(taken, key=lambda one: one.thread):
            talk = await ledger.thread(delivery)
            assert talk is not None
            told_so = f"{delivery.event.split('/', 2)[2]} to {delivery.addresses[0]}"
            went.append(f"{told_so}{' too late' if talk.superseded else ''} after {len(talk.earlier)}")
            receipt = Receipt(answer=Answer("202"), reference={"told": told_so})
            assert await ledger.settle(ended(delivery, Sent(receipt)))
    return went


async def test_a_success_ends_each_open_conversation_of_its_launch_plan_once(ledger: Ledger) -> None:
    went = await told(
        ledger,
        failure("a", 1),
        failure("b", 2),
        failure("b2", 2, to="ops"),
        failure("c", 3, plan="other"),
        success("d", 4),
        success("e", 5),
    )
    assert went == [
        "c/FAILED to ml after 0",
        "a/FAILED to ml after 0",
        "b2/FAILED to ops after 0",
        "b/FAILED to ml after 1",
        "d/SUCCEEDED to ops after 1",
        "d/SUCCEEDED to ml after 2",
    ]


async def test_recording_a_success_again_adds_nothing(ledger: Ledger) -> None:
    await ledger.record([failure("a", 1), success("b", 2), success("b", 2)], [], now=NOW)
    await ledger.record([success("b", 2)], [], now=NOW)
    assert await carried(ledger) == ["a/FAILED to ml after 0", "b/SUCCEEDED to ml after 1"]


async def test_a_success_without_a_failure_before_it_owes_nothing(ledger: Ledger) -> None:
    assert await told(ledger, success("a", 1)) == []
    assert await told(ledger, failure("b", 2, state=State.DEAD), success("c", 3)) == []


async def test_a_failure_older_than_a_success_that_is_known_opens_nothing(ledger: Ledger) -> None:
    assert await told(ledger, success("b", 2), failure("a", 1)) == ["a/FAILED to ml too late after 0"]
    assert await told(ledger, success("c", 3)) == []


async def test_a_late_failure_whose_good_news_still_waits_is_told_before_it(ledger: Ledger) -> None:
    assert await told(ledger, failure("a", 1), success("c", 3), failure("b", 2)) == [
        "a/FAILED to ml after 0",
        "b/FAILED to ml after 1",
        "c/SUCCEEDED to ml after 2",
    ]


async def test_a_success_older_than_a_failure_that_is_known_ends_nothing_and_the_next_one_does(ledger: Ledger) -> None:
    assert await told(ledger, failure("a", 1), failure("c", 3), success("b", 2)) == [
        "a/FAILED to ml after 0",
        "c/FAILED to ml after 1",
    ]
    assert await told(ledger, success("d", 4)) == ["d/SUCCEEDED to ml after 2"]


async def test_each_executions_conversation_ends_with_the_launch_plans_success(ledger: Ledger) -> None:
    went = await told(
        ledger,
        failure("a", 1, about="a"),
        failure("b", 2, about="b"),
        failure("d", 4, about="d"),
        success("c", 3),
    )
    assert sorted(went) == [
        "a/FAILED to ml after 0",
        "b/FAILED to ml after 0",
        "c/SUCCEEDED to ml after 1",
        "c/SUCCEEDED to ml after 1",
        "d/FAILED to ml after 0",
    ]


async def test_after_good_news_a_conversation_begins_anew(ledger: Ledger) -> None:
    await told(ledger, failure("a", 1), success("b", 2))
    assert await told(ledger, failure("c", 3), failure("d", 4)) == ["c/FAILED to ml after 0", "d/FAILED to ml after 1"]


async def test_a_channel_gets_the_first_and_the_last_of_what_was_said(ledger: Ledger) -> None:
    await told(ledger, *(failure(f"n{number}", number) for number in range(5)))
    await ledger.record([success("s", 9)], [], now=NOW)
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=NOW)
    (delivery,) = (await ledger.claim("pagerduty", 10, lease="me", until=NOW + MINUTE, admission=admission)).deliveries

    talk = await ledger.thread(delivery)

    assert talk is not None
    assert (talk.key, talk.resolves) == (delivery.thread, True)
    assert [one.reference["told"] for one in talk.earlier] == ["n0/FAILED to ml", "n4/FAILED to ml"]
    assert talk.earlier[0].content == {"subject": "failed"}


async def test_what_died_in_doubt_may_have_been_said_and_what_was_refused_was_not(ledger: Ledger) -> None:
    for outcome, expected in ((Dead("gave up", in_doubt=True), 1), (Dead("refused"), 0)):
        plan = outcome.reason
        await ledger.record([failure(f"a {plan}", 1, plan=plan), failure(f"b {plan}", 2, plan=plan)], [], now=NOW)
        admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=NOW)
        claim_one = await ledger.claim("pagerduty", 10, lease="me", until=NOW + MINUTE, admission=admission)
        await ledger.settle(ended(claim_one.deliveries[0], outcome))
        claim_two = await ledger.claim("pagerduty", 10, lease="me", until=NOW + MINUTE, admission=admission)
        talk = await ledger.thread(claim_two.deliveries[0])
        assert talk is not None
        assert len(talk.earlier) == expected
        await ledger.settle(ended(claim_two.deliveries[0], SENT))
        await carried(ledger)


async def test_good_news_that_died_is_no_good_any_more_once_something_has_failed_again(ledger: Ledger) -> None:
    await told(ledger, failure("a", 1))
    await ledger.record([success("b", 2)], [], now=NOW)
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=NOW)
    (news,) = (await ledger.claim("pagerduty", 10, lease="me", until=NOW + MINUTE, admission=admission)).deliveries
    await ledger.settle(ended(news, Dead("gave up")))
    assert await told(ledger, failure("c", 3)) == ["c/FAILED to ml after 1"]
    await ledger.redrive(DeliveryFilter(), now=NOW)
    assert await carried(ledger) == ["b/SUCCEEDED to ml too late after 1"]
    assert await told(ledger, success("d", 4)) == ["d/SUCCEEDED to ml after 1"]


async def test_what_a_rule_asks_of_a_success_is_the_good_news_where_there_is_any(ledger: Ledger) -> None:
    asked = success("b", 2)
    asked = replace(asked, deliveries=[a_delivery(asked.event, channel="pagerduty", to="ml")])

    await ledger.record([failure("a", 1), asked], [], now=NOW)

    of_success = [filed.delivery for filed in await ledger.find(DeliveryFilter(), limit=9) if filed.delivery.resolves]
    assert len(of_success) == 1
    assert len(await ledger.find(DeliveryFilter(), limit=9)) == 2
    alone = success("d", 4)
    alone = replace(alone, deliveries=[a_delivery(alone.event, channel="pagerduty", to="ml")])
    await ledger.record([alone], [], now=NOW)
    (news,) = await ledger.find(DeliveryFilter(execution=str(alone.event.execution)), limit=9)
    assert (news.delivery.resolves, news.delivery.thread) == (False, "")


async def test_replicas_that_record_a_failure_and_a_success_at_once_leave_nothing_open(
    ledger: Ledger, ledger_url: str
) -> None:
    plans = [f"plan{number}" for number in range(30)]
    async with Ledger(ledger_url) as other:
        await asyncio.gather(
            *(ledger.record([failure(f"f-{plan}", 1, plan=plan)], [], now=NOW) for plan in plans),
            *(other.record([success(f"s-{plan}", 2, plan=plan)], [], now=NOW) for plan in plans),
        )

    went = await carried(ledger)
    for plan in plans:
        about = [line for line in went if line.partition("/")[0] in {f"f-{plan}", f"s-{plan}"}]
        too_late = [f"f-{plan}/FAILED to ml too late after 0"]
        in_order = [f"f-{plan}/FAILED to ml after 0", f"s-{plan}/SUCCEEDED to ml after 1"]
        assert about in (too_late, in_order)


async def test_a_purge_forgets_how_launch_plans_stood(ledger: Ledger, ledger_url: str) -> None:
    await told(ledger, failure("a", 1), success("b", 2))
    await ledger.purge(NOW + MINUTE, limit=10)
    assert await told(ledger, failure("older", 0)) == ["older/FAILED to ml after 0"]


def run_of(name: str, version: str, *, plan: str = "train.daily") -> RecordedEvent:
    event = an_event(Phase.SUCCEEDED, name=name, launch_plan=a_launch_plan(plan, version))
    change = a_delivery(event, channel="pagerduty", to="ml")
    return replace(heard(event=event), version=NewVersion(launch_plan=plan, version=version, plan_deliveries=lambda: [change]))


async def test_a_new_version_is_told_once_whoever_records_it_and_the_first_known_one_is_no_news(
    ledger: Ledger, ledger_url: str
) -> None:
    await ledger.record([run_of("a", "v1"), run_of("b", "v1")], [], now=NOW)
    assert await ledger.find(DeliveryFilter(), limit=9) == []
    async with Ledger(ledger_url) as other:
        await asyncio.gather(
            *(one.record([run_of(f"{number}", "v2")], [], now=NOW) for number, one in enumerate([ledger, other] * 5))
        )
    await ledger.record([run_of("c", "v1"), run_of("d", "v9", plan="other")], [], now=NOW)

    (told_once,) = await ledger.find(DeliveryFilter(), limit=9)
    assert told_once.delivery.channel == "pagerduty"


async def test_a_version_may_hold_anything(ledger: Ledger) -> None:
    for number in range(2):
        await ledger.record([run_of(f"a{number}", "v1\0\n'\U0001f680")], [], now=NOW)
    assert await ledger.find(DeliveryFilter(), limit=9) == []
