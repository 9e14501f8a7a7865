"""Many rows at once, as the driver takes them: SQLAlchemy makes the statement and binds the types, once.

Its own `execute` looks at every value of every row anew, which costs more than the database's work on them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any

import orjson
from sqlalchemy import Boolean, Column, Connection, Dialect, String, Table, Update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeEngine

from dispatcher.ledger.tables import Packed, Strings, UtcTime, Words

Rows = Sequence[Mapping[str, Any]]
Binder = Callable[[Any], Any]
"""What a column's type does to a value."""


def run(connection: Connection, sql: str, values: Any = ()) -> Sequence[Sequence[Any]]:
    """Have a statement of the driver's own carried out; the rows that it gives. A list of values: once for each.

    On SQLite by the driver's cursor: what SQLAlchemy does for each statement costs more there than the statement.
    """
    if connection.dialect.name != "sqlite":
        done = connection.exec_driver_sql(sql, values or None)
        return done.all() if done.returns_rows else ()
    cursor = connection.connection.cursor()
    try:
        if isinstance(values, list):
            cursor.executemany(sql, values)
            return ()
        cursor.execute(sql, values)
        return cursor.fetchall()
    except sqlite3.Error as error:
        raise DBAPIError.instance(sql, None, error, sqlite3.Error) from error
    finally:
        cursor.close()


@lru_cache(maxsize=64)
def into(table: Table, dialect: Dialect, *, overwriting: bool = False) -> Insertion:
    """What inserts rows of that table; made once."""
    return Insertion(table, dialect, overwriting=overwriting)


class Insertion:
    """`INSERT … ON CONFLICT DO NOTHING` of one table's rows; `overwriting`: `DO UPDATE`, with all that isn't the key."""

    def __init__(self, table: Table, dialect: Dialect, *, overwriting: bool) -> None:
        columns = [column for column in table.columns if column.autoincrement is not True]  # those number themselves
        self._key = columns[0]
        self._values = Values([(column.name, column.type) for column in columns], dialect)
        self._in_arrays = dialect.name == "postgresql"
        values = f"VALUES ({', '.join('?' for _ in columns)})"
        if self._in_arrays:
            types = (_array_type(column, dialect) for column in columns)
            arrays = ", ".join(f"${number}::{kind}" for number, kind in enumerate(types, start=1))
            values = f"SELECT * FROM unnest({arrays})"  # noqa: S608 - our own names
        names = ", ".join(column.name for column in columns)
        keys = ", ".join(column.name for column in table.primary_key)
        changes = ", ".join(f"{one.name} = excluded.{one.name}" for one in columns if not one.primary_key)
        conflict = f"({keys}) DO UPDATE SET {changes}" if overwriting else "DO NOTHING"
        self._sql = f"INSERT INTO {table.name} ({names}) {values} ON CONFLICT {conflict}"
        self._there = f"SELECT {self._key.name} FROM {table.name} WHERE {self._key.name}"  # noqa: S608 - likewise

    def insert(self, connection: Connection, rows: Rows) -> None:
        """Insert the rows whose keys are not there yet, and overwrite the others where that was asked for."""
        if rows:
            run(connection, self._sql, self._bound(rows))

    def insert_new(self, connection: Connection, rows: Rows) -> list[str]:
        """The same; the keys of those that were not there."""
        if not rows:
            return []
        if self._in_arrays:
            returning = f"{self._sql} RETURNING {self._key.name}"
            return [key for (key,) in run(connection, returning, self._bound(rows))]
        compared, keys = among((row[self._key.name] for row in rows), connection.dialect)
        there = {key for (key,) in run(connection, f"{self._there} {compared}", keys)}
        missing = [row for row in rows if row[self._key.name] not in there]  # SQLite's one writer are we: it stays so
        self.insert(connection, missing)
        return [row[self._key.name] for row in missing]

    def _bound(self, rows: Rows) -> Any:
        """The values as the driver takes them, in the keys' order.

        It is the same everywhere, so that two replicas that write the same rows can't lock each other out.
        PostgreSQL gets an array a column: one statement for all, for which its triggers run once.
        """
        bound = [self._values.of(row) for row in sorted(rows, key=itemgetter(self._key.name))]
        return tuple(map(list, zip(*bound, strict=True))) if self._in_arrays else bound


@lru_cache(maxsize=64)
def changing(statement: Update, dialect: Dialect) -> Amendment:
    """What changes rows by that statement; made once."""
    return Amendment(statement, dialect)


class Amendment:
    """One `UPDATE` for many rows; what differs from row to row are its named values."""

    def __init__(self, statement: Update, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self._sql = str(compiled)
        self._always = {name: one.value for name, one in compiled.binds.items() if not one.required}
        self._values = Values([(name, compiled.binds[name].type) for name in compiled.positiontup or ()], dialect)

    def change(self, connection: Connection, rows: Rows) -> None:
        """Change the rows, each by its values."""
        run(connection, self._sql, [self._values.of({**self._always, **row}) for row in rows])


def among(keys: Iterable[str], dialect: Dialect) -> tuple[str, tuple[Any]]:
    """What a column is compared with to find these keys, `IN` or `= ANY`, and the one value that it takes.

    Whatever their number the database knows but one statement.
    """
    if dialect.name == "postgresql":
        return "= ANY($1::text[])", (list(keys),)
    return "IN (SELECT value FROM json_each(?))", (orjson.dumps(list(keys)).decode(),)


class Values:
    """The values of a row as the driver takes them, in the order of a statement."""

    def __init__(self, named: Sequence[tuple[str, TypeEngine[Any]]], dialect: Dialect) -> None:
        """`named`: the names and types of at least two values, in that order."""
        self._pick = itemgetter(*(name for name, _ in named))
        binders = ((at, _binder(kind, dialect)) for at, (_, kind) in enumerate(named))
        self._binders = [(at, bind) for at, bind in binders if bind is not None]

    def of(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        values = [*self._pick(row)]
        for at, bind in self._binders:
            values[at] = bind(values[at])
        return tuple(values)


def padded(keys: Sequence[str]) -> Sequence[str]:
    """As long as the next power of two, so that a database knows few statements of each kind and not hundreds."""
    known = list(keys)
    return known + known[-1:] * ((1 << (len(known) - 1).bit_length()) - len(known))


def _binder(kind: TypeEngine[Any], dialect: Dialect) -> Binder | None:
    """None where the driver takes values as they are."""
    match kind:
        case UtcTime():
            return _time_binder(dialect)
        case Strings():
            return _strings
        case Words() | Packed():  # the driver takes what they make as it is
            return partial(kind.process_bind_param, dialect=dialect)
        case Boolean():
            return None
        case _:
            return kind.dialect_impl(dialect).bind_processor(dialect)


@lru_cache(maxsize=8)
def _time_binder(dialect: Dialect) -> Binder:
    """A batch has many times, and few different ones."""
    bind = partial(UtcTime().process_bind_param, dialect=dialect)
    return lru_cache(maxsize=1024)(_in_text(bind) if dialect.name == "sqlite" else bind)


def _in_text(bind: Binder) -> Binder:
    """Times as SQLAlchemy keeps them in SQLite, which has none."""

    def bound(value: datetime | None) -> str | None:
        naive = bind(value)
        return None if naive is None else naive.isoformat(" ", "microseconds")

    return bound


@lru_cache(maxsize=1024)
def _strings(value: tuple[str, ...] | None) -> str | None:
    """The same few readers again and again."""
    return None if value is None else orjson.dumps(value).decode()


def _array_type(column: Column[Any], dialect: Dialect) -> str:
    """A cast to VARCHAR(n) would cut what is too long, where TEXT leaves it to be refused."""
    return f"{'TEXT' if isinstance(column.type, String) else column.type.compile(dialect)}[]"
