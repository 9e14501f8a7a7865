"""What is bound by hand is what SQLAlchemy would have written, and what it reads back."""

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
from dispatcher.ledger.statements import among, asking, run, run_each
from dispatcher.ledger.values import Bindings

ZONES = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
TIMES = st.none() | st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=ZONES)  # noqa: DTZ001 - they get zones
TEXT = st.text(st.characters())
JSON = st.recursive(
    st.none() | st.booleans() | st.text(), lambda some: st.lists(some) | st.dictionaries(st.text(), some)
)
CHANNEL_TYPES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
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
    *(Column(name, one[0]) for name, one in CHANNEL_TYPES.items()),
)

READ = select(TABLE).order_by(TABLE.c.id)
AMONG = select(TABLE.c.plain).where(among(TABLE.c.plain, "keys"))
NOT_AMONG = select(TABLE.c.plain).where(~among(TABLE.c.plain, "keys"))


@given(
    st.lists(
        st.fixed_dictionaries({name: values for name, (_, values) in CHANNEL_TYPES.items()}), min_size=1, max_size=5
    )
)
def test_values_are_bound_as_sqlalchemy_binds_them(rows: list[dict[str, object]]) -> None:
    rows = [{"id": number, **row} for number, row in enumerate(rows)]
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        TABLE.create(connection)
        connection.execute(insert(TABLE), rows)
        theirs = _written(connection)
        run(connection, "DELETE FROM things")
        values = Bindings([(column.name, column.type) for column in TABLE.columns], connection.dialect)
        checkpoints = ", ".join("?" for _ in TABLE.columns)
        run_each(connection, f"INSERT INTO things VALUES ({checkpoints})", [values.of(row) for row in rows])

        assert _written(connection) == theirs
        read = asking(READ, connection.dialect).rows(connection)
        known = connection.execute(READ).all()
        assert list(map(repr, map(tuple, read))) == list(map(repr, map(tuple, known))), "types and all"
    engine.dispose()


def test_a_time_with_another_zone_is_read_as_the_moment_that_it_is() -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        TABLE.create(connection)
        written = [(1, "2026-01-01 02:00:00+02:00"), (2, "2026-01-01 00:00:00")]
        run_each(connection, "INSERT INTO things (id, at) VALUES (?, ?)", written)

        assert {row.at for row in asking(READ, connection.dialect).rows(connection)} == {
            datetime(2026, 1, 1, tzinfo=UTC)
        }
    engine.dispose()


@given(st.sets(st.text("ab'\"\\[]{},?é☃"), max_size=20))
def test_what_is_among_the_keys_is_found_and_nothing_else(asked: set[str]) -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        TABLE.create(connection)
        there = sorted({"a", "b", "", "'", '"', "é", *list(asked)[::2]})
        run_each(connection, "INSERT INTO things (id, plain) VALUES (?, ?)", list(enumerate(there)))

        found = asking(AMONG, connection.dialect).rows(connection, keys=sorted(asked))
        others = asking(NOT_AMONG, connection.dialect).rows(connection, keys=sorted(asked))
        assert sorted(row.plain for row in found) == sorted(asked & set(there))
        assert sorted(row.plain for row in others) == sorted(set(there) - asked)
    engine.dispose()


def test_nothing_to_write_writes_nothing() -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        run_each(connection, "INSERT INTO nowhere VALUES (?)", [])
    engine.dispose()


def _written(connection: Connection) -> list[tuple[object, ...]]:
    return [tuple(row) for row in run(connection, "SELECT * FROM things ORDER BY id")]


def test_a_time_without_a_zone_is_refused() -> None:
    values = Bindings([("at", UtcTime()), ("id", Integer())], create_engine("sqlite://").dialect)
    assert values.of({"at": datetime(2026, 1, 1, tzinfo=UTC), "id": 1}) == ("2026-01-01 00:00:00.000000", 1)
    with pytest.raises(ValueError, match="without a zone"):
        values.of({"at": datetime(2026, 1, 1), "id": 1})  # noqa: DTZ001 - that is the point


@pytest.mark.parametrize(
    ("sql", "kind"),
    [("SELECT * FROM nowhere", OperationalError), ("INSERT INTO things (id) VALUES (1)", IntegrityError)],
)
def test_the_drivers_errors_are_sqlalchemys(sql: str, kind: type[DBAPIError]) -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        TABLE.create(connection)
        run_each(connection, "INSERT INTO things (id) VALUES (?)", [(1,), (2,)])
        with pytest.raises(kind) as raised:
            run(connection, sql)
        assert isinstance(raised.value.orig, sqlite3.Error)
    engine.dispose()
