"""Deliveries a second by 1, 2 and 4 replicas of the service on one topic and one PostgreSQL ledger, beside as many times one.

The relay takes 50 ms a mail. First each replica has so few hands that it takes about a quarter of a core: while the
machine has cores left, replicas should add up. Then they have as many as they can use, which shows where that ends;
lines of CPU tell who took it.
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
from bench.providers import Manner, Provider, Relay, providing
from bench.replicas import cpu_seconds, fill, several
from dispatcher.flyte.encode import Format, write
from dispatcher.runtime import event_loop
from tests.faults.rig import an_owing_event
from tests.support.brokers import Broker, start
from tests.support.brokers.fixtures import make_topic
from tests.support.postgres import Cluster

PARTITIONS = 12
TAKES = 0.05
"""Seconds that the relay takes for a mail."""
REPLICAS = (1, 2, 4)
FEW, MANY = 6, 60
"""Hands of a replica: 120 mails a second, which is a quarter of a core; and more than a core can feed."""
SECONDS = 3.0
"""Of work, at the rate that the hands allow."""
AT_MOST = 250
"""Mails a second that are prepared for a replica: many hands could take more, which its core can't."""
PATIENCE = 90.0
GOAL = Goal("at least", 0.85)
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Ran:
    """One run: mails a second, and the cores that each party kept busy meanwhile."""

    rate: float
    cores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Rig:
    """What all runs share."""

    broker: Broker
    cluster: Cluster
    relay: Provider

    def run(self, replicas: int, hands: int, seconds: float) -> Ran:
        """So many replicas, on a topic and a database of their own, between the first tenth of the mails and the last."""
        name = f"scale_{os.getpid()}_{next(_numbers)}"
        event_loop.run(make_topic(self.broker.bootstrap_servers, name, partitions=PARTITIONS))
        event_loop.run(make_database(self.cluster.url, name))
        mails = int(replicas * min(hands / TAKES, AT_MOST) * seconds)
        with (
            TemporaryDirectory() as folder,
            several(Path(folder), self.settings(name, hands), replicas) as running,
            ThreadPoolExecutor(1) as threads,
        ):
            self.relay.begin()
            events = (write(an_owing_event(number, "email"), Format.NATIVE) for number in range(mails))
            placed = ((number % PARTITIONS, one) for number, one in enumerate(events))
            parties = {"replicas": [one.process.pid for one in running], **self.servers()}
            # In a thread: a few mails have all arrived by the time that a producer has come and gone.
            filling = threads.submit(lambda: event_loop.run(fill(self.broker.bootstrap_servers, name, placed)))
            first = self.until(mails // 10)
            before = {party: cpu_seconds(pids) for party, pids in parties.items()}
            last = self.until(mails * 9 // 10)
            filling.result()
            took = last[0] - first[0]
            used = {party: (cpu_seconds(pids) - before[party]) / took for party, pids in parties.items()}
            return Ran((last[1] - first[1]) / took, used)

    def settings(self, name: str, hands: int) -> dict[str, Any]:
        mail = {"host": "127.0.0.1", "port": self.relay.port, "security": "none", "from": "Flyte <flyte@example.com>"}
        url = make_url(self.cluster.url).set(database=name).render_as_string(hide_password=False)
        return {
            "kafka": {"bootstrap_servers": self.broker.bootstrap_servers, "topics": [name], "group_id": name},
            "ledger": {"url": url},
            "channels": {"email": {**mail, "concurrency": hands, "connections": hands}},
        }

    def servers(self) -> dict[str, list[int]]:
        """PostgreSQL, and the broker where it is our own."""
        ours = {child.pid: " ".join(child.cmdline()) for child in psutil.Process().children()}
        return {
            "PostgreSQL": [pid for pid, line in ours.items() if "postgres" in line.partition(" ")[0]],
            "Kafka": [pid for pid, line in ours.items() if "kafka.Kafka" in line],
        }

    def until(self, mails: int) -> tuple[float, int]:
        """When so many had arrived, and how many it were."""
        arrived = self.relay.wait_for(mails, PATIENCE)
        if arrived.messages < mails:
            raise RuntimeError(f"{arrived.messages} mails of {mails} in {PATIENCE:.0f} s: this measurement is void")
        return arrived.last, arrived.messages


def figures(rounds: int, *, smoke: bool) -> Iterator[Figure]:
    seconds, numbers = (0.6, REPLICAS[:2]) if smoke else (SECONDS, REPLICAS)
    with rigged() as rig:
        for hands, words in ((FEW, "a quarter of a core each"), (MANY, "as fast as they can")):
            runs: dict[int, list[Ran]] = {replicas: [] for replicas in numbers}
            for _ in range(rounds):
                for replicas, so_far in runs.items():
                    so_far.append(rig.run(replicas, hands, seconds))
            for replicas in numbers[1:]:
                yield Figure(
                    path="scale out",
                    work=f"mails by {replicas} replicas, {words} ({hands} hands, {1000 * TAKES:.0f} ms a mail)",
                    baseline=f"{replicas} times one replica",
                    ours=[run.rate for run in runs[replicas]],
                    theirs=[run.rate * replicas for run in runs[1]],
                    goal=GOAL if hands == FEW else None,
                )
            yield from shares(runs, words)


def shares(runs: Mapping[int, list[Ran]], words: str) -> Iterator[Figure]:
    """Whose CPU it was, with the most replicas and with one."""
    replicas, most = max(runs.items())
    for party in most[0].cores:
        if not statistics.median(run.cores[party] for run in runs[1]):
            continue  # a server of somebody else's
        yield Figure(
            path="scale out",
            work=f"CPU of {party} with {replicas} replicas, {words}",
            baseline="with one",
            ours=[run.cores[party] for run in most],
            theirs=[run.cores[party] for run in runs[1]],
            unit=" cores",
        )


@contextmanager
def rigged() -> Iterator[Rig]:
    with ExitStack() as stack:
        broker = start()
        stack.callback(broker.stop)
        cluster = Cluster()
        stack.callback(cluster.remove)
        cluster.start(fsync=True)
        yield Rig(broker, cluster, stack.enter_context(providing(Relay, Manner(takes=TAKES))))


async def make_database(server: str, name: str) -> None:
    url = make_url(server).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
