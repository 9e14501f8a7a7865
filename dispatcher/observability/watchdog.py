"""Detects a blocked event loop, and components that have work but make no progress.

A thread watches the event loop, and a task in the event loop watches the components. The log shows where the event loop
or a component hangs. A process whose event loop is blocked does not answer liveness probes, so it is restarted. If
there is no liveness probe, the watchdog can end the process.
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

from dispatcher.clock import Clock, is_set_within
from dispatcher.errors import LedgerUnavailable
from dispatcher.parsing.duration import Duration

if TYPE_CHECKING:  # for types only: every command imports this file for its settings, and few need these modules
    from dispatcher.delivering.worker import DeliveryWorker
    from dispatcher.intake.kafka.consumer import KafkaSource
    from dispatcher.ledger import Ledger
    from dispatcher.observability.metrics import Metrics

log = structlog.get_logger(__name__)

LOOP = "loop"
"""The name of the event loop in the metrics and the log, where it is one of the components."""
EXIT_STATUS = 70
"""The exit status of a process that the watchdog ends. The number is EX_SOFTWARE in sysexits.h."""
CHECKS_PER_PERIOD = 4
"""Number of heartbeats in each period of length `loop_stall`. Also the number of progress checks in each period of
length `no_progress_after`."""


class WatchdogConfig(BaseModel):
    """Time limits after which the event loop or a component counts as stalled, and whether the process then ends."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loop_stall: Duration = Field(timedelta(seconds=30), ge=timedelta())
    """Time after which a blocked event loop counts as hung. The log then shows the code that blocks it. 0 switches the
    check off."""
    exit: bool = False
    """End the process with exit status 70 if its event loop hangs, so that a supervisor restarts it. Use this option if
    there is no liveness probe."""
    no_progress_after: Duration = Field(timedelta(minutes=5), ge=timedelta())
    """Time after which a component that has work but makes no progress counts as stalled. `/readyz` and the log then
    name the component. 0 switches the check off."""


def _exit() -> None:
    os._exit(EXIT_STATUS)


class Watchdog:
    """A context manager whose thread watches the event loop that runs the `with` block.

    A C extension that hangs without releasing the interpreter lock also stops the watchdog's thread. Only a liveness
    probe detects such a hang.
    """

    def __init__(self, config: WatchdogConfig, metrics: Metrics, exit_process: Callable[[], None] = _exit) -> None:
        self._config = config
        self._metrics = metrics
        self._exit_process = exit_process
        self._interval = config.loop_stall.total_seconds() / CHECKS_PER_PERIOD
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._last_heartbeat = 0.0
        self._hangs = False
        self._next_heartbeat: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        if self._config.loop_stall:
            self._metrics.add_watched(LOOP)
            self._loop = asyncio.get_running_loop()
            self._loop_thread = threading.get_ident()
            self._last_heartbeat = time.monotonic()
            self._heartbeat()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._next_heartbeat is not None:
            self._next_heartbeat.cancel()
            self._thread.join()

    def _heartbeat(self) -> None:
        """Record that the event loop runs. The event loop calls this method once in each interval."""
        now = time.monotonic()
        expected = self._interval if self._next_heartbeat is not None else 0
        delay, self._last_heartbeat = now - self._last_heartbeat - expected, now
        self._metrics.heartbeat(max(delay, 0.0))
        if self._hangs:
            self._hangs = False
            self._metrics.recovered(LOOP)
            log.warning("the event loop runs again", stalled_seconds=round(delay, 1))
        self._next_heartbeat = self._loop.call_later(self._interval, self._heartbeat)

    def _watch(self) -> None:
        """Check once in each interval whether a heartbeat is missing. Runs in the watchdog's own thread."""
        now = time.monotonic()
        while not self._closed.wait(self._interval):
            now, previous = time.monotonic(), now
            if now - previous > 2 * self._interval:  # this thread was late too, so the whole process had no CPU time
                continue
            if not self._hangs and now - self._last_heartbeat > self._config.loop_stall.total_seconds():
                self._report(now - self._last_heartbeat)

    def _report(self, seconds: float) -> None:
        self._hangs = True
        self._metrics.stalled(LOOP)
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - there is no public function
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        log.critical(
            "stalled: the event loop hangs",
            component=LOOP,
            task=self._task_name(),
            seconds=round(seconds, 1),
            stack=stack,
            exit=self._config.exit,
        )
        if self._config.exit:
            self._exit_process()

    def _task_name(self) -> str:
        """Return the name of the asyncio task that blocks the event loop, or `a callback` if no task is known."""
        task = None
        with suppress(Exception):  # may fail: asyncio supports this call only in the event loop's own thread
            task = asyncio.current_task(self._loop)
        return task.get_name() if task is not None else "a callback"


@dataclass(slots=True, kw_only=True)
class ProgressMonitor:
    """Checks regularly whether each component that has work makes progress."""

    ledger: Ledger
    workers: Mapping[str, DeliveryWorker]
    """Mapping from the component's name, such as `worker slack`, to the delivery worker."""
    source: KafkaSource | None
    metrics: Metrics
    clock: Clock
    no_progress_after: timedelta
    stopping: asyncio.Event
    tasks: Mapping[str, asyncio.Task[None]] = field(default_factory=dict)
    """Mapping from a component's name to the asyncio task that runs it, once the components are started."""
    last_batch_at: datetime | None = None
    """When the last batch from Kafka was recorded."""
    stalled: set[str] = field(default_factory=set)
    """The names of the components that have work but make no progress."""
    _started_at: datetime | None = None
    _lagging_since: datetime | None = None
    """Time since which Kafka has had unread messages and no batch has been recorded. None if there are no unread
    messages, or intake makes progress."""

    async def run(self) -> None:
        """Check all components again and again, until the service stops."""
        for component in (*self.workers, *(["intake"] if self.source is not None else [])):
            self.metrics.add_watched(component)
        while not await is_set_within(self.stopping, self.no_progress_after.total_seconds() / CHECKS_PER_PERIOD):
            try:
                await self.check()
            except LedgerUnavailable:
                continue  # /readyz reports that the ledger is unavailable

    async def check(self) -> None:
        """Check each component once. Raises LedgerUnavailable if the ledger can't be read."""
        now = self.clock.now()
        self._started_at = self._started_at or now
        for component, worker in self.workers.items():
            self._update(component, stalled=await self._worker_stalled(worker, now))
        if self.source is not None:
            self._update("intake", stalled=await self._intake_stalled(self.source, now))

    async def unready_reason(self) -> str | None:
        """Return a sentence for /readyz that names the components without progress; None if all make progress."""
        return f"no progress: {', '.join(sorted(self.stalled))}" if self.stalled else None

    async def _worker_stalled(self, worker: DeliveryWorker, now: datetime) -> bool:
        """True if deliveries have been due for `no_progress_after` and the worker has claimed none of them, or if the
        worker's task has ended.
        """
        if self._task_ended(f"worker {worker.name}"):
            return True
        long_ago = now - self.no_progress_after
        last_claim = worker.claimed_at or self._started_at
        if worker.breaker_open or last_claim is None or last_claim > long_ago:
            return False
        return await self.ledger.queries.overdue(worker.name, before=long_ago)

    async def _intake_stalled(self, source: KafkaSource, now: datetime) -> bool:
        """True if messages have been unread for `no_progress_after` and no batch was recorded in this time, or if
        intake's task has ended.
        """
        if self._task_ended("intake"):
            return True
        try:
            lag = sum((await source.lag()).values())
        except Exception:  # noqa: BLE001 - any error means that the broker does not answer, which /readyz reports
            return False
        if not lag or (self._lagging_since and self.last_batch_at and self.last_batch_at > self._lagging_since):
            self._lagging_since = None
        if lag and self._lagging_since is None:
            self._lagging_since = now
        return self._lagging_since is not None and now - self._lagging_since >= self.no_progress_after

    def _task_ended(self, component: str) -> bool:
        """True if the component's asyncio task has ended although the service is not stopping."""
        return component in self.tasks and self.tasks[component].done() and not self.stopping.is_set()

    def _update(self, component: str, *, stalled: bool) -> None:
        if stalled and component not in self.stalled:
            self.stalled.add(component)
            self.metrics.stalled(component)
            task = self.tasks.get(component)
            waits_in = await_stack(task) if task else []
            log.error("stalled: a component makes no progress", component=component, waits_in=waits_in)
        elif not stalled and component in self.stalled:
            self.stalled.discard(component)
            self.metrics.recovered(component)
            log.warning("a component makes progress again", component=component)


def await_stack(task: asyncio.Task[Any]) -> list[str]:
    """Return where an asyncio task waits: a text `file:line function` for each coroutine that awaits the next one, with
    the innermost coroutine last.
    """
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
