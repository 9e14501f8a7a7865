"""Column types and frequent statements, on SQLite: values are read as they were written."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
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
    select,
    text,
)
from sqlalchemy import insert as plain_insert

from dispatcher.ledger.column_types import CompressedJson, ForeignText, NullIfEmpty, OneOf, StringList, UtcTime
from dispatcher.ledger.statements import among, insert, insert_new


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


ZONES = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
TIMES = st.none() | st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=ZONES)  # noqa: DTZ001 - naive bounds
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | TEXT, lambda some: st.lists(some) | st.dictionaries(TEXT, some), max_leaves=5
)
COLUMNS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "at": (UtcTime, TIMES),
    "words": (ForeignText, TEXT),
    "names": (StringList, st.none() | st.lists(TEXT).map(tuple)),
    "data": (CompressedJson, JSON | st.text("ab", min_size=5000, max_size=6000)),
    "plain": (String(40), st.none() | st.text("abc/")),
    "perhaps": (Boolean, st.none() | st.booleans()),
    "octets": (LargeBinary, st.none() | st.binary()),
    "colour": (OneOf(Colour, 8), st.none() | st.sampled_from(Colour)),
    "often_empty": (NullIfEmpty(40), st.text("ab")),
}
TABLE = Table(
    "things",
    MetaData(),
    Column("id", Integer, primary_key=True, autoincrement=False),
    *(Column(name, one[0]) for name, one in COLUMNS.items()),
)
ROWS = st.lists(st.fixed_dictionaries({name: values for name, (_, values) in COLUMNS.items()}), min_size=1, max_size=5)
READ = select(TABLE).order_by(TABLE.c.id)
AMONG = select(TABLE.c.plain).where(among(TABLE.c.plain, "keys"))
NOT_AMONG = select(TABLE.c.plain).where(~among(TABLE.c.plain, "keys"))


def connections() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        TABLE.create(connection)
        yield connection
    engine.dispose()


def row(number: int, **values: object) -> dict[str, Any]:
    return {"id": number, **dict.fromkeys(COLUMNS), **values}


@given(ROWS)
def test_what_is_inserted_is_read_again_and_stored_as_sqlalchemys_own_insert_stores_it(
    rows: list[dict[str, Any]],
) -> None:
    rows = [{"id": number, **values} for number, values in enumerate(rows)]
    for connection in connections():
        connection.execute(plain_insert(TABLE), rows)
        by_sqlalchemy = connection.execute(text("SELECT * FROM things")).all()
        connection.execute(text("DELETE FROM things"))
        insert(connection, TABLE, rows)

        assert connection.execute(text("SELECT * FROM things")).all() == by_sqlalchemy
        assert [dict(one) for one in connection.execute(READ).mappings()] == rows


def test_an_insert_skips_or_overwrites_rows_that_exist() -> None:
    for connection in connections():
        insert(connection, TABLE, [row(1, plain="first")])
        insert(connection, TABLE, [row(1, plain="second"), row(2)])
        assert [one.plain for one in connection.execute(READ)] == ["first", None]
        insert(connection, TABLE, [row(1, plain="third")], overwrite=True)
        assert [one.plain for one in connection.execute(READ)] == ["third", None]
        assert [*map(str, insert_new(connection, TABLE, [row(2), row(3)]))] == ["3"]
        insert(connection, TABLE, [])
        assert insert_new(connection, TABLE, []) == []


@pytest.mark.parametrize("stored", ["2026-01-01 02:00:00+02:00", "2026-01-01 00:00:00"])
def test_a_stored_time_with_another_zone_is_read_as_the_same_time(stored: str) -> None:
    for connection in connections():
        connection.execute(text("INSERT INTO things (id, at) VALUES (1, :at)"), {"at": stored})
        assert connection.scalar(select(TABLE.c.at)) == datetime(2026, 1, 1, tzinfo=UTC)


def test_a_time_without_a_zone_is_refused() -> None:
    for connection in connections():
        with pytest.raises(ValueError, match="without a zone"):
            insert(connection, TABLE, [row(1, at=datetime(2026, 1, 1))])  # noqa: DTZ001 - the time without a zone under test


def test_text_that_no_database_can_store_is_replaced() -> None:
    for connection in connections():
        insert(connection, TABLE, [row(1, words="a\0b\ud800", data={"\ud800": 1})])
        assert connection.execute(select(TABLE.c.words, TABLE.c.data)).one() == ("a\ufffdb?", {"?": 1})


@given(st.sets(st.text("ab'\"\\[]{},?é☃"), max_size=20))
def test_among_selects_exactly_the_rows_with_the_given_keys(keys: set[str]) -> None:
    for connection in connections():
        stored = sorted({"a", "b", "", "'", '"', "é", *list(keys)[::2]})
        insert(connection, TABLE, [row(number, plain=key) for number, key in enumerate(stored)])

        found, others = (
            connection.scalars(AMONG, {"keys": sorted(keys)}),
            connection.scalars(NOT_AMONG, {"keys": sorted(keys)}),
        )
        assert sorted(found) == sorted(keys & set(stored))
        assert sorted(others) == sorted(set(stored) - keys)


def test_among_finds_rows_by_the_columns_index() -> None:
    for connection in connections():
        by_id = select(TABLE.c.plain).where(among(TABLE.c.id, "keys")).compile(dialect=connection.dialect)
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {by_id}", ("[1]",)).all()
        assert "SEARCH things USING INTEGER PRIMARY KEY" in str(plan)
