"""The ledger's behaviour, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest

from channels.contract import Answer, Receipt
from dispatcher.ledger import (
    Backlog,
    Claim,
    DeliveryFilter,
    Ledger,
    RecordedEvent,
    RecordResult,
    Rejected,
    Settlement,
)
from dispatcher.ledger.ledger import HEAD_START
from dispatcher.ledger.rows import LEASE_LOST
from dispatcher.model.delivery import (
    Dead,
    Delivery,
    Dropped,
    DropReason,
    Kind,
    NewVersion,
    Outcome,
    Retry,
    Sent,
    State,
    Success,
)
from dispatcher.model.event import Event
from dispatcher.model.phase import Phase
from dispatcher.model.rate_limit import FAILURES_TO_OPEN, AdmissionControl, Feedback, Rate, RateLimit
from dispatcher.tracing import Span
from tests.support.builders import NOW, SECOND, a_delivery, a_launch_plan, an_event

MINUTE = timedelta(minutes=1)


def recorded(*deliveries: Delivery, event: Event | None = None) -> RecordedEvent:
    return RecordedEvent(
        event=event or an_event(),
        position="flyte-cloudevents/0@7",
        verdict="matched",
        reason="1 rule matched",
        considered=[],
        deliveries=deliveries,
    )


def rejected(identity: str = "a", **changes: Any) -> Rejected:
    fields: dict[str, Any] = {
        "id": identity,
        "position": "t/0@1",
        "received_at": NOW,
        "reason": "broken JSON",
        "headers": [("ce_type", b"\xff")],
        "body": b"\0\xff",
        "size": 2,
        **changes,
    }
    return Rejected(**fields)


async def claim(
    ledger: Ledger, limit: int = 10, *, lease: str = "me", now: datetime = NOW, lasting: timedelta = MINUTE
) -> list[Delivery]:
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=now)
    return [*(await ledger.claim("email", limit, lease=lease, until=now + lasting, admission=admission)).deliveries]


def settlement(delivery: Delivery, outcome: Outcome, *follow_ups: Delivery) -> Settlement:
    return Settlement(delivery=delivery, outcome=outcome, started_at=NOW, ended_at=NOW + SECOND, follow_ups=follow_ups)


SENT = Sent(Receipt(answer=Answer("250", "queued as 42"), reference={"message_id": "<1@x>"}))


async def test_a_recorded_delivery_is_claimed_unchanged(ledger: Ledger) -> None:
    delivery = a_delivery(content={"subject": "größer", "html": "<p>" * 1000})

    written = await ledger.record([recorded(delivery)], [], now=NOW)

    assert written == RecordResult(frozenset({an_event().key}), [delivery])
    assert await claim(ledger) == [delivery._replace(attempt=1, lease="me", due_at=NOW + MINUTE)]


async def test_an_event_that_is_recorded_again_adds_nothing(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)

    again = await ledger.record([recorded(a_delivery(to="somebody-else@example.com"))], [], now=NOW + MINUTE)

    assert (again.new, again.waiting) == (frozenset(), [])
    assert len(await ledger.find(DeliveryFilter(), limit=10)) == 1


async def test_an_event_twice_in_one_batch_is_recorded_once(ledger: Ledger) -> None:
    written = await ledger.record([recorded(a_delivery()), recorded(a_delivery(to="late@example.com"))], [], now=NOW)

    assert len(written.new) == 1
    (found,) = await ledger.find(DeliveryFilter(), limit=10)
    assert found.delivery.recipients == ("dev-team@example.com",)


async def test_two_replicas_that_record_the_same_batch_record_each_event_once(ledger: Ledger, ledger_url: str) -> None:
    events = [an_event(name=f"e{number}") for number in range(50)]
    batch = [recorded(a_delivery(event), event=event) for event in events]
    async with Ledger(ledger_url) as other:
        one, two = await asyncio.gather(
            ledger.record(batch, [], now=NOW), other.record(list(reversed(batch)), [], now=NOW)
        )

    assert len(one.new) + len(two.new) == 50
    assert not one.new & two.new
    assert len(await ledger.find(DeliveryFilter(), limit=100)) == 50


async def test_a_claimed_delivery_is_not_claimed_again_until_its_lease_runs_out(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    await claim(ledger)

    assert await claim(ledger, lease="other", now=NOW + MINUTE - SECOND) == []
    (taken,) = await claim(ledger, lease="other", now=NOW + MINUTE)
    assert (taken.attempt, taken.lease, taken.in_doubt) == (2, "other", True)


async def test_a_worker_that_lost_its_lease_cannot_settle(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    (lost,) = await claim(ledger)
    (taken,) = await claim(ledger, lease="other", now=NOW + MINUTE)

    assert not await ledger.settle(settlement(lost, Dead("no"), a_delivery(to="fallback@example.com")))
    assert await ledger.settle(settlement(taken, SENT))
    (found,) = await ledger.find(DeliveryFilter(), limit=10)
    assert found.delivery.state is State.SENT
    assert [attempt.number for attempt in await ledger.history(lost.key)] == [1, 2]


async def test_a_worker_cannot_settle_an_attempt_after_it_claimed_the_delivery_again(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    (first,) = await claim(ledger)
    await claim(ledger, now=NOW + MINUTE)

    assert not await ledger.settle(settlement(first, Dead("too late")))


async def test_claims_never_exceed_their_limit_and_never_overlap(ledger: Ledger) -> None:
    events = [an_event(name=f"e{number}") for number in range(60)]
    await ledger.record([recorded(a_delivery(event), event=event) for event in events], [], now=NOW)

    claims = await asyncio.gather(*(claim(ledger, 10, lease=f"w{worker}") for worker in range(8)))

    assert all(len(taken) <= 10 for taken in claims)
    keys = [delivery.key for taken in claims for delivery in taken]
    assert len(keys) == len(set(keys)) == 60


async def test_the_oldest_due_delivery_is_claimed_first_and_others_wait_until_they_are_due(ledger: Ledger) -> None:
    deliveries = [a_delivery(to=f"{number}@example.com", due_at=NOW - number * SECOND) for number in (0, 5, -5)]
    await ledger.record([recorded(*deliveries)], [], now=NOW)

    assert [delivery.recipients for delivery in await claim(ledger, 1)] == [("5@example.com",)]
    assert [delivery.recipients for delivery in await claim(ledger, 5)] == [("0@example.com",)]


async def test_a_retry_is_due_at_its_time_and_stays_in_doubt(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    (delivery,) = await claim(ledger)
    await ledger.settle(
        settlement(delivery, Retry(NOW + 9 * SECOND, "greylisted", Answer("451", "later"), in_doubt=True))
    )

    assert await claim(ledger, now=NOW + 8 * SECOND) == []
    (again,) = await claim(ledger, now=NOW + 9 * SECOND)
    assert (again.attempt, again.in_doubt, again.reason) == (2, True, "greylisted")
    (attempt,) = await ledger.history(delivery.key)
    assert (attempt.outcome, attempt.status, attempt.answer, attempt.latency) == ("in_doubt", "451", "later", SECOND)


async def test_a_retry_after_a_certain_failure_is_not_in_doubt(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    (delivery,) = await claim(ledger)
    await ledger.settle(settlement(delivery, Retry(NOW, "connection refused")))

    (again,) = await claim(ledger)
    assert not again.in_doubt


async def test_a_settled_delivery_is_not_claimed_again(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery(), a_delivery(to="b@example.com"))], [], now=NOW)
    one, other = await claim(ledger)
    await ledger.settle(settlement(one, SENT))
    await ledger.settle(settlement(other, Dead("550 no such user")))

    assert await claim(ledger, now=NOW + 100 * MINUTE) == []
    assert await ledger.counts() == {("email", State.SENT): 1, ("email", State.DEAD): 1}


async def test_follow_ups_are_written_with_the_settlement(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    (delivery,) = await claim(ledger)

    await ledger.settle(
        settlement(delivery, SENT, a_delivery(to="refused@example.com", state=State.DEAD, reason="550"))
    )

    (dead,) = await ledger.find(DeliveryFilter(states=frozenset({State.DEAD})), limit=5)
    assert dead.delivery.reason == "550"


class Traced(Span):
    """A span with a fixed trace."""

    @property
    def trace(self) -> str:
        return "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 vendor=its-own"


async def test_all_deliveries_of_an_event_store_its_trace(ledger: Ledger) -> None:
    await ledger.record([replace(recorded(a_delivery()), span=Traced())], [], now=NOW)
    (claimed,) = await claim(ledger)
    follow_up = a_delivery(to="fallback@example.com")
    await ledger.settle(settlement(claimed, Dead("no such mailbox"), follow_up))
    (next_one,) = await claim(ledger)
    assert claimed.trace == next_one.trace == Traced().trace


async def test_many_settlements_at_once_are_all_written(ledger: Ledger) -> None:
    events = [an_event(name=f"e{number}") for number in range(40)]
    await ledger.record([recorded(a_delivery(event), event=event) for event in events], [], now=NOW)
    claimed = await claim(ledger, 40)

    held = await asyncio.gather(*(ledger.settle(settlement(delivery, SENT)) for delivery in claimed))

    assert held == [True] * 40
    assert await ledger.counts() == {("email", State.SENT): 40}


async def test_a_cancelled_settle_does_not_stop_other_settlements(ledger: Ledger) -> None:
    events = [an_event(name=f"e{number}") for number in range(20)]
    await ledger.record([recorded(a_delivery(event), event=event) for event in events], [], now=NOW)
    tasks = [asyncio.create_task(ledger.settle(settlement(delivery, SENT))) for delivery in await claim(ledger, 20)]
    await asyncio.sleep(0)
    tasks[0].cancel()

    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [True] * 19


async def test_a_released_delivery_is_due_at_its_time_and_its_attempt_is_not_counted(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    (delivery,) = await claim(ledger)

    await ledger.release(delivery._replace(in_doubt=True), due_at=NOW)

    (again,) = await claim(ledger, lease="other")
    assert (again.attempt, again.in_doubt) == (1, True)


async def test_deliveries_are_found_by_state_channel_execution_time_and_key(ledger: Ledger) -> None:
    one, two = an_event(name="one"), an_event(name="on")
    slack = a_delivery(two, channel="slack", to="#a", created_at=NOW + MINUTE)
    await ledger.record([recorded(a_delivery(one), event=one), recorded(slack, event=two)], [], now=NOW)

    async def found(**wanted: Any) -> list[str]:
        return [one.delivery.channel for one in await ledger.find(DeliveryFilter(**wanted), limit=10)]

    assert await found() == ["slack", "email"]
    assert await found(channel="slack") == ["slack"]
    assert await found(execution="flytesnacks/production/on") == ["slack"]
    assert await found(since=NOW + SECOND) == ["slack"]
    assert await found(states=frozenset({State.DEAD})) == []
    assert await found(keys=[slack.key[:10]]) == ["slack"]


async def test_events_are_read_as_they_were_recorded(ledger: Ledger) -> None:
    event = an_event(labels={"team": "a"}, error={"message": "boom\0\x1b[31m", "kind": "USER"})
    await ledger.record([recorded(event=event)], [], now=NOW)

    assert await ledger.event(event.key) == event
    assert await ledger.event("no/such/event/FAILED") is None


async def test_rejected_messages_are_stored_once_with_their_first_bytes(ledger: Ledger) -> None:
    big = rejected("big", body=b"x" * 100_000, size=100_000, received_at=NOW + SECOND, reason="nul \0 inside")

    await ledger.record([], [rejected(), big], now=NOW)
    await ledger.record([], [rejected(), big], now=NOW)

    newest, oldest = await ledger.find_rejected(limit=10)
    assert (newest.id, len(newest.body), newest.size, newest.whole) == ("big", 65536, 100_000, False)
    assert oldest == rejected()
    assert await ledger.find_rejected(limit=10, id_starts="b") == [newest]


async def test_notified_returns_the_channels_and_addresses_of_an_events_deliveries(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery(), a_delivery(channel="slack", to="#a"))], [], now=NOW)

    assert await ledger.notified(an_event().key) == {("email", "dev-team@example.com"), ("slack", "#a")}


async def test_times_of_other_zones_are_read_as_the_same_time_in_utc(ledger: Ledger) -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-7)))
    await ledger.record([recorded(a_delivery(created_at=elsewhere, due_at=elsewhere))], [], now=NOW)

    (found,) = await ledger.find(DeliveryFilter(), limit=1)
    assert found.delivery.created_at == NOW
    assert found.delivery.created_at.utcoffset() == timedelta(0)


async def test_a_delivery_created_at_a_full_second_is_found_since_that_second(ledger: Ledger) -> None:
    """SQLite compares times as text, so every stored time needs its microseconds."""
    assert NOW.microsecond == 0
    await ledger.record([recorded(a_delivery())], (), now=NOW)
    assert await ledger.find(DeliveryFilter(since=NOW), limit=10)
    assert not await ledger.find(DeliveryFilter(since=NOW + timedelta(microseconds=1)), limit=10)


@pytest.mark.parametrize("length", [10, 10_000])
async def test_long_contents_are_read_as_they_were_recorded(ledger: Ledger, length: int) -> None:
    content = {"html": "<p>Käse & co.</p>" * length}
    await ledger.record([recorded(a_delivery(content=content))], (), now=NOW)
    (found,) = await ledger.find(DeliveryFilter(), limit=10)
    assert found.delivery.content == content


async def test_a_redrive_makes_matching_dead_deliveries_due_with_a_new_retry_budget(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery(), a_delivery(to="b@example.com"))], [], now=NOW)
    for delivery in await claim(ledger):
        await ledger.settle(settlement(delivery, Dead("gave up")))
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


async def test_a_purge_deletes_old_finished_events_and_nothing_else(ledger: Ledger) -> None:
    old, open_one, young = an_event(name="old"), an_event(name="open"), an_event(name="young")
    same = {"subject": "the same content"}
    await ledger.record(
        [recorded(a_delivery(old, content=same), event=old), recorded(a_delivery(open_one), event=open_one)],
        [],
        now=NOW,
    )
    await ledger.record([recorded(a_delivery(young, content=same), event=young)], [], now=NOW + MINUTE)
    for delivery in await claim(ledger):
        if delivery.event != open_one.key:
            await ledger.settle(settlement(delivery, SENT))

    assert await ledger.purge(NOW + SECOND, limit=10) == 1
    assert await ledger.purge(NOW + SECOND, limit=10) == 0

    remaining = await ledger.find(DeliveryFilter(), limit=10)
    assert {one.delivery.event for one in remaining} == {open_one.key, young.key}
    assert {(one.delivery.content or {})["subject"] for one in remaining} == {"failed", "the same content"}
    assert await ledger.event(old.key) is None


async def test_a_replayed_message_has_its_time_of_replay(ledger: Ledger) -> None:
    await ledger.record([], [rejected()], now=NOW)
    await ledger.mark_replayed("a", now=NOW + MINUTE)
    (entry,) = await ledger.find_rejected(limit=5)
    assert entry.replayed_at == NOW + MINUTE


async def test_the_migrations_create_the_tables_that_the_code_expects(ledger_url: str) -> None:
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

        def for_this_dialect(table: Any, *_: object) -> bool:
            return bool(table.info.get("only", connection.dialect.name) == connection.dialect.name)

        context = MigrationContext.configure(connection, opts={"include_object": for_this_dialect})
        return list(compare_metadata(context, metadata))

    def indexes(connection: Connection) -> set[str | None]:
        return {index["name"] for index in inspect(connection).get_indexes("events")}

    async with database.reading() as connection:
        assert await connection.run_sync(differences) == []
        assert ("ix_events_name" in await connection.run_sync(indexes)) == (not database.sqlite)
    await database.aclose()


async def test_a_ledger_of_a_newer_incompatible_version_is_refused(ledger_url: str) -> None:
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


async def test_the_backlog_counts_waiting_due_and_dead_deliveries_by_channel(ledger: Ledger) -> None:
    waiting = [a_delivery(key=f"w{number}", due_at=NOW + number * MINUTE) for number in range(3)]
    dead = [a_delivery(key="d", channel="slack", state=State.DEAD)]
    older = a_delivery(key="o", channel="slack", created_at=NOW - MINUTE)
    await ledger.record([recorded(*waiting, *dead, older)], [], now=NOW)
    assert len(await claim(ledger, 1)) == 1

    assert await ledger.backlog(now=NOW + SECOND) == {
        "email": Backlog(oldest=NOW, waiting=3, due=0, dead=0, open_breakers=0),
        "slack": Backlog(oldest=NOW - MINUTE, waiting=1, due=1, dead=1, open_breakers=0),
    }
    assert (await ledger.backlog(now=NOW + MINUTE))["email"].due == 2


async def test_the_backlog_reads_only_indexes_of_waiting_and_dead_deliveries(tmp_path: Path) -> None:
    from sqlalchemy import event

    asked: list[tuple[str, Any]] = []
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        await ledger.record([recorded(a_delivery())], [], now=NOW)
        engine = ledger._database._engine.sync_engine
        event.listen(engine, "before_cursor_execute", lambda *args: asked.append((args[2], args[3])))
        await ledger.backlog(now=NOW)
    asked = [(query, given) for query, given in asked if "FROM deliveries" in query]
    assert len(asked) == 3
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        for query, given in asked:
            plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query}", [str(one) for one in given])]
            indexes = {"ix_deliveries_backlog", "ix_deliveries_dead", "ix_deliveries_due"}
            assert any(index in step for step in plan for index in indexes), plan


async def test_a_claim_reads_due_deliveries_by_index_and_not_all_waiting_ones(tmp_path: Path) -> None:
    asked: list[str] = []
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        await ledger.record([recorded(a_delivery())], [], now=NOW)
        assert ledger._database._writer is not None
        assert ledger._database._writer._connection is not None
        driver: Any = ledger._database._writer._connection.connection.driver_connection
        driver.set_trace_callback(asked.append)
        await claim(ledger, 1)
    (query,) = [query for query in asked if "JOIN contents" in query]
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query}")]
    assert plan[0] == "SEARCH deliveries USING INDEX ix_deliveries_due (channel=? AND due_at<?)"
    unwanted = {"TEMP B-TREE", "ix_deliveries_state_created_at", "ix_deliveries_backlog", "SCAN"}
    assert not [step for step in plan if any(one in step for one in unwanted)]
    assert [step for step in plan if "ix_deliveries_thread_waiting (thread=? AND state=?)" in step], (
        "not the whole history"
    )


async def test_contents_of_one_day_are_neighbours_in_the_index(tmp_path: Path) -> None:
    days = [
        [
            a_delivery(event, content={"of": [day, event.key]}, occurred_at=NOW + timedelta(days=day))
            for event in (an_event(name=f"run{day}{number}") for number in range(9))
        ]
        for day in (0, 1)
    ]
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        for pair in zip(*days, strict=True):
            batch = [recorded(one, event=an_event(name=one.event.split("/")[2])) for one in pair]
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


async def test_a_purge_deletes_old_rejected_messages(ledger: Ledger) -> None:
    await ledger.record([], [rejected(), rejected("young", received_at=NOW + MINUTE)], now=NOW)

    assert await ledger.purge(NOW + SECOND, limit=10) == 1
    assert [entry.id for entry in await ledger.find_rejected(limit=5)] == ["young"]


def slack(to: str, number: int = 0, **fields: Any) -> Delivery:
    due = {"created_at": NOW, "due_at": NOW + number * SECOND / 1000}
    return a_delivery(channel="slack", to=to, key=f"{to}{number:03}", **due | fields)


async def claim_slack(ledger: Ledger, limit: int = 10, *, at: float = 1, rate_limit: RateLimit | None = None) -> Claim:
    now = NOW + at * SECOND
    admission = AdmissionControl(
        rate_limit=rate_limit or RateLimit(rate=Rate(1, "s"), burst=2), destination=lambda to: to[0], now=now
    )
    return await ledger.claim("slack", limit, lease="me", until=now + MINUTE, admission=admission)


async def test_a_destination_gets_its_burst_and_then_one_delivery_at_each_slot(ledger: Ledger) -> None:
    await ledger.record([recorded(*(slack("#a", number) for number in range(250)), slack("#b", 300))], [], now=NOW)

    first = await claim_slack(ledger)
    assert [delivery.key for delivery in first.deliveries] == ["#a000", "#a001", "#b300"]
    assert first.next_at == NOW + 2 * SECOND
    for second in (2, 3, 4):
        slot = await claim_slack(ledger, at=second)
        assert [delivery.key for delivery in slot.deliveries] == [f"#a{second:03}"]
    assert (await claim_slack(ledger, at=4.5)).deliveries == []


async def test_replicas_share_a_destinations_rate_limit(ledger: Ledger, ledger_url: str) -> None:
    await ledger.record([recorded(*(slack("#a", number) for number in range(40)))], [], now=NOW)
    await claim_slack(ledger)
    async with Ledger(ledger_url) as other:
        claims = await asyncio.gather(*(claim_slack(one, at=11) for one in (ledger, other) * 3))

    assert sorted(delivery.key for claim in claims for delivery in claim.deliveries) == [
        f"#a{n:03}" for n in range(2, 12)
    ]


async def test_a_retry_after_of_a_destination_applies_to_all_replicas(ledger: Ledger, ledger_url: str) -> None:
    await ledger.record([recorded(*(slack("#a", number) for number in range(3)), slack("#b"))], [], now=NOW)
    delivery, *_ = (await claim_slack(ledger, 1)).deliveries
    asked_pause = Feedback("#a", NOW + SECOND, retry_after=30 * SECOND)
    await ledger.settle(replace(settlement(delivery, Retry(NOW + 31 * SECOND, "slow down")), feedback=asked_pause))

    async with Ledger(ledger_url) as other:
        others = await claim_slack(other, at=2)
        assert [delivery.key for delivery in others.deliveries] == ["#b000"]
        assert (await claim_slack(other, at=30.9)).deliveries == []
        assert len((await claim_slack(other, at=33)).deliveries) == 3


async def test_an_open_breaker_lets_one_probe_through_and_its_success_closes_it(ledger: Ledger) -> None:
    rate_limit = RateLimit(max_in_flight=9)
    await ledger.record([recorded(*(slack("#a", number) for number in range(20)))], [], now=NOW)
    failing = (await claim_slack(ledger, FAILURES_TO_OPEN, rate_limit=rate_limit)).deliveries
    for delivery in failing:
        failed = settlement(delivery, Retry(NOW + MINUTE, "busy"))
        await ledger.settle(replace(failed, feedback=Feedback("#a", NOW + SECOND)))

    assert (await claim_slack(ledger, at=2, rate_limit=rate_limit)).deliveries == []
    (probe,) = (await claim_slack(ledger, at=7, rate_limit=rate_limit)).deliveries
    assert probe.destination_failing
    await ledger.settle(replace(settlement(probe, SENT), feedback=Feedback("#a", NOW + 8 * SECOND, succeeded=True)))
    freed = (await claim_slack(ledger, at=13, rate_limit=rate_limit)).deliveries
    assert (len(freed), {delivery.destination_failing for delivery in freed}) == (9, {False})


async def test_a_deferred_delivery_stays_in_doubt(ledger: Ledger) -> None:
    await ledger.record([recorded(slack("#a"), slack("#a", 1))], [], now=NOW)
    assert len((await claim_slack(ledger)).deliveries) == 2  # their worker crashes and never settles them
    one_at_a_time = RateLimit(rate=Rate(1, "min"))
    first = await claim_slack(ledger, at=100, rate_limit=one_at_a_time)
    later = await claim_slack(ledger, at=200, rate_limit=one_at_a_time)
    assert [(len(claim.deliveries), claim.deliveries[0].in_doubt) for claim in (first, later)] == [(1, True)] * 2


async def test_a_threads_deliveries_are_claimed_one_after_another_and_delay_no_other_thread(ledger: Ledger) -> None:
    incident = [slack("#a", number, thread="incident 1", occurred_at=NOW + number * SECOND) for number in range(3)]
    await ledger.record(
        [recorded(*reversed(incident), slack("#a", 7, thread="incident 2", occurred_at=NOW))], [], now=NOW
    )
    rate_limit = RateLimit(max_in_flight=9)

    first = (await claim_slack(ledger, rate_limit=rate_limit)).deliveries
    assert [delivery.key for delivery in first] == ["#a000", "#a007"]
    assert (await claim_slack(ledger, at=2, rate_limit=rate_limit)).deliveries == []
    await ledger.settle(settlement(first[0], Retry(NOW + 5 * SECOND, "busy")))
    # The first delivery of the thread waits for its retry.
    assert (await claim_slack(ledger, at=4, rate_limit=rate_limit)).deliveries == []
    (again,) = (await claim_slack(ledger, at=5, rate_limit=rate_limit)).deliveries
    await ledger.settle(settlement(again, Dead("no such channel")))
    (second,) = (await claim_slack(ledger, at=6, rate_limit=rate_limit)).deliveries
    assert (second.key, second.occurred_at) == ("#a001", NOW + SECOND)


async def test_an_outcome_after_the_lease_is_stored_with_that_reason(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    (lost,) = await claim(ledger)
    (taken,) = await claim(ledger, lease="other", now=NOW + MINUTE)

    assert not await ledger.settle(settlement(lost, Retry(NOW + 2 * MINUTE, "greylisted")))
    assert await ledger.settle(settlement(taken, SENT))
    late, valid = await ledger.history(lost.key)
    assert (late.reason, valid.reason) == (f"{LEASE_LOST}: greylisted", "")


async def test_a_purge_keeps_destinations_whose_bucket_is_not_full_again(ledger: Ledger) -> None:
    await ledger.record([recorded(slack("#a"), slack("#a", 1), slack("#a", 2))], [], now=NOW)
    await claim_slack(ledger)
    await ledger.purge(NOW + SECOND, limit=10)
    assert (await claim_slack(ledger, at=1.5)).deliveries == []  # the state of "#a" was kept


async def test_rejected_messages_are_found_by_the_execution_in_their_key_or_bytes(ledger: Ledger) -> None:
    execution = an_event().execution
    named = b'{"project":"flytesnacks","domain":"production","name":"akx7b9q2vjt5fm4c8h2d"}\xff'
    await ledger.record(
        [],
        [
            rejected("understood", event=f"{execution}/FAILED"),
            rejected("named", body=named, size=len(named)),
            rejected("longer", body=named.replace(b"8h2d", b"8h2d2"), size=len(named) + 1),
            rejected("elsewhere", body=named.replace(b"production", b"staging"), size=len(named) - 3),
            rejected("neighbour", event=f"{execution}2/FAILED", body=named, size=len(named)),
        ],
        now=NOW,
    )

    found = await ledger.find_rejected(limit=10, execution=execution)

    assert {entry.id for entry in found} == {"understood", "named"}


async def test_an_executions_events_are_returned_in_the_order_of_recording(ledger: Ledger) -> None:
    aborted, failed, other = an_event(Phase.ABORTED), an_event(Phase.FAILED), an_event(name="akx7b9q2vjt5fm4c8h2d2")
    await ledger.record([recorded(event=aborted)], [], now=NOW)
    await ledger.record([recorded(event=failed), recorded(event=other)], [], now=NOW + MINUTE)

    stored = await ledger.stored_events(failed.execution)

    assert [entry.event for entry in stored] == [aborted, failed]
    assert (stored[0].recorded_at, stored[0].position, stored[0].reason) == (
        NOW,
        "flyte-cloudevents/0@7",
        "1 rule matched",
    )


async def test_the_ledger_is_complete_since_five_minutes_before_its_first_start(ledger: Ledger) -> None:
    assert await ledger.complete_since(now=NOW) == NOW
    await ledger.record_first_start(now=NOW)
    await ledger.record_first_start(now=NOW + MINUTE)
    assert await ledger.complete_since(now=NOW + MINUTE) == NOW - HEAD_START
    await ledger.purge(NOW + SECOND, limit=10)
    assert await ledger.complete_since(now=NOW + MINUTE) == NOW - HEAD_START, "nothing was deleted"


async def test_after_a_purge_the_ledger_is_complete_since_the_newest_event_that_was_old_enough(ledger: Ledger) -> None:
    """Not since the time up to which was purged: after a long downtime, nothing between the two was ever recorded."""
    await ledger.record_first_start(now=NOW)
    await ledger.record([recorded(event=an_event(name="a1"))], [], now=NOW + MINUTE)
    await ledger.record([recorded(event=an_event(name="a2"))], [], now=NOW + 2 * MINUTE)
    await ledger.record([], [rejected(received_at=NOW + 3 * MINUTE)], now=NOW + 3 * MINUTE)
    await ledger.record([recorded(event=an_event(name="a3"))], [], now=NOW + 60 * MINUTE)
    since = []
    for before in (2, 3, 50):
        await ledger.purge(NOW + before * MINUTE, limit=1)
        since.append(await ledger.complete_since(now=NOW))
    assert since == [NOW + MINUTE, NOW + 2 * MINUTE, NOW + 3 * MINUTE]


async def test_a_ledger_with_older_events_is_complete_since_its_oldest_event(ledger: Ledger) -> None:
    await ledger.record([recorded()], [], now=NOW - 10 * MINUTE)
    assert await ledger.complete_since(now=NOW) == NOW - 10 * MINUTE
    await ledger.record_first_start(now=NOW)
    assert await ledger.complete_since(now=NOW) == NOW - 10 * MINUTE


async def test_reconciled_until_never_goes_back(ledger: Ledger) -> None:
    assert await ledger.reconciled_until() is None
    for until in (NOW, NOW + MINUTE, NOW - MINUTE):
        await ledger.set_reconciled_until(until)
    assert await ledger.reconciled_until() == NOW + MINUTE


async def test_seen_events_are_those_recorded_or_rejected(ledger: Ledger) -> None:
    recorded_key, rejected_key, unseen = (an_event(name=name).key for name in ("recorded", "rejected", "neither"))
    await ledger.record([recorded(event=an_event(name="recorded"))], [rejected(event=rejected_key)], now=NOW)
    assert await ledger.seen_events([recorded_key, rejected_key, unseen]) == {recorded_key, rejected_key}
    assert await ledger.seen_events([]) == frozenset()


async def test_the_newest_event_is_the_one_recorded_last(ledger: Ledger) -> None:
    assert await ledger.newest() is None
    for minute, name in enumerate(("first", "second")):
        await ledger.record([recorded(event=an_event(name=name))], [], now=NOW + minute * MINUTE)
    assert await ledger.newest() == (an_event(name="second").key, NOW + MINUTE)


async def test_recording_nothing_does_not_use_the_database(tmp_path: Path) -> None:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as other_process:
            other_process.execute("BEGIN IMMEDIATE")
            assert await ledger.record([], [], now=NOW) == RecordResult()


# -- threads


def failure(
    name: str, at: int, *, to: str = "ml", plan: str = "train.daily", about: str = "", state: State = State.WAITING
) -> RecordedEvent:
    """An execution failed `at` seconds after NOW, and a rule notifies `to`."""
    event = an_event(name=name, launch_plan=a_launch_plan(plan)).model_copy(update={"occurred_at": NOW + at * SECOND})
    delivery = a_delivery(
        event,
        channel="pagerduty",
        to=to,
        state=state,
        thread=f"{plan} {about} {to}",
        occurred_at=event.occurred_at,
        subject=plan,
    )
    return recorded(delivery, event=event)


def success(name: str, at: int, *, plan: str = "train.daily", started: int | None = None) -> RecordedEvent:
    """An execution succeeded `at` seconds after NOW; no rule matches. `started`: when it started, if that is known."""
    event = an_event(Phase.SUCCEEDED, name=name, launch_plan=a_launch_plan(plan))
    event = event.model_copy(update={"occurred_at": NOW + at * SECOND})
    return replace(
        recorded(event=event),
        success=Success(
            event=event.key,
            occurred_at=event.occurred_at,
            started_at=event.occurred_at if started is None else NOW + started * SECOND,
            subjects=(plan,),
            channels=frozenset({"pagerduty"}),
            recorded_at=NOW,
        ),
    )


async def record_and_send(ledger: Ledger, *entries: RecordedEvent, pages: bool = True) -> list[str]:
    """Record the entries one by one and send all deliveries; returns what was sent (see `sent`)."""
    for entry in entries:
        await ledger.record([entry], [], now=NOW)
    return await sent(ledger, pages=pages)


async def sent(ledger: Ledger, *, now: datetime = NOW, pages: bool = True) -> list[str]:
    """Send all waiting deliveries; returns `EXECUTION/PHASE to ADDRESS after N`, N: earlier messages in the thread.

    A superseded message is dropped and listed as `EXECUTION/PHASE to ADDRESS superseded`; a superseded failure is sent
    all the same unless the channel `pages`.
    """
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=now)
    messages = []
    while taken := (
        await ledger.claim("pagerduty", 10, lease="me", until=now + MINUTE, admission=admission)
    ).deliveries:
        for delivery in sorted(taken, key=lambda one: one.thread):
            claimed = await ledger.thread(delivery)
            assert claimed is not None
            name = f"{delivery.event.split('/', 2)[2]} to {delivery.addresses[0]}"
            if claimed.superseded and (pages or claimed.thread.resolves):
                messages.append(f"{name} superseded")
                assert await ledger.settle(settlement(delivery, Dropped(DropReason.SUPERSEDED, "outdated")))
                continue
            messages.append(f"{name} after {len(claimed.thread.earlier)}")
            if delivery.content is None:
                assert await ledger.store_content(delivery, {"subject": "resolved"})
            receipt = Receipt(answer=Answer("202"), reference={"name": name})
            assert await ledger.settle(settlement(delivery, Sent(receipt)))
    return messages


async def test_a_success_resolves_each_open_thread_of_its_launch_plan_once(ledger: Ledger) -> None:
    failures = [failure("a", 1), failure("b", 2), failure("b2", 2, to="ops"), failure("c", 3, plan="other")]
    assert await record_and_send(ledger, *failures) == [
        "c/FAILED to ml after 0",
        "a/FAILED to ml after 0",
        "b2/FAILED to ops after 0",
        "b/FAILED to ml after 1",
    ]
    assert sorted(await record_and_send(ledger, success("d", 4), success("e", 5))) == [
        "d/SUCCEEDED to ml after 2",
        "d/SUCCEEDED to ops after 1",
    ]


async def test_recording_a_success_again_adds_nothing(ledger: Ledger) -> None:
    await ledger.record([failure("a", 1), success("b", 2), success("b", 2)], [], now=NOW)
    await ledger.record([success("b", 2)], [], now=NOW)
    assert await sent(ledger, pages=False) == ["a/FAILED to ml after 0", "b/SUCCEEDED to ml after 1"]


async def test_a_success_without_an_earlier_failure_sends_nothing(ledger: Ledger) -> None:
    assert await record_and_send(ledger, success("a", 1)) == []
    assert await record_and_send(ledger, failure("b", 2, state=State.DEAD), success("c", 3)) == []


async def test_a_failure_older_than_a_recorded_success_is_superseded_and_opens_no_thread(ledger: Ledger) -> None:
    assert await record_and_send(ledger, success("b", 2), failure("a", 1)) == ["a/FAILED to ml superseded"]
    assert await record_and_send(ledger, success("c", 3)) == []
    (found,) = await ledger.find(DeliveryFilter(states=frozenset({State.DROPPED})), limit=9)
    assert (found.delivery.drop_reason, found.delivery.reason) == (DropReason.SUPERSEDED, "outdated")
    assert (found.delivery.attempt, await ledger.history(found.delivery.key)) == (0, [])
    assert await ledger.redrive(DeliveryFilter(), now=NOW) == 0


async def test_a_superseded_failure_is_sent_where_nobody_is_paged_and_the_next_success_resolves_it(
    ledger: Ledger,
) -> None:
    messages = await record_and_send(ledger, success("b", 2), failure("a", 1), pages=False)
    assert messages == ["a/FAILED to ml after 0"]
    assert await record_and_send(ledger, success("c", 3), pages=False) == ["c/SUCCEEDED to ml after 1"]


async def test_only_a_run_that_started_after_the_failure_ended_resolves_its_thread(ledger: Ledger) -> None:
    overlapping = success("b", 5, started=1)
    assert await record_and_send(ledger, failure("a", 2), overlapping) == ["a/FAILED to ml after 0"]
    assert await record_and_send(ledger, success("c", 6, started=2)) == []  # at the same moment: not after it
    assert await record_and_send(ledger, success("d", 7, started=3)) == ["d/SUCCEEDED to ml after 1"]


async def test_only_a_run_that_started_after_the_failure_ended_stands_in_its_way(ledger: Ledger) -> None:
    assert await record_and_send(ledger, success("b", 5, started=1), failure("a", 2)) == ["a/FAILED to ml after 0"]
    assert sorted(await record_and_send(ledger, success("c", 6, started=3), failure("d", 2, to="ops"))) == [
        "c/SUCCEEDED to ml after 1",
        "d/FAILED to ops superseded",
    ]


async def test_a_resolved_notice_stands_at_the_start_of_its_run(ledger: Ledger) -> None:
    await record_and_send(ledger, failure("a", 1))
    late = failure("b", 4)  # it ended after the successful run had started
    assert await record_and_send(ledger, success("c", 9, started=3), late) == [
        "c/SUCCEEDED to ml after 1",
        "b/FAILED to ml after 0",
    ]
    assert await record_and_send(ledger, success("d", 9, started=5)) == ["d/SUCCEEDED to ml after 1"]


async def test_a_late_failure_is_superseded_by_the_waiting_resolved_notice(ledger: Ledger) -> None:
    entries = [failure("a", 1), success("c", 3), failure("b", 2)]
    assert await record_and_send(ledger, *entries) == [
        "a/FAILED to ml superseded",
        "b/FAILED to ml superseded",
        "c/SUCCEEDED to ml after 0",
    ]
    others = [failure("a2", 1, to="ops"), success("c2", 4), failure("b2", 2, to="ops")]
    assert await record_and_send(ledger, *others, pages=False) == [
        "a2/FAILED to ops after 0",
        "b2/FAILED to ops after 1",
        "c2/SUCCEEDED to ops after 2",
    ]


async def test_a_success_older_than_a_recorded_failure_resolves_nothing_and_the_next_one_does(ledger: Ledger) -> None:
    assert await record_and_send(ledger, failure("a", 1), failure("c", 3)) == [
        "a/FAILED to ml after 0",
        "c/FAILED to ml after 1",
    ]
    assert await record_and_send(ledger, success("b", 2)) == []
    assert await record_and_send(ledger, success("d", 4)) == ["d/SUCCEEDED to ml after 2"]


async def test_a_failure_that_dies_leaves_the_thread_to_the_next_success(ledger: Ledger) -> None:
    await record_and_send(ledger, failure("a", 1))
    await ledger.record([failure("b", 4)], [], now=NOW)
    await ledger.record([success("c", 3)], [], now=NOW)  # resolves nothing: a newer failure waits
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=NOW)
    (dying,) = (await ledger.claim("pagerduty", 10, lease="me", until=NOW + MINUTE, admission=admission)).deliveries
    await ledger.settle(settlement(dying, Dead("refused")))
    assert await record_and_send(ledger, success("d", 5)) == ["d/SUCCEEDED to ml after 1"]


async def test_a_success_resolves_the_threads_of_all_earlier_executions(ledger: Ledger) -> None:
    entries = [failure("a", 1, about="a"), failure("b", 2, about="b"), failure("d", 4, about="d")]
    await record_and_send(ledger, *entries)
    assert sorted(await record_and_send(ledger, success("c", 3))) == [
        "c/SUCCEEDED to ml after 1",
        "c/SUCCEEDED to ml after 1",
    ]


async def test_after_a_resolved_notice_a_failure_opens_the_thread_again(ledger: Ledger) -> None:
    await record_and_send(ledger, failure("a", 1))
    await record_and_send(ledger, success("b", 2))
    assert await record_and_send(ledger, failure("c", 3), failure("d", 4)) == [
        "c/FAILED to ml after 0",
        "d/FAILED to ml after 1",
    ]


async def test_a_thread_has_the_first_and_the_last_of_its_earlier_messages(ledger: Ledger) -> None:
    await record_and_send(ledger, *(failure(f"n{number}", number) for number in range(5)))
    await ledger.record([success("s", 9)], [], now=NOW)
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=NOW)
    (delivery,) = (await ledger.claim("pagerduty", 10, lease="me", until=NOW + MINUTE, admission=admission)).deliveries

    claimed = await ledger.thread(delivery)

    assert claimed is not None
    thread = claimed.thread
    assert (thread.key, thread.resolves) == (delivery.thread, True)
    assert [one.reference["name"] for one in thread.earlier] == ["n0/FAILED to ml", "n4/FAILED to ml"]
    assert thread.earlier[0].content == {"subject": "failed"}


async def test_a_dead_message_is_an_earlier_message_only_if_it_is_in_doubt(ledger: Ledger) -> None:
    for outcome, expected in ((Dead("gave up", in_doubt=True), 1), (Dead("refused"), 0)):
        plan = outcome.reason
        await ledger.record([failure(f"a {plan}", 1, plan=plan), failure(f"b {plan}", 2, plan=plan)], [], now=NOW)
        admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=NOW)
        claim_one = await ledger.claim("pagerduty", 10, lease="me", until=NOW + MINUTE, admission=admission)
        await ledger.settle(settlement(claim_one.deliveries[0], outcome))
        claim_two = await ledger.claim("pagerduty", 10, lease="me", until=NOW + MINUTE, admission=admission)
        claimed = await ledger.thread(claim_two.deliveries[0])
        assert claimed is not None
        assert len(claimed.thread.earlier) == expected
        await ledger.settle(settlement(claim_two.deliveries[0], SENT))
        await sent(ledger)


async def test_a_dead_resolved_notice_is_superseded_by_a_newer_failure(ledger: Ledger) -> None:
    await record_and_send(ledger, failure("a", 1))
    await ledger.record([success("b", 2)], [], now=NOW)
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=NOW)
    (notice,) = (await ledger.claim("pagerduty", 10, lease="me", until=NOW + MINUTE, admission=admission)).deliveries
    await ledger.settle(settlement(notice, Dead("gave up")))
    assert await record_and_send(ledger, failure("c", 3)) == ["c/FAILED to ml after 1"]
    await ledger.redrive(DeliveryFilter(), now=NOW)
    assert await sent(ledger) == ["b/SUCCEEDED to ml superseded"]
    assert await record_and_send(ledger, success("d", 4)) == ["d/SUCCEEDED to ml after 2"]


async def test_a_resolved_notice_replaces_a_rules_delivery_for_the_same_success(ledger: Ledger) -> None:
    asked = success("b", 2)
    asked = replace(asked, deliveries=[a_delivery(asked.event, channel="pagerduty", to="ml")])

    await ledger.record([failure("a", 1), asked], [], now=NOW)

    kinds = [one.delivery.kind for one in await ledger.find(DeliveryFilter(), limit=9)]
    assert kinds.count(Kind.RESOLVED_NOTICE) == 1
    assert len(await ledger.find(DeliveryFilter(), limit=9)) == 2
    alone = success("d", 4)
    alone = replace(alone, deliveries=[a_delivery(alone.event, channel="pagerduty", to="ml")])
    await ledger.record([alone], [], now=NOW)
    (notice,) = await ledger.find(DeliveryFilter(execution=str(alone.event.execution)), limit=9)
    assert (notice.delivery.kind, notice.delivery.thread) == (Kind.NOTIFICATION, "")


async def test_a_failure_and_a_success_recorded_at_once_by_two_replicas_leave_no_thread_open(
    ledger: Ledger, ledger_url: str
) -> None:
    plans = [f"plan{number}" for number in range(30)]
    async with Ledger(ledger_url) as other:
        await asyncio.gather(
            *(ledger.record([failure(f"f-{plan}", 1, plan=plan)], [], now=NOW) for plan in plans),
            *(other.record([success(f"s-{plan}", 2, plan=plan)], [], now=NOW) for plan in plans),
        )

    lines = await sent(ledger)
    for plan in plans:
        messages = [line for line in lines if line.partition("/")[0] in {f"f-{plan}", f"s-{plan}"}]
        superseded = f"f-{plan}/FAILED to ml superseded"
        assert messages in ([superseded], [superseded, f"s-{plan}/SUCCEEDED to ml after 0"])


async def test_a_purge_deletes_the_status_of_launch_plans(ledger: Ledger, ledger_url: str) -> None:
    await record_and_send(ledger, failure("a", 1), success("b", 2))
    await ledger.purge(NOW + MINUTE, limit=10)
    assert await record_and_send(ledger, failure("older", 0)) == ["older/FAILED to ml after 0"]


def run_of(name: str, version: str, *, plan: str = "train.daily") -> RecordedEvent:
    event = an_event(Phase.SUCCEEDED, name=name, launch_plan=a_launch_plan(plan, version))
    change = a_delivery(event, channel="pagerduty", to="ml")
    return replace(recorded(event=event), version=NewVersion(launch_plan=plan, version=version, change_events=[change]))


async def test_a_new_version_is_reported_once_and_a_launch_plans_first_version_never(
    ledger: Ledger, ledger_url: str
) -> None:
    await ledger.record([run_of("a", "v1"), run_of("b", "v1")], [], now=NOW)
    assert await ledger.find(DeliveryFilter(), limit=9) == []
    async with Ledger(ledger_url) as other:
        await asyncio.gather(
            *(one.record([run_of(f"{number}", "v2")], [], now=NOW) for number, one in enumerate([ledger, other] * 5))
        )
    await ledger.record([run_of("c", "v1"), run_of("d", "v9", plan="other")], [], now=NOW)

    (reported,) = await ledger.find(DeliveryFilter(), limit=9)
    assert reported.delivery.channel == "pagerduty"


async def test_a_version_may_contain_any_character(ledger: Ledger) -> None:
    for number in range(2):
        await ledger.record([run_of(f"a{number}", "v1\n'\U0001f680")], [], now=NOW)
    assert await ledger.find(DeliveryFilter(), limit=9) == []
