"""How we log: readable at a terminal, JSON elsewhere; one line a fact."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal


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
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if readable
        else [_tracebacks, structlog.processors.JSONRenderer()]
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
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
