"""Poison messages among good ones stop nothing; a ledger that can't be written rejects nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from dispatcher.flyte.decode import NATIVE
from dispatcher.flyte.encode import Format, write
from dispatcher.model.delivery import State
from dispatcher.model.event import Event
from tests.faults.rig import Replica, an_event_for, publishing, reading_ledger, replicas
from tests.support.brokers.apache import ApacheKafka
from tests.support.service import free_port
from tests.support.standins import StandIns

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

GOOD, OF_EACH_KIND = 5000, 5
CHANNELS = ("email", "slack")
AWAY = 20
"""Seconds for which a column stays away after both replicas have noticed."""
Raw = tuple[Sequence[tuple[str, bytes | None]], bytes]
"""The headers and the value of a message."""


def _event(number: int, **changes: Any) -> dict[str, Any]:
    mail = {"phases": ["FAILED"], "email": {"recipients_email": ["person@example.com"]}}
    return {
        "execution": {"project": "flytesnacks", "domain": "production", "name": f"odd{number}"},
        "phase": "FAILED",
        "occurred_at": "2026-11-20T09:14:21Z",
        "options": {"notifications": [mail]},
        **changes,
    }


def _rule(recipient: str, channel: str = "slack", count: int = 1) -> dict[str, Any]:
    return {
        "options": {"notifications": [{"phases": ["FAILED"], "channel": channel, "recipients": [recipient] * count}]}
    }


def _named(name: str) -> dict[str, Any]:
    return {"execution": {"project": "flytesnacks", "domain": "production", "name": name}}


def _native(number: int, **changes: Any) -> Raw:
    return [("ce_type", NATIVE.encode())], json.dumps(_event(number, **changes)).encode()


WIDE = "\U0001d4b3" * 255
KINDS: Mapping[str, Callable[[int], Raw]] = {
    "a time before UTC": lambda number: _native(number, occurred_at="0001-01-01T00:00:00+01:00"),
    "a time after UTC": lambda number: _native(number, started_at="9999-12-31T23:59:59-01:00"),
    "a time that is none": lambda number: _native(number, occurred_at="yesterday"),
    "a long recipient": lambda number: _native(number, **_rule("C" + "A" * 600)),
    "a recipient with NUL": lambda number: _native(number, **_rule("C\0")),
    "a long channel": lambda number: _native(number, **_rule("a", channel="x" * 33)),
    "a channel with NUL": lambda number: _native(number, **_rule("a", channel="x\0")),
    "too many recipients": lambda number: _native(number, **_rule("a@example.com", count=1001)),
    "a long execution": lambda number: _native(
        number, execution={"project": WIDE, "domain": WIDE, "name": f"{number}{WIDE}"[:255]}
    ),
    "a name with a slash": lambda number: _native(number, **_named(f"a/{number}")),
    "no such phase": lambda number: _native(number, phase="EXPLODED"),
    "labels that are no texts": lambda number: _native(number, labels={"a": {"b": number}}),
    "a header without a value": lambda number: ([("x-note", None)], b"hello %d" % number),
    "no JSON": lambda number: ([("ce_type", NATIVE.encode())], b"{%d" % number),
    "JSON that is too deep": lambda number: ([("ce_type", NATIVE.encode())], b"[" * (100_000 + number)),
    "another encoding": lambda number: (
        [("ce_type", NATIVE.encode())],
        json.dumps(_event(number, principal="Zoë"), ensure_ascii=False).encode("latin-1"),
    ),
    "an envelope without data": lambda number: (
        [],
        json.dumps({"specversion": "1.0", "type": NATIVE, "id": str(number)}).encode(),
    ),
    "base64 that is none": lambda number: (
        [],
        json.dumps({"specversion": "1.0", "type": NATIVE, "id": str(number), "data_base64": "ж"}).encode(),
    ),
    "an event that the ledger refuses": lambda number: _native(number, **_named(f"poison{number}")),
    "a delivery that the ledger refuses": lambda number: _native(number, **_rule(f"C{number:09d}POISON")),
}
REFUSED = (
    "ALTER TABLE events ADD CONSTRAINT poison CHECK (name NOT LIKE 'poison%')",
    "ALTER TABLE deliveries ADD CONSTRAINT poison CHECK (recipients NOT LIKE '%POISON%')",
)


async def test_poison_stops_nothing_and_each_is_rejected(
    rng: Random, figures: Callable[[str], None], apache: ApacheKafka, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    poison = [kind(number) for number, kind in enumerate([*KINDS.values()] * OF_EACH_KIND)]
    messages = [*map(_good, range(GOOD)), *poison]
    rng.shuffle(messages)
    async with StandIns() as standins, reading_ledger(postgres_url) as ledger:
        two = [await _replica(name, apache, topic, postgres_url, standins, tmp_path) for name in ("one", "two")]
        async with replicas(*(replica for replica, _ in two)):
            for replica, _ in two:
                await replica.ready()
            pids = [replica.pid for replica, _ in two]
            await _sql(postgres_url, *REFUSED)
            await _publish(apache, topic, messages)
            states = await ledger.settled(GOOD * len(CHANNELS), seconds=180)
            rejected = await _until_rejected(postgres_url, len(poison), seconds=60)
            failures = [await _metric(url, "dispatcher_component_failures_total") for _, url in two]
            assert [replica.pid for replica, _ in two] == pids
            for replica, _ in two:
                await replica.stop()
        rows = await ledger.rows()

    received = Counter(handover.key for handover in standins.handovers)
    figures(
        f"{len(poison)} poison messages of {len(KINDS)} kinds among {GOOD} good ones, two replicas: {dict(states)},"
        f" {rejected.total()} rejected for {len(rejected)} reasons, {sum(failures):.0f} restarts of a component or process,"
        f" {sum(number - 1 for number in received.values())} sent twice; {time.monotonic() - began:.0f} s"
    )
    assert states == {State.SENT: GOOD * len(CHANNELS)}
    assert not rows.keys() - received.keys()
    assert rejected.total() == len(poison), rejected
    assert not [reason for reason in rejected if reason.startswith("internal error")], rejected
    assert failures == [0, 0]


@pytest.mark.parametrize("column", ["events.considered", "deliveries.rules", "attempts.answer"])
async def test_a_ledger_whose_column_was_taken_away_loses_nothing(
    rng: Random,
    figures: Callable[[str], None],
    apache: ApacheKafka,
    topic: str,
    postgres_url: str,
    tmp_path: Path,
    column: str,
) -> None:
    began, events = time.monotonic(), 600
    table, name = column.split(".")
    async with StandIns(latency=lambda: rng.uniform(0, 0.05)) as standins, reading_ledger(postgres_url) as ledger:
        two = [await _replica(name, apache, topic, postgres_url, standins, tmp_path) for name in ("one", "two")]
        async with (
            replicas(*(replica for replica, _ in two)),
            publishing(apache.bootstrap_servers, topic) as publish,
        ):
            for replica, _ in two:
                await replica.ready()
            await _each(range(events // 3), publish)
            await _sql(postgres_url, f"ALTER TABLE {table} RENAME COLUMN {name} TO taken_away")
            await _each(range(events // 3, 2 * events // 3), publish)
            reasons = [await _unready(url, f'"{name}"', seconds=60) for _, url in two]
            await asyncio.sleep(AWAY)
            braked = [await _metric(url, "dispatcher_braked") for _, url in two]
            sent = len(standins.handovers)
            await _sql(postgres_url, f"ALTER TABLE {table} RENAME COLUMN taken_away TO {name}")
            await _each(range(2 * events // 3, events), publish)
            states = await ledger.settled(events * len(CHANNELS), seconds=120)
            failures = [await _metric(url, "dispatcher_component_failures_total") for _, url in two]
            rejected = await _until_rejected(postgres_url, 0, seconds=1)
            for replica, _ in two:
                await replica.stop()
        rows = await ledger.rows()

    received = Counter(handover.key for handover in standins.handovers)
    figures(
        f"{column} taken away for {AWAY} s while {events} events arrived: {dict(states)}, {rejected.total()} rejected,"
        f" {sent} sent before it was back, {sum(number - 1 for number in received.values())} sent twice;"
        f" {time.monotonic() - began:.0f} s"
    )
    assert all(f'column "{name}"' in reason for reason in reasons), reasons
    assert all(braked), braked
    assert failures == [0, 0]
    assert states == {State.SENT: events * len(CHANNELS)}
    assert not rejected
    assert not rows.keys() - received.keys()


async def _replica(
    name: str, kafka: ApacheKafka, topic: str, ledger: str, standins: StandIns, folder: Path
) -> tuple[Replica, str]:
    """A replica that is not started yet, and its URL."""
    port = free_port()
    settings = {
        "kafka": {
            "bootstrap_servers": kafka.bootstrap_servers,
            "topics": [topic],
            "group_id": f"group-{topic}",
            "session_timeout": "6s",
        },
        "ledger": {"url": ledger},
        "http": {"listen": f"127.0.0.1:{port}"},
        "channels": {
            channel: section for channel, section in (await standins.open(name)).items() if channel in CHANNELS
        },
    }
    return Replica(name, folder, settings), f"http://127.0.0.1:{port}"


def _good(number: int) -> Raw:
    message = write(an_event_for(number, *CHANNELS), Format.NATIVE)
    return message.headers, message.value


async def _publish(kafka: ApacheKafka, topic: str, messages: Sequence[Raw]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, acks="all", linger_ms=5)
    await producer.start()
    sent = [await producer.send(topic, value, headers=list(headers)) for headers, value in messages]
    await asyncio.gather(*sent)
    await producer.stop()


async def _each(numbers: range, publish: Callable[[Event], Awaitable[None]]) -> None:
    for number in numbers:
        await publish(an_event_for(number, *CHANNELS))
        await asyncio.sleep(0.01)


async def _sql(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


async def _until_rejected(url: str, count: int, *, seconds: float) -> Counter[str]:
    """Wait until this many messages are rejected; return the number by reason."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    deadline = time.monotonic() + seconds
    while True:
        rows = await connection.fetch("SELECT reason FROM rejected")
        if len(rows) >= count or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.5)
    await connection.close()
    return Counter(row["reason"] for row in rows)


async def _metric(url: str, name: str) -> float:
    """The sum of a metric's series."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        page = await answer.text()
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(f"{name}{{"))


async def _unready(url: str, words: str, *, seconds: float) -> str:
    """Wait until the ledger is not ready for a reason with these words; return the reason."""
    async with asyncio.timeout(seconds), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url}/readyz") as answer:
                reason: str | None = (await answer.json()).get("why", {}).get("ledger")
            if reason is not None and words in reason:
                return reason
            await asyncio.sleep(0.5)
