"""Stores the outcomes of attempts. Settlements that arrive during a write share the next transaction."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection, Update, bindparam, select, update

from channels.contract import Answer
from dispatcher.errors import LedgerFailed, LedgerUnavailable
from dispatcher.holding.covering import at_recording, may_be_held, undecided
from dispatcher.holding.silences import LONGEST
from dispatcher.ledger import owners
from dispatcher.ledger.destination_state import DestinationStates
from dispatcher.ledger.digests import Digests, options_of
from dispatcher.ledger.engine import Database
from dispatcher.ledger.record import insert_deliveries
from dispatcher.ledger.records import Settlement
from dispatcher.ledger.schema import attempts, deliveries
from dispatcher.ledger.silence_lock import any_may_cover
from dispatcher.ledger.statements import among, insert
from dispatcher.model.delivery import Dead, Delivery, Dropped, Kind, Retry, Sent, State
from dispatcher.model.rate_limit import Feedback

LEASE_LOST = "the lease had run out, so this outcome was ignored"
"""The reason that is stored with an attempt that ended after its lease."""
_Pending = tuple[Settlement, asyncio.Future[bool]]
"""A settlement that is not written yet, and the future that its caller waits for. The future's result is True if the
lease was still held when the settlement was written."""


class Settlements:
    """Writes settlements in groups: those that arrive during a write share the next transaction."""

    def __init__(self, database: Database, wait: timedelta, longest: timedelta) -> None:
        """`wait`: on SQLite, settlements wait up to this time to share the transaction of other writes. `longest`: no
        delivery is held longer.
        """
        self._database = database
        self._longest = longest
        self._wait = wait.total_seconds()
        self._pending: deque[_Pending] = deque()
        self._task: asyncio.Task[None] | None = None

    async def settle(self, settlement: Settlement) -> bool:
        """Write one settlement. See `Ledger.settle`."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pending.append((settlement, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_pending())  # noqa: TID251 - allowed here, because `aclose` waits for this task
        return await done

    async def aclose(self) -> None:
        """Wait until all settlements are written."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _write_pending(self) -> None:
        """Write the pending settlements in groups. Runs in its own task, so that a cancelled caller can't stop it."""
        while self._pending:
            group: list[_Pending] = []
            try:
                held = await self._database.write(partial(self._write_all, group), patience=self._wait)
            except LedgerFailed as error:
                await self._write_halves(group, error)
            except Exception as error:  # noqa: BLE001 - every error is passed on to the callers that wait
                _fail(group or self._take_pending(), error)
            else:
                _finish(group, held)

    async def _write_halves(self, group: Sequence[_Pending], error: LedgerFailed) -> None:
        """Write a group whose write has failed, in halves, so that only the settlement at fault fails."""
        if len(group) == 1:
            _fail(group, error)
            return
        middle = len(group) // 2
        for half in (group[:middle], group[middle:]):
            try:
                held = await self._database.write(
                    partial(settle, settlements=[one for one, _ in half], longest=self._longest)
                )
            except LedgerFailed as again:
                await self._write_halves(half, again)
            except LedgerUnavailable as unavailable:
                _fail(half, unavailable)
            else:
                _finish(half, held)

    def _write_all(self, group: list[_Pending], connection: Connection) -> frozenset[str]:
        """Move the pending settlements to `group` and write them. Returns the keys of deliveries with a held lease."""
        group += self._take_pending()
        return settle(connection, [settlement for settlement, _ in group], self._longest)

    def _take_pending(self) -> Iterator[_Pending]:
        """Remove and return the pending settlements. May be called from any thread."""
        with suppress(IndexError):
            while True:
                yield self._pending.popleft()


def _fail(group: Iterable[_Pending], error: Exception) -> None:
    """Raise the error in the callers that wait for these settlements."""
    for _, done in group:
        if not done.cancelled():
            done.set_exception(error)


def _finish(group: Iterable[_Pending], held: frozenset[str]) -> None:
    """Give the callers their results. `held`: the keys of the deliveries whose lease was still held."""
    for settled, done in group:
        if not done.cancelled():
            done.set_result(settled.delivery.key in held)


def settle(connection: Connection, settlements: Sequence[Settlement], longest: timedelta = LONGEST) -> frozenset[str]:
    """Write settlements. Returns the keys of the deliveries whose lease was still held.

    `longest`: no delivery is held longer.
    """
    held = _held_leases(connection, settlements)
    valid = [entry for entry in settlements if entry.delivery.key in held]
    for statement, rows in _outcome_updates(valid).items():
        connection.execute(statement, rows)
    attempted = [entry for entry in settlements if not isinstance(entry.outcome, Dropped)]
    rows = [_attempt_row(entry, lease_held=entry.delivery.key in held) for entry in attempted]
    insert(connection, attempts, rows)
    traces = {entry.delivery.event: entry.delivery.trace for entry in valid}
    insert_deliveries(connection, _follow_ups(connection, valid, longest), traces)
    by_channel: dict[str, list[Feedback]] = {}
    for entry in settlements:
        if entry.feedback is not None:
            by_channel.setdefault(entry.delivery.channel, []).append(entry.feedback)
    for channel, feedback in sorted(by_channel.items()):
        DestinationStates(connection, channel).apply(feedback)
    owners.add(connection, [entry.unresolved_owner for entry in valid if entry.unresolved_owner is not None])
    return held


def _follow_ups(connection: Connection, settlements: Sequence[Settlement], longest: timedelta) -> list[Delivery]:
    """Return the deliveries that follow from the outcomes: held, where quiet hours or a digest hold them.

    Their events are not at hand, so while there are silences, they are held until the releaser has looked at these.
    """
    planned = [_with_subject(one, entry.delivery) for entry in settlements for one in entry.follow_ups]
    if not planned:
        return []
    now = max(entry.ended_at for entry in settlements)
    may_be_silenced = [one for one in planned if one.attempt == 0 and one.event and may_be_held(one)]
    covered = may_be_silenced if may_be_silenced and any_may_cover(connection, now - longest) else []
    digests = Digests(connection, now)
    digests.lock(options_of(planned))
    planned = [
        part
        for one in planned
        # The releaser passes what is not decided yet through the digest.
        for part in (undecided(one, now) if one in covered else at_recording(one, (), now=now, longest=longest))
    ]
    admitted = digests.admitted(planned, unless_resolved=lambda member: member)
    digests.save()
    return admitted


def _with_subject(follow_up: Delivery, cause: Delivery) -> Delivery:
    """Return a follow-up so that the success which resolves its cause drops it too, while it is held."""
    if follow_up.kind is not Kind.NOTIFICATION or follow_up.subject:
        return follow_up
    return follow_up._replace(subject=cause.subject)


def _held_leases(connection: Connection, settlements: Sequence[Settlement]) -> frozenset[str]:
    """Return the keys of deliveries whose lease is still held. Locks the deliveries until the transaction ends."""
    claimed = {entry.delivery.key: (entry.delivery.lease, entry.delivery.attempt) for entry in settlements}
    rows = connection.execute(_LEASES, {"keys": list(claimed)})
    return frozenset(row.key for row in rows if (row.lease, row.attempt) == claimed[row.key])


_LEASES = (
    select(deliveries.c.key, deliveries.c.lease, deliveries.c.attempt)
    .where(among(deliveries.c.key, "keys"))
    .with_for_update()
)
_SETTLE = update(deliveries).where(deliveries.c.key == bindparam("settled")).values(lease=None)
_SET_SENT = _SETTLE.values(
    state=State.SENT, reason="", in_doubt=False, settled_at=bindparam("at"), reference=bindparam("receipt")
)
_SET_RETRY = _SETTLE.values(reason=bindparam("why"), in_doubt=bindparam("doubt"), due_at=bindparam("at"))
_SET_DEAD = _SETTLE.values(
    state=State.DEAD, reason=bindparam("why"), in_doubt=bindparam("doubt"), settled_at=bindparam("at")
)
_SET_DROPPED = _SETTLE.values(
    state=State.DROPPED,
    drop_reason=bindparam("code"),
    reason=bindparam("why"),
    settled_at=bindparam("at"),
    attempt=deliveries.c.attempt - 1,
)


def _outcome_updates(settlements: Sequence[Settlement]) -> dict[Update, list[dict[str, Any]]]:
    """Return the update statements that store the outcomes, each with its list of parameters."""
    updates: dict[Update, list[dict[str, Any]]] = {}
    for entry in settlements:
        row: dict[str, Any] = {"settled": entry.delivery.key}
        match entry.outcome:
            case Sent(receipt):
                statement = _SET_SENT
                row |= {"at": entry.ended_at, "receipt": dict(receipt.reference)}
            case Retry(at=at, reason=reason, in_doubt=in_doubt):
                statement = _SET_RETRY
                row |= {"at": at, "why": reason, "doubt": in_doubt}
            case Dead(reason=reason, in_doubt=in_doubt):
                statement = _SET_DEAD
                row |= {"at": entry.ended_at, "why": reason, "doubt": in_doubt}
            case Dropped(why=code, reason=reason):
                statement = _SET_DROPPED
                row |= {"at": entry.ended_at, "why": reason, "code": code}
        updates.setdefault(statement, []).append(row)
    return updates


def _attempt_row(entry: Settlement, *, lease_held: bool) -> dict[str, Any]:
    answer: Answer | None
    match entry.outcome:
        case Sent(receipt):
            outcome, answer, reason = "sent", receipt.answer, ""
        case Retry(answer=given, reason=why, in_doubt=in_doubt):
            outcome, answer, reason = "in_doubt" if in_doubt else "retry", given, why
        case Dead(answer=given, reason=why):
            outcome, answer, reason = "dead", given, why
        case Dropped():
            raise AssertionError("no attempt was made")
    return {
        "delivery": entry.delivery.key,
        "number": entry.delivery.attempt,
        "started_at": entry.started_at,
        "ended_at": entry.ended_at,
        "outcome": outcome,
        "status": answer.status if answer is not None else "",
        "answer": answer.text if answer is not None else "",
        "reason": reason if lease_held else f"{LEASE_LOST}{reason and f': {reason}'}",
    }
