"""Writes into the ledger how this replica is, for operators who ask another replica or run a command."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import structlog

from dispatcher.clock import Clock, is_set_within, loop_time
from dispatcher.delivering.worker import DeliveryWorker
from dispatcher.errors import DispatcherError, LedgerUnavailable
from dispatcher.model.replica import ChannelStatus, Replica
from dispatcher.runtime.components import Components
from dispatcher.runtime.parts import Parts
from dispatcher.version import __version__
from dispatcher.web.health import ReadinessCheck, unready_reasons

log = structlog.get_logger(__name__)

WRITE_INTERVAL = 10.0
"""Seconds between two writes of the row if nothing changes."""
CHANGE_INTERVAL = 1.0
"""Seconds between two looks for a change: of a circuit breaker, or of a component that failed or started again."""


@dataclass(slots=True, kw_only=True)
class ReplicaReport:
    """Keeps this replica's row in the ledger up to date."""

    parts: Parts
    components: Components
    checks: Mapping[str, ReadinessCheck]
    """The readiness checks of the components that the service does not run itself, such as FlyteAdmin."""
    clock: Clock
    started_at: datetime
    stopping: asyncio.Event

    async def run(self) -> None:
        """Write the row again and again, until the service stops."""
        while not self.stopping.is_set():
            written, at = self._state(), loop_time()
            with suppress(LedgerUnavailable):  # /readyz reports this
                await self.parts.ledger.replicas.write(await self._replica())
            while not await is_set_within(self.stopping, CHANGE_INTERVAL):
                if self._state() != written or loop_time() - at >= WRITE_INTERVAL:
                    break

    async def remove(self) -> None:
        """Delete the row, because this replica stops."""
        try:
            await self.parts.ledger.replicas.remove(self.parts.replica)
        except DispatcherError as error:
            log.warning("this replica's row stays in the ledger for an hour", reason=str(error))

    def _state(self) -> tuple[object, ...]:
        """Return what makes the row be written at once when it changes."""
        breakers = [(one.name, one.slots.breaker.next_probe_at) for one in self.parts.workers]
        return dict(self.components.problems), breakers

    async def _replica(self) -> Replica:
        """Return how this replica is now. Raises LedgerUnavailable if the database's clock can't be read."""
        offset = await self.parts.ledger.clock_offset(self.clock.now)
        return Replica(
            name=self.parts.replica,
            version=__version__,
            started_at=self.started_at,
            seen_at=self.clock.now() - offset,
            clock_offset=offset.total_seconds(),
            channels={one.name: _channel_status(one) for one in self.parts.workers},
            components={**await unready_reasons(self.checks), **self.components.problems},
            lag=await self._lag(),
        )

    async def _lag(self) -> int | None:
        if self.parts.source is None:
            return None
        try:
            return sum((await self.parts.source.lag()).values())
        except Exception:  # noqa: BLE001 - any error means that the broker does not answer, which /readyz reports
            return None


def _channel_status(worker: DeliveryWorker) -> ChannelStatus:
    breaker = worker.slots.breaker
    return ChannelStatus(
        in_flight=worker.in_flight, breaker_open_since=breaker.open_since, next_probe_at=breaker.next_probe_at
    )
