"""Counts the claimed deliveries of a worker, and says how many more it may claim. Knows no ledger and no channel."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from dispatcher.model.circuit_breaker import CircuitBreaker


@dataclass(slots=True)
class Slots:
    """The claimed deliveries of one worker: `start`, `sent`, `finish` are called for each of them, in this order.

    A delivery is first unsent: it waits for one of `concurrency` send slots, then it uses one. After that it takes one
    of `concurrency` settle slots, until it is settled. Invariants:

    - `in_flight` counts the deliveries between `start` and `finish`, `unsent` those between `start` and `sent`.
    - `unsent` is at most `concurrency + claim_ahead`, if a claim takes at most `free` deliveries.
    - The counts of `by_destination` add up to `unsent`, the counts of `by_thread` to `in_flight`.
    - `threads_with_new` has only threads that have a delivery in flight.
    """

    concurrency: int
    claim_ahead: int = 0
    """Maximum number of unsent deliveries that use no send slot."""
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    """The provider's circuit breaker."""
    in_flight: int = 0
    unsent: int = 0
    by_destination: Counter[str] = field(default_factory=Counter)
    """Number of unsent deliveries by destination."""
    by_thread: Counter[str] = field(default_factory=Counter)
    """Number of deliveries in flight by thread. Deliveries without a thread count as the thread ''."""
    blocked: Counter[str] = field(default_factory=Counter)
    """Number of attempts by destination whose feedback the ledger has not stored yet. Nothing is sent there."""
    threads_with_new: set[str] = field(default_factory=set)
    """Threads with a delivery in flight for which another delivery was recorded in the meantime."""
    sending: asyncio.Semaphore = field(init=False)
    """The send slots."""
    settling: asyncio.Semaphore = field(init=False)
    """The settle slots. They keep the number of deliveries small that are sent but not settled: after a crash, their
    messages are sent again."""

    def __post_init__(self) -> None:
        self.sending = asyncio.Semaphore(self.concurrency)
        self.settling = asyncio.Semaphore(self.concurrency)

    def reset(self) -> None:
        """Count nothing: no delivery is in flight."""
        self.in_flight = self.unsent = 0
        for counts in (self.by_destination, self.by_thread, self.blocked):
            counts.clear()

    def start(self, destination: str, thread: str) -> None:
        """Count a delivery that was claimed."""
        self.in_flight += 1
        self.unsent += 1
        self.by_destination[destination] += 1
        self.by_thread[thread] += 1

    def sent(self, destination: str) -> None:
        """Note that a delivery's send has ended, or that it is not sent."""
        self.unsent -= 1
        _decrement(self.by_destination, destination)

    def finish(self, thread: str) -> bool:
        """Note that a delivery is settled or released. Returns True if its thread has new deliveries since its claim."""
        self.in_flight -= 1
        _decrement(self.by_thread, thread)
        has_new = thread in self.threads_with_new
        self.threads_with_new.discard(thread)
        return has_new

    def recorded(self, threads: Iterable[str]) -> None:
        """Note the threads of new deliveries. They are not due while an earlier delivery of the thread is in flight."""
        self.threads_with_new.update(thread for thread in threads if thread and self.by_thread[thread])

    def block(self, destination: str) -> None:
        """Send nothing to the destination until `unblock`, because the ledger has not stored an attempt's feedback."""
        self.blocked[destination] += 1

    def unblock(self, destination: str) -> None:
        """End one `block` of the destination."""
        _decrement(self.blocked, destination)

    def free(self, now: datetime) -> int:
        """Return how many deliveries may be claimed now."""
        allowed = self.breaker.allowed(self.concurrency, now)
        if allowed < self.concurrency:
            return allowed - self.in_flight
        return allowed + self.claim_ahead - self.unsent

    def can_claim(self, now: datetime) -> bool:
        """True if a claim is worth a query: a send slot is free, or few deliveries wait for one."""
        return self.free(now) > (self.claim_ahead // 2 if self.unsent >= self.concurrency else 0)

    def full_destinations(self, max_in_flight: int) -> Counter[str]:
        """Return the unsent deliveries by destination. A blocked destination counts as full."""
        return self.by_destination | Counter(dict.fromkeys(self.blocked, max_in_flight))


def _decrement(counts: Counter[str], name: str) -> None:
    """Subtract one from a count. Removes the key at zero, because a `Counter` would keep the key."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
