"""Values as the driver takes and gives them, by our columns' types and without SQLAlchemy's detours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any

import orjson
from sqlalchemy import Boolean, Dialect, TypeDecorator
from sqlalchemy.types import NullType, TypeEngine

from dispatcher.ledger.schema import CompressedJson, ForeignText, StringList, UtcTime

Change = Callable[[Any], Any]
"""What a type does to a value on its way."""


class Keys(TypeDecorator[Sequence[str]]):
    """Some keys at once, for `statements.among`; no column's."""

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = NullType
    cache_ok: bool | None = True

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> Any:
        keys = list(value or ())
        return orjson.dumps(keys).decode() if dialect.name == "sqlite" else keys


class Bindings:
    """The values of a row as the driver takes them, in the order of a statement."""

    def __init__(
        self, named: Sequence[tuple[str, TypeEngine[Any]]], dialect: Dialect, always: Mapping[str, Any] | None = None
    ) -> None:
        """`named`: the names and types, in that order. `always`: the values of some of them."""
        names = [name for name, _ in named]
        self._pick = itemgetter(*names) if len(names) > 1 else lambda row: [row[name] for name in names]
        self._changes = _changes((kind for _, kind in named), dialect, _binder)
        self._always = dict(always or {})

    def of(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        values = [*self._pick({**self._always, **row} if self._always else row)]
        for at, bind in self._changes:
            values[at] = bind(values[at])
        return tuple(values)


class Readings:
    """What the driver gave, as we know it."""

    def __init__(self, kinds: Iterable[TypeEngine[Any]], dialect: Dialect) -> None:
        self._changes = _changes(kinds, dialect, _reader)

    def of(self, row: Sequence[Any]) -> Sequence[Any]:
        values = [*row]
        for at, read in self._changes:
            values[at] = read(values[at])
        return values


def _changes(
    kinds: Iterable[TypeEngine[Any]], dialect: Dialect, changing: Callable[[TypeEngine[Any], Dialect], Change | None]
) -> list[tuple[int, Change]]:
    """By their places, what is to be done with the values of those types; most need nothing."""
    changes = ((at, changing(kind, dialect)) for at, kind in enumerate(kinds))
    return [(at, change) for at, change in changes if change is not None]


def _binder(kind: TypeEngine[Any], dialect: Dialect) -> Change | None:
    """None where the driver takes values as they are."""
    match kind:
        case UtcTime():
            return _remembered(_as_text if dialect.name == "sqlite" else _TIME.process_bind_param, dialect)
        case StringList():
            return _remembered(_STRINGS.process_bind_param, dialect)
        case ForeignText() | CompressedJson() | Keys():  # the driver takes what they make as it is
            return partial(kind.process_bind_param, dialect=dialect)
        case Boolean():
            return None
        case _:
            return kind.dialect_impl(dialect).bind_processor(dialect)


def _reader(kind: TypeEngine[Any], dialect: Dialect) -> Change | None:
    """None where the driver gives values as they are."""
    match kind:
        case UtcTime() if dialect.name == "sqlite":
            return _remembered(_from_text, dialect)
        case StringList():
            return _remembered(_STRINGS.process_result_value, dialect)
        case UtcTime() | CompressedJson():
            return partial(kind.process_result_value, dialect=dialect)
        case Boolean():
            return _truth if dialect.name == "sqlite" else None
        case _:
            return kind.dialect_impl(dialect).result_processor(dialect, None)


@lru_cache(maxsize=16)
def _remembered(change: Callable[..., Any], dialect: Dialect) -> Change:
    """A batch has many times and readers, and few different ones. One memory for all columns of the type."""
    return lru_cache(maxsize=256)(partial(change, dialect=dialect))


def _as_text(value: datetime | None, dialect: Dialect) -> str | None:
    """Times as SQLAlchemy keeps them in SQLite, which has none."""
    naive = _TIME.process_bind_param(value, dialect)
    return None if naive is None else naive.isoformat(" ", "microseconds")


def _from_text(text: str | None, dialect: Dialect) -> datetime | None:
    return None if text is None else _TIME.process_result_value(datetime.fromisoformat(text), dialect)


def _truth(number: int | None) -> bool | None:
    """SQLite has numbers for it."""
    return None if number is None else bool(number)


_TIME, _STRINGS = UtcTime(), StringList()
