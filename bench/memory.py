"""Resident memory of the service at rest, while it reads a full topic and while it sends a backlog, beside Alertmanager.

The service runs with Kafka, an SQLite ledger, mail, Slack and PagerDuty; the providers accept every message at once. The
benchmark measures the peak, including the start on a migrated ledger. One round is enough: the peak hardly varies.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench import alertmanager
from bench.figures import Figure, Goal, Missing, interleaved
from bench.providers import Api, Provider, ProviderOptions, Relay, running_provider
from bench.replicas import fill, resident, serving
from channels.registry import CHANNEL_TYPES
from dispatcher.clock import SystemClock
from dispatcher.flyte.encode import EncodedMessage, Format, write, write_lifecycle
from dispatcher.ledger import Ledger, RecordedEvent
from dispatcher.model.delivery import Delivery, delivery_key
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rendering.renderer import Renderer
from dispatcher.rules import Rule
from dispatcher.runtime import event_loop
from tests.faults.rig import an_event_for
from tests.support.brokers import start
from tests.support.brokers.fixtures import make_topic
from tests.support.standins import SERVICES

PARTITIONS = 6
MESSAGES = 1_000_000
DUE = 100_000
GROUPS = 10_000
CHANNELS = ("email", "slack", "pagerduty")
AT_REST = 3.0
AT_WORK = 10.0
"""Seconds of each measurement: memory reaches its peak in the first few of them."""
LIMIT = Goal("at most", 120, of="value")
RECORD_BATCH = 500


@dataclass(frozen=True, slots=True)
class Rig:
    """The servers, ledgers and settings of a round."""

    servers: str
    topic: str
    channels: Mapping[str, Any]
    ledgers: Path
    """A folder with two ledgers: `empty.db`, and `due.db` with many due deliveries."""
    seconds: float
    """Duration of a measurement under load."""

    def peak(self, *, ledger: str = "empty", topic: str, seconds: float) -> float:
        """Peak memory in MiB of a service that starts with this ledger and topic."""
        with TemporaryDirectory() as folder:
            shutil.copyfile(self.ledgers / f"{ledger}.db", Path(folder, "ledger.db"))
            return self._peak(Path(folder), topic, seconds)

    def _peak(self, folder: Path, topic: str, seconds: float) -> float:
        group = f"bench-{time.monotonic_ns()}"
        kafka = {"bootstrap_servers": self.servers, "topics": [topic], "group_id": group, "start": "earliest"}
        ledger = {"url": f"sqlite+aiosqlite:///{folder}/ledger.db"}
        with serving(folder, {"kafka": kafka, "ledger": ledger, "channels": self.channels}) as replica:
            replica.wait_until_ready()
            time.sleep(seconds)
            return resident(replica.process.pid, peak=True)


def figures(_rounds: int, *, smoke: bool) -> Iterator[Figure | Missing]:
    messages, due, groups = (6000, 600, 100) if smoke else (MESSAGES, DUE, GROUPS)
    works = {
        "rest": "at rest",
        "read": f"while {messages:,} messages are waiting in Kafka",
        "due": f"while {due:,} deliveries are due",
    }
    with ExitStack() as stack:
        rig = stack.enter_context(opened_rig(messages, due, seconds=2 if smoke else AT_WORK))
        quiet = f"{rig.topic}-quiet"
        contenders = {
            "rest": partial(rig.peak, topic=quiet, seconds=AT_REST),
            "read": partial(rig.peak, topic=rig.topic, seconds=rig.seconds),
            "due": partial(rig.peak, ledger="due", topic=quiet, seconds=rig.seconds),
        }
        if alertmanager.installed():
            provider = stack.enter_context(running_provider(Api, ProviderOptions()))
            receiver = {"webhook_configs": [{"url": f"http://127.0.0.1:{provider.port}/"}]}
            contenders["alertmanager"] = partial(alertmanager.peak_memory, groups, receiver, provider)
        found = interleaved(1, contenders)
    baseline = f"Alertmanager with {groups:,} groups"
    for name, work in works.items():
        if not alertmanager.installed():
            peak = max(found[name])
            yield Missing(path="memory", work=work, baseline=baseline, why=f"{peak:.0f} MiB; no Alertmanager here")
            continue
        yield Figure(
            path="memory",
            work=work,
            baseline=baseline,
            ours=found[name],
            theirs=found["alertmanager"],
            unit=" MiB",
            goal=LIMIT,
        )


@contextmanager
def opened_rig(messages: int, due: int, *, seconds: float) -> Iterator[Rig]:
    broker = start()
    topic = f"bench-{os.getpid()}"
    with ExitStack() as stack:
        stack.callback(broker.stop)
        folder = Path(stack.enter_context(TemporaryDirectory()))
        relay = stack.enter_context(running_provider(Relay, ProviderOptions()))
        api = stack.enter_context(running_provider(Api, ProviderOptions()))
        for name in (topic, f"{topic}-quiet"):
            event_loop.run(make_topic(broker.bootstrap_servers, name, partitions=PARTITIONS))
        event_loop.run(fill(broker.bootstrap_servers, topic, topic_full(messages)))
        event_loop.run(make_due(folder / "empty.db", 0))
        event_loop.run(make_due(folder / "due.db", due))
        yield Rig(broker.bootstrap_servers, topic, sections(relay, api), folder, seconds)


def sections(relay: Provider, api: Provider) -> Mapping[str, Any]:
    url = f"http://127.0.0.1:{api.port}"
    return {
        "email": {"host": "127.0.0.1", "port": relay.port, "security": "none", "from": "Flyte <flyte@example.com>"},
        "slack": {"token": "xoxb-of-the-bench", "api_url": f"{url}/api/"},
        "pagerduty": {
            "events_url": url,
            "services": {f"service-{number}": {"routing_key": f"{number:032x}"} for number in range(SERVICES)},
        },
    }


def topic_full(count: int) -> Iterator[tuple[int, EncodedMessage]]:
    """Yield partition and message: 99 node and task events of about 1 kB, then one terminal event."""
    others = [one for one in write_lifecycle(an_event_for(0), Format.FLYTE_V2) if " n0 " in one.summary]
    inner = [EncodedMessage(one.key, one.headers, one.value.ljust(1000), one.summary) for one in others]
    for number in range(count // 100):
        for index in range(99):
            yield number % PARTITIONS, inner[index % len(inner)]
        yield number % PARTITIONS, write(an_event_for(number, *CHANNELS), Format.NATIVE)


async def make_due(file: Path, count: int) -> None:
    """Create a ledger with `count` due deliveries, each with rendered content."""
    now = SystemClock().now()
    renderer = Renderer(CHANNEL_TYPES)
    planner = Planner(addresses=dict.fromkeys(CHANNELS, str), fallbacks={}, grouped=frozenset({"email"}))
    first = an_event_for(0, *CHANNELS)
    assert first.options is not None
    rules = [Rule(notification, "bench") for notification in first.options.notifications]
    models = Contents(renderer.render).fill(first, planner.plan(first, rules, now=now))
    async with Ledger(f"sqlite+aiosqlite:///{file}") as ledger:
        for begin in range(0, count // len(CHANNELS), RECORD_BATCH):
            batch = [recorded_event(number, models) for number in range(begin, begin + RECORD_BATCH)]
            await ledger.record(batch, [], now=now)


def recorded_event(number: int, models: Sequence[Delivery]) -> RecordedEvent:
    event = an_event_for(number, *CHANNELS)
    assert event.options is not None
    recipients = {one.channel: one.recipients for one in event.options.notifications}
    return RecordedEvent(
        event=event,
        position=f"bench/0@{number}",
        verdict="matched",
        reason="the event's own options",
        considered=[],
        deliveries=[
            model._replace(
                key=delivery_key(event.key, model.channel, recipients[model.channel]),
                event=event.key,
                recipients=recipients[model.channel],
                addresses=recipients[model.channel],
            )
            for model in models
        ],
    )
