"""Which errors Kafka's client raises, and how they are described for operators."""

from __future__ import annotations

import gzip
import logging
import zlib

import cramjam
from aiokafka.errors import CorruptRecordException, KafkaConnectionError, KafkaError

CONNECTION_ERRORS = (KafkaError, TimeoutError, OSError)
"""Errors of a call to the broker. A consumer that raised one of them is replaced by a new one."""
UNDECODABLE = (
    CorruptRecordException,
    UnicodeDecodeError,
    cramjam.DecompressionError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
)
"""Errors that aiokafka raises for a record that it can't decode. Reading the record again raises the error again."""


class _LastError(logging.Handler):
    """Keeps the last error message that aiokafka logged. If a connection fails, only the log says why."""

    message = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.message = record.getMessage()


_last_error = _LastError(logging.ERROR)
logging.getLogger("aiokafka").addHandler(_last_error)


def describe(error: BaseException) -> str:
    """Return the error's type and text. For a failed connection, add the reason that aiokafka logged."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if not isinstance(error, KafkaConnectionError) or not _last_error.message:
        return text
    reason, _last_error.message = _last_error.message, ""
    return f"{text}; {reason}"


def undecodable_reason(error: Exception) -> str:
    """Return why a record can't be read. `error`: one of `UNDECODABLE`."""
    match error:
        case CorruptRecordException():
            return "corrupt record: its checksum does not fit its bytes"
        case UnicodeDecodeError():
            return "unreadable record: the name of a header is not UTF-8"
        case _:
            return f"unreadable record: its batch can't be unpacked: {describe(error)}"
