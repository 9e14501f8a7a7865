"""Statements as the driver takes them: SQLAlchemy makes them and knows their types, once.

Its own `execute` prepares each statement anew and looks at every value of every row, which costs more than the
database's work on them.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Dialect, Select, String, Table, Update, bindparam, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from dispatcher.ledger.values import Bindings, Keys, Readings

Rows = Sequence[Mapping[str, Any]]
Row = Any
"""What a query found, its columns by name."""


def run(connection: Connection, sql: str, values: tuple[Any, ...] = ()) -> Sequence[Sequence[Any]]:
    """Have a statement of the driver's own carried out; the rows that it gives. Raises DBAPIError.

    On SQLite by the driver's cursor: what SQLAlchemy does for each statement costs more there than the statement.
    """
    if connection.dialect.name != "sqlite":
        done = connection.exec_driver_sql(sql, values or None)
        return done.all() if done.returns_rows else ()
    return _driven(connection, sql, "execute", values)


def run_each(connection: Connection, sql: str, values: list[tuple[Any, ...]]) -> None:
    """The same, once with each of the values; nothing without any. Raises DBAPIError."""
    if not values:
        return
    if connection.dialect.name == "sqlite":
        _driven(connection, sql, "executemany", values)
    else:
        connection.exec_driver_sql(sql, values)


def _driven(connection: Connection, sql: str, how: str, values: Any) -> Sequence[Sequence[Any]]:
    """By SQLite's own cursor; its errors come out as SQLAlchemy's."""
    try:
        with closing(connection.connection.cursor()) as cursor:
            getattr(cursor, how)(sql, values)
            return cursor.fetchall()
    except sqlite3.Error as error:
        raise DBAPIError.instance(sql, None, error, sqlite3.Error) from error


class among(ColumnElement[bool]):  # noqa: N801 - as SQLAlchemy's own
    """Whether a column is one of the keys that a statement is given under that name; for `asking` and `changing` alone.

    Whatever their number the database knows but one statement.
    """

    inherit_cache: bool | None = False

    def __init__(self, column: ColumnElement[Any], name: str) -> None:
        self.column = column
        self.keys = bindparam(name, type_=Keys())


@compiles(among, "sqlite")
def _in_json(element: among, compiler: SQLCompiler, **how: Any) -> str:
    keys = compiler.process(element.keys, **how)
    return f"{compiler.process(element.column, **how)} IN (SELECT value FROM json_each({keys}))"  # noqa: S608 - compiled


@compiles(among, "postgresql")
def _in_array(element: among, compiler: SQLCompiler, **how: Any) -> str:
    return f"{compiler.process(element.column, **how)} = ANY ({compiler.process(element.keys, **how)}::text[])"


@lru_cache(maxsize=64)
def into(table: Table, dialect: Dialect, *, overwriting: bool = False) -> Insertion:
    """What inserts rows of that table; made once."""
    return Insertion(table, dialect, overwriting=overwriting)


class Insertion:
    """`INSERT … ON CONFLICT DO NOTHING` of one table's rows; `overwriting`: `DO UPDATE`, with all that isn't the key."""

    def __init__(self, table: Table, dialect: Dialect, *, overwriting: bool) -> None:
        columns = [column for column in table.columns if column.autoincrement is not True]  # those number themselves
        self._key = columns[0]
        self._bindings = Bindings([(column.name, column.type) for column in columns], dialect)
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
        self._dialect = dialect

    def insert(self, connection: Connection, rows: Rows) -> None:
        """Insert the rows whose keys are not there yet, and overwrite the others where that was asked for."""
        if rows:
            (run if self._in_arrays else run_each)(connection, self._sql, self._bound(rows))

    def insert_new(self, connection: Connection, rows: Rows) -> list[str]:
        """The same; the keys of those that were not there."""
        if not rows:
            return []
        if self._in_arrays:
            returning = f"{self._sql} RETURNING {self._key.name}"
            return [key for (key,) in run(connection, returning, self._bound(rows))]
        name = self._key.name
        there = {key for (key,) in self._there.rows(connection, keys=[row[name] for row in rows])}
        missing = [row for row in rows if row[name] not in there]  # SQLite's one writer are we: it stays so
        self.insert(connection, missing)
        return [row[name] for row in missing]

    @cached_property
    def _there(self) -> Query:
        """Which of some keys are there."""
        return Query(select(self._key).where(among(self._key, "keys")), self._dialect)

    def _bound(self, rows: Rows) -> Any:
        """The values as the driver takes them, in the keys' order.

        It is the same everywhere, so that two replicas that write the same rows can't lock each other out.
        PostgreSQL gets an array a column: one statement for all, for which its triggers run once.
        """
        bound = [self._bindings.of(row) for row in sorted(rows, key=itemgetter(self._key.name))]
        return tuple(map(list, zip(*bound, strict=True))) if self._in_arrays else bound


def _array_type(column: Column[Any], dialect: Dialect) -> str:
    """A cast to VARCHAR(n) would cut what is too long, where TEXT leaves it to be refused."""
    return f"{'TEXT' if isinstance(column.type, String) else column.type.compile(dialect)}[]"


@lru_cache(maxsize=64)
def changing(statement: Update, dialect: Dialect) -> Amendment:
    """What changes rows by that statement, one of a module's own; made once."""
    return Amendment(statement, dialect)


class Amendment:
    """An `UPDATE`, to be carried out once for each of several sets of values, by their names."""

    def __init__(self, statement: Update, dialect: Dialect) -> None:
        self._sql, self._bindings = _compiled(statement, dialect)

    def change(self, connection: Connection, rows: Rows) -> None:
        """Carry it out with each row's values."""
        run_each(connection, self._sql, [self._bindings.of(row) for row in rows])


@lru_cache(maxsize=64)
def asking(statement: Select[Any], dialect: Dialect) -> Query:
    """What reads rows by that statement, one of a module's own; made once."""
    return Query(statement, dialect)


class Query:
    """A `SELECT`, by its values' names."""

    def __init__(self, statement: Select[Any], dialect: Dialect) -> None:
        self._sql, self._bindings = _compiled(statement, dialect)
        columns = statement.selected_columns
        row: Any = namedtuple("Row", [str(column.key) for column in columns])  # type: ignore[misc]  # noqa: PYI024 - made here
        self._row = row._make
        self._readings = Readings([column.type for column in columns], dialect)

    def rows(self, connection: Connection, **values: Any) -> list[Row]:
        """What it finds with these values. Raises DBAPIError."""
        found = run(connection, self._sql, self._bindings.of(values))
        return [self._row(self._readings.of(row)) for row in found]


def _compiled(statement: Update | Select[Any], dialect: Dialect) -> tuple[str, Bindings]:
    compiled = statement.compile(dialect=dialect)
    binds = compiled.binds
    always = {name: one.effective_value for name, one in binds.items() if not one.required}
    return str(compiled), Bindings([(name, binds[name].type) for name in compiled.positiontup or ()], dialect, always)
