"""A clock that tests advance."""

from __future__ import annotations

from datetime import datetime, timedelta

from tests.support.builders import NOW


class ManualClock:
    """A clock that only moves when a test advances it or code sleeps."""

    def __init__(self, now: datetime = NOW) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now

    async def sleep(self, duration: timedelta) -> None:
        self._now += duration

    def advance(self, duration: timedelta) -> None:
        self._now += duration
