"""Writes a batch to the ledger so that one message that can't be written does not stop the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from dispatcher.errors import LedgerFailed, SlowedDown
from dispatcher.ledger.brake import IN_A_ROW, Brake

Item = TypeVar("Item")


@dataclass(slots=True)
class Halving(Generic[Item]):
    """Writes one batch. If a write fails for its data, its halves are written, until the message at fault is alone.

    A message that is alone is written once more, after a canned event. If that fails too, the message is rejected.
    """

    batch: Sequence[Item]
    write: Callable[[Sequence[Item]], Awaitable[None]]
    """Writes some messages, all or none. Raises Unavailable or LedgerFailed."""
    reject: Callable[[Item, LedgerFailed], Awaitable[None]]
    """Stores a message as rejected for this error. Raises like `write`."""
    brake: Brake
    _left: list[Sequence[Item]] = field(init=False)
    """The parts that are not written yet; the last is next."""
    _rejected: Counter[str] = field(default_factory=Counter)
    """Number of rejected messages by kind of error."""

    def __post_init__(self) -> None:
        self._left = [self.batch]

    async def run(self) -> Literal[True]:
        """Write everything that is left, and return True.

        Raises Unavailable; the next call goes on from there. While the brake slows down, the messages that have to wait
        come last.
        """
        waiting: list[Sequence[Item]] = []
        slowed_down: SlowedDown | None = None
        try:
            while self._left:
                try:
                    await self._write_next()
                except SlowedDown as error:
                    slowed_down = error
                    waiting.append(self._left.pop())
        finally:
            self._left = [*reversed(waiting), *self._left]
        if slowed_down is not None:
            raise slowed_down
        return True

    async def _write_next(self) -> None:
        """Write the next part. If it can't be written, replace it by its halves, or reject its only message."""
        part = self._left[-1]
        halves: list[Sequence[Item]] = []
        try:
            await self.write(part)
        except LedgerFailed:
            if len(part) == 1:
                await self._write_alone(part[0])
            else:
                middle = len(part) // 2
                halves = [part[middle:], part[:middle]]
        self._left[-1:] = halves

    async def _write_alone(self, item: Item) -> None:
        await self.brake.test()
        try:
            await self.write([item])
        except LedgerFailed as error:
            many = len(self.batch) >= IN_A_ROW and 2 * (self._rejected[error.kind] + 1) >= len(self.batch)
            self.brake.give_up(error, many=many)
            await self.reject(item, error)
            self._rejected[error.kind] += 1
