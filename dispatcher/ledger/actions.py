"""Does what operators ask for, and records it: a row for each action, which is never changed, with its deliveries."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, delete, insert, literal, select, update

from dispatcher.ledger.claim import IN_DOUBT
from dispatcher.ledger.column_types import ForeignText
from dispatcher.ledger.records import Action, Deed, Filter
from dispatcher.ledger.schema import action_deliveries, actions, deliveries
from dispatcher.ledger.search import conditions
from dispatcher.model.delivery import DropReason, State


def eligible(wanted: Filter, what: Deed, now: datetime) -> Filter:
    """Return the filter for those matching deliveries to which an operator can do this now."""
    if what in {Deed.CANCEL, Deed.RETRY_NOW}:
        return replace(wanted, states=frozenset({State.WAITING}), unleased_at=now)
    return replace(wanted, states=frozenset({State.DEAD}))


def change(connection: Connection, wanted: Filter, action: Action) -> int:
    """Do to deliveries what the action says. See `Ledger.change`."""
    number = insert_action(connection, action, *conditions(eligible(wanted, action.what, action.at)))
    concerned = select(action_deliveries.c.delivery).where(action_deliveries.c.action == number)
    changed = update(deliveries).where(deliveries.c.key.in_(concerned)).values(_changes(action))
    count = connection.execute(changed).rowcount
    if not count:  # known only now: a worker may have claimed the last one until its lock was released
        connection.execute(delete(actions).where(actions.c.id == number))
    return count


def _changes(action: Action) -> dict[str, Any]:
    """Return the new values of the columns of deliveries that an action changes.

    A message of which an attempt may have arrived stays in doubt: a cancelled one then counts as sent in its thread.
    """
    at, who = action.at, f"by {action.who}" + (f": {action.why}" if action.why else "")
    anew = {"retry_window_start": at, "attempt": 0}
    no_lease = {"lease": None, "in_doubt": IN_DOUBT}
    dropped = {"state": State.DROPPED, "settled_at": at}
    match action.what:
        case Deed.REDRIVE:
            return {**anew, "state": State.WAITING, "due_at": at, "settled_at": None}
        case Deed.RETRY_NOW:  # a slot of the rate limit is kept, because a new one would be later
            unheld = {"hold": None, "held_by": None, "hold_then": None, "note": _NOTE_IF_HELD}
            return {
                **anew,
                **no_lease,
                **unheld,
                "due_at": case((deliveries.c.slot_reserved, deliveries.c.due_at), else_=at),
            }
        case Deed.CANCEL:
            return {**dropped, **no_lease, "drop_reason": DropReason.CANCELLED, "reason": f"cancelled {who}"}
        case Deed.DISMISS:
            reason = literal(f"dismissed {who}; it was dead: ", ForeignText) + deliveries.c.reason
            return {**dropped, "drop_reason": DropReason.DISMISSED, "reason": reason}
        case Deed.REPLAY | Deed.PURGE | Deed.SILENCE | Deed.END_SILENCE | Deed.EXTEND_SILENCE:
            raise AssertionError(f"{action.what} changes no delivery")


_NOTE_IF_HELD = case(
    (deliveries.c.hold.is_not(None), literal("held until an operator released it")), else_=deliveries.c.note
)


def insert_action(connection: Connection, action: Action, *concerned: ColumnElement[bool]) -> int:
    """Insert an action, and return its number. `concerned`: SQL conditions for the deliveries that it concerns.

    Locks these deliveries until the transaction ends, so that no worker claims one in the meantime.
    """
    number: int = connection.execute(insert(actions).values(asdict(action)).returning(actions.c.id)).scalar_one()
    if concerned:
        keys = select(literal(number), deliveries.c.key).where(*concerned).with_for_update(of=deliveries)
        connection.execute(insert(action_deliveries).from_select(["action", "delivery"], keys))
    return number
