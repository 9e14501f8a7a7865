"""Closes digests that are due: what their members become, and whether the next digest opens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, select, update

from dispatcher.holding.digests import DigestState
from dispatcher.ledger.digests import IS_MEMBER, Digests, Target
from dispatcher.ledger.engine import Database
from dispatcher.ledger.record import insert_deliveries
from dispatcher.ledger.rows import delivery_fields
from dispatcher.ledger.schema import deliveries, digests
from dispatcher.ledger.statements import among
from dispatcher.model.delivery import Delivery, DropReason, Kind, RuleRef, State
from dispatcher.model.hold import Quiet
from dispatcher.model.severity import highest
from dispatcher.parsing.duration import duration_text

OVERDUE = "sent in quiet hours, because no message is held longer"
"""The note of a digest that goes out although quiet hours hold it."""


class Closed(NamedTuple):
    """What a digest that has closed became."""

    message: Delivery
    """A message of kind DIGEST; the member itself if there was only one."""
    members: int


class OpenDigests:
    """Digests that gather members. Every method raises LedgerUnavailable while the database can't be used."""

    def __init__(self, database: Database, longest: timedelta) -> None:
        """`longest`: no delivery is held longer."""
        self._database = database
        self._longest = longest

    async def due(self, *, now: datetime, limit: int = 1000) -> list[Target]:
        """Return up to `limit` addresses whose open digest closes by now, the earliest first."""
        query = select(digests.c.channel, digests.c.address).where(digests.c.closes_at <= now)
        async with self._database.reading() as connection:
            rows = await connection.execute(query.order_by(digests.c.closes_at).limit(limit))
        return [Target(row.channel, row.address) for row in rows]

    async def close(self, target: Target, quiet: Callable[[Delivery], Quiet | None], *, now: datetime) -> Closed | None:
        """Close the address's open digest, if it is due, in one transaction. Returns what goes out; None if nothing does.

        - No member: the burst is over.
        - One member goes out as itself, and the next digest opens.
        - More: a message of kind DIGEST tells of them, and the next digest opens.
        - If quiet hours hold that message, the digest stays open until they end. But no member is held longer than
          anything may be.

        `quiet`: returns the quiet hours that hold a delivery now. It must be fast, because it runs in the transaction.
        """
        return await self._database.write(partial(_close, target=target, quiet=quiet, now=now, longest=self._longest))


def _close(
    connection: Connection,
    *,
    target: Target,
    quiet: Callable[[Delivery], Quiet | None],
    now: datetime,
    longest: timedelta,
) -> Closed | None:
    states = Digests(connection, now)
    states.lock({}, others=[target])
    state = states[target]
    if state is None or state.closes_at is None or state.closes_at > now:
        return None  # another replica was faster
    members = connection.execute(_MEMBERS, {"digest": state.open_id, "at": state.closes_at}).all()
    message = _message(state, members, now) if members else None
    until = _quiet_until(message, members, quiet, longest) if message is not None else None
    if until is not None and until > now:
        states[target] = state.postpone(until)
        message = None
    else:
        states[target] = state.closed(now, members=len(members))
        if len(members) == 1:
            message = _released(connection, members[0].key, state, now)
        elif message is not None:
            if until is not None:
                message = message._replace(note=OVERDUE)
            insert_deliveries(connection, [message], {})
            told = {"members": [row.key for row in members], "at": now, "message": message.key}
            connection.execute(_TELL, told)
    states.save()
    return Closed(message, len(members)) if message is not None else None


def _quiet_until(
    message: Delivery, members: Sequence[Row[Any]], quiet: Callable[[Delivery], Quiet | None], longest: timedelta
) -> datetime | None:
    hours = quiet(message)
    return min(hours.until, min(row.held_since for row in members) + longest) if hours is not None else None


def _message(state: DigestState, members: Sequence[Row[Any]], now: datetime) -> Delivery:
    """Return the digest of these members."""
    newest = max(members, key=lambda row: (row.occurred_at, row.key))
    return Delivery(
        key=state.open_id,
        event="",
        channel=state.channel,
        recipients=newest.recipients,
        addresses=(state.address,),
        content=None,
        rules=(RuleRef("", f"digest of {len(members)} messages"),),
        created_at=now,
        due_at=now,
        retry_window_start=now,
        occurred_at=now,
        severity=highest(*(row.severity for row in members)),
        kind=Kind.DIGEST,
        reply_to=state.first_key,
    )


def _released(connection: Connection, key: str, digest: DigestState, now: datetime) -> Delivery:
    """Release the only member of a digest, and return it without its content."""
    row = connection.execute(select(deliveries).where(deliveries.c.key == key)).one()
    since = max(row.held_since, digest.opened_at or row.held_since)  # a silence may have held it before
    waited = f"waited {duration_text(now - since)} for a digest"
    note = f"{row.note}; {waited}" if row.note else waited
    connection.execute(_RELEASE, {"member": key, "at": now, "what": note})
    fields = delivery_fields(row, None) | {"hold": None, "held_by": "", "hold_then": None, "note": note}
    return Delivery(**fields | {"due_at": now, "retry_window_start": now})


_MEMBERS = (
    select(*(deliveries.c[name] for name in ("key", "recipients", "severity", "occurred_at", "held_since")))
    .where(*IS_MEMBER)
    .order_by(deliveries.c.key)
    .with_for_update()
)
_TELL = (
    update(deliveries)
    .where(among(deliveries.c.key, "members"))
    .values(
        state=State.DROPPED,
        drop_reason=DropReason.DIGEST,
        reason="a digest tells of it",
        settled_at=bindparam("at"),
        included_in=bindparam("message"),
    )
)
_RELEASE = (
    update(deliveries)
    .where(deliveries.c.key == bindparam("member"))
    .values(
        hold=None,
        held_by=None,
        hold_then=None,
        note=bindparam("what"),
        due_at=bindparam("at"),
        retry_window_start=bindparam("at"),
    )
)
