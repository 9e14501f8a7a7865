"""Delivery workers with a channel whose answers a test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from random import Random
from typing import Any

from channels.contract import (
    Answer,
    Finding,
    Message,
    Receipt,
    ThreadBy,
    WirePreview,
)
from dispatcher.clock import SystemClock
from dispatcher.delivering.options import WorkerOptions
from dispatcher.delivering.worker import DeliveryWorker
from dispatcher.ledger import Ledger
from dispatcher.model.retry import RetryPolicy
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner

Answers = Callable[[Message], Any]
RECEIPT = Receipt(answer=Answer("ok"), reference={"ts": "1"})


class ScriptedChannel:
    """A channel that answers with the result of a function. An exception is raised, a coroutine awaited."""

    def __init__(self, answer: Answers) -> None:
        self.sent: list[Message] = []
        self._answer = answer

    def address(self, recipient: str) -> str:
        return recipient

    def destination(self, recipients: tuple[str, ...]) -> str:
        return recipients[0]

    def thread_by(self, address: str) -> ThreadBy | None:
        del address
        return None

    def wire_preview(self, message: Message) -> WirePreview:
        return WirePreview("text/plain", message.key.encode())

    async def send(self, message: Message) -> Receipt:
        self.sent.append(message)
        answer = self._answer(message)
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        receipt: Receipt = answer
        return receipt

    async def check(self) -> Sequence[Finding]:
        return ()

    async def aclose(self) -> None:
        pass


def a_worker(ledger: Ledger, channel: ScriptedChannel, **changes: Any) -> DeliveryWorker:
    arguments: dict[str, Any] = {
        "name": "slack",
        "channel": channel,
        "ledger": ledger,
        "planner": Planner(addresses={"email": str.lower}, fallbacks={"slack": "email"}),
        "contents": Contents(lambda *_, undelivered="", **__: {"text": "hi", "subject": undelivered}),
        "policy": RetryPolicy(initial=timedelta(milliseconds=10)),
        "clock": SystemClock(),
        "rng": Random(7),
        "worker_id": "test",
        "concurrency": 5,
        **changes,
    }
    return DeliveryWorker(WorkerOptions(**arguments))


async def deliver_due(worker: DeliveryWorker) -> int:
    """Claim once, and deliver one delivery after the other. Returns their number.

    It calls the steps of `DeliveryWorker.run`, which itself would go on until it is stopped for good.
    """
    claimed = await worker._claim()  # noqa: SLF001
    for delivery in claimed:
        async with asyncio.TaskGroup() as worker._group:  # noqa: SLF001
            worker._start(delivery)  # noqa: SLF001
    return len(claimed)


@asynccontextmanager
async def running(worker: DeliveryWorker) -> AsyncIterator[None]:
    """Run the worker during the block."""
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        async with asyncio.timeout(20):
            await task
