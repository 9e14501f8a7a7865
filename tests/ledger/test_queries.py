"""The console's queries on a large ledger: each one starts from an index and reads few rows."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import orjson
import pytest
from sqlalchemy import func, select

from dispatcher.ledger import Filter, Ledger, Settlement
from dispatcher.ledger.engine import Database
from dispatcher.ledger.records import Count, Cursor
from dispatcher.ledger.schema import delivery_recipients
from dispatcher.model.delivery import Dead, State
from dispatcher.model.event import ExecutionId
from dispatcher.model.rate_limit import AdmissionControl, RateLimit
from tests.support.builders import a_delivery, an_event
from tests.support.large_ledger import BEGIN, end_of, fill_ledger
from tests.support.ledger_steps import an_action, recorded
from tests.support.ledgers import captured_statements, opened_database

DELIVERIES = int(os.environ.get("LEDGER_ROWS", "100000"))
"""The limits below are the same for any number; LEDGER_ROWS=1000000 takes two minutes longer."""
NOW = end_of(DELIVERIES)
MIDDLE = Cursor(end_of(DELIVERIES // 2), "7")
STEPS = 4_000_000
"""How many instructions of SQLite's virtual machine one query may take."""
BUFFERS = 160_000
"""How many buffer accesses one query may take on PostgreSQL; a row that is found by an index takes about four, and an
event whose three deliveries are compared with a recipient fifteen."""
BIG = ("deliveries", "events", "delivery_recipients", "attempts", "rejected")
DEAD = frozenset({State.DEAD})
NAMES: Any = dict.fromkeys(("project", "domain", "launch_plan", "cause", "channel", "recipient"), "none")
Query = Callable[[Ledger], Awaitable[Any]]


def deliveries(**wanted: Any) -> Query:
    return lambda ledger: ledger.queries.deliveries(Filter(**wanted), limit=50, after=MIDDLE)


def events(**wanted: Any) -> Query:
    return lambda ledger: ledger.queries.events(Filter(**wanted), limit=50, after=MIDDLE)


def count(**wanted: Any) -> Query:
    return lambda ledger: ledger.queries.count(Filter(states=DEAD, **wanted))


def identify(text: str) -> Query:
    return lambda ledger: ledger.queries.identify(text)


async def waits(ledger: Ledger) -> None:
    """Ask what a page of waiting deliveries waits for, as if each had a thread and were due later."""
    page = await ledger.queries.deliveries(Filter(states=frozenset({State.WAITING})), limit=50)
    threaded = [replace(one, delivery=one.delivery._replace(thread="t")) for one in page.entries]
    await ledger.queries.with_waits(threaded, now=BEGIN)


QUERIES: dict[str, Query] = {
    "deliveries": deliveries(),
    "dead": deliveries(states=DEAD),
    "waiting or sent": deliveries(states=frozenset({State.WAITING, State.SENT})),
    "channel": deliveries(channel="teams"),
    "cancellable": deliveries(states=frozenset({State.WAITING}), unleased_at=NOW),
    "count cancellable": lambda ledger: ledger.queries.count(
        Filter(states=frozenset({State.WAITING}), unleased_at=NOW)
    ),
    "since": deliveries(since=BEGIN, until=NOW),
    "recipient": deliveries(recipient="team-7"),
    "rare recipient": deliveries(recipient="rare"),
    "recipient, dead": deliveries(recipient="team-7", states=DEAD),
    "launch plan": deliveries(launch_plan="plan-7"),
    "rare launch plan": deliveries(launch_plan="rare"),
    "launch plan, dead": deliveries(launch_plan="plan-7", states=DEAD),
    "launch plan, channel, recipient": deliveries(launch_plan="plan-7", channel="email", recipient="team-7"),
    "cause": deliveries(cause="v1:9"),
    "rare cause": deliveries(cause="v1:rare"),
    "cause, dead": deliveries(cause="v1:9", states=DEAD),
    "cause, launch plan": deliveries(cause="v1:9", launch_plan="plan-9"),
    "project, phase, verdict": deliveries(project="other", phase="FAILED", verdict="matched"),
    "execution": deliveries(execution="p/d/e4711"),
    "execution's name": deliveries(execution="e4711"),
    "waits": waits,
    "keys": deliveries(keys=["0" * 28 + "0001", "0" * 27 + "00a"]),
    "count dead": count(),
    "count dead of a recipient": count(recipient="team-7"),
    "count dead of a launch plan": count(launch_plan="plan-7"),
    "count dead of a cause": count(cause="v1:9"),
    "reasons": lambda ledger: ledger.queries.reasons(Filter(states=DEAD), limit=10),
    "executions": events(),
    "executions of a launch plan": events(launch_plan="plan-7"),
    "executions of a cause": events(cause="v1:9"),
    "executions of a rare cause and a project": events(cause="v1:rare", project="other"),
    "causes": lambda ledger: ledger.causes.most_frequent(Filter(), limit=50),
    "causes of a launch plan in a time": lambda ledger: ledger.causes.most_frequent(
        Filter(launch_plan="plan-9", since=BEGIN, until=NOW), limit=50
    ),
    "executions by verdict": events(verdict="disabled"),
    "executions of a project": events(project="other", phase="FAILED"),
    "executions with a rare recipient": events(recipient="rare"),
    "executions with a dead delivery on a channel": events(channel="teams", states=DEAD),
    "executions of a launch plan with a recipient": events(launch_plan="plan-7", recipient="rare"),
    "unknown names": lambda ledger: ledger.names.unknown(Filter(**NAMES)),
    "executions by name": events(execution="e4711"),
    "rejected": lambda ledger: ledger.queries.rejected(limit=50, after=MIDDLE),
    "rejected, replayed": lambda ledger: ledger.queries.rejected(limit=50, after=MIDDLE, replayed=True),
    "latest": lambda ledger: ledger.queries.latest(limit=200),
    "status": lambda ledger: ledger.queries.status(),
    "time buckets": lambda ledger: ledger.queries.time_buckets(NOW - timedelta(days=1), NOW, number=24),
    "one delivery": lambda ledger: ledger.history.delivery("0" * 28 + "0001"),
    "history": lambda ledger: ledger.history.attempts("0" * 28 + "0001"),
    "actions": lambda ledger: ledger.history.actions("0" * 28 + "0001"),
    **{f"identify {text}": identify(text) for text in ("e7", "p/d/e7", "rare", "v1:9", "0" * 28 + "f4")},
}


@pytest.mark.timeout(900)
async def test_every_query_starts_from_an_index_and_reads_few_rows_of_a_large_ledger(
    ledger: Ledger, ledger_url: str
) -> None:
    await fill_ledger(ledger_url, DELIVERIES)
    wrong = []
    for name, query in QUERIES.items():
        with captured_statements() as statements:
            await query(ledger)
        selects = [(statement, given) for statement, given in statements if statement.lstrip().startswith("SELECT")]
        assert selects, name
        async with opened_database(ledger_url) as database:
            problems_of = sqlite_problems if database.sqlite else postgres_problems
            for statement, given in selects:
                wrong += [
                    f"{name}: {problem}\n{statement}" for problem in await problems_of(database, statement, given)
                ]
    assert not wrong, "\n\n".join(wrong)


async def sqlite_problems(database: Database, statement: str, parameters: Any) -> list[str]:
    """Problems of a statement on SQLite: full scans in its plan, or too many steps."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1000

    async with database.reading() as connection:
        plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        lines = [row["detail"] for row in plan.mappings()]
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        await raw.set_progress_handler(step, 1000)
        await connection.exec_driver_sql(statement, parameters)
        await raw.set_progress_handler(None, 0)
    # A scan of an index, or of the attempts by id, stops at the page's limit. STEPS checks that it does.
    full_scan = re.compile(rf"SCAN (?!attempts)({'|'.join(BIG)})")
    problems = [line for line in lines if full_scan.fullmatch(line)]
    return problems + ([f"{steps:,} steps"] if steps > STEPS else [])


async def postgres_problems(database: Database, statement: str, parameters: Any) -> list[str]:
    """Problems of a statement on PostgreSQL: full scans in its plan, or too many buffer accesses."""
    async with database.reading() as connection:
        if DELIVERIES < 1_000_000:  # PostgreSQL rightly scans a table this small
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        rows = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
        explained: Any = rows.scalar()
    plan = (explained if isinstance(explained, list) else orjson.loads(explained))[0]["Plan"]
    problems = [
        f"Seq Scan on {node['Relation Name']}"
        for node in nodes(plan)
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] in BIG
    ]
    accesses = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return problems + ([f"{accesses:,} buffers"] if accesses > BUFFERS else [])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


async def test_an_execution_is_found_by_its_name_in_every_project_and_domain(ledger: Ledger) -> None:
    parts = ("p", "p.", "p-x", "p0", "P", "é", "p d", "~")  # they sort before and after "/"
    places = [(project, domain) for project in parts for domain in parts if project < domain or domain == "p"]
    names = {place: ("n", "N", place[0])[: 1 + at % 3] for at, place in enumerate(places)}
    executions = [ExecutionId(project=one, domain=two, name=name) for one, two in places for name in names[one, two]]
    terminal = [an_event().model_copy(update={"execution": one}) for one in executions]
    await ledger.record([recorded(a_delivery(one), event=one) for one in terminal], [], now=NOW)

    for text in {"n", "N", "none", "p/p", *parts, *(str(one.execution) for one in terminal)}:
        expected = {one.key for one in terminal if text in {one.execution.name, str(one.execution)}}
        page = await ledger.queries.events(Filter(execution=text), limit=200)
        assert {entry.key for entry in page.entries} == expected, text
        assert {
            one.delivery.event for one in await ledger.history.find(Filter(execution=text), limit=200)
        } == expected, text
        assert await ledger.change(Filter(execution=text), an_action()) == 0, text  # none is dead


async def test_reasons_are_counted_without_the_number_of_attempts(ledger: Ledger) -> None:
    reasons = ("gave up after 1 attempt: busy", "gave up after 12 attempts: busy", "550 no such user")
    later = NOW + timedelta(days=1000)
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=later)
    for number, reason in enumerate(reasons):
        one = an_event(name=f"e{number}")
        await ledger.record([recorded(a_delivery(one), event=one)], [], now=NOW)
        claim = await ledger.claim("email", 1, lease="me", until=later, admission=admission)
        for delivery in claim.deliveries:
            await ledger.settle(Settlement(delivery=delivery, outcome=Dead(reason), started_at=NOW, ended_at=NOW))

    count, most = await ledger.queries.reasons(Filter(states=DEAD), limit=10)
    assert count == await ledger.queries.count(Filter(states=DEAD)) == Count(number=3, more=False)
    assert most == [("email", "busy", 2), ("email", "550 no such user", 1)]


async def test_recipients_are_stored_with_the_delivery_and_deleted_with_it(ledger: Ledger, ledger_url: str) -> None:
    strange = ("A\0b@example.com", "Ünïcode@EXAMPLE.com", "x" * 1000, 'quo"te\\\\u0000', "😀")
    for number, name in enumerate(strange):
        failed = an_event(name=f"e{number}")
        for _ in range(2):
            await ledger.record([recorded(a_delivery(failed, to=name), event=failed)], [], now=NOW)
    assert len(await ledger.history.find(Filter(), limit=9)) == len(strange)  # every delivery was stored
    for name, number in (("ÜNïCODE@example.com", 1), ("ünïcode@example.com", 0), ("x" * 1000, 1), ("😀", 1)):
        assert len((await ledger.queries.deliveries(Filter(recipient=name), limit=9)).entries) == number, name

    later = NOW + timedelta(days=1000)
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=later)
    for delivery in (await ledger.claim("email", 9, lease="me", until=later, admission=admission)).deliveries:
        await ledger.settle(Settlement(delivery=delivery, outcome=Dead("no"), started_at=NOW, ended_at=NOW))
    assert await ledger.purge(later, limit=100) == len(strange)
    async with opened_database(ledger_url) as database, database.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(delivery_recipients)) == 0
