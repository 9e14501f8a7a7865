"""The types of the ledger's columns: how Python's values are stored in SQLite and PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

import cramjam
import orjson
from sqlalchemy import DateTime, Dialect, LargeBinary, String, Text, TypeDecorator
from sqlalchemy.types import NullType, TypeEngine, UserDefinedType

from dispatcher.model.delivery import RuleRef

_MIN_COMPRESSED_BYTES = 4096
_LZ4 = b"\x04"
"""The first byte of a compressed value. No JSON document starts with this byte."""
_CACHED = 256
"""Number of conversions that are kept, because a batch has few distinct times and recipients."""


class _TimeText(UserDefinedType[str]):
    """A column for times on SQLite, which stores them as text."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "DATETIME"


class UtcTime(TypeDecorator[datetime]):
    """Column type for a time with a time zone. Raises ValueError for a time without a zone.

    Times are stored in UTC. SQLite stores the text that SQLAlchemy's own type would store there, without the zone.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return _TimeText() if dialect.name == "sqlite" else super().load_dialect_impl(dialect)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        return _time_to_text(value) if dialect.name == "sqlite" else _in_utc(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return _time_from_text(value) if dialect.name == "sqlite" else _with_zone(value)


def _in_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a time without a zone")
    return value.astimezone(UTC)


@lru_cache(_CACHED)
def _time_to_text(value: datetime) -> str:
    return _in_utc(value).replace(tzinfo=None).isoformat(" ", "microseconds")


@lru_cache(_CACHED)
def _time_from_text(value: str) -> datetime:
    return _with_zone(datetime.fromisoformat(value))


def _with_zone(value: datetime) -> datetime:
    """Return a stored time in UTC. asyncpg stores the first moment of all as infinity, and returns it without a zone."""
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class OneOf(TypeDecorator[StrEnum]):
    """Column type for a member of an enumeration, stored as its text."""

    impl = String
    cache_ok = True

    def __init__(self, kind: type[StrEnum], length: int) -> None:
        super().__init__(length)
        self.kind = kind

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:
        del dialect
        return None if value is None else self.kind(value)


class NullIfEmpty(TypeDecorator[str]):
    """Column type for a text that is often empty. An empty text is stored as NULL, which partial indexes leave out."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        del dialect
        return value or None

    def process_result_value(self, value: str | None, dialect: Dialect) -> str:
        del dialect
        return value or ""


class ForeignText(TypeDecorator[str]):
    """Column type for text from outside the dispatcher.

    Replaces NUL, which PostgreSQL refuses, and unpaired surrogates, which every database refuses.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        del dialect
        if value is None or (value.isascii() and "\0" not in value):
            return value
        return value.replace("\0", "\ufffd").encode(errors="replace").decode()


class EncodedJson(NamedTuple):
    """Data that is already encoded as JSON."""

    text: bytes


def to_json(value: Any) -> bytes:
    """Encode a value as JSON in UTF-8.

    Replaces surrogates in its texts by question marks, as `ForeignText` does, and writes any other type of object as
    its text. So values from other packages' channels can be stored too.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, ensure_ascii=False, default=str).encode(errors="replace")


class CompressedJson(TypeDecorator[Any]):
    """Column type for JSON data, compressed with LZ4 if it has 4 KiB or more.

    A mail has many kilobytes of repetitive text. zlib's result would be a quarter smaller, but zlib would take seven
    times as long for every event.
    """

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:
        del dialect
        if value is None:
            return None
        plain = value.text if isinstance(value, EncodedJson) else to_json(value)
        return plain if len(plain) < _MIN_COMPRESSED_BYTES else _LZ4 + bytes(cramjam.lz4.compress_block(plain))

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> Any:
        del dialect
        return None if value is None else from_compressed_json(value)


def from_compressed_json(value: bytes) -> Any:
    """Return the data of a stored value of the type `CompressedJson`."""
    return orjson.loads(bytes(cramjam.lz4.decompress_block(value[1:])) if value[:1] == _LZ4 else value)


class StringList(TypeDecorator[tuple[str, ...]]):
    """Column type for a short list of strings, stored as JSON."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str | None:
        del dialect
        return None if value is None else _strings_to_text(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...] | None:
        del dialect
        return None if value is None else _strings_from_text(value)


@lru_cache(_CACHED)
def _strings_to_text(value: tuple[str, ...]) -> str:
    return to_json(value).decode()


@lru_cache(_CACHED)
def _strings_from_text(value: str) -> tuple[str, ...]:
    return tuple(orjson.loads(value))


class RuleRefList(TypeDecorator[tuple[RuleRef, ...]]):
    """Column type for a delivery's rules, stored as a JSON list of pairs: a name and a place."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[RuleRef, ...] | None, dialect: Dialect) -> str | None:
        del dialect
        return None if value is None else _rule_refs_to_text(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[RuleRef, ...] | None:
        del dialect
        return None if value is None else _rule_refs_from_text(value)


@lru_cache(_CACHED)
def _rule_refs_to_text(value: tuple[RuleRef, ...]) -> str:
    return to_json([tuple(one) for one in value]).decode()


@lru_cache(_CACHED)
def _rule_refs_from_text(value: str) -> tuple[RuleRef, ...]:
    return tuple(RuleRef(*one) for one in orjson.loads(value))


class KeyList(TypeDecorator[Sequence[str]]):
    """The type of the parameter of `statements.among`, a list of keys. No column has this type."""

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = NullType
    cache_ok: bool | None = True

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> Any:
        keys = list(value or ())
        return orjson.dumps(keys).decode() if dialect.name == "sqlite" else keys
