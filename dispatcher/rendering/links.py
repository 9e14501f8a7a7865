"""URLs of an execution's page in Flyte's console and of its logs, for messages and for the dispatcher's own console."""

from __future__ import annotations

import re
from string import printable
from typing import TYPE_CHECKING
from urllib.parse import quote

from dispatcher.rendering.text import clean

if TYPE_CHECKING:  # for types only: the process that renders operators' templates does not import pydantic
    from dispatcher.model.event import ExecutionId

LONGEST_URL = 1500
"""Maximum number of characters of a URL. Each `&` counts as five, because HTML writes it as `&amp;`."""
_URL = re.compile(r"https?://[^\s<>\"'|\\^`{}\x00-\x20\x7f]+")


def execution_url(execution: ExecutionId, event_url: str, console_url: str) -> str:
    """Return the URL of the execution's page in Flyte's console, or an empty text if there is none.

    `event_url`, the URL that the event itself gives, is used if it is a plain http(s) link. Otherwise the URL is built
    from the setting `console_url`. A URL that is longer than `LONGEST_URL` is not used.
    """
    if event_url.isprintable() and _URL.fullmatch(event_url[: LONGEST_URL + 1]):
        url = event_url if event_url.isascii() else quote(event_url, safe=printable)
        if _fits(url):
            return url
    if not console_url:
        return ""
    path = ("projects", execution.project, "domains", execution.domain, "executions", execution.name)
    url = "/".join([console_url.rstrip("/"), *map(_path_segment, path)])
    return url if _fits(url) else ""


def execution_logs_url(execution: ExecutionId, pattern: str) -> str:
    """Return the URL of the execution's logs, built from the setting `logs_url`. Empty if the setting is empty or the
    URL is longer than `LONGEST_URL`.
    """
    if not pattern:
        return ""
    url = pattern
    for name, value in execution.model_dump().items():
        url = url.replace(f"{{{name}}}", _path_segment(value))
    return url if _fits(url) else ""


def _path_segment(text: str) -> str:
    """Percent-encode a text, so that it is one segment of a URL's path."""
    return text if text.isascii() and text.isalnum() else quote(clean(text), safe="")


def _fits(url: str) -> bool:
    return len(url) + 4 * url.count("&") <= LONGEST_URL
