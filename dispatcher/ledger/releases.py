"""Reads the held deliveries whose holds have ended, and writes what becomes of them (`holding/release.py`).

What covers a delivery now is found before the transaction, by silences of one version. The transaction reads the
deliveries again, and leaves those alone that were changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row, bindparam, literal_column, select, update

from dispatcher.holding.digests import through_digest
from dispatcher.holding.release import HeldDelivery, Released, release
from dispatcher.ledger.digests import Digests, Target
from dispatcher.ledger.engine import Database
from dispatcher.ledger.holds import IS_HELD
from dispatcher.ledger.record import insert_deliveries
from dispatcher.ledger.rows import delivery_fields, read_event
from dispatcher.ledger.schema import deliveries, events, silences
from dispatcher.ledger.silence_lock import require_version
from dispatcher.ledger.statements import among
from dispatcher.model.delivery import Delivery, DropReason, Kind, State
from dispatcher.model.event import Event
from dispatcher.model.hold import DigestOptions, Hold, HoldReason, holder_text
from dispatcher.model.phase import Phase

# Key of the PostgreSQL advisory lock that lets only one replica release at a time. It spells "release" in ASCII. SQLite
# has one writer at a time.
_LOCK = 0x72656C65617365
_TRY_LOCK = "SELECT pg_try_advisory_xact_lock($1)"
MAX_ADDRESSES = 1000
"""Maximum number of addresses that are read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The holds of one address that have ended, and what their release depends on beside the ledger."""

    target: Target
    covers: Mapping[str, Sequence[Hold]]
    """What covers each delivery now, by its key. A delivery whose key is missing is left alone."""
    silences: int
    """The version of the silences by which `covers` was found."""
    pages: bool
    """True if the channel's messages page people."""
    zone: tzinfo
    """The time zone of the address."""
    digest: DigestOptions | None = None
    """The digest options of the address's contact; None if it has no digests now."""


class Releases:
    """Held deliveries whose holds have ended. Every method raises LedgerUnavailable while the database can't be used."""

    def __init__(self, database: Database, longest: timedelta) -> None:
        """`longest`: no delivery is held longer."""
        self._database = database
        self._longest = longest

    async def due(self, *, now: datetime) -> dict[Target, list[str]]:
        """Return the keys of deliveries that a silence or quiet hours held until now, by their address.

        Returns at most `MAX_ADDRESSES`, each with all its keys, first those whose holds ended first.
        """
        found: dict[Target, list[str]] = {}
        async with self._database.reading() as connection:
            for row in await connection.execute(_DUE, {"now": now}):
                (address,) = row.addresses
                target = Target(row.channel, address)
                if target in found or len(found) < MAX_ADDRESSES:
                    found.setdefault(target, []).append(row.key)
        return found

    async def read(self, keys: Sequence[str], *, with_events: bool) -> list[tuple[Delivery, Event | None]]:
        """Return held deliveries, without their content. `with_events`: with their events too."""
        async with self._database.reading() as connection:
            held = [_delivery(row) for row in await connection.execute(_HELD, {"keys": keys})]
            facts: dict[str, Any] = {}
            if with_events:
                concerned = {"keys": [*{delivery.event for delivery in held}]}
                facts = {row.key: row.facts for row in await connection.execute(_FACTS, concerned)}
        return [(one, read_event(facts[one.event]) if one.event in facts else None) for one in held]

    async def release(self, ended: Ended, *, now: datetime) -> Released | None:
        """Write what becomes of the deliveries in `ended.covers`, which have the same address, in one transaction.

        Returns None if another replica is releasing now. Raises SilencesChanged if the silences have another version
        than `ended.silences`. Nothing was written then.
        """
        return await self._database.write(partial(_release, ended=ended, now=now, longest=self._longest))

    async def let_go(self, key: str, *, now: datetime) -> None:
        """Hold a delivery no longer, without reading it: for one that can't be released in another way."""
        await self._database.write(lambda connection: connection.execute(_LET_GO, {"only": key, "at": now}))


_LET_GO = (
    update(deliveries)
    .where(deliveries.c.key == bindparam("only"), *IS_HELD)
    .values(hold=None, held_by=None, hold_then=None, due_at=bindparam("at"), retry_window_start=bindparam("at"))
)
_ENDED = (
    *IS_HELD,
    deliveries.c.hold != literal_column(f"'{HoldReason.DIGEST}'"),  # another replica may have made it a member
    deliveries.c.due_at <= bindparam("now"),
)
_DUE = (
    select(deliveries.c.key, deliveries.c.channel, deliveries.c.addresses).where(*_ENDED).order_by(deliveries.c.due_at)
)
_HELD = select(deliveries).where(among(deliveries.c.key, "keys"), *IS_HELD)
_FACTS = select(events.c.key, events.c.facts).where(among(events.c.key, "keys"))
_LOCKED = (
    select(
        deliveries,
        *(events.c[name] for name in ("project", "domain", "name", "launch_plan", "phase")),
        silences.c.reason.label("why"),
    )
    .outerjoin(events, events.c.key == deliveries.c.event)
    .outerjoin(silences, silences.c.id == deliveries.c.held_by)
    .where(among(deliveries.c.key, "keys"), *_ENDED)
    .order_by(deliveries.c.key)
    .with_for_update(of=deliveries)
)


def _release(connection: Connection, *, ended: Ended, now: datetime, longest: timedelta) -> Released | None:
    if connection.dialect.name == "postgresql" and not connection.exec_driver_sql(_TRY_LOCK, (_LOCK,)).scalar():
        return None
    require_version(connection, ended.silences)
    digests = Digests(connection, now)
    digests.lock({ended.target: ended.digest} if ended.digest is not None else {})
    rows = connection.execute(_LOCKED, {"keys": [*ended.covers], "now": now})
    held = [_held(row, ended.covers[row.key]) for row in rows]
    released = release(held, now=now, longest=longest, pages=ended.pages, zone=ended.zone)
    through_digest(released, lambda one: digests.hold(ended.target, one.key), now=now, longest=longest)
    digests.save()
    if released.summary is not None:
        insert_deliveries(connection, [released.summary], {})
    _write_waiting(connection, [*released.held, *released.going, *released.overdue])
    _write_dropped(connection, released.dropped, now)
    return released


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(**delivery_fields(row, None))


def _held(row: Row[Any], covers: Sequence[Hold]) -> HeldDelivery:
    delivery = _delivery(row)
    execution = f"{row.project}/{row.domain}/{row.launch_plan or row.name}" if row.project else ""
    return HeldDelivery(
        delivery=delivery,
        launch_plan=execution,
        failed=delivery.kind is Kind.NOTIFICATION and row.phase != Phase.SUCCEEDED,
        holder=_holder(delivery, row.why),
        covers=covers,
    )


def _holder(delivery: Delivery, why: str | None) -> str:
    """Return what holds the delivery, in words. `why`: the silence's reason, if it is a silence that still exists."""
    return holder_text(delivery.hold, delivery.held_by, why or "") if delivery.hold and delivery.held_by else ""


_CHANGED = ("hold", "held_by", "held_since", "hold_then", "due_at", "retry_window_start", "note")
"""The columns that the end of a hold changes in a delivery that still waits."""
_CHANGE = (
    update(deliveries)
    .where(deliveries.c.key == bindparam("changed"))
    .values({name: bindparam(f"new_{name}") for name in _CHANGED})
)
_DROP = (
    update(deliveries)
    .where(among(deliveries.c.key, "keys"))
    .values(
        state=State.DROPPED,
        drop_reason=bindparam("code"),
        reason=bindparam("why"),
        included_in=bindparam("told_by"),
        settled_at=bindparam("at"),
    )
)


def _write_waiting(connection: Connection, changed: Sequence[Delivery]) -> None:
    """Write what changes in deliveries that are held again or go out."""
    if changed:
        rows = [{f"new_{name}": getattr(one, name) for name in _CHANGED} | {"changed": one.key} for one in changed]
        connection.execute(_CHANGE, rows)


def _write_dropped(connection: Connection, dropped: Sequence[Delivery], now: datetime) -> None:
    """Write that deliveries are dropped: those of which one message tells in one statement."""
    together: dict[tuple[DropReason | None, str, str], list[str]] = {}
    for one in dropped:
        together.setdefault((one.drop_reason, one.reason, one.included_in), []).append(one.key)
    for (code, why, told_by), keys in together.items():
        connection.execute(_DROP, {"keys": keys, "code": code, "why": why, "told_by": told_by, "at": now})
