"""Prepared statements write and read the same values as SQLAlchemy."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    insert,
    select,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from dispatcher.ledger.schema import CompressedJson, ForeignText, StringList, UtcTime
from dispatcher.ledger.statements import among, prepare_select, run, run_each
from dispatcher.ledger.values import BindProcessors

ZONES = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
TIMES = st.none() | st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=ZONES)  # noqa: DTZ001 - naive bounds
TEXT = st.text(st.characters())
JSON = st.recursive(
    st.none() | st.booleans() | st.text(), lambda some: st.lists(some) | st.dictionaries(st.text(), some)
)
COLUMNS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "at": (UtcTime, TIMES),
    "words": (ForeignText, TEXT),
    "names": (StringList, st.none() | st.lists(st.text()).map(tuple)),
    "data": (CompressedJson, JSON | st.text(min_size=5000, max_size=6000)),
    "plain": (String(40), st.none() | st.text("abc/")),
    "perhaps": (Boolean, st.none() | st.booleans()),
    "octets": (LargeBinary, st.none() | st.binary()),
}
TABLE = Table(
    "things",
    MetaData(),
    Column("id", Integer, primary_key=True),
    *(Column(name, one[0]) for name, one in COLUMNS.items()),
)

READ = select(TABLE).order_by(TABLE.c.id)
AMONG = select(TABLE.c.plain).where(among(TABLE.c.plain, "keys"))
NOT_AMONG = select(TABLE.c.plain).where(~among(TABLE.c.plain, "keys"))


@given(st.lists(st.fixed_dictionaries({name: values for name, (_, values) in COLUMNS.items()}), min_size=1, max_size=5))
def test_values_are_bound_as_sqlalchemy_binds_them(rows: list[dict[str, object]]) -> None:
    rows = [{"id": number, **row} for number, row in enumerate(rows)]
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        TABLE.create(connection)
        connection.execute(insert(TABLE), rows)
        by_sqlalchemy = _stored(connection)
        run(connection, "DELETE FROM things")
        values = BindProcessors([(column.name, column.type) for column in TABLE.columns], connection.dialect)
        placeholders = ", ".join("?" for _ in TABLE.columns)
        run_each(connection, f"INSERT INTO things VALUES ({placeholders})", [values.process(row) for row in rows])

        assert _stored(connection) == by_sqlalchemy
        read = prepare_select(READ, connection.dialect).rows(connection)
        expected = connection.execute(READ).all()
        assert list(map(repr, map(tuple, read))) == list(map(repr, map(tuple, expected))), "the types are equal, too"
    engine.dispose()


def test_a_stored_time_with_another_zone_is_read_as_the_same_time() -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        TABLE.create(connection)
        written = [(1, "2026-01-01 02:00:00+02:00"), (2, "2026-01-01 00:00:00")]
        run_each(connection, "INSERT INTO things (id, at) VALUES (?, ?)", written)

        assert {row.at for row in prepare_select(READ, connection.dialect).rows(connection)} == {
            datetime(2026, 1, 1, tzinfo=UTC)
        }
    engine.dispose()


@given(st.sets(st.text("ab'\"\\[]{},?é☃"), max_size=20))
def test_among_selects_exactly_the_rows_with_the_given_keys(keys: set[str]) -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        TABLE.create(connection)
        stored = sorted({"a", "b", "", "'", '"', "é", *list(keys)[::2]})
        run_each(connection, "INSERT INTO things (id, plain) VALUES (?, ?)", list(enumerate(stored)))

        found = prepare_select(AMONG, connection.dialect).rows(connection, keys=sorted(keys))
        others = prepare_select(NOT_AMONG, connection.dialect).rows(connection, keys=sorted(keys))
        assert sorted(row.plain for row in found) == sorted(keys & set(stored))
        assert sorted(row.plain for row in others) == sorted(set(stored) - keys)
    engine.dispose()


def test_run_each_without_values_executes_nothing() -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        run_each(connection, "INSERT INTO nowhere VALUES (?)", [])
    engine.dispose()


def _stored(connection: Connection) -> list[tuple[object, ...]]:
    return [tuple(row) for row in run(connection, "SELECT * FROM things ORDER BY id")]


def test_a_time_without_a_zone_is_refused() -> None:
    values = BindProcessors([("at", UtcTime()), ("id", Integer())], create_engine("sqlite://").dialect)
    assert values.process({"at": datetime(2026, 1, 1, tzinfo=UTC), "id": 1}) == ("2026-01-01 00:00:00.000000", 1)
    with pytest.raises(ValueError, match="without a zone"):
        values.process({"at": datetime(2026, 1, 1), "id": 1})  # noqa: DTZ001 - the time without a zone under test


@pytest.mark.parametrize(
    ("sql", "kind"),
    [("SELECT * FROM nowhere", OperationalError), ("INSERT INTO things (id) VALUES (1)", IntegrityError)],
)
def test_errors_of_the_driver_are_raised_as_sqlalchemys(sql: str, kind: type[DBAPIError]) -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        TABLE.create(connection)
        run_each(connection, "INSERT INTO things (id) VALUES (?)", [(1,), (2,)])
        with pytest.raises(kind) as raised:
            run(connection, sql)
        assert isinstance(raised.value.orig, sqlite3.Error)
    engine.dispose()
