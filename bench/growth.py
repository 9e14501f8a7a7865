"""The cost of an event as the ledger and the number of launch plans grow.

    python -m bench.growth [--rounds 5] [--largest 1000000]

The baseline of each size is the smallest size, measured in the same rounds. SQLite and the rules run in this process and
are measured in CPU time; PostgreSQL is measured in elapsed time.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg

from bench.figures import Figure, Goal, as_markdown
from bench.record import empty_database, migrated, opened, postgres
from bench.workload import recorded
from channels.contract import Answer, Receipt
from dispatcher.clock import SystemClock
from dispatcher.ledger import Ledger, Settlement
from dispatcher.model.delivery import Sent
from dispatcher.model.event import EntityId, Event, ExecutionId
from dispatcher.model.notification import Notification
from dispatcher.model.phase import Phase
from dispatcher.model.rate_limit import AdmissionControl, RateLimit
from dispatcher.rules import PlanKey, PlanRules, Rule, RuleBook, decide
from dispatcher.runtime import event_loop

SIZES = (1_000, 10_000, 100_000, 1_000_000)
"""Settled deliveries in the ledger, each with its own event and one attempt."""
BOOKS = (10, 1_000, 100_000)
"""Launch plans with rules."""
BATCH = 100
BATCHES = 2
"""Batches per measurement: one alone takes only a few hundredths of a second."""
DECISIONS = 5000
FIRST_CREATED_AT = 1_700_000_000
"""Unix time of the first settled delivery; one more per second follows."""
GOAL = Goal("at most", 1.3)
SENT = Sent(Receipt(answer=Answer("250", "queued"), reference={"message_id": "<1@example.com>"}))
_numbers = count()

_SETTLED = """
INSERT INTO events (key, project, domain, name, phase, launch_plan, occurred_at, recorded_at, position, verdict, reason,
  facts, considered)
SELECT 'flytesnacks/production/' || {name} || '/FAILED', 'flytesnacks', 'production', {name}, 'FAILED', 'train.' || (n % 100),
  {at}, {at}, 'flyte-cloudevents/0@' || n, 'matched', '1 rule matched', {empty}, {empty} FROM {numbers};
INSERT INTO contents (content_hash, body) SELECT {digest}, {empty} FROM {numbers};
INSERT INTO deliveries (key, event, channel, recipients, addresses, content, rules, state, reason, attempt, in_doubt, created_at,
  due_at, retry_window_start, settled_at, occurred_at, thread, thread_at, subject, kind, slot_reserved)
SELECT {key}, 'flytesnacks/production/' || {name} || '/FAILED', 'slack', '["#alerts"]', '["C0123456789"]', {digest}, '[["", "test"]]',
  'sent', '', 1, {false}, {at}, {at}, {at}, {at}, {at}, 'train.' || (n % 100), {at},
  'flytesnacks/production/train.' || (n % 100), 'notification', {false} FROM {numbers};
INSERT INTO attempts (delivery, number, started_at, ended_at, outcome, status, answer, reason)
SELECT {key}, 1, {at}, {at}, 'sent', '200', 'ok', '' FROM {numbers};
"""

_RECIPIENTS = """
INSERT INTO delivery_recipients (recipient, created_at, delivery)
SELECT name, created_at, key FROM deliveries, (SELECT '#alerts' AS name UNION SELECT 'c0123456789') AS names;
"""

_INDEXES = """
SELECT indexname, indexdef FROM pg_indexes
WHERE schemaname = 'public' AND indexname NOT IN (SELECT conname FROM pg_constraint)
"""
"""Indexes that are dropped and created again after the rows are inserted, which is then twice as fast."""


@dataclass(slots=True)
class Costs:
    """Microseconds per event: a list with one value per round, by size."""

    work: str
    by_size: dict[int, list[float]] = field(default_factory=dict)

    def add(self, size: int, cost: float) -> None:
        self.by_size.setdefault(size, []).append(cost * 1e6)

    def figures(self, unit: str) -> Iterator[Figure]:
        smallest, *larger = sorted(self.by_size)
        for size in larger:
            yield Figure(
                path="growth",
                work=f"{self.work}, {size:,} {unit}",
                baseline=f"{smallest:,}",
                ours=self.by_size[size],
                theirs=self.by_size[smallest],
                unit=" us",
                goal=GOAL,
            )


def fill_sqlite(file: Path, size: int) -> None:
    upwards = f"SELECT 0 AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < {size - 1}"
    script = _SETTLED.format(
        numbers=f"(WITH RECURSIVE numbers AS ({upwards}) SELECT n FROM numbers)",
        at=f"strftime('%Y-%m-%d %H:%M:%S.000000', {FIRST_CREATED_AT} + n, 'unixepoch')",
        empty="CAST('{}' AS BLOB)",
        false="0",
        **_keys("sha256({})".format, "printf('%05x', {})".format),
    )
    with closing(opened(file)) as connection:
        connection.create_function("sha256", 1, lambda text: sha256(text.encode()).hexdigest(), deterministic=True)
        connection.executescript(
            f"PRAGMA foreign_keys=OFF; PRAGMA synchronous=OFF; BEGIN; {script} {_RECIPIENTS} COMMIT"
        )
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def fill_postgres(url: str, size: int) -> None:
    script = _SETTLED.format(
        numbers=f"generate_series(0, {size - 1}) AS n",
        at=f"to_timestamp({FIRST_CREATED_AT} + n)",
        empty="'{}'::bytea",
        false="false",
        **_keys("encode(sha256(({})::bytea), 'hex')".format, "lpad(to_hex({}), 5, '0')".format),
    )
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET session_replication_role = replica")  # without triggers
        indexes = await connection.fetch(_INDEXES)
        drop = "".join(f"DROP INDEX {name};" for name, _ in indexes)
        create = "".join(f"{statement};" for _, statement in indexes)
        await connection.execute(f"{drop} {script} {_RECIPIENTS} {create}")
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


def _keys(sha256: Callable[[str], str], five_digits: Callable[[str], str]) -> dict[str, str]:
    """Keys like real ones: execution names are random, and the other keys are digests that begin with the time."""
    name, key, content = (sha256(f"'{what} ' || n") for what in ("name", "key", "content"))
    digits = five_digits(f"({FIRST_CREATED_AT} + n) / 16 % 1048576")
    return {
        "name": f"'a' || substr({name}, 1, 19)",
        "key": f"{digits} || substr({key}, 1, 27)",
        "digest": f"{digits} || substr({content}, 1, 59)",
    }


async def claim_and_settle(ledger: Ledger, now: datetime) -> int:
    """Claim and settle the waiting mails, as a worker does. Returns their number."""
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=now)
    claim = await ledger.claim("email", BATCH, lease="bench", until=now + timedelta(minutes=1), admission=admission)
    async with asyncio.TaskGroup() as group:
        for one in claim.deliveries:
            group.create_task(ledger.settle(Settlement(delivery=one, outcome=SENT, started_at=now, ended_at=now)))
    return len(claim.deliveries)


async def measure(url: str, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds to record an event, and to claim and settle its mail. The first batch after opening is not counted."""
    recording = settling = 0.0
    async with Ledger(url) as ledger:
        for batch in range(1 + BATCHES):
            entries = [recorded(next(_numbers)) for _ in range(BATCH)]
            now = SystemClock().now()
            began = clock()
            await ledger.record(entries, (), now=now)
            between = clock()
            if await claim_and_settle(ledger, now) != BATCH:
                raise RuntimeError("some mails were missing: this measurement is void")
            if batch:
                recording += between - began
                settling += clock() - between
    return recording / BATCHES / BATCH, settling / BATCHES / BATCH


async def measure_sizes(urls: Mapping[int, str], rounds: int, kind: str, clock: Callable[[], float]) -> list[Costs]:
    recording, settling = Costs(f"record, {kind}"), Costs(f"claim and settle, {kind}")
    for _ in range(rounds):
        for size, url in urls.items():
            record_seconds, settle_seconds = await measure(url, clock)
            recording.add(size, record_seconds)
            settling.add(size, settle_seconds)
    return [recording, settling]


async def sqlite(rounds: int, sizes: Sequence[int]) -> list[Costs]:
    with TemporaryDirectory() as folder:
        urls = {size: f"sqlite+aiosqlite:///{folder}/{size}.db" for size in sizes}
        for size, url in urls.items():
            await migrated(url)
            fill_sqlite(Path(folder, f"{size}.db"), size)
        return await measure_sizes(urls, rounds, "SQLite", time.process_time)


async def postgresql(rounds: int, sizes: Sequence[int]) -> list[Costs]:
    with postgres() as server:
        urls = {size: await empty_database(server, f"settled_{size}") for size in sizes}
        for size, url in urls.items():
            await migrated(url)
            await fill_postgres(url, size)
        return await measure_sizes(urls, rounds, "PostgreSQL", time.perf_counter)


def book(size: int) -> RuleBook:
    """A rule book with `size` launch plans, one rule each."""
    notification = Notification(phases=(Phase.FAILED,), channel="email", recipients=("dev-team@example.com",))
    keys = (PlanKey("flytesnacks", "production", f"train.{number}") for number in range(size))
    return RuleBook({key: PlanRules(key, (Rule(notification, f"plans.yaml:{at}"),)) for at, key in enumerate(keys)})


def terminal_events(size: int, rng: random.Random) -> list[Event]:
    """Terminal events, one half of launch plans with rules, the other half of launch plans without."""
    return [
        Event(
            execution=ExecutionId(project="flytesnacks", domain="production", name=f"bench{number}"),
            phase=Phase.FAILED,
            occurred_at=SystemClock().now(),
            launch_plan=EntityId(
                project="flytesnacks", domain="production", name=f"train.{rng.randrange(2 * size)}", version="v1"
            ),
        )
        for number in range(DECISIONS)
    ]


def deciding(rounds: int, sizes: Sequence[int]) -> Costs:
    costs = Costs("decide")
    rng = random.Random(7)
    books = {size: (book(size), terminal_events(size, rng)) for size in sizes}
    for _ in range(rounds):
        for size, (rules, events) in books.items():
            began = time.process_time()
            for event in events:
                decide(event, rules)
            costs.add(size, (time.process_time() - began) / len(events))
    return costs


def figures(rounds: int, *, smoke: bool, largest: int = SIZES[-1]) -> Iterable[Figure]:
    sizes = [size for size in SIZES if size <= (10_000 if smoke else largest)]
    event_loop.freeze_garbage_collector()  # as the service does
    yield from deciding(rounds, BOOKS).figures("launch plans with rules")
    for ledgers in (sqlite, postgresql):
        for costs in event_loop.run(ledgers(rounds, sizes)):
            yield from costs.figures("settled deliveries")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--largest", type=int, default=SIZES[-1])
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    print(as_markdown(figures(arguments.rounds, smoke=False, largest=arguments.largest)))


if __name__ == "__main__":
    main()
