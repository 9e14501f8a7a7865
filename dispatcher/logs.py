"""How we log: readable at a terminal, JSON elsewhere; one line a fact.

Mail addresses are masked above the level debug: relays and Slack name people in their answers, and a log is read by more
people than the ledger, which has the full text.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal


@contextmanager
def _without_rich() -> Iterator[None]:
    """What structlog would import for tracebacks in colour, which we don't draw: 4 MiB for the life of the service."""
    absent = "rich" not in sys.modules
    if absent:
        sys.modules["rich"] = None  # type: ignore[assignment]  # "import of rich halted", as where it isn't installed
    yield
    if absent:
        del sys.modules["rich"]


with _without_rich():
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
        case _:
            return masked(str(value))


def _mask(_logger: object, level: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return line if level == "debug" else masked(line)


def configure(form: Literal["json", "console", "auto"], *, level: int = logging.INFO) -> None:
    """Send structlog, and the libraries' own warnings, to standard error."""
    readable = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.UnicodeDecoder(),
    ]
    last: list[structlog.typing.Processor] = (
        [
            structlog.processors.format_exc_info,
            _mask,
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ]
        if readable
        else [_tracebacks, _mask, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for ours in ("dispatcher", "channels"):
        logging.getLogger(ours).setLevel(level)
    # aiokafka logs each of its many reconnections; the Kafka source says the same once, in our words.
    logging.getLogger("aiokafka").propagate = False
    # uvicorn warns of every request that isn't HTTP, and so anybody could fill the log.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
