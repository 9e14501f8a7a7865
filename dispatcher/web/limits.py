"""How much of us one caller gets: token buckets in memory, a bucket for each caller or address."""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta

from dispatcher.clock import Clock
from dispatcher.pacing import Rate

MOST_KEYS = 10_000
"""Buckets at once; past it the one that was used longest ago is forgotten, which is to say full."""


class Buckets:
    """A bucket for each key: `burst` at once, then as many as the rate says."""

    def __init__(self, rate: Rate, burst: int, clock: Clock) -> None:
        self._interval = rate.interval
        self._ahead = rate.interval * (burst - 1)
        self._clock = clock
        self._due: dict[str, datetime] = {}
        """When the bucket will be full again; a bucket that isn't here is full."""

    def take(self, key: str) -> timedelta:
        """Take one from the key's bucket, and give zero; where it is empty, how long to wait."""
        now = self._clock.now()
        due = max(self._due.pop(key, now), now)
        wait = max(due - self._ahead - now, timedelta())
        self._due[key] = due if wait else due + self._interval
        if len(self._due) > MOST_KEYS:
            del self._due[next(iter(self._due))]
        return wait


def neighbourhood(host: str) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 subscriber's 64 bits."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
