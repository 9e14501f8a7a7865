"""Converts values to and from the driver's types, by the rules of the column types, but faster than SQLAlchemy."""

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

Processor = Callable[[Any], Any]
"""A function that converts one value to or from the driver's type."""


class KeyList(TypeDecorator[Sequence[str]]):
    """The type of the parameter of `statements.among`, a list of keys. No column has this type."""

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = NullType
    cache_ok: bool | None = True

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> Any:
        keys = list(value or ())
        return orjson.dumps(keys).decode() if dialect.name == "sqlite" else keys


class BindProcessors:
    """Converts a mapping from column names to values into a tuple of driver values, in the statement's order."""

    def __init__(
        self, named: Sequence[tuple[str, TypeEngine[Any]]], dialect: Dialect, constants: Mapping[str, Any] | None = None
    ) -> None:
        """`named`: names and types in the statement's order. `constants`: values for names that a row may leave out."""
        names = [name for name, _ in named]
        self._pick = itemgetter(*names) if len(names) > 1 else lambda row: [row[name] for name in names]
        self._processors = _processors((kind for _, kind in named), dialect, _bind_processor)
        self._constants = dict(constants or {})

    def process(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        values = [*self._pick({**self._constants, **row} if self._constants else row)]
        for at, bind in self._processors:
            values[at] = bind(values[at])
        return tuple(values)


class ResultProcessors:
    """Converts a row of the driver's values to Python values."""

    def __init__(self, kinds: Iterable[TypeEngine[Any]], dialect: Dialect) -> None:
        self._processors = _processors(kinds, dialect, _result_processor)

    def process(self, row: Sequence[Any]) -> Sequence[Any]:
        values = [*row]
        for at, read in self._processors:
            values[at] = read(values[at])
        return values


def _processors(
    kinds: Iterable[TypeEngine[Any]],
    dialect: Dialect,
    processor: Callable[[TypeEngine[Any], Dialect], Processor | None],
) -> list[tuple[int, Processor]]:
    """Return a list of (position of a value in the row, processor). Most types need no processor."""
    found = ((at, processor(kind, dialect)) for at, kind in enumerate(kinds))
    return [(at, process) for at, process in found if process is not None]


def _bind_processor(kind: TypeEngine[Any], dialect: Dialect) -> Processor | None:
    """Return the function that converts a type's values for the driver; None if the driver takes them unchanged."""
    match kind:
        case UtcTime():
            return _cached(_as_text if dialect.name == "sqlite" else _TIME.process_bind_param, dialect)
        case StringList():
            return _cached(_STRINGS.process_bind_param, dialect)
        case ForeignText() | CompressedJson() | KeyList():  # the driver accepts the results of these methods
            return partial(kind.process_bind_param, dialect=dialect)
        case Boolean():
            return None
        case _:
            return kind.dialect_impl(dialect).bind_processor(dialect)


def _result_processor(kind: TypeEngine[Any], dialect: Dialect) -> Processor | None:
    """Return the function that converts the driver's values of a type; None if they stay unchanged."""
    match kind:
        case UtcTime() if dialect.name == "sqlite":
            return _cached(_from_text, dialect)
        case StringList():
            return _cached(_STRINGS.process_result_value, dialect)
        case UtcTime() | CompressedJson():
            return partial(kind.process_result_value, dialect=dialect)
        case Boolean():
            return _to_bool if dialect.name == "sqlite" else None
        case _:
            return kind.dialect_impl(dialect).result_processor(dialect, None)


@lru_cache(maxsize=16)
def _cached(process: Callable[..., Any], dialect: Dialect) -> Processor:
    """Return the processor with a cache of 256 results, because a batch has few distinct values.

    All columns of the same type share one cache.
    """
    return lru_cache(maxsize=256)(partial(process, dialect=dialect))


def _as_text(value: datetime | None, dialect: Dialect) -> str | None:
    """Return a time as the text that SQLAlchemy stores in SQLite, which has no type for times."""
    naive = _TIME.process_bind_param(value, dialect)
    return None if naive is None else naive.isoformat(" ", "microseconds")


def _from_text(text: str | None, dialect: Dialect) -> datetime | None:
    return None if text is None else _TIME.process_result_value(datetime.fromisoformat(text), dialect)


def _to_bool(number: int | None) -> bool | None:
    """Convert SQLite's 0 or 1 to a boolean."""
    return None if number is None else bool(number)


_TIME, _STRINGS = UtcTime(), StringList()
