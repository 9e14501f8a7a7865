"""The Prometheus metrics. Other modules call one method for each occurrence that is counted.

Only this module uses the Prometheus client. Label values are few, and known in advance or from the settings: channels,
phases, topics. Executions, projects, recipients and reasons are never labels, because they have too many values; the
ledger and the log have them. docs/metrics.md lists every metric, and a test compares it with this module. The module is
long, because each metric is declared and counted here.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase

from dispatcher.flyte.decode import type_label
from dispatcher.intake.pipeline import BatchResult
from dispatcher.ledger import Backlog, HoldFigures, Rejected, Settlement
from dispatcher.ledger.held import HeldNumbers
from dispatcher.model.delivery import Dead, Delivery, Dropped, Retry, Sent, State
from dispatcher.model.hold import HoldReason
from dispatcher.model.owner import UnresolvedOwner
from dispatcher.version import __version__

SOURCES = ("kafka", "http", "reconcile", "canary")
REPLAY = "replay"
"""Value of the label `source` for replayed messages. The source of a replayed message itself is the position at which
it first arrived; positions would be too many label values."""
_PROVIDER_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LAG_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400)
_CANARY_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

# Without this call, the client adds a series with the creation time to each counter and histogram. PromQL doesn't
# need these series.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


@dataclass(frozen=True, slots=True)
class MetricDescription:
    """The description of one metric. A test compares it with docs/metrics.md."""

    name: str
    kind: str
    """`counter`, `gauge` or `histogram`."""
    labels: tuple[str, ...]
    meaning: str


class Metrics:
    """All metrics of one replica."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._descriptions: list[MetricDescription] = []
        self._channels: set[str] = set()
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._declare_intake()
        self._declare_delivering()
        self._declare_ledger()
        self._declare_holds()
        self._declare_health()

    # -- the page

    @property
    def descriptions(self) -> Sequence[MetricDescription]:
        """The descriptions of all metrics that this module declares."""
        return self._descriptions

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics, in a format that the `Accept` header allows, and the content type of this format."""
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:  # raised for a `version` that is not made of numbers
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type

    # -- intake

    def _declare_intake(self) -> None:
        self._messages = self._counter("messages", "Messages that were read, of every type.", "source")
        self._events = self._counter(
            "events", "Terminal events and rejected messages, by decision.", "source", "type", "phase", "decision"
        )
        self._rejected = self._counter("rejected", "Messages that were rejected and stored in the ledger.", "source")
        self._kafka_skipped = self._counter(
            "kafka_skipped",
            "Kafka messages that were not processed: before_start (older than kafka.start), tombstone (no value).",
            "reason",
        )
        self._reconciled = self._counter(
            "reconciled", "Executions that finished without an event and were found by reconciliation."
        )
        self._last_batch = self._gauge(
            "last_batch_timestamp_seconds", "When the last batch of messages was recorded in the ledger.", "source"
        )
        self._template_failures = self._counter(
            "template_failures",
            "Messages rendered with the built-in template because a custom template failed.",
            "channel",
        )
        self._unresolved_owners = self._counter(
            "unresolved_owners",
            "Events whose owner is unknown (no step of owners found it) or unreachable (no provider knows the address).",
            "why",
            "notified",
        )
        for why in ("unknown", "unreachable"):
            for notified in ("fallback", "nobody"):
                self._unresolved_owners.labels(why, notified)
        for source in (*SOURCES, REPLAY):  # created at 0: PromQL's rate() misses the first increment of a new series
            self._messages.labels(source)
            self._rejected.labels(source)
        for reason in ("before_start", "tombstone"):
            self._kafka_skipped.labels(reason)

    def kafka_skipped(self, reason: str, number: int) -> None:
        """Count Kafka messages that were not processed. `reason`: `before_start` or `tombstone`."""
        self._kafka_skipped.labels(reason).inc(number)

    def batch_recorded(self, batch: BatchResult, *, now: datetime) -> None:
        """Count a batch after it was recorded in the ledger."""
        source = batch.source if batch.source in SOURCES else REPLAY
        self._messages.labels(source).inc(batch.messages)
        self._last_batch.labels(source).set(now.timestamp())
        if batch.recorded or batch.rejected:
            self._count_events(batch, source)

    def _count_events(self, batch: BatchResult, source: str) -> None:
        for entry, new in batch.new_or_duplicate():
            decision = entry.verdict if new else "duplicate"
            self._events.labels(source, entry.kind, entry.event.phase, decision).inc()
            if new:
                self._count_undeliverable(entry.deliveries)
                self._count_owner("unknown", entry.unresolved_owner)
        for rejected in batch.rejected:
            kind = type_label(rejected.headers)
            self._events.labels(source, kind, _phase(rejected), "rejected").inc()
            self._rejected.labels(source).inc()
        if source == "reconcile":
            self._reconciled.inc(len(batch.new))

    def _count_owner(self, why: str, unresolved: UnresolvedOwner | None) -> None:
        if unresolved is not None:
            self._unresolved_owners.labels(why, "fallback" if unresolved.instead else "nobody").inc()

    def template_failed(self, channel: str) -> None:
        """Count a message that was rendered with the built-in template because a custom template failed."""
        self._template_failures.labels(channel).inc()

    # -- delivering

    def _declare_delivering(self) -> None:
        self._attempts = self._counter(
            "attempts",
            "Finished delivery attempts: sent, retry, in_doubt (the message may have arrived), dead.",
            "channel",
            "outcome",
        )
        self._attempt_duration = self._histogram(
            "attempt_duration_seconds",
            "Duration of an attempt, until the provider answered or the attempt timed out.",
            _PROVIDER_SECONDS,
        )
        self._deliveries = self._counter(
            "deliveries", "Deliveries that reached a final state: sent, dead or dropped.", "channel", "outcome"
        )
        self._lag = self._histogram(
            "delivery_lag_seconds",
            "Time from the event's own timestamp to the provider's acceptance, unless it was held.",
            _LAG_SECONDS,
        )
        self._lost_leases = self._counter(
            "lost_leases", "Attempts that finished after their lease was lost; their outcome did not count.", "channel"
        )
        self._rate_limit_waits = self._counter(
            "rate_limit_waits",
            "Due deliveries postponed by a rate limit, a Retry-After or a destination's open circuit breaker.",
            "channel",
        )
        self._in_flight = self._gauge(
            "deliveries_in_flight", "Deliveries that this replica has claimed and not finished.", "channel"
        )
        self._breaker_open = self._gauge(
            "breaker_open",
            "1 while this replica's circuit breaker for the provider is open or half-open.",
            "channel",
        )

    def add_channel(self, name: str) -> None:
        """Create the metrics of a configured channel, with the value 0."""
        self._channels.add(name)
        for outcome in ("sent", "retry", "in_doubt", "dead"):
            self._attempts.labels(name, outcome)
        for outcome in ("sent", "dead", "dropped"):
            self._deliveries.labels(name, outcome)
        for outcome in ("sent", "included", "dropped", "held_again"):
            self._releases.labels(name, outcome)
        for metric in (
            self._attempt_duration,
            self._lag,
            self._lost_leases,
            self._rate_limit_waits,
            self._template_failures,
        ):
            metric.labels(name)

    def settled(self, settlement: Settlement, lease_held: bool) -> None:  # noqa: FBT001 - set by the callback's type
        """Count a finished attempt. If the attempt's lease was lost, the delivery is not counted as sent or dead,
        because the outcome changed nothing in the ledger.
        """
        channel = settlement.delivery.channel
        match settlement.outcome:
            case Sent():
                outcome = "sent"
            case Retry(in_doubt=in_doubt):
                outcome = "in_doubt" if in_doubt else "retry"
            case Dead():
                outcome = "dead"
            case Dropped():  # nothing was attempted
                if lease_held:
                    self._deliveries.labels(channel, "dropped").inc()
                return
        self._attempts.labels(channel, outcome).inc()
        duration = _seconds(settlement.ended_at - settlement.started_at)
        self._attempt_duration.labels(channel).observe(duration)
        if not lease_held:
            self._lost_leases.labels(channel).inc()
            return
        if outcome in {"sent", "dead"}:
            self._deliveries.labels(channel, outcome).inc()
        self._count_undeliverable(settlement.follow_ups)
        self._count_owner("unreachable", settlement.unresolved_owner)
        if outcome == "sent" and not settlement.delivery.fallback_for and settlement.delivery.held_since is None:
            lag = _seconds(settlement.ended_at - settlement.delivery.occurred_at)
            self._lag.labels(channel).observe(lag)

    def _count_undeliverable(self, created: Sequence[Delivery]) -> None:
        """Count new deliveries that are dead from the start, because no configured channel serves the recipient."""
        for delivery in created:
            if delivery.state is State.DEAD:
                self._deliveries.labels(self._channel_label(delivery.channel), "dead").inc()

    def _channel_label(self, channel: str) -> str:
        """Return the channel's name, or `other` if the channel is not configured. Events may name any channel, so the
        names of unknown channels would be too many label values.
        """
        return channel if channel in self._channels else "other"

    def deferred(self, channel: str, number: int) -> None:
        """Count due deliveries that a claim postponed because of a rate limit, a Retry-After or an open circuit
        breaker.
        """
        if number:
            self._rate_limit_waits.labels(channel).inc(number)

    def worker(self, channel: str, *, in_flight: int, breaker_open: bool) -> None:
        """Set the gauges of a channel's worker."""
        self._in_flight.labels(channel).set(in_flight)
        self._breaker_open.labels(channel).set(breaker_open)

    # -- the ledger's and Kafka's backlog

    def _declare_ledger(self) -> None:
        self._waiting = self._gauge(
            "deliveries_waiting", "Deliveries in the ledger that are neither sent, dead, dropped nor held.", "channel"
        )
        self._due = self._gauge(
            "deliveries_due", "Waiting deliveries that are due and not claimed; counted up to 10000.", "channel"
        )
        self._dead = self._gauge(
            "deliveries_dead", "Dead deliveries that were not redriven, dismissed or purged.", "channel"
        )
        self._oldest_waiting = self._gauge(
            "oldest_waiting_seconds",
            "Age of the oldest waiting delivery that was never held; 0 if none is waiting.",
            "channel",
        )
        self._open_breakers = self._gauge(
            "destination_breakers_open",
            "Destinations whose circuit breaker is open after repeated failures.",
            "channel",
        )
        self._kafka_lag = self._gauge(
            "kafka_lag_messages",
            "Messages in this replica's partitions that it has not read yet.",
            "topic",
            "partition",
        )
        self._kafka_last_message = self._gauge(
            "kafka_last_message_timestamp_seconds",
            "Timestamp of the last message that this replica read from the partition.",
            "topic",
            "partition",
        )

    def backlog(self, channels: Mapping[str, Backlog] | None, *, now: datetime) -> None:
        """Set the gauges of the ledger's backlog. If the ledger can't be read, `channels` is None. Then the gauges are
        removed, because old values would be misleading.
        """
        for gauge in (self._waiting, self._due, self._dead, self._oldest_waiting, self._open_breakers):
            gauge.clear()
        if channels is None:
            return
        ages = dict.fromkeys(self._channels, 0.0)
        for channel, backlog in [*((name, Backlog()) for name in self._channels), *channels.items()]:
            name = self._channel_label(channel)
            self._waiting.labels(name).inc(backlog.waiting)
            self._due.labels(name).inc(backlog.due)
            self._dead.labels(name).inc(backlog.dead)
            self._open_breakers.labels(name).inc(backlog.open_breakers)
            ages[name] = max(ages.get(name, 0.0), _seconds(now - (backlog.oldest or now)))
        for name, age in ages.items():
            self._oldest_waiting.labels(name).set(age)

    def kafka(self, lag: Mapping[tuple[str, int], int] | None, last_message: Mapping[tuple[str, int], float]) -> None:
        """Set the gauges of the Kafka partitions that are assigned to this replica.

        Args:
            lag: mapping from topic and partition to the number of unread messages; None if the broker did not answer.
            last_message: mapping from topic and partition to the Unix timestamp of the last message that was read.
        """
        for gauge, values in ((self._kafka_lag, lag or {}), (self._kafka_last_message, last_message)):
            gauge.clear()
            for (topic, partition), value in values.items():
                gauge.labels(topic, partition).set(value)

    # -- what is held back

    def _declare_holds(self) -> None:
        self._held = self._gauge(
            "deliveries_held", "Deliveries that a silence, quiet hours (window) or a digest hold.", "channel", "hold"
        )
        self._oldest_held = self._gauge(
            "oldest_held_seconds",
            "How long the oldest held delivery has been held; 0 if none is held.",
            "channel",
            "hold",
        )
        self._overdue_hold = self._gauge(
            "overdue_hold_seconds",
            "How long ago the first hold ended of those that are not released; 0 if none is late.",
            "channel",
            "hold",
        )
        self._open_digests = self._gauge("digests_open", "Addresses whose digest gathers messages.", "channel")
        self._silences = self._gauge("silences_in_force", "Silences in force.")
        self._releases = self._counter(
            "releases",
            "Held deliveries whose hold ended: sent, included (another message tells of them), dropped, held_again.",
            "channel",
            "outcome",
        )

    def holds(self, figures: HoldFigures | None, *, now: datetime) -> None:
        """Set the gauges of what is held. If the ledger can't be read, `figures` is None, and they are removed."""
        for gauge in (self._held, self._oldest_held, self._overdue_hold, self._open_digests):
            gauge.clear()
        self._silences.set(figures.silences_in_force if figures is not None else math.nan)
        if figures is None:
            return
        held = {(name, hold): HeldNumbers(0, now, now) for name in self._channels for hold in HoldReason}
        for (channel, hold), one in figures.held.items():
            known = held.get(key := (self._channel_label(channel), hold), HeldNumbers(0, now, now))
            times = min(known.oldest, one.oldest), min(known.first_end, one.first_end)
            held[key] = HeldNumbers(known.number + one.number, *times)
        for key, one in held.items():
            self._held.labels(*key).set(one.number)
            self._oldest_held.labels(*key).set(_seconds(now - one.oldest))
            self._overdue_hold.labels(*key).set(_seconds(now - one.first_end))
        for channel in self._channels:
            self._open_digests.labels(channel).set(0)
        for channel, number in figures.open_digests.items():
            self._open_digests.labels(self._channel_label(channel)).inc(number)

    def released(self, channel: str, numbers: Mapping[str, int]) -> None:
        """Count held deliveries whose hold ended. `numbers`: how many became what (`Releaser.on_released`)."""
        name = self._channel_label(channel)
        for outcome, number in numbers.items():
            self._releases.labels(name, outcome).inc(number)
        self._deliveries.labels(name, "dropped").inc(numbers.get("included", 0) + numbers.get("dropped", 0))

    # -- health

    def _declare_health(self) -> None:
        self._ready = self._gauge("ready", "1 if the component is ready, as on /readyz.", "component")
        self._collector_success = self._gauge(
            "scrape_collector_success", "1 if the collector succeeded at the last scrape.", "collector"
        )
        self._stalls = self._counter(
            "stalls", "Times that the event loop or a component made no progress for too long.", "component"
        )
        self._stalled = self._gauge("stalled", "1 while the event loop or a component makes no progress.", "component")
        self._component_failures = self._counter(
            "component_failures",
            "Unforeseen exceptions that stopped a component, or its work on one delivery.",
            "component",
        )
        self._braked = self._gauge(
            "braked",
            "1 while the component gives nothing up because the ledger refuses a canned event (`ledger`), or gives up "
            "one message a minute because many failed with one kind of error (`errors`).",
            "component",
            "cause",
        )
        self._routes = self._gauge("routes", "Routes in effect.")
        self._rule_problems = self._gauge(
            "rule_problems",
            "Invalid launch plan files, route files, rules and routes; the last valid ones stay in effect.",
        )
        self._loop_delay = self._gauge("loop_delay_seconds", "How late the event loop ran its last heartbeat.")
        self._clock_offset = self._gauge(
            "clock_offset_seconds", "How far this replica's clock is ahead of PostgreSQL's; negative if it is behind."
        )
        self._canaries = self._counter("canaries", "Canaries by outcome: arrived, missed.", "channel", "outcome")
        self._canary_last_arrival = self._gauge(
            "canary_last_arrival_timestamp_seconds",
            "Arrival time of the last canary that this replica sent.",
            "channel",
        )
        self._canary_duration = self._histogram(
            "canary_duration_seconds",
            "Time from a canary's scheduled time to the provider's acceptance.",
            _CANARY_SECONDS,
        )
        build = self._gauge(
            "build_info", "Always 1; the labels give the versions of the dispatcher and of Python.", "version", "python"
        )
        build.labels(__version__, platform.python_version()).set(1)

    def readiness(self, unready_reasons: Mapping[str, str | None]) -> None:
        """Set the readiness of each component. `unready_reasons` maps each component to the reason why it is not ready,
        or to None if it is ready.
        """
        for component, reason in unready_reasons.items():
            self._ready.labels(component).set(reason is None)

    def collector_finished(self, collector: str, success: bool) -> None:  # noqa: FBT001 - set by the callback's type
        """Record whether a collector, which reads values for the metrics page, succeeded at this scrape."""
        self._collector_success.labels(collector).set(success)

    def add_component(self, component: str) -> None:
        """Create the counter of a component's failures, with the value 0."""
        self._component_failures.labels(component)

    def component_failed(self, component: str) -> None:
        """Count an unforeseen exception that stopped a component, or its work on one delivery."""
        self._component_failures.labels(component).inc()

    def braked(self, component: str, *, ledger: bool, slow: bool) -> None:
        """Record whether a component's brake is on: nothing is given up (`ledger`), or one message a minute (`slow`)."""
        self._braked.labels(component, "ledger").set(ledger)
        self._braked.labels(component, "errors").set(slow)

    def rules(self, *, routes: int, problems: int) -> None:
        """Set the number of routes in effect, and the number of invalid files and rules among the rule files."""
        self._routes.set(routes)
        self._rule_problems.set(problems)

    def add_watched(self, component: str) -> None:
        """Create the metrics of a component that the watchdog watches, with the value 0."""
        self._stalls.labels(component)
        self._stalled.labels(component).set(0)

    def stalled(self, component: str) -> None:
        """Record that a component stopped making progress."""
        self._stalls.labels(component).inc()
        self._stalled.labels(component).set(1)

    def recovered(self, component: str) -> None:
        """Record that a stalled component makes progress again."""
        self._stalled.labels(component).set(0)

    def heartbeat(self, delay: float) -> None:
        """Record by how many seconds the event loop's last heartbeat was late."""
        self._loop_delay.set(delay)

    def clock_offset(self, offset: timedelta) -> None:
        """Record how far this machine's clock is ahead of the database's."""
        self._clock_offset.set(offset.total_seconds())

    def add_canary(self, channel: str) -> None:
        """Create the counters of this channel's canaries, with the value 0."""
        for outcome in ("arrived", "missed"):
            self._canaries.labels(channel, outcome)

    def canary_arrived(self, channel: str, duration: timedelta, *, at: datetime) -> None:
        """Count a canary that arrived at the time `at`, which is `duration` after its scheduled time."""
        self._canaries.labels(channel, "arrived").inc()
        self._canary_duration.labels(channel).observe(_seconds(duration))
        self._canary_last_arrival.labels(channel).set(at.timestamp())

    def canary_missed(self, channel: str) -> None:
        """Count a canary that did not arrive in time."""
        self._canaries.labels(channel, "missed").inc()

    # -- declaring

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return self._declare(Counter, f"{name}_total", meaning, labels)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return self._declare(Gauge, name, meaning, labels)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float]) -> Histogram:
        return self._declare(Histogram, name, meaning, ("channel",), buckets=buckets)

    def _declare(
        self, kind: type[_Metric], name: str, meaning: str, labels: tuple[str, ...], **options: Any
    ) -> _Metric:
        metric = kind(f"dispatcher_{name}", meaning, labels, registry=self._registry, **options)
        self._descriptions.append(MetricDescription(f"dispatcher_{name}", kind.__name__.lower(), labels, meaning))
        return metric


def _phase(rejected: Rejected) -> str:
    """Return the phase of a rejected event; empty if the message could not be decoded."""
    return rejected.event.rpartition("/")[2] if rejected.event else ""


def _seconds(duration: timedelta) -> float:
    """Return the duration in seconds, or 0 if it is negative. It can be negative because the clocks of two machines
    differ.
    """
    return max(duration.total_seconds(), 0.0)
