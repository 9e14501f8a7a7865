"""Describes errors of Kafka's client for operators."""

from __future__ import annotations

import logging

from aiokafka.errors import KafkaConnectionError


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
