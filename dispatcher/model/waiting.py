"""What a waiting delivery waits for. Pure: the ledger reads what `waits_for` needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from dispatcher.model.delivery import Delivery, State
from dispatcher.model.hold import HoldReason, holder_text
from dispatcher.model.replica import Replica


class WaitKind(StrEnum):
    """What a delivery can wait for."""

    SILENCE = "silence"
    """The end of a silence that holds it."""
    WINDOW = "window"
    """The end of quiet hours that hold it."""
    DIGEST = "digest"
    """The close of the digest whose member it is."""
    LEASE = "lease"
    """A replica is sending it, or has crashed and its lease still runs."""
    THREAD = "thread"
    """An earlier message of its thread."""
    BREAKER = "breaker"
    """The provider's circuit breaker, which is open in every running replica."""
    RATE_LIMIT = "rate_limit"
    """A slot of its destination's rate limit."""
    PAUSE = "pause"
    """The end of its destination's pause: the destination sent `Retry-After`, or its breaker is open."""
    RETRY = "retry"
    """The time of its next attempt."""
    REPLICA = "replica"
    """A replica that has the delivery's channel: none is running."""
    WORKER = "worker"
    """A free slot of its channel's worker. The delivery is due, and nothing else is in its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """One thing that a delivery waits for."""

    kind: WaitKind
    text: str
    """The same for people, as it stands after "waits for". It names no time: see `until`."""
    until: datetime | None = None
    """When this wait ends, as far as it is known."""
    delivery: str | None = None
    """The key of the earlier message of the thread; None in every other wait."""
    replicas: Sequence[str] = ()
    """The names of the replicas that send the delivery, or whose circuit breaker is open."""
    held_by: str = ""
    """The id of the silence or digest that holds the delivery, or whose quiet hours they are; empty in other waits."""


class HoldingSilence(NamedTuple):
    """What is said of a silence that holds deliveries."""

    reason: str
    ends_at: datetime


def waits_for(
    delivery: Delivery,
    *,
    now: datetime,
    earlier: str | None,
    paused: bool,
    replicas: Sequence[Replica],
    silence: HoldingSilence | None = None,
) -> list[Wait]:
    """Return what the delivery waits for, the most important first; nothing if the delivery is finished.

    `earlier`: the key of the first waiting message of its thread, if the delivery has to wait for it. `paused`: its due
    time is the end of its destination's pause. `replicas`: all replicas that the ledger knows. `silence`: the silence that
    holds it, if one does that the ledger still has.
    """
    if delivery.state is not State.WAITING:
        return []
    if delivery.hold is not None:  # nothing else matters until it is released
        until = delivery.due_at if delivery.due_at > now else None
        text = _held(delivery, delivery.hold, now, silence)
        return [Wait(kind=WaitKind(delivery.hold), text=text, until=until, held_by=delivery.held_by)]
    if delivery.lease is not None and delivery.due_at > now:
        owner = delivery.lease.removesuffix(f":{delivery.channel}")
        return [
            Wait(
                kind=WaitKind.LEASE,
                text=f"replica {owner}, which is sending it",
                until=delivery.due_at,
                replicas=[owner],
            )
        ]
    serving = [one for one in replicas if one.seen(now) and delivery.channel in one.channels]
    found = [*_thread(earlier), *_breaker(delivery.channel, serving), *_due_time(delivery, now, paused=paused)]
    return found or [_worker(delivery.channel, serving)]


def _held(delivery: Delivery, hold: HoldReason, now: datetime, silence: HoldingSilence | None) -> str:
    if not delivery.held_by:
        return "its release, because a silence was changed"
    holder = holder_text(hold, delivery.held_by, silence.reason if silence is not None else "")
    if delivery.due_at <= now:
        return f"its release by a replica, after {holder}"
    if silence is not None and silence.ends_at <= now:
        return f"other late messages of {holder}, which has ended"
    return f"the end of {holder}"


def _thread(earlier: str | None) -> Iterator[Wait]:
    if earlier is not None:
        yield Wait(kind=WaitKind.THREAD, text="an earlier message of its thread", delivery=earlier)


def _breaker(channel: str, serving: Sequence[Replica]) -> Iterator[Wait]:
    """Yield the wait for a replica, or for the breaker if it is open in every replica that has the channel."""
    if not serving:
        yield Wait(kind=WaitKind.REPLICA, text=f"a replica with channel {channel}: none is running")
        return
    probes = [probe for one in serving if (probe := one.channels[channel].next_probe_at) is not None]
    if len(probes) == len(serving):
        text = f"the next probe of {channel}'s circuit breaker"
        yield Wait(kind=WaitKind.BREAKER, text=text, until=min(probes), replicas=[one.name for one in serving])


def _due_time(delivery: Delivery, now: datetime, *, paused: bool) -> Iterator[Wait]:
    if delivery.due_at <= now:
        return
    if delivery.slot_reserved:
        kind, text = WaitKind.RATE_LIMIT, "its slot of the rate limit"
    elif paused:
        kind, text = WaitKind.PAUSE, "the end of its destination's pause"
    else:
        kind, text = WaitKind.RETRY, "its next attempt"
    yield Wait(kind=kind, text=text, until=delivery.due_at)


def _worker(channel: str, serving: Sequence[Replica]) -> Wait:
    """Return the wait of a delivery that is due. Names the replicas whose breaker is open; others may send it."""
    names = [one.name for one in serving if one.channels[channel].next_probe_at is not None]
    where = f"; the circuit breaker is open in {', '.join(names)}" if names else ""
    return Wait(kind=WaitKind.WORKER, text=f"a free slot of worker {channel}{where}", replicas=names)
