"""Runs the components of the service. If an unforeseen exception stops a component, it is started again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from dispatcher.clock import is_set_within, loop_time
from dispatcher.observability.metrics import Metrics

log = structlog.get_logger(__name__)

Work = Callable[[], Awaitable[None]]
"""What a component does, until it is stopped."""
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Seconds before a component starts again. The pause doubles from `FIRST_PAUSE` up to `LONGEST_PAUSE`."""
PERIOD = 300.0
"""Seconds for which a failure counts. A component that has run for this long begins with `FIRST_PAUSE` again."""
FAILURES = 3
"""Number of failures within `PERIOD` from which on the component is not ready."""


@dataclass(slots=True)
class Components:
    """Runs components, each in a task of the caller."""

    stopping: asyncio.Event
    """When this is set, a component that failed is not started again."""
    metrics: Metrics
    _failures: dict[str, deque[float]] = field(default_factory=dict)
    """Mapping from a component's name to the times of its last failures, in seconds of the event loop."""
    _last_reason: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str | None] = field(default_factory=dict)
    """Mapping from the name of each started component to why it has stopped for now, or to None while it runs."""

    async def run(self, name: str, work: Work) -> None:
        """Await `work()` until it returns. After an exception: log it, count it, pause, and call `work` again.

        Returns early if the service is stopping. Raises nothing except CancelledError, if this task is cancelled.
        """
        self.metrics.add_component(name)
        pause = FIRST_PAUSE
        while True:
            self.problems[name], started_at = None, loop_time()
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - no exception of a component may end the process
                self._failed(name, error)
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                self._failed(name, error)  # a library has raised it, but nobody has cancelled this task
            else:
                return
            pause = FIRST_PAUSE if loop_time() - started_at >= PERIOD else pause
            log.warning("the component starts again", component=name, after_seconds=pause)
            if await is_set_within(self.stopping, pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE)

    async def unready_reason(self) -> str | None:
        """Return a sentence for /readyz about the components that fail again and again; None if there are none."""
        since = loop_time() - PERIOD
        often = [name for name, times in self._failures.items() if len(times) == FAILURES and times[0] >= since]
        reasons = [
            f"{name} failed {FAILURES} times within {PERIOD / 60:.0f} minutes: {self._last_reason[name]}"
            for name in often
        ]
        return f"{'; '.join(reasons)}; see the log" if reasons else None

    def _failed(self, name: str, error: BaseException) -> None:
        self._failures.setdefault(name, deque(maxlen=FAILURES)).append(loop_time())
        self._last_reason[name] = self.problems[name] = _root(error)
        self.metrics.component_failed(name)
        log.error("a component failed", component=name, reason=self.problems[name], exc_info=error)


def _root(error: BaseException) -> str:
    """Return the type and text of the error; of a group of errors, those of its first error."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
