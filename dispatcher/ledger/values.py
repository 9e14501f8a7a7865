"""Values as the driver takes and gives them, by our columns' types and without SQLAlchemy's detours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any

import orjson
from sqlalchemy import Boolean, Dialect, TypeDecorator
from sqlalchemy.types import NullType, TypeEngine

from dispatcher.ledger.tables import Packed, Strings, UtcTime, Words

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
            return _time_binder(dialect)
        case Strings():
            return _written
        case Words() | Packed() | Keys():  # the driver takes what they make as it is
            return partial(kind.process_bind_param, dialect=dialect)
        case Boolean():
            return None
        case _:
            return kind.dialect_impl(dialect).bind_processor(dialect)


def _reader(kind: TypeEngine[Any], dialect: Dialect) -> Change | None:
    """None where the driver gives values as they are."""
    match kind:
        case UtcTime() if dialect.name == "sqlite":
            return _from_text
        case Strings():
            return _read
        case UtcTime() | Packed():
            return partial(kind.process_result_value, dialect=dialect)
        case Boolean():
            return _truth if dialect.name == "sqlite" else None
        case _:
            return kind.dialect_impl(dialect).result_processor(dialect, None)


@lru_cache(maxsize=8)
def _time_binder(dialect: Dialect) -> Change:
    """A batch has many times, and few different ones."""
    bind = partial(UtcTime().process_bind_param, dialect=dialect)
    return lru_cache(maxsize=1024)(_in_text(bind) if dialect.name == "sqlite" else bind)


def _in_text(bind: Change) -> Change:
    """Times as SQLAlchemy keeps them in SQLite, which has none."""

    def bound(value: datetime | None) -> str | None:
        naive = bind(value)
        return None if naive is None else naive.isoformat(" ", "microseconds")

    return bound


@lru_cache(maxsize=1024)
def _from_text(text: str | None) -> datetime | None:
    return None if text is None else _in_utc(datetime.fromisoformat(text))


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _truth(number: int | None) -> bool | None:
    """SQLite has numbers for it."""
    return None if number is None else bool(number)


@lru_cache(maxsize=256)
def _written(value: tuple[str, ...] | None) -> str | None:
    """The same few readers again and again."""
    return None if value is None else orjson.dumps(value).decode()


@lru_cache(maxsize=256)
def _read(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(orjson.loads(text))
