"""Records what operators do: one row for each action, with the deliveries that it concerned. No row is ever changed."""

from __future__ import annotations

from dataclasses import asdict, replace

from sqlalchemy import ColumnElement, Connection, insert, literal, select, update

from dispatcher.ledger.records import Action, Filter
from dispatcher.ledger.schema import action_deliveries, actions, deliveries
from dispatcher.ledger.search import conditions
from dispatcher.model.delivery import State


def redrive(connection: Connection, wanted: Filter, action: Action) -> int:
    """Make dead deliveries due again. See `Ledger.redrive`."""
    dead = conditions(replace(wanted, states=frozenset({State.DEAD})))
    if connection.scalar(select(deliveries.c.key).where(*dead).limit(1)) is None:
        return 0
    number = insert_action(connection, action, *dead)
    concerned = select(action_deliveries.c.delivery).where(action_deliveries.c.action == number)
    revive = update(deliveries).where(deliveries.c.key.in_(concerned), deliveries.c.state == State.DEAD)
    at = action.at
    values = {"state": State.WAITING, "due_at": at, "retry_window_start": at, "attempt": 0, "settled_at": None}
    return connection.execute(revive.values(values)).rowcount


def insert_action(connection: Connection, action: Action, *concerned: ColumnElement[bool]) -> int:
    """Insert an action, and return its number. `concerned`: SQL conditions for the deliveries that it concerns."""
    number: int = connection.execute(insert(actions).values(asdict(action)).returning(actions.c.id)).scalar_one()
    if concerned:
        keys = select(literal(number), deliveries.c.key).where(*concerned)
        connection.execute(insert(action_deliveries).from_select(["action", "delivery"], keys))
    return number
