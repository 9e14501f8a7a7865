"""What people look at, in a ledger of very many deliveries: every page begins at an index, and reads little."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import event, func, select

from dispatcher.ledger import DeliveryFilter, EventFilter, Ledger, Settlement
from dispatcher.ledger.schema import delivery_recipients
from dispatcher.ledger.search import Cursor
from dispatcher.model.delivery import Dead, State
from dispatcher.model.event import ExecutionId
from dispatcher.model.rate_limit import AdmissionControl, RateLimit
from tests.ledger.test_ledger import heard
from tests.support.builders import a_delivery, an_event
from tests.support.crowd import EACH, crowd

DELIVERIES = int(os.environ.get("LEDGER_ROWS", "100000"))
"""The bounds below hold for any number; LEDGER_ROWS=1000000 takes two minutes longer."""
BEGIN = datetime.fromtimestamp(1763600000, UTC)
NOW = BEGIN + timedelta(seconds=DELIVERIES // EACH)
MIDDLE = Cursor(BEGIN + timedelta(seconds=DELIVERIES // EACH // 2), "7")
STEPS = 4_000_000
"""Of SQLite's machine, for one page."""
BUFFERS = 150_000
"""Pages of PostgreSQL's that one page touches, each as often as it does; about four for a row that is looked up."""
BIG = ("deliveries", "events", "told", "attempts", "rejected")
DEAD = frozenset({State.DEAD})
Look = Callable[[Ledger], Awaitable[Any]]


def deliveries(**wanted: Any) -> Look:
    return lambda ledger: ledger.queries.deliveries(DeliveryFilter(**wanted), limit=50, after=MIDDLE)


def events(**wanted: Any) -> Look:
    return lambda ledger: ledger.queries.events(EventFilter(**wanted), limit=50, after=MIDDLE)


def count(**wanted: Any) -> Look:
    return lambda ledger: ledger.queries.count(DeliveryFilter(states=DEAD, **wanted))


def meant(text: str) -> Look:
    return lambda ledger: ledger.queries.meant(text)


LOOKS: dict[str, Look] = {
    "deliveries": deliveries(),
    "dead": deliveries(states=DEAD),
    "waiting or sent": deliveries(states=frozenset({State.WAITING, State.SENT})),
    "channel": deliveries(channel="teams"),
    "since": deliveries(since=BEGIN, until=NOW),
    "recipient": deliveries(recipient="team-7"),
    "rare recipient": deliveries(recipient="rare"),
    "recipient, dead": deliveries(recipient="team-7", states=DEAD),
    "launch plan": deliveries(launch_plan="plan-7"),
    "rare launch plan": deliveries(launch_plan="rare"),
    "launch plan, dead": deliveries(launch_plan="plan-7", states=DEAD),
    "launch plan, channel, recipient": deliveries(launch_plan="plan-7", channel="email", recipient="team-7"),
    "execution": deliveries(execution="p/d/e4711"),
    "execution's name": deliveries(execution="e4711"),
    "keys": deliveries(keys=["0" * 28 + "0001", "0" * 27 + "00a"]),
    "count dead": count(),
    "count dead of a recipient": count(recipient="team-7"),
    "count dead of a launch plan": count(launch_plan="plan-7"),
    "reasons": lambda ledger: ledger.queries.reasons(DeliveryFilter(states=DEAD), limit=10),
    "executions": events(),
    "executions of a launch plan": events(launch_plan="plan-7"),
    "executions by verdict": events(verdict="disabled"),
    "executions of a project": events(project="other", phase="FAILED"),
    "executions by name": events(execution="e4711"),
    "rejected": lambda ledger: ledger.queries.rejected(limit=50, after=MIDDLE),
    "rejected, replayed": lambda ledger: ledger.queries.rejected(limit=50, after=MIDDLE, replayed=True),
    "latest": lambda ledger: ledger.queries.latest(limit=200),
    "standing": lambda ledger: ledger.queries.standing(),
    "stretches": lambda ledger: ledger.queries.time_buckets(NOW - timedelta(days=1), NOW, number=24),
    "one": lambda ledger: ledger.delivery("0" * 28 + "0001"),
    "history": lambda ledger: ledger.history("0" * 28 + "0001"),
    **{f"meant {text}": meant(text) for text in ("e7", "p/d/e7", "rare", "0" * 28 + "f4")},
}


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


@pytest.mark.timeout(900)
async def test_every_page_begins_at_an_index_and_reads_little_of_a_large_ledger(ledger: Ledger) -> None:
    await crowd(ledger._database, DELIVERIES)
    examine = sqlite_cost if ledger._database.sqlite else postgres_cost
    wrong = []
    for name, look in LOOKS.items():
        with overheard(ledger) as said:
            await look(ledger)
        assert said, name
        for statement, given in said:
            wrong += [f"{name}: {problem}\n{statement}" for problem in await examine(ledger, statement, given)]
    assert not wrong, "\n\n".join(wrong)


@contextmanager
def overheard(ledger: Ledger) -> Iterator[list[tuple[str, Any]]]:
    """What the ledger asks its database meanwhile."""
    said: list[tuple[str, Any]] = []

    def hear(_connection: Any, _cursor: Any, statement: str, given: Any, _context: Any, _many: bool) -> None:
        if statement.lstrip().upper().startswith("SELECT"):
            said.append((statement, given))

    engine = ledger._database._engine.sync_engine
    event.listen(engine, "before_cursor_execute", hear)
    try:
        yield said
    finally:
        event.remove(engine, "before_cursor_execute", hear)


async def sqlite_cost(ledger: Ledger, statement: str, given: Any) -> list[str]:
    """What is wrong with a statement's plan, or its cost, on SQLite."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1000

    async with ledger._database.reading() as connection:
        plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", given)
        lines = [row["detail"] for row in plan.mappings()]
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        await raw.set_progress_handler(step, 1000)
        await connection.exec_driver_sql(statement, given)
        await raw.set_progress_handler(None, 0)
    # A walk along an index, or along the attempts' numbers, ends at the page's limit: the steps tell.
    whole = re.compile(rf"SCAN (?!attempts)({'|'.join(BIG)})")
    problems = [line for line in lines if whole.fullmatch(line)]
    return problems + ([f"{steps:,} steps"] if steps > STEPS else [])


async def postgres_cost(ledger: Ledger, statement: str, given: Any) -> list[str]:
    """The same on PostgreSQL."""
    async with ledger._database.reading() as connection:
        if DELIVERIES < 1_000_000:  # a table as small as this PostgreSQL rather reads whole, and is right
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        rows = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", given)
        found: Any = rows.scalar()
    plan = (found if isinstance(found, list) else orjson.loads(found))[0]["Plan"]
    problems = [
        f"Seq Scan on {node['Relation Name']}"
        for node in nodes(plan)
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] in BIG
    ]
    touched = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return problems + ([f"{touched:,} buffers"] if touched > BUFFERS else [])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


async def test_an_execution_is_found_by_its_name_whoever_owns_it(ledger: Ledger) -> None:
    parts = ("p", "p.", "p-x", "p0", "P", "é", "p d", "~")  # before and after "/" in any order of texts
    owners = [(project, domain) for project in parts for domain in parts if project < domain or domain == "p"]
    names = {owner: ("n", "N", owner[0])[: 1 + at % 3] for at, owner in enumerate(owners)}
    executions = [ExecutionId(project=one, domain=two, name=name) for one, two in owners for name in names[one, two]]
    ended = [an_event().model_copy(update={"execution": one}) for one in executions]
    await ledger.record([heard(a_delivery(one), event=one) for one in ended], [], now=NOW)

    for text in {"n", "N", "nobody", "p/p", *parts, *(str(one.execution) for one in ended)}:
        theirs = {one.key for one in ended if text in {one.execution.name, str(one.execution)}}
        page = await ledger.queries.events(EventFilter(execution=text), limit=200)
        assert {entry.key for entry in page.entries} == theirs, text
        assert {one.delivery.event for one in await ledger.find(DeliveryFilter(execution=text), limit=200)} == theirs, (
            text
        )
        assert await ledger.redrive(DeliveryFilter(execution=text), now=NOW) == 0, text  # none is dead


async def test_recipients_are_known_whoever_wrote_the_delivery_and_forgotten_with_it(ledger: Ledger) -> None:
    strange = ("A\0b@example.com", "Ünïcode@EXAMPLE.com", "x" * 1000, 'quo"te\\\\u0000', "😀")
    for number, name in enumerate(strange):
        ended = an_event(name=f"e{number}")
        for _ in range(2):
            await ledger.record([heard(a_delivery(ended, to=name), event=ended)], [], now=NOW)
    assert len(await ledger.find(DeliveryFilter(), limit=9)) == len(strange)  # none was in the way of its delivery
    for name, found in (("ÜNïCODE@example.com", 1), ("ünïcode@example.com", 0), ("x" * 1000, 1), ("😀", 1)):
        assert len((await ledger.queries.deliveries(DeliveryFilter(recipient=name), limit=9)).entries) == found, name

    later = NOW + timedelta(days=1000)
    gate = AdmissionControl(pace=RateLimit(), destination=lambda _: "", now=later)
    for delivery in (await ledger.claim("email", 9, lease="me", until=later, gate=gate)).deliveries:
        await ledger.settle(Settlement(delivery=delivery, outcome=Dead("no"), started_at=NOW, ended_at=NOW))
    assert await ledger.purge(later, limit=100) == len(strange)
    async with ledger._database.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(delivery_recipients)) == 0
