"""What is counted and measured: one function per fact. The only module that knows Prometheus.

Labels have few values, all known beforehand or from the settings: channels, phases, topics. No execution, project,
recipient or reason is ever a label; those are in the ledger and in the log. docs/metrics.md lists everything, and a
test holds it to this module.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase

from dispatcher.flyte.decode import kind_of
from dispatcher.intake.pipeline import BatchResult
from dispatcher.ledger import Backlog, Rejected, Settlement
from dispatcher.model.delivery import Dead, Delivery, Retry, Sent, State
from dispatcher.version import __version__

SOURCES = ("kafka", "http", "reconcile", "canary")
REPLAY = "replay"
"""Where events come from. What is brought from anywhere else was rejected once, and is tried again."""
_PROVIDER_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LAG_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400)
_CANARY_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each: what PromQL has no use for

_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


@dataclass(frozen=True, slots=True)
class MetricDescription:
    """One metric, for people."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


class Metrics:
    """The metrics of one service. Counting costs one look-up and one addition; no lock is held for long."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._described: list[MetricDescription] = []
        self._channels: set[str] = set()
        self._children: dict[tuple[object, ...], Any] = {}
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._declare_intake()
        self._declare_carrying()
        self._declare_ledger()
        self._declare_health()

    # -- the page

    @property
    def described(self) -> Sequence[MetricDescription]:
        """Every metric of our own."""
        return self._described

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics as a scraper that accepts this wants to have them, and the content type."""
        encode, kind = choose_encoder(accept)
        return encode(self._registry), kind

    # -- intake

    def _declare_intake(self) -> None:
        self._messages = self._counter("messages", "Messages that were read, of every type.", "source")
        self._events = self._counter(
            "events",
            "Events that were understood or rejected, by what was decided.",
            "source",
            "type",
            "phase",
            "decision",
        )
        self._rejected = self._counter("rejected", "Messages that were rejected and set aside.", "source")
        self._reconciled = self._counter("reconciled", "Ends of executions that no event brought.")
        self._last_batch = self._gauge(
            "last_batch_timestamp_seconds", "When the last batch was in the ledger.", "source"
        )
        self._stand_ins = self._counter(
            "template_failures", "Messages for which a built-in template stood in for one that failed.", "channel"
        )
        for source in (*SOURCES, REPLAY):  # what begins at its first happening has no rate
            self._messages.labels(source)
            self._rejected.labels(source)

    def heard(self, heard: BatchResult, *, now: datetime) -> None:
        """A batch is in the ledger."""
        source = heard.source if heard.source in SOURCES else REPLAY
        self._of(self._messages, source).inc(heard.messages)
        self._of(self._last_batch, source).set(now.timestamp())
        if heard.recorded or heard.rejected:
            self._entries(heard, source)

    def _entries(self, heard: BatchResult, source: str) -> None:
        for entry, new in heard.new_or_duplicate():
            self._event(source, entry.kind, entry.event.phase, entry.verdict if new else "duplicate")
            if new:
                self._stillborn(entry.deliveries)
        for refused in heard.rejected:
            self._event(source, kind_of(refused.headers), _phase(refused), "rejected")
            self._rejected.labels(source).inc()
        if source == "reconcile":
            self._reconciled.inc(len(heard.new))

    def _event(self, source: str, kind: str, phase: str, decision: str) -> None:
        self._of(self._events, source, kind, phase, decision).inc()

    def template_failed(self, channel: str) -> None:
        """A built-in template stood in for one that failed."""
        self._stand_ins.labels(channel).inc()

    # -- carrying

    def _declare_carrying(self) -> None:
        self._attempts = self._counter(
            "attempts",
            "Attempts that have ended: sent, retry, unknown (it may have arrived), dead.",
            "channel",
            "outcome",
        )
        self._provider = self._histogram(
            "attempt_duration_seconds", "From an attempt's beginning to the provider's answer.", _PROVIDER_SECONDS
        )
        self._deliveries = self._counter(
            "deliveries", "Deliveries that are settled: sent or dead.", "channel", "outcome"
        )
        self._lag = self._histogram(
            "delivery_lag_seconds", "From the event's own time to the provider's acceptance.", _LAG_SECONDS
        )
        self._lost_leases = self._counter("lost_leases", "Endings that came after their lease had run out.", "channel")
        self._put_off = self._counter(
            "rate_limit_waits",
            "Due deliveries that were put off for their destination's pace, wish or breaker.",
            "channel",
        )
        self._in_hand = self._gauge("deliveries_in_hand", "Deliveries that this replica is carrying.", "channel")
        self._resting = self._gauge(
            "breaker_open",
            "1 while this replica lets the whole provider rest, or tries it with a single delivery.",
            "channel",
        )

    def channel(self, name: str) -> None:
        """There is a channel of this name: its figures are there from the beginning, at zero."""
        self._channels.add(name)
        for outcome in ("sent", "retry", "in_doubt", "dead"):
            self._attempts.labels(name, outcome)
        for outcome in ("sent", "dead"):
            self._deliveries.labels(name, outcome)
        for metric in (self._provider, self._lag, self._lost_leases, self._put_off, self._stand_ins):
            metric.labels(name)

    def settled(self, ending: Settlement, held: bool) -> None:  # noqa: FBT001 - a callback's form
        """An attempt has ended and is written down; `held`: its lease was still its own, so the ending counts."""
        channel = ending.delivery.channel
        match ending.outcome:
            case Sent():
                outcome = "sent"
            case Retry(in_doubt=in_doubt):
                outcome = "in_doubt" if in_doubt else "retry"
            case Dead():
                outcome = "dead"
        self._of(self._attempts, channel, outcome).inc()
        self._of(self._provider, channel).observe(_seconds(ending.ended_at - ending.started_at))
        if not held:
            self._lost_leases.labels(channel).inc()
            return
        if outcome in {"sent", "dead"}:
            self._of(self._deliveries, channel, outcome).inc()
        self._stillborn(ending.follow_ups)
        if outcome == "sent" and not ending.delivery.fallback_for:
            self._of(self._lag, channel).observe(_seconds(ending.ended_at - ending.delivery.occurred_at))

    def _stillborn(self, made: Sequence[Delivery]) -> None:
        """Whom nobody can serve is owed all the same, dead from the start."""
        for delivery in made:
            if delivery.state is State.DEAD:
                self._deliveries.labels(self._bounded(delivery.channel), "dead").inc()

    def _bounded(self, channel: str) -> str:
        """The channel, or `other`: events and yesterday's settings name channels that are not configured."""
        return channel if channel in self._channels else "other"

    def put_off(self, channel: str, number: int) -> None:
        """So many due deliveries were told to come later."""
        if number:
            self._put_off.labels(channel).inc(number)

    def courier(self, channel: str, *, in_hand: int, resting: bool) -> None:
        """How a courier of ours stands."""
        self._in_hand.labels(channel).set(in_hand)
        self._resting.labels(channel).set(resting)

    # -- what lies in the ledger, and in Kafka

    def _declare_ledger(self) -> None:
        self._waiting = self._gauge("deliveries_waiting", "Deliveries that wait, all replicas' together.", "channel")
        self._due = self._gauge(
            "deliveries_due",
            "Those of them that could go now and are in nobody's hands; no more than 10000 are counted.",
            "channel",
        )
        self._dead = self._gauge(
            "deliveries_dead", "Deliveries that are dead and were neither redriven nor purged.", "channel"
        )
        self._oldest = self._gauge(
            "oldest_waiting_seconds", "The age of the oldest delivery that waits; 0 where none does.", "channel"
        )
        self._broken = self._gauge(
            "destination_breakers_open", "Destinations that are left alone after failures in a row.", "channel"
        )
        self._kafka_lag = self._gauge(
            "kafka_lag_messages", "Messages of a partition of ours that were not read yet.", "topic", "partition"
        )
        self._kafka_newest = self._gauge(
            "kafka_last_message_timestamp_seconds",
            "When the last message that we read was written.",
            "topic",
            "partition",
        )

    def backlog(self, channels: Mapping[str, Backlog] | None, *, now: datetime) -> None:
        """How the ledger stands; None where it can't be read: figures of yesterday are worse than none."""
        for gauge in (self._waiting, self._due, self._dead, self._oldest, self._broken):
            gauge.clear()
        if channels is None:
            return
        ages = dict.fromkeys(self._channels, 0.0)
        for channel, backlog in [*((name, Backlog()) for name in self._channels), *channels.items()]:
            name = self._bounded(channel)
            self._waiting.labels(name).inc(backlog.waiting)
            self._due.labels(name).inc(backlog.due)
            self._dead.labels(name).inc(backlog.dead)
            self._broken.labels(name).inc(backlog.broken)
            ages[name] = max(ages.get(name, 0.0), _seconds(now - (backlog.oldest or now)))
        for name, age in ages.items():
            self._oldest.labels(name).set(age)

    def kafka(self, lag: Mapping[tuple[str, int], int] | None, newest: Mapping[tuple[str, int], float]) -> None:
        """How far behind we are on each partition of ours; None where the broker can't be asked."""
        for gauge, figures in ((self._kafka_lag, lag or {}), (self._kafka_newest, newest)):
            gauge.clear()
            for (topic, partition), figure in figures.items():
                gauge.labels(topic, partition).set(figure)

    # -- health

    def _declare_health(self) -> None:
        self._ready = self._gauge("ready", "1 where a room is well, by the readiness page's rooms.", "room")
        self._answered = self._gauge(
            "collected", "1 where what is looked up for these metrics could be looked up.", "of"
        )
        self._stalls = self._counter(
            "stalls", "Times that the event loop, or a room, made no progress for long.", "room"
        )
        self._stalled = self._gauge("stalled", "1 while the event loop, or a room, makes no progress.", "room")
        self._loop_lag = self._gauge("loop_delay_seconds", "How late the event loop was at its last heartbeat.")
        self._canaries = self._counter("canaries", "Canaries by how they ended: arrived, missed.", "channel", "outcome")
        self._canary_at = self._gauge(
            "canary_last_arrival_timestamp_seconds", "When the last canary had arrived.", "channel"
        )
        self._canary_took = self._histogram(
            "canary_duration_seconds", "From a canary's release to the provider's acceptance.", _CANARY_SECONDS
        )
        build = self._gauge("build_info", "1, with the version of the dispatcher and of Python.", "version", "python")
        build.labels(__version__, platform.python_version()).set(1)

    def readiness(self, rooms: Mapping[str, str | None]) -> None:
        """What the rooms say of themselves: None where all is well."""
        for name, trouble in rooms.items():
            self._ready.labels(name).set(trouble is None)

    def collected(self, of: str, well: bool) -> None:  # noqa: FBT001 - a callback's form
        """Whether something could be looked up for these metrics."""
        self._answered.labels(of).set(well)

    def watching(self, room: str) -> None:
        """The watchdog looks after this room."""
        self._stalls.labels(room)
        self._stalled.labels(room).set(0)

    def stalled(self, room: str) -> None:
        """A room has made no progress for long."""
        self._stalls.labels(room).inc()
        self._stalled.labels(room).set(1)

    def moves(self, room: str) -> None:
        """A room that was stalled makes progress again."""
        self._stalled.labels(room).set(0)

    def heartbeat(self, late: float) -> None:
        """The event loop has turned, so many seconds later than it should have."""
        self._loop_lag.set(late)

    def canary(self, channel: str) -> None:
        """Canaries are sent over this channel."""
        for outcome in ("arrived", "missed"):
            self._canaries.labels(channel, outcome)

    def canary_arrived(self, channel: str, took: timedelta, *, at: datetime) -> None:
        """A canary has come through."""
        self._canaries.labels(channel, "arrived").inc()
        self._canary_took.labels(channel).observe(_seconds(took))
        self._canary_at.labels(channel).set(at.timestamp())

    def canary_missed(self, channel: str) -> None:
        """A canary has not come through in time."""
        self._canaries.labels(channel, "missed").inc()

    def _of(self, metric: _Metric, *labels: str) -> _Metric:
        """One series of what is counted on the hot path, found once. Not for gauges that are cleared."""
        key = (metric, *labels)
        child: _Metric | None = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    # -- declaring

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return self._made(Counter, f"{name}_total", meaning, labels)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return self._made(Gauge, name, meaning, labels)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float]) -> Histogram:
        return self._made(Histogram, name, meaning, ("channel",), buckets=buckets)

    def _made(self, kind: type[_Metric], name: str, meaning: str, labels: tuple[str, ...], **more: Any) -> _Metric:
        metric = kind(f"dispatcher_{name}", meaning, labels, registry=self._registry, **more)
        self._described.append(MetricDescription(f"dispatcher_{name}", kind.__name__.lower(), labels, meaning))
        return metric


def _phase(refused: Rejected) -> str:
    """The phase of a rejected event, where that much was understood."""
    return refused.event.rpartition("/")[2] if refused.event else ""


def _seconds(span: timedelta) -> float:
    """Never less than nothing: clocks of different machines differ."""
    return max(span.total_seconds(), 0.0)
