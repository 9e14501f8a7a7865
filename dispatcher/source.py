"""The seam where messages come in by themselves: what a source of batches promises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Protocol


class RawMessage(Protocol):
    """One message, as aiokafka's ConsumerRecord has it: nothing is wrapped, most messages are only glanced at."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...

    @property
    def value(self) -> bytes | None: ...


class Batch(Protocol):
    """Messages that belong together until they are recorded."""

    @property
    def messages(self) -> Sequence[RawMessage]: ...

    @property
    def spoilt(self) -> Sequence[tuple[str, str]]:
        """Messages that the source could not even read: position and reason."""

    def position(self, message: RawMessage) -> str:
        """Where one of its messages lies, in words: `topic/partition@offset`."""

    async def commit(self) -> None:
        """The batch is in the ledger: never bring it again, unless a rebalance has taken it from us meanwhile."""


class Source(Protocol):
    """Brings batches, one at a time and in order.

    Backpressure: the next batch is fetched when the last one is done with. Whoever can't go on with a batch
    lets time pass by `wait`, so that the source keeps its place in the group. Shutdown: after `stop`,
    `batches` ends once the batch in hand is done with; nothing is cancelled in mid-flight.
    """

    def batches(self) -> AsyncIterator[Batch]:
        """The batches, until stopped."""

    async def wait(self, span: timedelta) -> None:
        """Let time pass with a batch in hand: nothing is fetched, our place is kept."""

    def stop(self) -> None:
        """End `batches`."""

    async def trouble(self) -> str | None:
        """What keeps messages from coming, for the readiness page; None where all is well."""
