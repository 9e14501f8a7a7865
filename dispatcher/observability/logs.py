"""Logging to standard error: readable text at a terminal, otherwise one JSON object per line.

Mail addresses are masked at every level except debug, because more people can read the log than the ledger. The answers
of mail relays and of Slack contain mail addresses. The ledger stores these answers unmasked.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TextIO

import orjson
import structlog
import structlog.tracebacks

from dispatcher.safe_text import visible

_tracebacks = structlog.processors.ExceptionRenderer(
    # Tracebacks are logged without the values of local variables, because these may contain tokens and addresses.
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)
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
    """Return the value with the local part (before the `@`) of every mail address replaced by `…`. The host stays,
    because operators need it.
    """
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


def _show_safely(_logger: object, _level: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Make all text safe to show in a terminal. Only tracebacks keep their lines."""
    return {visible(str(name)): _shown(value, lines=name in ("exception", "stack")) for name, value in entry.items()}


def _shown(value: Any, *, lines: bool) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case dict() | list():
            return visible(repr(value))
        case _:
            return visible(str(value), lines=lines)


def configure(form: Literal["json", "console", "auto"], *, level: int = logging.INFO) -> None:
    """Write structlog's lines and the libraries' warnings to the current standard error. Other handlers of `logging`'s
    root logger get the same lines.

    `level` is the lowest level that the packages `dispatcher` and `channels` log. Call this function before these
    packages log, because a logger keeps the level that was configured when it wrote its first line.
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
            _show_safely,
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ]
        if readable
        else [_tracebacks, _json]
    )
    handler = _Handler(sys.stderr)
    handler.setFormatter(
        _Formatter(
            foreign_pre_chain=common,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for package in ("dispatcher", "channels"):
        logging.getLogger(package).setLevel(level)
    # aiokafka's lines are dropped: it logs every attempt to reconnect, but the Kafka source logs an outage only once.
    logging.getLogger("aiokafka").propagate = False
    # uvicorn's warnings are dropped: there is one for every request that is not HTTP, so any client could fill the log.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)

    def logger_of(name: str = "") -> logging.Logger:
        """Return the logger that gets the rendered lines. structlog has already applied the level."""
        logger = logging.getLogger(name or "dispatcher")
        logger.setLevel(level)
        return logger

    structlog.configure(
        processors=[*common, render, _rendered],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=logger_of,
        cache_logger_on_first_use=True,
    )


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream. A line that can't be written is lost: there is no place to report the error."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        pass


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Renders the records of libraries. Lines from structlog are rendered already."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if hasattr(record, _RENDERED) else super().format(record)


_RENDERED = "rendered_by_structlog"
"""Attribute of the records whose message is a complete line."""


def _rendered(_logger: object, _level: str, line: Any) -> tuple[tuple[str], Mapping[str, Any]]:
    """Return the arguments for the logger's method."""
    return (line,), {"extra": {_RENDERED: True}}


def _never_raising(steps: Sequence[structlog.typing.Processor]) -> structlog.typing.Processor:
    """Return a processor that runs all steps. If a step raises an exception, the processor returns a line that reports
    the error. So code that logs never gets an exception.
    """

    def render(logger: Any, level: str, entry: structlog.typing.EventDict) -> Any:
        common = {name: entry[name] for name in ("level", "logger", "timestamp")}
        text: Any = entry
        try:
            for step in steps:
                text = step(logger, level, text)
        except Exception as error:  # noqa: BLE001 - the __str__ of a logged object can raise any exception
            return steps[-1](
                logger, level, {"event": "a line could not be written", "reason": type(error).__name__, **common}
            )
        return text

    return render


_ORJSON_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def _json(_logger: object, level: str, entry: structlog.typing.EventDict) -> str:
    """Return the log line as JSON that is only ASCII, so that it can't contain control characters for a terminal."""
    text = _dumps(entry)
    if "@" in text and level != "debug":  # masking is slow, so lines without a mail address skip it
        text = _dumps(masked(entry))
    return text.replace("\x7f", "\\u007f")  # the only control character that JSON's writers leave as it is


def _dumps(entry: structlog.typing.EventDict) -> str:
    try:
        text = orjson.dumps(entry, default=_to_json, option=_ORJSON_OPTIONS)
        if text.isascii():
            return text.decode()
    except TypeError:  # json (below) accepts what orjson refuses: lone surrogates, large integers, numbers as keys
        pass
    return json.dumps(entry, default=_to_json, separators=(",", ":"))


def _to_json(value: Any) -> Any:
    """Convert a value of a type that JSON does not have, such as a set, to a JSON value."""
    match value:
        case set() | frozenset():
            return list(value)
        case bytes():
            return value.decode(errors="replace")
        case _:
            return str(value)
