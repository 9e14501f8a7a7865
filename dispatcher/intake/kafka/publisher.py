"""Publishes test events and canaries to Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from dispatcher.errors import DispatcherError
from dispatcher.intake.kafka.config import CALL_SECONDS, KafkaConfig
from dispatcher.intake.kafka.failures import CONNECTION_ERRORS, describe


class KafkaPublisher:
    """Publishes test events to Kafka. Its Kafka user needs only the right to write to the topic."""

    def __init__(self, config: KafkaConfig) -> None:
        self._producer = AIOKafkaProducer(
            **config.connection(),
            acks="all",
            linger_ms=5,
            request_timeout_ms=CALL_SECONDS * 1000,
            max_request_size=16 * 2**20,
        )
        self._servers = config.bootstrap_servers

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._producer.start()
        except CONNECTION_ERRORS as error:
            await self._stop()
            raise DispatcherError(f"Kafka at {self._servers}: {describe(error)}") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        async with asyncio.timeout(2 * CALL_SECONDS):
            await self._producer.stop()

    async def send(
        self, topic: str, value: bytes, *, key: bytes | None = None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> str:
        """Write one message, and return its position as `topic/partition@offset`. Raises DispatcherError."""
        try:
            async with asyncio.timeout(2 * CALL_SECONDS):
                sent = await self._producer.send_and_wait(topic, value, key=key, headers=list(headers))
        except (KafkaError, TimeoutError) as error:
            raise DispatcherError(f"Kafka did not take the message: {describe(error)}") from None
        return f"{sent.topic}/{sent.partition}@{sent.offset}"
