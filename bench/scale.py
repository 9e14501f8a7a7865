"""Deliveries per second by 1, 2 and 4 replicas on one topic and one PostgreSQL ledger, compared with a multiple of one.

The relay takes 50 ms per mail. First each replica has so few slots that it uses about a quarter of a core: as long as the
machine has free cores, the throughput should grow with the replicas. Then each has as many slots as it can use, which
shows the limit. More lines compare the CPU use of the replicas, PostgreSQL and Kafka.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import psutil
from sqlalchemy.engine import make_url

from bench.figures import Figure, Goal
from bench.providers import Provider, ProviderOptions, Relay, running_provider
from bench.replicas import cpu_seconds, fill, several
from dispatcher.flyte.encode import Format, write
from dispatcher.runtime import event_loop
from tests.faults.rig import an_event_for
from tests.support.brokers import Broker, start
from tests.support.brokers.fixtures import make_topic
from tests.support.postgres import Cluster

PARTITIONS = 12
DELAY = 0.05
"""Seconds that the relay takes per mail."""
REPLICAS = (1, 2, 4)
FEW, MANY = 6, 60
"""Slots per replica: 6 give 120 mails per second, a quarter of a core; 60 are more than one core can use."""
SECONDS = 3.0
"""Duration of a run, at the rate that the slots allow."""
MAX_RATE = 250
"""Mails per second and replica for which events are published: one core cannot deliver more."""
TIMEOUT = 90.0
GOAL = Goal("at least", 0.85)
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run: mails per second, and the average number of cores that each program used."""

    rate: float
    cores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Rig:
    """The servers that all runs share."""

    broker: Broker
    cluster: Cluster
    relay: Provider

    def run(self, replicas: int, concurrency: int, seconds: float) -> RunResult:
        """One run with a new topic and database, measured from 10 % to 90 % of the mails. `concurrency`: per replica."""
        name = f"scale_{os.getpid()}_{next(_numbers)}"
        event_loop.run(make_topic(self.broker.bootstrap_servers, name, partitions=PARTITIONS))
        event_loop.run(make_database(self.cluster.url, name))
        mails = int(replicas * min(concurrency / DELAY, MAX_RATE) * seconds)
        with (
            TemporaryDirectory() as folder,
            several(Path(folder), self.settings(name, concurrency), replicas) as running,
            ThreadPoolExecutor(1) as threads,
        ):
            self.relay.begin()
            events = (write(an_event_for(number, "email"), Format.NATIVE) for number in range(mails))
            placed = ((number % PARTITIONS, one) for number, one in enumerate(events))
            programs = {"replicas": [one.process.pid for one in running], **self.servers()}
            # In a thread: a short run's mails would all have arrived before the producer has closed.
            publishing = threads.submit(lambda: event_loop.run(fill(self.broker.bootstrap_servers, name, placed)))
            first = self.until(mails // 10)
            before = {program: cpu_seconds(pids) for program, pids in programs.items()}
            last = self.until(mails * 9 // 10)
            publishing.result()
            took = last[0] - first[0]
            used = {program: (cpu_seconds(pids) - before[program]) / took for program, pids in programs.items()}
            return RunResult((last[1] - first[1]) / took, used)

    def settings(self, name: str, concurrency: int) -> dict[str, Any]:
        mail = {"host": "127.0.0.1", "port": self.relay.port, "security": "none", "from": "Flyte <flyte@example.com>"}
        url = make_url(self.cluster.url).set(database=name).render_as_string(hide_password=False)
        return {
            "kafka": {
                "bootstrap_servers": self.broker.bootstrap_servers,
                "topics": [name],
                "group_id": name,
                "start": "earliest",
            },
            "ledger": {"url": url},
            "channels": {"email": {**mail, "concurrency": concurrency, "connections": concurrency}},
        }

    def servers(self) -> dict[str, list[int]]:
        """Process ids of PostgreSQL and of the broker; the broker's are empty if this run did not start it."""
        children = {child.pid: " ".join(child.cmdline()) for child in psutil.Process().children()}
        return {
            "PostgreSQL": [pid for pid, line in children.items() if "postgres" in line.partition(" ")[0]],
            "Kafka": [pid for pid, line in children.items() if "kafka.Kafka" in line],
        }

    def until(self, mails: int) -> tuple[float, int]:
        """Wait until `mails` have arrived. Returns the time of the last arrival, and the number of arrivals."""
        arrived = self.relay.wait_for(mails, TIMEOUT)
        if arrived.messages < mails:
            raise RuntimeError(f"{arrived.messages} mails of {mails} in {TIMEOUT:.0f} s: this measurement is void")
        return arrived.last, arrived.messages


def figures(rounds: int, *, smoke: bool) -> Iterator[Figure]:
    seconds, numbers = (0.6, REPLICAS[:2]) if smoke else (SECONDS, REPLICAS)
    with opened_rig() as rig:
        for concurrency, load in ((FEW, "a quarter of a core each"), (MANY, "as fast as they can")):
            runs: dict[int, list[RunResult]] = {replicas: [] for replicas in numbers}
            for _ in range(rounds):
                for replicas, so_far in runs.items():
                    so_far.append(rig.run(replicas, concurrency, seconds))
            for replicas in numbers[1:]:
                yield Figure(
                    path="scale out",
                    work=f"mails by {replicas} replicas, {load} ({concurrency} slots, {1000 * DELAY:.0f} ms a mail)",
                    baseline=f"{replicas} times one replica",
                    ours=[run.rate for run in runs[replicas]],
                    theirs=[run.rate * replicas for run in runs[1]],
                    goal=GOAL if concurrency == FEW else None,
                )
            yield from cpu_figures(runs, load)


def cpu_figures(runs: Mapping[int, list[RunResult]], load: str) -> Iterator[Figure]:
    """The CPU use of each program with the most replicas, compared with one replica."""
    replicas, most = max(runs.items())
    for program in most[0].cores:
        if not statistics.median(run.cores[program] for run in runs[1]):
            continue  # this run did not start the program
        yield Figure(
            path="scale out",
            work=f"CPU of {program} with {replicas} replicas, {load}",
            baseline="with one",
            ours=[run.cores[program] for run in most],
            theirs=[run.cores[program] for run in runs[1]],
            unit=" cores",
        )


@contextmanager
def opened_rig() -> Iterator[Rig]:
    with ExitStack() as stack:
        broker = start()
        stack.callback(broker.stop)
        cluster = Cluster()
        stack.callback(cluster.remove)
        cluster.start(fsync=True)
        yield Rig(broker, cluster, stack.enter_context(running_provider(Relay, ProviderOptions(delay=DELAY))))


async def make_database(server: str, name: str) -> None:
    url = make_url(server).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
