"""Prepared statements: SQLAlchemy compiles each statement once, and the driver executes it.

SQLAlchemy's own `execute` compiles each statement again and inspects every value of every row, which costs more time
than the database itself.
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

from dispatcher.ledger.values import BindProcessors, KeyList, ResultProcessors

Rows = Sequence[Mapping[str, Any]]
Row = Any
"""A row of a query's result: a named tuple whose fields are the columns."""


def run(connection: Connection, sql: str, values: tuple[Any, ...] = ()) -> Sequence[Sequence[Any]]:
    """Execute SQL in the driver's own syntax and return the rows, if any. Raises DBAPIError.

    On SQLite, this calls the driver directly, because SQLAlchemy's overhead for a statement is higher than the cost of
    the statement itself.
    """
    if connection.dialect.name != "sqlite":
        result = connection.exec_driver_sql(sql, values or None)
        return result.all() if result.returns_rows else ()
    return _run_on_sqlite(connection, sql, "execute", values)


def run_each(connection: Connection, sql: str, values: list[tuple[Any, ...]]) -> None:
    """Execute SQL once for each tuple of values; do nothing for an empty list. Raises DBAPIError."""
    if not values:
        return
    if connection.dialect.name == "sqlite":
        _run_on_sqlite(connection, sql, "executemany", values)
    else:
        connection.exec_driver_sql(sql, values)


def _run_on_sqlite(connection: Connection, sql: str, method: str, values: Any) -> Sequence[Sequence[Any]]:
    """Execute SQL with the driver's cursor. Raises the driver's errors as SQLAlchemy's DBAPIError."""
    try:
        with closing(connection.connection.cursor()) as cursor:
            getattr(cursor, method)(sql, values)
            return cursor.fetchall()
    except sqlite3.Error as error:
        raise DBAPIError.instance(sql, None, error, sqlite3.Error) from error


class among(ColumnElement[bool]):  # noqa: N801 - named in lower case, because it is used like a function of SQLAlchemy
    """SQL condition `column IN (…)`, with a whole list of keys as one parameter, named `name`.

    It works only in statements for `prepare_select` and `prepare_update`. The SQL text is the same for lists of any
    length, so the database prepares the statement only once.
    """

    inherit_cache: bool | None = False

    def __init__(self, column: ColumnElement[Any], name: str) -> None:
        self.column = column
        self.keys = bindparam(name, type_=KeyList())


@compiles(among, "sqlite")
def _in_json(element: among, compiler: SQLCompiler, **options: Any) -> str:
    keys = compiler.process(element.keys, **options)
    return f"{compiler.process(element.column, **options)} IN (SELECT value FROM json_each({keys}))"  # noqa: S608 - both parts are SQL text from SQLAlchemy's compiler, no outside values


@compiles(among, "postgresql")
def _in_array(element: among, compiler: SQLCompiler, **options: Any) -> str:
    return f"{compiler.process(element.column, **options)} = ANY ({compiler.process(element.keys, **options)}::text[])"


@lru_cache(maxsize=64)
def prepare_insert(table: Table, dialect: Dialect, *, overwrite: bool = False) -> PreparedInsert:
    """Return the prepared insert of a table. The first call compiles it; later calls return the same object."""
    return PreparedInsert(table, dialect, overwrite=overwrite)


class PreparedInsert:
    """`INSERT … ON CONFLICT DO NOTHING` into one table; with `overwrite`, `DO UPDATE` of all columns except the key."""

    def __init__(self, table: Table, dialect: Dialect, *, overwrite: bool) -> None:
        # The insert leaves out autoincrement columns, because the database numbers them.
        columns = [column for column in table.columns if column.autoincrement is not True]
        self._key = columns[0]
        self._bind = BindProcessors([(column.name, column.type) for column in columns], dialect)
        self._in_arrays = dialect.name == "postgresql"
        values = f"VALUES ({', '.join('?' for _ in columns)})"
        if self._in_arrays:
            types = (_array_type(column, dialect) for column in columns)
            arrays = ", ".join(f"${number}::{kind}" for number, kind in enumerate(types, start=1))
            values = f"SELECT * FROM unnest({arrays})"  # noqa: S608 - the SQL text contains only names and types from the schema, no outside values
        names = ", ".join(column.name for column in columns)
        keys = ", ".join(column.name for column in table.primary_key)
        changes = ", ".join(f"{one.name} = excluded.{one.name}" for one in columns if not one.primary_key)
        conflict = f"({keys}) DO UPDATE SET {changes}" if overwrite else "DO NOTHING"
        self._sql = f"INSERT INTO {table.name} ({names}) {values} ON CONFLICT {conflict}"
        self._dialect = dialect

    def insert(self, connection: Connection, rows: Rows) -> None:
        """Insert the rows. A row whose key exists already is skipped; with `overwrite`, it replaces the stored row."""
        if rows:
            (run if self._in_arrays else run_each)(connection, self._sql, self._parameters(rows))

    def insert_new(self, connection: Connection, rows: Rows) -> list[str]:
        """Insert the rows whose key does not exist yet, and return their keys."""
        if not rows:
            return []
        if self._in_arrays:
            returning = f"{self._sql} RETURNING {self._key.name}"
            return [key for (key,) in run(connection, returning, self._parameters(rows))]
        name = self._key.name
        existing = {key for (key,) in self._existing.rows(connection, keys=[row[name] for row in rows])}
        # No other transaction can insert these keys in the meantime, because SQLite has one writer at a time.
        missing = [row for row in rows if row[name] not in existing]
        self.insert(connection, missing)
        return [row[name] for row in missing]

    @cached_property
    def _existing(self) -> PreparedSelect:
        """A query that returns which of the given keys exist."""
        return PreparedSelect(select(self._key).where(among(self._key, "keys")), self._dialect)

    def _parameters(self, rows: Rows) -> Any:
        """Return the driver's parameters for the rows, sorted by key.

        All replicas use the same order, so that two replicas that write the same rows can't deadlock. PostgreSQL gets
        one array for each column. A single statement can then insert all rows, and PostgreSQL's triggers run only once.
        """
        bound = [self._bind.process(row) for row in sorted(rows, key=itemgetter(self._key.name))]
        return tuple(map(list, zip(*bound, strict=True))) if self._in_arrays else bound


def _array_type(column: Column[Any], dialect: Dialect) -> str:
    """Return a column's array type. It is TEXT[] for strings, because a cast to VARCHAR(n)[] would truncate them."""
    return f"{'TEXT' if isinstance(column.type, String) else column.type.compile(dialect)}[]"


@lru_cache(maxsize=64)
def prepare_update(statement: Update, dialect: Dialect) -> PreparedUpdate:
    """Return the prepared form of an update. The first call compiles it; later calls return the same object.

    The update must be a module's constant, because the cache compares updates by identity.
    """
    return PreparedUpdate(statement, dialect)


class PreparedUpdate:
    """An `UPDATE` with named parameters."""

    def __init__(self, statement: Update, dialect: Dialect) -> None:
        self._sql, self._bind = _compiled(statement, dialect)

    def update(self, connection: Connection, rows: Rows) -> None:
        """Execute the update once for each row of parameters."""
        run_each(connection, self._sql, [self._bind.process(row) for row in rows])


@lru_cache(maxsize=64)
def prepare_select(statement: Select[Any], dialect: Dialect) -> PreparedSelect:
    """Return the prepared form of a query. The first call compiles it; later calls return the same object.

    The query must be a module's constant, because the cache compares queries by identity.
    """
    return PreparedSelect(statement, dialect)


class PreparedSelect:
    """A `SELECT` with named parameters."""

    def __init__(self, statement: Select[Any], dialect: Dialect) -> None:
        self._sql, self._bind = _compiled(statement, dialect)
        columns = statement.selected_columns
        row: Any = namedtuple("Row", [str(column.key) for column in columns])  # type: ignore[misc]  # noqa: PYI024 - the fields are known only at run time
        self._row = row._make
        self._read = ResultProcessors([column.type for column in columns], dialect)

    def rows(self, connection: Connection, **values: Any) -> list[Row]:
        """Execute the query with these parameters and return its rows. Raises DBAPIError."""
        return [self._row(self._read.process(row)) for row in run(connection, self._sql, self._bind.process(values))]


def _compiled(statement: Update | Select[Any], dialect: Dialect) -> tuple[str, BindProcessors]:
    compiled = statement.compile(dialect=dialect)
    binds = compiled.binds
    constants = {name: one.effective_value for name, one in binds.items() if not one.required}
    named = [(name, binds[name].type) for name in compiled.positiontup or ()]
    return str(compiled), BindProcessors(named, dialect, constants)
