"""Messages a second through intake, from a real broker, beside a loop that does nothing with them.

    python -m bench.intake [--messages 200000] [--rounds 5]

1 % of the messages are terminal events that owe three deliveries each; the rest is a topic's usual noise.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from dispatcher import collector, logs
from dispatcher.clock import SystemClock
from dispatcher.encode import Format, Written, write, write_lifecycle
from dispatcher.event import EntityId, Event, ExecutionId
from dispatcher.intake import Heard, Intake
from dispatcher.kafka import KafkaConfig, KafkaSource
from dispatcher.ledger import Ledger
from dispatcher.phase import Phase
from dispatcher.plan import Planner
from dispatcher.rendering import Renderer
from dispatcher.rules.files import LaunchPlanFiles
from tests.support.brokers import start
from tests.support.brokers.fixtures import make_topic

PARTITIONS = 6
PLAN = """
launch_plan: {project: flytesnacks, domain: production, name: train.daily}
notifications:
  - phases: [FAILED]
    email: {recipients_email: [dev-team@example.com, on-call@example.com]}
  - phases: [FAILED]
    slack: {recipients_email: ["#dev-alerts"]}
  - phases: [FAILED]
    pager_duty: {recipients_email: [service]}
"""


def messages(count: int) -> list[Written]:
    """One terminal event in a hundred; node and task events of about 1 kB between them."""
    plan = EntityId(project="flytesnacks", domain="production", name="train.daily", version="v1")
    made: list[Written] = []
    for number in range(count // 100):
        execution = ExecutionId(project="flytesnacks", domain="production", name=f"bench{number}")
        event = Event(execution=execution, phase=Phase.FAILED, occurred_at=SystemClock().now(), launch_plan=plan)
        *before, _ = write_lifecycle(event, Format.FLYTE_V2)
        inner = [message for message in before if " n0 " in message.shown]
        padded = [Written(m.key, m.headers, m.value.ljust(1000), m.shown) for m in inner]
        made += [padded[index % len(padded)] for index in range(99)] + [write(event, Format.FLYTE_V2)]
    return made


async def fill(servers: str, topic: str, count: int) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=servers, linger_ms=20, max_batch_size=256 * 1024)
    await producer.start()
    for index, message in enumerate(messages(count)):
        await producer.send(topic, message.value, headers=list(message.headers), partition=index // 100 % PARTITIONS)
    await producer.stop()


async def bare(servers: str, topic: str, group: str, count: int) -> float:
    """The baseline: getmany, and nothing else."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=servers,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=4 * 2**20,
    )
    await consumer.start()
    seen, began = 0, 0.0
    while seen < count:
        found = await consumer.getmany(timeout_ms=500, max_records=2000)
        began = began or time.perf_counter()
        seen += sum(map(len, found.values()))
    took = time.perf_counter() - began
    await consumer.stop()
    return count / took


async def intake(servers: str, topic: str, group: str, count: int, folder: Path) -> float:
    """Ours: decode, decide, plan, render, record into SQLite, commit."""
    (folder / "plan.yaml").write_text(PLAN)
    rules = LaunchPlanFiles([folder / "plan.yaml"])
    rules.load()
    renderer = Renderer()
    renderer.check()  # compiles the templates, as a service does once
    planner = Planner(
        addresses={"email": str, "slack": str, "pagerduty": str},
        fallbacks={},
        render=renderer.render,
    )
    source = KafkaSource(KafkaConfig(bootstrap_servers=servers, topics=(topic,), group_id=group))
    events, began = 0, 0.0

    def heard(batch: Heard) -> None:
        nonlocal events, began
        began = began or time.perf_counter()
        events += len(batch.new)
        if events >= count // 100:
            source.stop()

    async with Ledger(f"sqlite+aiosqlite:///{folder}/ledger-{group}.db") as ledger:
        await Intake(ledger, lambda: rules.book, planner, SystemClock(), heard).run(source)
        return count / (time.perf_counter() - began)


def measure(kind: str, servers: str, topic: str, group: str, count: int) -> tuple[float, float]:
    """Messages a second and peak resident MiB, of a process of its own."""
    logs.configure("json", level=40)
    if kind == "intake":
        collector.settle_in()  # as the service does
    with TemporaryDirectory() as folder:
        run = (
            bare(servers, topic, group, count) if kind == "bare" else intake(servers, topic, group, count, Path(folder))
        )
        rate = asyncio.run(run)
    return rate, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--messages", type=int, default=200_000)
    options.add_argument("--rounds", type=int, default=5)
    asked = options.parse_args()
    broker = start()
    topic = f"bench-{os.getpid()}"
    try:
        asyncio.run(make_topic(broker.bootstrap_servers, topic, partitions=PARTITIONS))
        asyncio.run(fill(broker.bootstrap_servers, topic, asked.messages))
        print(f"{asked.messages} messages on {broker.name}, {PARTITIONS} partitions, 1 % terminal")
        compare(broker.bootstrap_servers, topic, asked.messages, asked.rounds)
    finally:
        broker.stop()


def compare(servers: str, topic: str, count: int, rounds: int) -> None:
    """Both in turn, each time in a new process; then the medians."""
    results: dict[str, list[tuple[float, float]]] = {"bare": [], "intake": []}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as processes:
        for number in range(rounds):
            for kind, so_far in results.items():
                group = f"{topic}-{kind}-{number}"
                so_far.append(processes.submit(measure, kind, servers, topic, group, count).result())
            print(
                f"round {number + 1}:",
                *(f"{kind} {so_far[-1][0]:,.0f}/s" for kind, so_far in results.items()),
                flush=True,
            )
    rates = {kind: [rate for rate, _ in so_far] for kind, so_far in results.items()}
    ratios = [ours / base for ours, base in zip(rates["intake"], rates["bare"], strict=True)]
    for kind, so_far in results.items():
        print(
            f"{kind:<7} {statistics.median(rates[kind]):>9,.0f} messages/s, peak resident {max(rss for _, rss in so_far):.0f} MiB"
        )
    print(f"ratio   {statistics.median(ratios):.2f} (median; {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
