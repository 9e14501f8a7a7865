"""Messages per second through intake, from a real broker, compared with loops that discard the messages.

    python -m bench.intake [--messages 500000] [--rounds 5]

1 % of the messages are terminal events with three deliveries each; the others are node and task events, as on a real
topic. Intake decodes, decides, renders, records into SQLite and commits. A second measurement has no rules, so no
notifications: it shows the cost of reading alone. The baseline loops run aiokafka on the same event loop: one with
intake's fetch settings, the other with aiokafka's defaults.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from bench.figures import Figure, Goal, as_markdown, interleaved
from bench.workload import DELIVERIES, contents, failed, planner, rules
from dispatcher.clock import SystemClock
from dispatcher.flyte.decode import is_other_type
from dispatcher.flyte.encode import EncodedMessage, Format, write, write_lifecycle
from dispatcher.intake.kafka.config import KafkaConfig
from dispatcher.intake.kafka.consumer import KafkaSource
from dispatcher.intake.kafka.session import FETCH_BYTES, GATHER_MESSAGES
from dispatcher.intake.pipeline import Intake
from dispatcher.intake.source import Batch
from dispatcher.ledger import Ledger
from dispatcher.observability import logs
from dispatcher.rules import RuleBook
from dispatcher.runtime import event_loop
from tests.support.brokers import start
from tests.support.brokers.fixtures import make_topic

PARTITIONS = 6
MESSAGES = 500_000
LOOPS: Mapping[str, dict[str, Any]] = {
    "bare getmany loop": {"max_partition_fetch_bytes": FETCH_BYTES, "max_poll_records": GATHER_MESSAGES},
    "bare getmany loop, aiokafka's defaults": {},
}
OURS: Mapping[str, int] = {"": DELIVERIES, ", no notifications": 0}
"""Deliveries per terminal event, by the label of the measurement."""
GOAL = Goal("at least", 0.8)


def messages(count: int) -> Iterator[tuple[int, EncodedMessage]]:
    """Yield partition and message, of about 1 kB with six headers: 99 node and task events, then one terminal event."""
    for number in range(count // 100):
        event = failed(number)
        *before, terminal = write_lifecycle(event, Format.FLYTE_V2)
        inner = [message for message in before if " n0 " in message.summary]
        for index in range(99):
            one = inner[index % len(inner)]
            yield (
                number % PARTITIONS,
                EncodedMessage(one.key, one.headers, one.value.ljust(len(terminal.value)), one.summary),
            )
        yield number % PARTITIONS, write(event, Format.FLYTE_V2)


async def fill(servers: str, topic: str, count: int) -> None:
    await make_topic(servers, topic, partitions=PARTITIONS)
    producer = AIOKafkaProducer(bootstrap_servers=servers, linger_ms=20, max_batch_size=256 * 1024)
    await producer.start()
    for partition, message in messages(count):
        await producer.send(topic, message.value, headers=list(message.headers), partition=partition)
    await producer.stop()


@dataclass(slots=True)
class Stopwatch:
    """Measures from the arrival of the first batch, which is not counted, to the end of the last."""

    count: int
    remaining: int = field(init=False)
    began: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        self.remaining = self.count

    def arrived(self, number: int) -> None:
        if self.began == (0.0, 0.0):
            self.began = time.perf_counter(), time.process_time()
            self.count -= number
        self.remaining -= number

    def read(self) -> tuple[float, float]:
        """Messages per second, and microseconds of CPU per message."""
        seconds, cpu_seconds = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
        return self.count / seconds, cpu_seconds / self.count * 1e6


async def bare(servers: str, topic: str, group: str, count: int, options: dict[str, Any]) -> tuple[float, float]:
    """The baseline: calls getmany and discards the messages."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=servers,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        **options,
    )
    await consumer.start()
    stopwatch = Stopwatch(count)
    while stopwatch.remaining > 0:
        found = await consumer.getmany(timeout_ms=500)
        if found:
            stopwatch.arrived(sum(map(len, found.values())))
    measured = stopwatch.read()
    await consumer.stop()
    return measured


@dataclass(slots=True)
class CountingSource:
    """A Kafka source that counts its messages and stops after the last."""

    source: KafkaSource
    stopwatch: Stopwatch
    measured: tuple[float, float] = (0.0, 0.0)

    async def batches(self) -> AsyncGenerator[Batch]:
        async with aclosing(self.source.batches()) as batches:
            async for batch in batches:
                self.stopwatch.arrived(len(batch.messages) + batch.skipped)
                yield batch
                if self.stopwatch.remaining <= 0:
                    self.measured = self.stopwatch.read()
                    self.stop()

    async def wait(self, duration: timedelta) -> bool:
        raise RuntimeError(f"intake had to wait {duration}: this measurement is void")

    def stop(self) -> None:
        self.source.stop()

    async def unready_reason(self) -> str | None:
        return await self.source.unready_reason()


async def intake(servers: str, topic: str, group: str, count: int, deliveries: int) -> tuple[float, float]:
    """The dispatcher: decode, decide, plan, render, record into SQLite, commit. `deliveries`: per terminal event."""
    recorded: list[str] = []
    config = KafkaConfig(bootstrap_servers=servers, topics=(topic,), group_id=group)
    source = CountingSource(KafkaSource(config, is_other_type), Stopwatch(count))
    with TemporaryDirectory() as folder:
        async with Ledger(f"sqlite+aiosqlite:///{folder}/ledger.db") as ledger:
            event_loop.freeze_garbage_collector()  # as the service does
            intake = Intake(
                ledger,
                rules() if deliveries else lambda: RuleBook({}),
                planner(),
                contents(),
                SystemClock(),
                on_batch=lambda batch: recorded.extend(batch.new),
            )
            await intake.run(source)
            stored = sum((await ledger.queries.counts()).values())
    if len(recorded) != count // 100 or stored != count // 100 * deliveries:
        raise RuntimeError(f"{len(recorded)} events have {stored} deliveries: this measurement is void")
    return source.measured


def measure(kind: str, servers: str, topic: str, count: int) -> tuple[float, float]:
    """Run one measurement; each gets a new process, so that it starts with an empty heap."""
    logs.configure("json", level=40)
    group = f"{topic}-{os.getpid()}"
    if kind in LOOPS:
        return event_loop.run(bare(servers, topic, group, count, LOOPS[kind]))
    return event_loop.run(intake(servers, topic, group, count, OURS[kind]))


def figures(rounds: int, *, smoke: bool, count: int = MESSAGES) -> Iterable[Figure]:
    count = 6000 if smoke else count
    broker = start()
    topic = f"bench-{os.getpid()}"
    work = f"{count:,} messages of 1 kB with 6 headers, 1 % terminal, {broker.name}, {PARTITIONS} partitions"
    context = multiprocessing.get_context("spawn")
    cpu: dict[str, list[float]] = {kind: [] for kind in (*OURS, *LOOPS)}
    try:
        event_loop.run(fill(broker.bootstrap_servers, topic, count))
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as processes:

            def rate(kind: str) -> float:
                found, work = processes.submit(measure, kind, broker.bootstrap_servers, topic, count).result()
                cpu[kind].append(work)
                return found

            rates = interleaved(rounds, {kind: partial(rate, kind) for kind in cpu})
    finally:
        broker.stop()
    for kind in LOOPS:
        for ours in OURS:
            yield Figure(
                path="intake", work=work + ours, baseline=kind, ours=rates[ours], theirs=rates[kind], goal=GOAL
            )
            yield Figure(
                path="intake",
                work=f"CPU a message{ours}",
                baseline=kind,
                ours=cpu[ours],
                theirs=cpu[kind],
                unit=" us",
                goal=Goal("at most", 1 / GOAL.value),
            )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--messages", type=int, default=MESSAGES)
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    print(as_markdown(figures(arguments.rounds, smoke=False, count=arguments.messages)))


if __name__ == "__main__":
    main()
