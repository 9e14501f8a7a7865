"""How we log: readable at a terminal, JSON elsewhere; one line a fact.

Mail addresses are masked above the level debug: relays and Slack name people in their answers, and a log is read by more
people than the ledger, which has the full text.
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

from channels.common.lean_imports import without

with without("rich"):  # which draws tracebacks in colour: 4 MiB
    import structlog
    import structlog.tracebacks

_tracebacks = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=20)  # locals hold tokens and addresses
)

_LOCAL = r"""(?: "[^"\n]{1,64}" | [^\s<>()\[\]{},;:"'`|=@\\/]{1,64} )"""
_ADDRESS = re.compile(
    rf"""
    {_LOCAL} (?= @ (?: \[ | [\w-]+ (?: \.[\w-]+ )* \.[^\W\d_]{{2,}} ) )  # a host with dots, or its bare address
    | (?<! [^\s<>()\[\]{{}},;:"'`|=@\\] ) {_LOCAL} (?= @ \w )  # any host; but PROJECT/DOMAIN/NAME@VERSION is no mailbox
    """,
    re.VERBOSE,
)


def masked(value: Any) -> Any:
    """The same without the people in mail addresses; their hosts stay, as an operator needs them."""
    match value:
        case str():
            return _ADDRESS.sub("…", value) if "@" in value else value
        case dict():
            return {masked(name): masked(one) for name, one in value.items()}
        case list() | tuple() | set() | frozenset():
            return [masked(one) for one in value]
        case None | bool() | int() | float():
            return value
        case bytes():
            return masked(value.decode(errors="replace"))
        case _:
            return masked(str(value))


def _mask(_logger: object, level: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return line if level == "debug" else masked(line)


def configure(form: Literal["json", "console", "auto"], *, level: int = logging.INFO) -> None:
    """Send structlog, and the libraries' own warnings, to what is standard error now.

    `level`: of our own lines. A logger keeps the level that it found at its first line after this.
    """
    readable = form == "console" or (form == "auto" and sys.stderr.isatty())
    begun: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    ended = _surely(
        [
            structlog.processors.UnicodeDecoder(),
            structlog.processors.format_exc_info,
            _mask,
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ]
        if readable
        else [_tracebacks, _json]
    )
    page = _Page(sys.stderr)
    handler = logging.StreamHandler(page)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=begun,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, ended],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for ours in ("dispatcher", "channels"):
        logging.getLogger(ours).setLevel(level)
    # aiokafka logs each of its many reconnections; the Kafka source says the same once, in our words.
    logging.getLogger("aiokafka").propagate = False
    # uvicorn warns of every request that isn't HTTP, and so anybody could fill the log.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    structlog.configure(  # our own lines go past the standard library's records and handlers, at a fifth of the cost
        processors=[*begun, ended],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda name="": _Pen(name, page),
        cache_logger_on_first_use=True,
    )


class _Page:
    """Where all lines go, each whole, whichever threads write; what can't be written is lost, and stops nobody."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._turn = threading.RLock()  # collecting garbage can log in the middle of a write

    def write(self, text: str) -> None:
        with self._turn:
            try:
                self._stream.write(text)
                self._stream.flush()
            except Exception:  # noqa: BLE001, S110 - there is nowhere left to say so
                pass


class _Pen:
    """What a bound logger ends in: the page, and the name that its lines bear."""

    def __init__(self, name: str, page: _Page) -> None:
        self.name = name
        self._page = page

    def write(self, line: str) -> None:
        self._page.write(line + "\n")

    debug = info = warning = error = critical = write


def _surely(steps: Sequence[structlog.typing.Processor]) -> structlog.typing.Processor:
    """The steps to a line's text as one that raises nothing: a log never stops the one who writes it."""

    def written(logger: Any, level: str, line: structlog.typing.EventDict) -> Any:
        lost = {name: line[name] for name in ("level", "logger", "timestamp")}
        text: Any = line
        try:
            for step in steps:
                text = step(logger, level, text)
        except Exception as error:  # noqa: BLE001 - an object's own words can raise anything
            return steps[-1](
                logger, level, {"event": "a line could not be written", "reason": type(error).__name__, **lost}
            )
        return text

    return written


_AS_WORDS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def _json(_logger: object, level: str, line: structlog.typing.EventDict) -> str:
    """The line as JSON in ASCII, which no terminal takes for a command."""
    text = _dumped(line)
    if "@" in text and level != "debug":  # few lines have an address, and looking for them costs most of a line
        text = _dumped(masked(line))
    return text


def _dumped(line: structlog.typing.EventDict) -> str:
    try:
        text = orjson.dumps(line, default=_in_words, option=_AS_WORDS)
        if text.isascii():
            return text.decode()
    except TypeError:  # what neither JSON nor UTF-8 has: half a character, a huge number, a key that is no text
        pass
    return json.dumps(line, default=_in_words, separators=(",", ":"))


def _in_words(value: Any) -> Any:
    """What JSON has no form for."""
    match value:
        case set() | frozenset():
            return list(value)
        case bytes():
            return value.decode(errors="replace")
        case _:
            return str(value)
