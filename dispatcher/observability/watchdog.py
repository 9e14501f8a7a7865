"""Notices what stands still: the event loop as a whole, by a thread beside it; a room that has work, by rounds within it.

What hangs is in the log with the place where it hangs. A loop that hangs answers no probe either: the watchdog only says
why, and ends the process where nobody else would.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field

from dispatcher.clock import Clock
from dispatcher.errors import LedgerUnavailable
from dispatcher.parsing.duration import Duration

if TYPE_CHECKING:  # every command reads the settings, and few need these
    from dispatcher.delivering.worker import DeliveryWorker
    from dispatcher.intake.kafka.consumer import KafkaSource
    from dispatcher.ledger import Ledger
    from dispatcher.observability.metrics import Metrics

log = structlog.get_logger(__name__)

LOOP = "loop"
STATUS = 70
"""The exit status of a process that ends itself: sysexits' EX_SOFTWARE."""
BEATS = 4
"""Heartbeats, and looks at them, in the time after which a loop counts as stalled."""


class WatchdogConfig(BaseModel):
    """What counts as standing still, and what is done about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stall: Duration = Field(timedelta(seconds=30), ge=timedelta())
    """So long without a turn, and the event loop hangs; 0 switches that watch off."""
    exit: bool = False
    """End the process where its loop hangs (status 70), for whoever starts it again; for where no liveness probe does."""
    progress: Duration = Field(timedelta(minutes=5), ge=timedelta())
    """So long with work and without progress, and a room stands still; 0 switches the rounds off."""


def _leave() -> None:
    os._exit(STATUS)


class Watchdog:
    """Looks from a thread whether the loop that enters it still turns, until it is left.

    An extension that hangs and keeps the interpreter's lock stops this thread too; the liveness probe finds that.
    """

    def __init__(self, config: WatchdogConfig, telemetry: Metrics, leave: Callable[[], None] = _leave) -> None:
        self._config = config
        self._telemetry = telemetry
        self._leave = leave
        self._every = config.stall.total_seconds() / BEATS
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._turned = 0.0
        self._hangs = False
        self._next: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        if self._config.stall:
            self._telemetry.watching(LOOP)
            self._loop = asyncio.get_running_loop()
            self._whose = threading.get_ident()
            self._turned = time.monotonic()
            self._beat()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._next is not None:
            self._next.cancel()
            self._thread.join()

    def _beat(self) -> None:
        """In the loop: it has turned."""
        now = time.monotonic()
        late, self._turned = now - self._turned - (self._every if self._next is not None else 0), now
        self._telemetry.heartbeat(max(late, 0.0))
        if self._hangs:
            self._hangs = False
            self._telemetry.moves(LOOP)
            log.warning("the event loop turns again", stalled_seconds=round(late, 1))
        self._next = self._loop.call_later(self._every, self._beat)

    def _watch(self) -> None:
        """In the thread."""
        began = time.monotonic()
        while not self._over.wait(self._every):
            began, before = time.monotonic(), began
            if began - before > 2 * self._every:  # we slept ourselves: the whole process was stopped, or starved
                continue
            if not self._hangs and began - self._turned > self._config.stall.total_seconds():
                self._tell(began - self._turned)

    def _tell(self, seconds: float) -> None:
        self._hangs = True
        self._telemetry.stalled(LOOP)
        frame = sys._current_frames().get(self._whose)  # noqa: SLF001 - the only way to see another thread's stack
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        log.critical(
            "stalled: the event loop hangs",
            room=LOOP,
            task=self._task(),
            seconds=round(seconds, 1),
            stack=stack,
            exit=self._config.exit,
        )
        if self._config.exit:
            self._leave()

    def _task(self) -> str:
        """The name of the task that doesn't come back."""
        task = None
        with suppress(Exception):  # asked from a thread that isn't the loop's
            task = asyncio.current_task(self._loop)
        return task.get_name() if task is not None else "a callback"


@dataclass(slots=True, kw_only=True)
class ProgressMonitor:
    """Looks from time to time whether each room that has work gets on with it."""

    ledger: Ledger
    couriers: Mapping[str, DeliveryWorker]
    """By the room's name."""
    source: KafkaSource | None
    tasks: Mapping[str, asyncio.Task[None]]
    """The rooms at work, by the same names."""
    metrics: Metrics
    clock: Clock
    patience: timedelta
    stopping: asyncio.Event
    heard_at: datetime | None = None
    """When the last batch from Kafka was in the ledger."""
    standing: set[str] = field(default_factory=set)
    """The rooms that make no progress."""
    _began: datetime | None = None
    _behind_since: datetime | None = None

    async def run(self) -> None:
        """Look until stopped."""
        for room in (*self.couriers, *(["intake"] if self.source is not None else [])):
            self.metrics.watching(room)
        while not await self._stopped_within(self.patience / BEATS):
            try:
                await self.look()
            except LedgerUnavailable:
                continue  # readiness says so
            except Exception as error:  # a bug in here must not stop what is delivered meanwhile
                log.error("the watchdog could not look", exc_info=error)

    async def look(self) -> None:
        """Look at each room once. Raises LedgerUnavailable."""
        now = self.clock.now()
        self._began = self._began or now
        for room, courier in self.couriers.items():
            self._judge(room, stalled=await self._has_left_work(courier, now))
        if self.source is not None:
            self._judge("intake", stalled=await self._is_behind(self.source, now))

    async def trouble(self) -> str | None:
        """For the readiness page."""
        return f"no progress: {', '.join(sorted(self.standing))}" if self.standing else None

    async def _has_left_work(self, courier: DeliveryWorker, now: datetime) -> bool:
        """Whether something has been due for long that it could have taken, and it has taken nothing for as long."""
        if self._ended(f"courier {courier.name}"):
            return True
        long_ago = now - self.patience
        since = courier.claimed_at or self._began
        if courier.resting or since is None or since > long_ago:
            return False
        return await self.ledger.overdue(courier.name, before=long_ago)

    async def _is_behind(self, source: KafkaSource, now: datetime) -> bool:
        """Whether there have been messages for us for long, and none has come in."""
        if self._ended("intake"):
            return True
        try:
            lag = sum((await source.lag()).values())
        except Exception:  # noqa: BLE001 - a broker that doesn't answer, in words of its own: readiness says so
            return False
        if not lag or (self._behind_since and self.heard_at and self.heard_at > self._behind_since):
            self._behind_since = None
        if lag and self._behind_since is None:
            self._behind_since = now
        return self._behind_since is not None and now - self._behind_since >= self.patience

    def _ended(self, room: str) -> bool:
        return room in self.tasks and self.tasks[room].done() and not self.stopping.is_set()

    def _judge(self, room: str, *, stalled: bool) -> None:
        if stalled and room not in self.standing:
            self.standing.add(room)
            self.metrics.stalled(room)
            task = self.tasks.get(room)
            log.error("stalled: a room makes no progress", room=room, waits_in=whereabouts(task) if task else [])
        elif not stalled and room in self.standing:
            self.standing.discard(room)
            self.metrics.moves(room)
            log.warning("a room makes progress again", room=room)

    async def _stopped_within(self, span: timedelta) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(span.total_seconds()):
                await self.stopping.wait()
        return self.stopping.is_set()


def whereabouts(task: asyncio.Task[Any]) -> list[str]:
    """Where a task waits: each coroutine that awaits the next, the innermost last."""
    places = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = next(filter(None, (getattr(awaited, f"{kind}_frame", None) for kind in ("cr", "gi", "ag"))), None)
        if frame is None:
            break
        places.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        awaited = next(
            (getattr(awaited, name) for name in ("cr_await", "gi_yieldfrom", "ag_await") if hasattr(awaited, name)),
            None,
        )
    return places
