"""Finds out why a consumer that belongs to its group gets no messages: silent brokers, and two replicas with one name."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection

import structlog
from aiokafka import TopicPartition

from dispatcher.clock import is_set_within
from dispatcher.intake.kafka.failures import CONNECTION_ERRORS, describe

log = structlog.get_logger(__name__)

TAKEOVERS = 3
"""If a static member gets the same partitions again this often within one session timeout, another replica has the same
`group_instance_id`: each of the two takes the membership from the other at its next heartbeat."""


class BrokerWatch:
    """Asks the brokers regularly, because aiokafka reports a lost connection to nobody."""

    def __init__(self, ask: Callable[[], Awaitable[None]], every: float) -> None:
        """`ask`: a request to the brokers; raises KafkaError, TimeoutError or OSError. `every`: seconds between two."""
        self._ask = ask
        self._every = every
        self._task: asyncio.Task[None] | None = None
        self.problem: str | None = None
        """Why the brokers can't be used, for /readyz; None if they answered the last request."""

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())  # noqa: TID251 - `stop` waits for it

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        never = asyncio.Event()
        while not await is_set_within(never, self._every):
            try:
                await self._ask()
            except CONNECTION_ERRORS as error:
                reason = describe(error)
                if self.problem is None:
                    log.warning("Kafka's brokers do not answer", reason=reason)
                self.problem = f"the brokers do not answer: {reason}"
            else:
                if self.problem is not None:
                    log.info("Kafka's brokers answer again")
                self.problem = None


class StaticMembership:
    """Notices that another replica uses the same `group_instance_id`.

    The broker tells neither of them. Kafka gives the name to the replica that asked last (KIP-345), and at its next
    heartbeat the other replica asks again.
    """

    def __init__(self, instance: str | None, session_timeout: float) -> None:
        """`instance`: the setting `kafka.group_instance_id`. `session_timeout`: in seconds."""
        self._instance = instance
        self._session_timeout = session_timeout
        self._partitions: frozenset[TopicPartition] = frozenset()
        self._takeovers: deque[float] = deque(maxlen=TAKEOVERS)
        self._logged = False

    def assigned(self, partitions: Collection[TopicPartition], now: float) -> None:
        """Note which partitions a rebalance gave to this replica at the time `now`, in seconds of the event loop."""
        if partitions and self._partitions == frozenset(partitions):
            self._takeovers.append(now)
        else:
            self._takeovers.clear()
        self._partitions = frozenset(partitions)
        problem = self.problem(now)
        if problem is not None and not self._logged:
            log.error("two replicas have one kafka.group_instance_id", reason=problem)
        self._logged = problem is not None

    def problem(self, now: float) -> str | None:
        """Return a sentence that names the shared `group_instance_id`; None if there is no sign of a second replica."""
        if self._instance is None or len(self._takeovers) < TAKEOVERS:
            return None
        if now - self._takeovers[0] > self._session_timeout:
            return None
        return (
            f"another replica seems to have kafka.group_instance_id {self._instance!r} too, so the two take the "
            "partitions from each other: give each replica a different one"
        )
