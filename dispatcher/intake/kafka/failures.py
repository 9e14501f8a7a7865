"""Which errors Kafka's client raises, and how they are described for operators."""

from __future__ import annotations

import asyncio
import gzip
import logging
import ssl
import zlib

import cramjam
from aiokafka.errors import (
    CorruptRecordException,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from dispatcher.clock import loop_time

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
RECENT_SECONDS = 30
"""A logged failure is the cause of an error that is raised within this time."""
_WITHOUT_CAUSE = (KafkaConnectionError, NodeNotReadyError, TimeoutError)
"""Errors that aiokafka raises, without their cause, if a connection failed."""
LENGTH_BYTES = 4
TLS_ALERT = b"\x15\x03"
"""How a server that speaks TLS begins its answer to anything else (RFC 8446, 5.1)."""
SPEAKS_TLS = "this port speaks TLS: set kafka.security_protocol to SSL or SASL_SSL"
SPEAKS_NO_TLS = "this port ends the TLS handshake: is kafka.security_protocol PLAINTEXT or SASL_PLAINTEXT there?"
SPEAKS_SASL = (
    "this port ends the connection: does it require a login (kafka.security_protocol is SASL_SSL or SASL_PLAINTEXT "
    "then), or a client certificate (kafka.cert_file)?"
)
ADVERTISED = "is it up, and is the address right that it advertises (advertised.listeners)?"
SPEAKS_NO_SASL = "this port speaks no SASL, so it takes no login: set kafka.security_protocol to SSL or PLAINTEXT"


class _LastFailure(logging.Handler):
    """Keeps, in words, why the last connection failed, because aiokafka only logs it."""

    _reason = ""
    _at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        match record.args:
            case (str(), int(), BaseException() as error):  # a host and a port of `bootstrap_servers`
                self._reason, self._at = _in_words(error), loop_time()
            case (number, BaseException() as error) if record.levelno >= logging.ERROR:
                self._reason, self._at = f"broker {number}: {_in_words(error, ADVERTISED)}", loop_time()

    def take(self) -> str:
        """Return the reason if it is recent, and forget it; otherwise an empty text."""
        reason, self._reason = self._reason, ""
        return reason if loop_time() - self._at < RECENT_SECONDS else ""


_last_failure = _LastFailure(logging.WARNING)
logging.getLogger("aiokafka").addHandler(_last_failure)


def describe(error: BaseException) -> str:
    """Return in words why a call to the broker failed, with the setting that may be wrong."""
    reason = _last_failure.take() if isinstance(error, _WITHOUT_CAUSE) else ""
    if isinstance(error, TimeoutError) and reason:
        return f"no answer in time; {reason}"
    return reason or _in_words(error)


def _in_words(error: BaseException, address: str = "check kafka.bootstrap_servers") -> str:
    """Return in words what happened. `address`: what to do if the broker can't be reached."""
    match error:
        case TimeoutError():
            return "no answer in time"
        case ssl.SSLCertVerificationError(verify_message=reason):
            return f"the broker's certificate is not trusted: {reason.rstrip('.')}; check kafka.ca_file and the broker's name"
        case ConnectionResetError():  # in the handshake, because a port without a listener refuses the connection
            return SPEAKS_NO_TLS
        case SaslAuthenticationFailed(args=(str(reason), *_)):
            return f"the broker refused the login: {reason}; check kafka.username and password"
        case UnsupportedSaslMechanismError():
            return "the broker refused the login: it doesn't know kafka.sasl_mechanism"
        case IllegalSaslStateError():
            return SPEAKS_NO_SASL
        case KafkaConnectionError(__cause__=asyncio.IncompleteReadError(expected=int(length))):
            return _unexpected_end(length)
        case OSError():
            return f"can't be reached: {error.strerror or error}; {address}"
        case _:
            return _as_raised(error)


def _unexpected_end(length: int) -> str:
    """Return in words why a broker closed a connection. An answer of Kafka begins with four bytes that are its length.

    `length`: the length of what was expected: 4, or what the first four bytes were.
    """
    if length == LENGTH_BYTES:
        return SPEAKS_SASL
    if length.to_bytes(LENGTH_BYTES).startswith(TLS_ALERT):
        return SPEAKS_TLS
    return "what answers there is not Kafka; check kafka.bootstrap_servers"


def _as_raised(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def undecodable_reason(error: Exception) -> str:
    """Return why a record can't be read. `error`: one of `UNDECODABLE`."""
    match error:
        case CorruptRecordException():
            return "corrupt record: its checksum does not fit its bytes"
        case UnicodeDecodeError():
            return "unreadable record: the name of a header is not UTF-8"
        case _:
            return f"unreadable record: its batch can't be unpacked: {_as_raised(error)}"
