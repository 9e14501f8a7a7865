"""The clock that tests turn by hand."""

from __future__ import annotations

from datetime import datetime, timedelta

from tests.support.builders import NOW


class ManualClock:
    """Stands still until it is advanced."""

    def __init__(self, now: datetime = NOW) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now

    async def sleep(self, span: timedelta) -> None:
        self._now += span

    def advance(self, span: timedelta) -> None:
        self._now += span
