"""What a request may be like, and how many of them one caller has. What is past it is refused before a page sees it."""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from datetime import datetime, timedelta

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dispatcher.clock import Clock
from dispatcher.model.rate_limit import Rate
from dispatcher.web.responses import problem, problem_details

LARGEST = 256 * 1024
"""Bytes of a form, or of JSON for the API."""
LARGEST_EVENT = 4 * 2**20
"""Bytes of an event; Kafka's brokers refuse more than 1 MiB unless they are told otherwise."""
MOST_HEADERS = 100
LONGEST_HEAD = 32 * 1024
"""Bytes of a request's headers, together."""
LONGEST_TARGET = 8 * 1024
"""Bytes of a path with its query."""
_SINGLE = (b"host", b"authorization", b"content-type", b"content-length", b"content-encoding", b"x-csrf-token")
MOST_KEYS = 10_000
"""Buckets at once; past it the one that was used longest ago is forgotten, which is to say full."""


class Buckets:
    """A bucket for each key: `burst` at once, then as many as the rate says."""

    def __init__(self, rate: Rate, burst: int, clock: Clock) -> None:
        self._interval = rate.interval
        self._ahead = rate.interval * (burst - 1)
        self._clock = clock
        self._due: dict[str, datetime] = {}
        """When the bucket will be full again; a bucket that isn't here is full."""

    def take(self, key: str) -> timedelta:
        """Take one from the key's bucket, and give zero; where it is empty, how long to wait."""
        now = self._clock.now()
        due = max(self._due.pop(key, now), now)
        wait = max(due - self._ahead - now, timedelta())
        self._due[key] = due if wait else due + self._interval
        if len(self._due) > MOST_KEYS:
            del self._due[next(iter(self._due))]
        return wait


def too_many(wait: timedelta) -> Response:
    """The answer to who has to wait."""
    return problem(429, "too many requests", {"Retry-After": str(math.ceil(wait.total_seconds()))})


def neighbourhood(host: str) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 subscriber's 64 bits."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


class Limits:
    """ASGI middleware: what no honest client sends, and pages need not know how to read, is refused."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wrong = _wrong(scope) if scope["type"] == "http" else None
        # where two readers could disagree on where a request ends, the next one on its connection may be anybody's
        refusal = problem_details if scope.get("path", "").startswith("/api/") else problem
        await (refusal(*wrong, {"Connection": "close"}) if wrong else self._app)(scope, receive, send)


def _wrong(scope: Scope) -> tuple[int, str] | None:
    """The status and the reason, where something is wrong with the path or the headers."""
    headers = scope["headers"]
    given = Counter(name for name, _ in headers)
    path = scope["path"]
    if len(headers) > MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > LONGEST_HEAD:
        return 431, f"a request may have {MOST_HEADERS} headers of {LONGEST_HEAD} bytes together"
    if len(scope["raw_path"]) + len(scope["query_string"]) > LONGEST_TARGET:
        return 414, f"a path with its query may have {LONGEST_TARGET} bytes"
    if not path.startswith("/") or "//" in path or "\\" in path or not path.isprintable() or ".." in path.split("/"):
        return 400, "no page can have such a path"
    if any(given[name] > 1 for name in _SINGLE) or (given[b"content-length"] and given[b"transfer-encoding"]):
        return 400, "the headers contradict each other"
    if dict(headers).get(b"content-encoding", b"identity").lower() != b"identity":
        return 415, "bodies come as they are: without Content-Encoding"
    return None
