"""PagerDuty's Events API v2 by pdpyras: the only module that knows the library.

pdpyras is deprecated upstream; whoever replaces it changes this file alone. `Session.post` is its whole door.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from ssl import SSLCertVerificationError
from typing import Any, NamedTuple, cast

import orjson

from channels.common.lean_imports import without_modules

with warnings.catch_warnings(), without_modules("chardet", "charset_normalizer"):
    # An answer that doesn't say how it is encoded is read as UTF-8, not guessed at: 2.5 MiB. That nobody can guess,
    # and that pdpyras is deprecated, is our business, not our users'.
    warnings.simplefilter("ignore")
    import pdpyras
    import requests
    from requests.adapters import HTTPAdapter
    from requests.cookies import extract_cookies_to_jar
    from urllib3 import HTTPConnectionPool, Retry, Timeout
    from urllib3.exceptions import ConnectTimeoutError, HTTPError, ProxyError, SSLError

_ONCE = Retry(total=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the API answered."""

    status: int
    headers: Mapping[str, str]
    text: str


class Unreachable(Exception):
    """No connection was made: nothing was handed over."""


class NoAnswer(Exception):
    """The event was handed over, and no answer came."""


class _Way(NamedTuple):
    """The way to one path of the events host, by a proxy or straight."""

    request: requests.PreparedRequest
    """Without a body."""
    pool: HTTPConnectionPool
    """It has been told whom to trust."""
    url: str
    """As the request line has it."""


class _OneTry(pdpyras.EventsAPISession):  # type: ignore[misc]  # untyped
    """The library's session without its `request`: that would sleep and repeat, a 429 without end. The courier decides.

    What would be worked out anew for each event is worked out once: the headers and the login of ~/.netrc, the
    environment's proxies and authorities, and the pool of connections. What urllib3 then answers is read as it is, and
    not made an answer of requests' first. Both together were two thirds of what an event cost.
    """

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__("unset")
        self.url = url
        self.timeout = Timeout(connect=timeout, read=timeout)
        self._adapter = HTTPAdapter(pool_connections=2, pool_maxsize=1)
        self.mount("https://", self._adapter)
        self.mount("http://", self._adapter)
        self._settings: dict[str, Any] = {}
        self._ways: dict[str, _Way] = {}

    def hand_over(self, path: str, body: bytes) -> Reply:
        """Send it, once. Raises requests' and urllib3's errors."""
        if self.cookies or path not in self._ways:  # cookies are headers, and may change with each answer
            self._ways[path] = self._way(path)
        way = self._ways[path]
        headers = {**way.request.headers, "Content-Length": str(len(body))}
        answer = way.pool.urlopen(
            "POST", way.url, body, headers, _ONCE, redirect=False, assert_same_host=False, timeout=self.timeout
        )
        if answer.get_redirect_location():
            return self._follow(way.request, body)
        if "Set-Cookie" in answer.headers:
            extract_cookies_to_jar(self.cookies, way.request, answer)  # type: ignore[no-untyped-call]
        return Reply(answer.status, answer.headers, answer.data.decode(errors="replace"))

    def close(self) -> None:
        super().close()
        self._ways.clear()  # a pool's connections are closed when nobody holds it any more

    def _way(self, path: str) -> _Way:
        event = requests.Request("POST", self.normalize_url(path), self.prepare_headers("POST"))
        prepared = self.prepare_request(event)
        if not self._settings:
            self._settings = self.merge_environment_settings(prepared.url, {}, False, None, None)
        verify, cert, proxies = (self._settings[name] for name in ("verify", "cert", "proxies"))
        pool = cast(
            "HTTPConnectionPool", self._adapter.get_connection_with_tls_context(prepared, verify, proxies, cert)
        )
        self._adapter.cert_verify(pool, prepared.url, verify, cert)  # type: ignore[no-untyped-call]
        return _Way(prepared, pool, self._adapter.request_url(prepared, proxies))

    def _follow(self, request: requests.PreparedRequest, body: bytes) -> Reply:
        """PagerDuty is elsewhere: requests knows which redirects take the event along."""
        self._ways.clear()  # one host more may cost the first its pool
        request.prepare_body(body, None)
        response = self.send(request, timeout=self.timeout, **self._settings)
        return Reply(response.status_code, response.headers, response.text)


class Session:
    """Kept-alive connections to one events host. For one thread at a time."""

    def __init__(self, url: str, timeout: float) -> None:
        self._session = _OneTry(url.rstrip("/"), timeout)

    def post(self, path: str, routing_key: str, event: Mapping[str, Any]) -> Reply:
        """Hand one event over, once. Raises Unreachable or NoAnswer."""
        body = orjson.dumps({**event, "routing_key": routing_key})
        try:
            return self._session.hand_over(path, body)
        except (requests.RequestException, HTTPError) as error:
            if _never_connected(error):
                raise Unreachable(type(error).__name__) from None
            raise NoAnswer(type(error).__name__) from None

    def close(self) -> None:
        self._session.close()


def _never_connected(error: Exception) -> bool:
    """Whether it came before anything was sent."""
    if isinstance(error, requests.RequestException):  # urllib3's is in it
        error = getattr(error.args[0], "reason", error) if error.args else error
    untrusted = isinstance(error, SSLError) and bool(error.args) and isinstance(error.args[0], SSLCertVerificationError)
    return untrusted or isinstance(error, ConnectTimeoutError | ProxyError)  # who is refused is one of the former too
