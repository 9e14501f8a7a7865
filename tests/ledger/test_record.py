"""Recording events with their deliveries, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta, timezone
from pathlib import Path

import orjson
import pytest

from dispatcher.ledger import Filter, Ledger, RecordedEvent, RecordResult
from dispatcher.model.delivery import Dead, NewVersion, RuleRef
from dispatcher.model.phase import Phase
from dispatcher.tracing import Span
from tests.support.builders import NOW, a_delivery, a_launch_plan, an_event
from tests.support.ledger_steps import MINUTE, claim, recorded, settlement


async def test_a_recorded_delivery_is_claimed_unchanged(ledger: Ledger) -> None:
    rules = (RuleRef("", "plans/größer.yaml:12"), RuleRef("route", "routes.yaml:\0\ud800"))
    delivery = a_delivery(content={"subject": "größer", "html": "<p>" * 1000}, rules=rules, severity="critical")

    written = await ledger.record([recorded(delivery)], [], now=NOW)

    assert written == RecordResult(frozenset({an_event().key}), [delivery])
    readable = (rules[0], RuleRef("route", "routes.yaml:\0?"))
    claimed = delivery._replace(attempt=1, lease="me", due_at=NOW + MINUTE, rules=readable)
    assert await claim(ledger) == [claimed]


async def test_an_event_that_is_recorded_again_adds_nothing(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)

    again = await ledger.record([recorded(a_delivery(to="somebody-else@example.com"))], [], now=NOW + MINUTE)

    assert (again.new, again.waiting) == (frozenset(), [])
    assert len(await ledger.history.find(Filter(), limit=10)) == 1


async def test_an_event_twice_in_one_batch_is_recorded_once(ledger: Ledger) -> None:
    written = await ledger.record([recorded(a_delivery()), recorded(a_delivery(to="late@example.com"))], [], now=NOW)

    assert len(written.new) == 1
    (found,) = await ledger.history.find(Filter(), limit=10)
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
    assert len(await ledger.history.find(Filter(), limit=100)) == 50


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


async def test_recording_nothing_does_not_use_the_database(tmp_path: Path) -> None:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as other_process:
            other_process.execute("BEGIN IMMEDIATE")
            assert await ledger.record([], [], now=NOW) == RecordResult()


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


@pytest.mark.parametrize("length", [10, 10_000])
async def test_long_contents_are_read_as_they_were_recorded(ledger: Ledger, length: int) -> None:
    content = {"html": "<p>Käse & co.</p>" * length}
    await ledger.record([recorded(a_delivery(content=content))], (), now=NOW)
    (found,) = await ledger.history.find(Filter(), limit=10)
    assert found.delivery.content == content


async def test_times_of_other_zones_are_read_as_the_same_time_in_utc(ledger: Ledger) -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-7)))
    await ledger.record([recorded(a_delivery(created_at=elsewhere, due_at=elsewhere))], [], now=NOW)

    (found,) = await ledger.history.find(Filter(), limit=1)
    assert found.delivery.created_at == NOW
    assert found.delivery.created_at.utcoffset() == timedelta(0)


def run_of(name: str, version: str, *, plan: str = "train.daily") -> RecordedEvent:
    event = an_event(Phase.SUCCEEDED, name=name, launch_plan=a_launch_plan(plan, version))
    change = a_delivery(event, channel="pagerduty", to="ml")
    return replace(recorded(event=event), version=NewVersion(launch_plan=plan, version=version, change_events=[change]))


async def test_a_new_version_is_reported_once_and_a_launch_plans_first_version_never(
    ledger: Ledger, ledger_url: str
) -> None:
    await ledger.record([run_of("a", "v1"), run_of("b", "v1")], [], now=NOW)
    assert await ledger.history.find(Filter(), limit=9) == []
    async with Ledger(ledger_url) as other:
        await asyncio.gather(
            *(one.record([run_of(f"{number}", "v2")], [], now=NOW) for number, one in enumerate([ledger, other] * 5))
        )
    await ledger.record([run_of("c", "v1"), run_of("d", "v9", plan="other")], [], now=NOW)

    (reported,) = await ledger.history.find(Filter(), limit=9)
    assert reported.delivery.channel == "pagerduty"


async def test_a_version_may_contain_any_character(ledger: Ledger) -> None:
    for number in range(2):
        await ledger.record([run_of(f"a{number}", "v1\n'\U0001f680")], [], now=NOW)
    assert await ledger.history.find(Filter(), limit=9) == []
