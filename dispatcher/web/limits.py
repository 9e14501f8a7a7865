"""Limits on the size, form and rate of requests. They are checked before a page handles the request."""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dispatcher.clock import Clock, SystemClock
from dispatcher.model.rate_limit import Rate
from dispatcher.web.responses import error_response

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 256 * 1024
"""Maximum size of the body of a form or an API request."""
MAX_EVENT_BYTES = 4 * 2**20
"""Maximum size of the body of POST /events. It is larger than the 1 MiB that Kafka brokers accept by default."""
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024
"""Maximum size of all headers of a request together."""
MAX_TARGET_BYTES = 8 * 1024
"""Maximum size of a request's path and query together."""
_HOST = re.compile(r"([A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]*)?")
"""The characters of a Host header (RFC 9110, 7.2; RFC 3986, 3.2.2)."""
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*")
_UNIQUE_HEADERS = (
    b"host",
    b"authorization",
    b"content-type",
    b"content-length",
    b"content-encoding",
    b"x-csrf-token",
)
MAX_KEYS = 10_000
"""Maximum number of token buckets in one `RateLimiter`. If there are more, the bucket that has not been used for the
longest time is dropped. A dropped bucket counts as full."""


class RateLimiter:
    """Limits the requests of each key with a token bucket (GCRA).

    A full bucket allows `burst` requests at once. After that, requests are allowed at the given rate.
    """

    def __init__(self, rate: Rate, burst: int, clock: Clock) -> None:
        self._interval = rate.interval
        self._tolerance = rate.interval * (burst - 1)
        self._clock = clock
        self._full_at: dict[str, datetime] = {}
        """Mapping from a key to the time when its bucket will be full again (GCRA's theoretical arrival time). If a key
        is missing, its bucket is full."""

    def take(self, key: str) -> timedelta:
        """Take one token from the key's bucket and return zero; if the bucket is empty, return the time to wait."""
        now = self._clock.now()
        full_at = max(self._full_at.pop(key, now), now)
        wait = max(full_at - self._tolerance - now, timedelta())
        self._full_at[key] = full_at if wait else full_at + self._interval
        if len(self._full_at) > MAX_KEYS:
            del self._full_at[next(iter(self._full_at))]
        return wait


def too_many_requests(wait: timedelta, scope: Scope) -> Response:
    """Return the 429 response to a request whose client has to wait."""
    headers = {"Retry-After": str(math.ceil(wait.total_seconds()))}
    return error_response(scope, 429, "too many requests", headers)


_LOGGED = RateLimiter(Rate(10, "min"), 10, SystemClock())


def log_refusal(client: str, reason: str) -> None:
    """Log that a malformed request was refused, ten times a minute at most, since any client can send such requests."""
    if not _LOGGED.take(""):
        log.warning("a malformed request was refused", client=client, reason=reason)


def client_of(scope: Scope) -> str:
    """Return the key by which the rate limit counts the requests of a client that is not authenticated."""
    return client_key(scope["client"][0] if scope.get("client") else "")


def client_key(host: str) -> str:
    """Return the rate limiter's key for an address: the IPv4 address itself, or the /64 network of an IPv6 address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


class RequestLimits:
    """ASGI middleware that rejects oversized and malformed requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        violation = _violation(scope) if scope["type"] == "http" else None
        # `Connection: close`, because this server and a proxy in front of it may disagree about where a malformed
        # request ends (request smuggling). On an open connection, the rest of that request could then be taken for the
        # beginning of another client's request.
        if violation is None:
            await self._app(scope, receive, send)
            return
        log_refusal(client_of(scope), violation[1])
        await error_response(scope, *violation, {"Connection": "close"})(scope, receive, send)


def _violation(scope: Scope) -> tuple[int, str] | None:
    """Return the status and reason of the error response if the path or the headers break a limit, else None."""
    headers = scope["headers"]
    counts = Counter(name for name, _ in headers)
    path = scope["path"]
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        return 431, f"a request may have {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together"
    if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_TARGET_BYTES:
        return 414, f"a path with its query may have {MAX_TARGET_BYTES} bytes"
    if not path.startswith("/") or "//" in path or "\\" in path or not path.isprintable() or ".." in path.split("/"):
        return 400, "no page can have such a path"
    if not all(_is_host(value) for name, value in headers if name == b"host"):
        return 400, "the Host header is not valid"
    if not all(_is_origin(value) for name, value in headers if name == b"origin"):
        return 400, "the Origin header is not valid"
    if any(counts[name] > 1 for name in _UNIQUE_HEADERS) or (
        counts[b"content-length"] and counts[b"transfer-encoding"]
    ):
        return 400, "the headers contradict each other"
    if dict(headers).get(b"content-encoding", b"identity").lower() != b"identity":
        return 415, "compressed bodies are not supported: send the body without Content-Encoding"
    return None


def _is_host(value: bytes) -> bool:
    host = value.decode("latin-1")
    try:
        return _HOST.fullmatch(host) is not None and (urlsplit(f"//{host}").port or 0) >= 0
    except ValueError:  # an IPv6 address that is none, or a port above 65535
        return False


def _is_origin(value: bytes) -> bool:
    """True for `null`, and for a URL that has only a scheme, a host and a port (RFC 6454, 7.1)."""
    scheme, separator, host = value.partition(b"://")
    return value == b"null" or (separator != b"" and _SCHEME.fullmatch(scheme) is not None and _is_host(host))
