"""What the worker of one channel works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random

from channels.contract import Channel
from dispatcher.clock import Clock
from dispatcher.ledger import Ledger, Settlement
from dispatcher.model.delivery import Delivery
from dispatcher.model.rate_limit import RateLimit
from dispatcher.model.retry import RetryPolicy
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.tracing import OFF, Tracing

LEASE = timedelta(minutes=3)
"""How long a claimed delivery belongs to its worker. If the worker crashes, another replica can claim the
delivery after this time."""
POLL_INTERVAL = timedelta(seconds=1)
"""After this time, an idle worker claims again, even if nothing woke it, because another process may have recorded
deliveries. A delivery is due again after the same time if the ledger was unavailable before its message was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """The channel of a worker, its settings, and the parts of the dispatcher that it uses."""

    name: str
    """The channel's name."""
    channel: Channel
    ledger: Ledger
    planner: Planner
    contents: Contents
    policy: RetryPolicy
    clock: Clock
    rng: Random
    worker_id: str
    """The owner's name in the leases of this worker. Each replica has a different name."""
    concurrency: int
    """Maximum number of messages that are sent at the same time."""
    claim_ahead: int = 0
    """Maximum number of claimed deliveries that wait until a message before them is sent."""
    rate_limit: RateLimit = field(default_factory=RateLimit)
    """Limits that apply to each destination of the channel."""
    pages: bool = False
    """True if the channel's messages page people (`ChannelType.pages`). Outdated failures are then dropped."""
    lease: timedelta = LEASE
    """How long a claimed delivery belongs to this worker."""
    on_settled: Callable[[Settlement, bool], None] = lambda *_: None
    """Called after each settlement, with True if the ledger applied the outcome, and False if the worker had lost the
    lease."""
    on_deferred: Callable[[int], None] = lambda _: None
    """Called after each claim, with the number of due deliveries that must wait because of a rate limit or a blocked
    destination."""
    on_failed: Callable[[], None] = lambda: None
    """Called after each unforeseen exception about one delivery, after which the worker goes on."""
    tracing: Tracing = OFF


def log_fields(delivery: Delivery) -> dict[str, str | int]:
    """Return the fields that every log line about a delivery contains."""
    about = {"execution": delivery.event} if delivery.event else {"kind": delivery.kind.value}
    return {**about, "channel": delivery.channel, "delivery": delivery.key, "attempt": delivery.attempt}
