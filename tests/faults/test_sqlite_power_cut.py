"""The service is killed repeatedly while it commits to SQLite: the file and its data stay consistent."""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import aiohttp
import pytest

from dispatcher.flyte.encode import Format, write
from tests.faults.rig import Replica, an_event_for
from tests.support.service import free_port
from tests.support.standins import StandIns

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

CUTS = int(os.environ.get("FAULT_CUTS", "60"))
PUBLISHERS = 8
"""Concurrent publishers: with so many, a commit is running nearly all the time."""
LIFE = (0.02, 0.5)
"""Seconds from a process's first answer to its kill."""
CHANNELS = ("email", "slack")

INVARIANTS = {
    "the file is whole": "SELECT * FROM pragma_integrity_check WHERE integrity_check <> 'ok'",
    "every foreign key has its row": "SELECT * FROM pragma_foreign_key_check",
    "every event has all its deliveries": f"""
        SELECT events.key, count(deliveries.key) AS times FROM events LEFT JOIN deliveries ON event = events.key
        GROUP BY events.key HAVING times <> {len(CHANNELS)}""",
    "every delivery has its event": "SELECT key FROM deliveries WHERE event NOT IN (SELECT key FROM events)",
    "every delivery has its content": "SELECT key FROM deliveries WHERE content NOT IN (SELECT content_hash FROM contents)",
    "every content is sent by a delivery": "SELECT content_hash FROM contents WHERE content_hash NOT IN (SELECT content FROM deliveries)",
    "every sent delivery has exactly one attempt with outcome sent": """
        SELECT key, state, count(attempts.id) AS times FROM deliveries
        LEFT JOIN attempts ON delivery = key AND outcome = 'sent'
        GROUP BY key HAVING times <> (state = 'sent')""",
    "every finished delivery has a time and no lease": """
        SELECT key FROM deliveries
        WHERE (state = 'waiting') = (settled_at IS NOT NULL) OR (state <> 'waiting' AND lease IS NOT NULL)""",
    "no attempt has a number above the count of attempts": """
        SELECT delivery FROM attempts JOIN deliveries ON delivery = key WHERE number > attempt""",
}
"""Queries that must return no row."""


class Publishers:
    """Publish events over HTTP, and keep the acknowledgements."""

    def __init__(self, url: str) -> None:
        self.acknowledged: dict[str, list[str]] = {}
        """Events answered with 202, and the deliveries in the answer."""
        self.unanswered: set[str] = set()
        self._url = url
        self._numbers = itertools.count()

    async def publish(self, first_answer: asyncio.Event) -> None:
        """Publish events with PUBLISHERS tasks until the service is gone."""
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for _ in range(PUBLISHERS):
                group.create_task(self._publish(session, first_answer))

    async def _publish(self, session: aiohttp.ClientSession, first_answer: asyncio.Event) -> None:
        while True:
            event = an_event_for(next(self._numbers), *CHANNELS)
            message = write(event, Format.NATIVE)
            headers = {name.replace("ce_", "ce-"): value.decode() for name, value in message.headers}
            self.unanswered.add(event.key)
            try:
                async with session.post(f"{self._url}/events", data=message.value, headers=headers) as answer:
                    assert answer.status == 202, await answer.text()
                    self.acknowledged[event.key] = (await answer.json())["deliveries"]
            except aiohttp.ClientError:
                return
            self.unanswered.discard(event.key)
            first_answer.set()


async def test_kills_during_commits_leave_no_partial_data_and_lose_no_acknowledged_event(
    rng: Random, figures: Callable[[str], None], tmp_path: Path
) -> None:
    began = time.monotonic()
    port = free_port()
    publishers = Publishers(f"http://127.0.0.1:{port}")
    async with StandIns() as standins:
        settings = {
            "http": {"listen": f"127.0.0.1:{port}"},
            "ledger": {"url": "sqlite+aiosqlite:///./ledger.db", "lease": "3s"},
            "channels": await standins.open(),
        }
        replica = Replica("one", tmp_path, settings)
        sent: set[str] = set()
        try:
            for cut in range(1, CUTS + 1):
                await replica.start()
                await _work_until_killed(replica, publishers, rng.uniform(*LIFE))
                sent = _check(tmp_path / "ledger.db", publishers.acknowledged, sent, f"kill {cut}")
            recorded = _events(tmp_path / "ledger.db") & publishers.unanswered
            await replica.start()
            states = await _all_sent(tmp_path / "ledger.db")
            await replica.stop()
            _check(tmp_path / "ledger.db", publishers.acknowledged, sent, "the end")
        finally:
            await replica.remove()

    received = Counter((handover.channel, handover.key) for handover in standins.handovers)
    expected = {key for keys in publishers.acknowledged.values() for key in keys}
    lost = expected - {key for _, key in received}
    duplicates = Counter(channel for (channel, _), number in received.items() if number > 1)
    figures(
        f"{CUTS} kills during commits, {len(publishers.acknowledged)} events acknowledged,"
        f" {len(publishers.unanswered)} without an answer, of which {len(recorded)} were recorded; integrity and"
        f" {len(INVARIANTS) - 1} invariants held each time;"
        f" {dict(states)}; lost {len(lost)}; duplicates {dict(duplicates)}; {time.monotonic() - began:.0f} s"
    )
    assert not lost
    assert not duplicates["slack"]
    assert duplicates["email"] <= CUTS * 2 * settings["channels"]["email"].get("concurrency", 20)


async def _work_until_killed(replica: Replica, publishers: Publishers, life: float) -> None:
    """Let a process record, claim and settle for `life` seconds, then kill it."""
    await replica.ready()
    answered = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(publishers.publish(answered))
        async with asyncio.timeout(30):
            await answered.wait()
        await asyncio.sleep(life)
        await replica.kill()


def _check(file: Path, acknowledged: dict[str, list[str]], sent_before: set[str], when: str) -> set[str]:
    """Check the ledger against its invariants and the acknowledgements. Returns the keys of all sent deliveries."""
    with closing(sqlite3.connect(file)) as ledger:
        for invariant, query in INVARIANTS.items():
            assert not (broken := ledger.execute(query).fetchall()), f"{when}: not true: {invariant}: {broken[:5]}"
        stored = dict(_by_event(ledger))
        sent = {key for (key,) in ledger.execute("SELECT key FROM deliveries WHERE state = 'sent'")}
    for event, keys in acknowledged.items():
        assert stored.get(event) == set(keys), f"{when}: {event} was acknowledged with {keys}: {stored.get(event)}"
    assert sent_before <= sent, f"{when}: no longer sent: {sorted(sent_before - sent)[:5]}"
    return sent


def _by_event(ledger: sqlite3.Connection) -> Iterator[tuple[str, set[str]]]:
    rows = ledger.execute("SELECT event, group_concat(key) FROM deliveries GROUP BY event")
    return ((event, set(keys.split(","))) for event, keys in rows)


def _events(file: Path) -> set[str]:
    with closing(sqlite3.connect(file)) as ledger:
        return {key for (key,) in ledger.execute("SELECT key FROM events")}


async def _all_sent(file: Path) -> Counter[str]:
    """Wait until no delivery is waiting, for at most 60 seconds. Returns the states."""
    query = "SELECT state, count(*) FROM deliveries GROUP BY state"
    deadline = time.monotonic() + 60
    while True:
        with closing(sqlite3.connect(file)) as ledger:
            states: Counter[str] = Counter(dict(ledger.execute(query).fetchall()))
        if not states["waiting"] or time.monotonic() > deadline:
            assert set(+states) == {"sent"}, states
            return states
        await asyncio.sleep(0.5)
