"""The clock that other modules get as a parameter, so that tests can advance the time without sleeping."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """A clock: returns the current time, and waits."""

    def now(self) -> datetime:
        """Return the current time, in UTC."""

    async def sleep(self, duration: timedelta) -> None:
        """Return once `duration` has passed."""


class SystemClock:
    """The clock of the operating system."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.sleep(max(duration.total_seconds(), 0))


def loop_time() -> float:
    """Return the time of the running event loop, in seconds: it measures durations, and is never set back."""
    return asyncio.get_running_loop().time()


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait until the event is set, for at most `seconds`. Returns True if the event is set then."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
