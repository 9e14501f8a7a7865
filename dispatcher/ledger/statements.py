"""SQL for frequent statements: a condition and an insert whose text is the same for any number of values.

SQLAlchemy compiles a statement once if it is a module's constant; then only its values change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Dialect, Table, bindparam, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from dispatcher.ledger.column_types import KeyList

Rows = Sequence[Mapping[str, Any]]


class among(FunctionElement[bool]):  # noqa: N801 - named in lower case, because it is used like a function of SQLAlchemy
    """SQL condition `column IN (…)`, with a whole list of keys as one parameter, named `name`.

    The SQL text is the same for lists of any length, so SQLAlchemy and the database prepare the statement only once.
    """

    inherit_cache = True  # it has no type: a Boolean would become `… = 1` on SQLite, which uses no index

    def __init__(self, column: ColumnElement[Any], name: str) -> None:
        super().__init__(column, bindparam(name, type_=KeyList()))


@compiles(among, "sqlite")
def _in_json(element: among, compiler: SQLCompiler, **options: Any) -> str:
    column, keys = (compiler.process(one, **options) for one in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({keys}))"  # noqa: S608 - both parts are SQL text from SQLAlchemy's compiler, no outside values


@compiles(among, "postgresql")
def _in_array(element: among, compiler: SQLCompiler, **options: Any) -> str:
    column, keys = (compiler.process(one, **options) for one in element.clauses)
    return f"{column} = ANY ({keys}::text[])"


def insert(connection: Connection, table: Table, rows: Rows, *, overwrite: bool = False) -> None:
    """Insert the rows. A row whose key exists already is skipped; with `overwrite`, it replaces the stored row.

    Each row needs a value for each column, except autoincrement columns. Other entries of a row are ignored.
    """
    if rows:
        statement = _insert(table, connection.dialect, overwrite=overwrite)
        connection.exec_driver_sql(statement.sql, statement.parameters(rows))


def insert_new(connection: Connection, table: Table, rows: Rows) -> list[str]:
    """Insert the rows whose key does not exist yet, and return their keys. The key is the table's first column."""
    if not rows:
        return []
    statement = _insert(table, connection.dialect)
    name = statement.key.name
    if connection.dialect.name == "postgresql":
        returning = f"{statement.sql} RETURNING {name}"
        return list(connection.exec_driver_sql(returning, statement.parameters(rows)).scalars())
    existing = set(connection.scalars(statement.existing, {"keys": [row[name] for row in rows]}))
    # No other transaction can insert these keys in the meantime, because SQLite has one writer at a time.
    missing = [row for row in rows if row[name] not in existing]
    insert(connection, table, missing)
    return [row[name] for row in missing]


@lru_cache(maxsize=64)
def _insert(table: Table, dialect: Dialect, *, overwrite: bool = False) -> _Insert:
    return _Insert(table, dialect, overwrite=overwrite)


class _Insert:
    """`INSERT … ON CONFLICT DO NOTHING` into one table; with `overwrite`, `DO UPDATE` of all columns except the key.

    SQLAlchemy's own insert inspects each value of each row several times, which costs more than the database.
    """

    def __init__(self, table: Table, dialect: Dialect, *, overwrite: bool) -> None:
        # The insert leaves out autoincrement columns, because the database numbers them.
        columns = [column for column in table.columns if column.autoincrement is not True]
        self.key = columns[0]
        self.existing = select(self.key).where(among(self.key, "keys"))
        self._pick = itemgetter(*(column.name for column in columns))
        processors = ((at, column.type.dialect_impl(dialect)) for at, column in enumerate(columns))
        self._processors = [(at, bind) for at, kind in processors if (bind := kind.bind_processor(dialect)) is not None]
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
        self.sql = f"INSERT INTO {table.name} ({names}) {values} ON CONFLICT {conflict}"

    def parameters(self, rows: Rows) -> Any:
        """Return the driver's parameters for the rows, sorted by key.

        All replicas use the same order, so that two replicas that write the same rows can't deadlock. PostgreSQL gets
        one array for each column. A single statement can then insert all rows, and PostgreSQL's triggers run only once.
        """
        bound = [self._bound(row) for row in sorted(rows, key=itemgetter(self.key.name))]
        return tuple(map(list, zip(*bound, strict=True))) if self._in_arrays else bound

    def _bound(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        values = [*self._pick(row)]
        for at, bind in self._processors:
            values[at] = bind(values[at])
        return tuple(values)


def _array_type(column: Column[Any], dialect: Dialect) -> str:
    """Return a column's array type. It is TEXT[] for strings, because a cast to VARCHAR(n)[] would truncate them."""
    kind = column.type.compile(dialect)
    return f"{'TEXT' if kind.startswith('VARCHAR') else kind}[]"
