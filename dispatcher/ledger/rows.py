"""Converts deliveries to rows and back, and rows to other values whose fields have the names of the columns."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from operator import attrgetter
from typing import Any, TypeVar

from pydantic import ValidationError
from sqlalchemy import Row

from dispatcher.ledger.records import StoredDelivery
from dispatcher.ledger.schema import deliveries
from dispatcher.model.delivery import Delivery, State
from dispatcher.model.event import Event

_T = TypeVar("_T")
_STORED = tuple(name for name in Delivery._fields if name in deliveries.c and name != "content")
"""The fields of a delivery that are columns. The column `content` has the content's hash."""
_stored_values = attrgetter(*_STORED)


def delivery_row(delivery: Delivery, content_hash: str | None, trace: str) -> dict[str, Any]:
    """Return the row of a new delivery. `trace`: the trace of its event.

    `content_hash`: the key of its content; None if the content is not rendered yet.
    """
    return delivery._asdict() | {
        "content": content_hash,
        "settled_at": None if delivery.state is State.WAITING else _settled_at(delivery),
        "reference": None,
        "trace": trace,
    }


def _settled_at(delivery: Delivery) -> datetime:
    """Return when a new delivery that waits for nothing was finished. `due_at` is the end of its hold if it has one."""
    return delivery.due_at if delivery.hold is None or delivery.held_since is None else delivery.held_since


def delivery_fields(row: Row[Any], content: Any) -> dict[str, Any]:
    """Return the fields of the delivery in a row."""
    return {"content": content, **dict(zip(_STORED, _stored_values(row), strict=True))}


def read_stored_delivery(row: Row[Any], content: Any = None) -> StoredDelivery:
    """Return the delivery in a row."""
    delivery = Delivery(**delivery_fields(row, content))
    return StoredDelivery(delivery=delivery, settled_at=row.settled_at, reference=row.reference or {})


def read_event(facts: Any) -> Event | None:
    """Return the event of a row's facts; None if this version can't read it. Silences are then not for it, and the worker
    that sends its messages says what is wrong.
    """
    try:
        return Event.model_validate(facts)
    except ValidationError:
        return None


def read(kind: type[_T], row: Row[Any], **more: Any) -> _T:
    """Return a dataclass with the values of the row's columns. `more`: the fields that are no columns."""
    names = [one.name for one in fields(kind) if one.name not in more]  # type: ignore[arg-type]  # every caller gives a dataclass
    return kind(**{name: getattr(row, name) for name in names}, **more)
