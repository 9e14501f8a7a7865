"""The seam where messages come in by themselves: what a source of batches promises."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
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
    def undecodable(self) -> Sequence[tuple[str, str]]:
        """Messages that the source could not even read: position and reason."""

    @property
    def foreign(self) -> int:
        """How many more there were, of types that the source was told to pass over."""

    def position(self, message: RawMessage) -> str:
        """Where one of its messages lies, in words: `topic/partition@offset`."""

    async def commit(self) -> None:
        """The batch is in the ledger: never bring it again, unless a rebalance has taken it from us meanwhile."""


class Source(Protocol):
    """Brings batches, one at a time and in order.

    Backpressure: while a batch is in hand at most one more is fetched; however long that takes, the source keeps
    its place in the group. A batch that is never committed comes again. Shutdown: after `stop`,
    `batches` ends once the batch in hand is done with, and leaves the group within seconds even where the
    broker is away. Cancelled, or closed early, it does the same: use it by `contextlib.aclosing`.
    """

    def batches(self) -> AsyncGenerator[Batch]:
        """The batches, until stopped. Failures of the source are its own business: it tries again for ever."""

    async def wait(self, span: timedelta) -> bool:
        """Let time pass with a batch in hand; False where we are stopped: leave the batch, it comes again."""

    def stop(self) -> None:
        """End `batches`."""

    async def trouble(self) -> str | None:
        """What keeps messages from coming, for the readiness page; None where all is well."""
