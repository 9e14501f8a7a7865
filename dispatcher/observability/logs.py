"""Logging to standard error: readable text at a terminal, otherwise one JSON object per line.

Mail addresses are masked at every level except debug. Answers of mail relays and Slack contain them, and more people
can read the log than the ledger, which has the full text.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Sequence
from typing import Any, Literal, TextIO

import orjson

from channels.common.lean_imports import without_modules

with without_modules("rich"):  # structlog would import it for coloured tracebacks; it takes 4 MiB
    import structlog
    import structlog.tracebacks

_tracebacks = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(
        show_locals=False, max_frames=20
    )  # locals may contain tokens and addresses
)

_LOCAL = r"""(?: "[^"\n]{1,64}" | [^\s<>()\[\]{},;:"'`|=@\\/]{1,64} )"""
_ADDRESS = re.compile(
    rf"""
    {_LOCAL} (?= @ (?: \[ | [\w-]+ (?: \.[\w-]+ )* \.[^\W\d_]{{2,}} ) )  # before a host name with dots or an [address]
    | (?<! [^\s<>()\[\]{{}},;:"'`|=@\\] ) {_LOCAL} (?= @ \w )  # before any host, but not in PROJECT/DOMAIN/NAME@VERSION
    """,
    re.VERBOSE,
)


def masked(value: Any) -> Any:
    """The value with the local part of every mail address replaced by `…`. Operators need the hosts, so hosts stay."""
    match value:
        case str():
            return _ADDRESS.sub("…", value) if "@" in value else value
        case dict():
            return {masked(name): masked(item) for name, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [masked(item) for item in value]
        case None | bool() | int() | float():
            return value
        case bytes():
            return masked(value.decode(errors="replace"))
        case _:
            return masked(str(value))


def _mask(_logger: object, level: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return entry if level == "debug" else masked(entry)


def configure(form: Literal["json", "console", "auto"], *, level: int = logging.INFO) -> None:
    """Send structlog's lines and the libraries' warnings to the current standard error.

    `level` applies to the lines of the packages `dispatcher` and `channels`. Call this before they log: a logger keeps
    the level that was configured when it wrote its first line.
    """
    readable = form == "console" or (form == "auto" and sys.stderr.isatty())
    common: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render = _never_raising(
        [
            structlog.processors.UnicodeDecoder(),
            structlog.processors.format_exc_info,
            _mask,
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ]
        if readable
        else [_tracebacks, _json]
    )
    stream = _LockedStream(sys.stderr)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for package in ("dispatcher", "channels"):
        logging.getLogger(package).setLevel(level)
    # aiokafka logs every attempt to reconnect; the Kafka source logs an outage once.
    logging.getLogger("aiokafka").propagate = False
    # uvicorn logs a warning for every request that is not HTTP, so any client could fill the log.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    # structlog's lines bypass the standard library's records and handlers, which take five times as long.
    structlog.configure(
        processors=[*common, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda name="": _LineLogger(name, stream),
        cache_logger_on_first_use=True,
    )


class _LockedStream:
    """A stream to which several threads write one line at a time. A line that can't be written is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()  # reentrant, because a garbage collection during a write can log

    def write(self, text: str) -> None:
        with self._lock:
            try:
                self._stream.write(text)
                self._stream.flush()
            except Exception:  # noqa: BLE001, S110 - there is no other place to report it
                pass


class _LineLogger:
    """The logger that structlog's bound loggers wrap. It writes finished lines to the stream."""

    def __init__(self, name: str, stream: _LockedStream) -> None:
        self.name = name
        self._stream = stream

    def write(self, line: str) -> None:
        self._stream.write(line + "\n")

    debug = info = warning = error = critical = write


def _never_raising(steps: Sequence[structlog.typing.Processor]) -> structlog.typing.Processor:
    """Return a processor that runs all steps. If a step raises, the processor returns a line that reports the error, so
    that code that logs never gets an exception.
    """

    def render(logger: Any, level: str, entry: structlog.typing.EventDict) -> Any:
        common = {name: entry[name] for name in ("level", "logger", "timestamp")}
        text: Any = entry
        try:
            for step in steps:
                text = step(logger, level, text)
        except Exception as error:  # noqa: BLE001 - an object's __str__ can raise anything
            return steps[-1](
                logger, level, {"event": "a line could not be written", "reason": type(error).__name__, **common}
            )
        return text

    return render


_ORJSON_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def _json(_logger: object, level: str, entry: structlog.typing.EventDict) -> str:
    """The line as JSON in ASCII, so that it contains no control characters for a terminal."""
    text = _dumps(entry)
    if "@" in text and level != "debug":  # masking takes most of a line's time, and few lines have an address
        text = _dumps(masked(entry))
    return text


def _dumps(entry: structlog.typing.EventDict) -> str:
    try:
        text = orjson.dumps(entry, default=_to_json, option=_ORJSON_OPTIONS)
        if text.isascii():
            return text.decode()
    except TypeError:  # orjson refuses lone surrogates, integers above 64 bits, and keys that are not text
        pass
    return json.dumps(entry, default=_to_json, separators=(",", ":"))


def _to_json(value: Any) -> Any:
    """Convert an object whose type JSON does not have into a JSON value."""
    match value:
        case set() | frozenset():
            return list(value)
        case bytes():
            return value.decode(errors="replace")
        case _:
            return str(value)
