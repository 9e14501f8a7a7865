"""A client for PagerDuty's Events API v2; the only module that imports pdpyras.

pdpyras is deprecated upstream. To replace it, change this module only: other modules use `Session.post` and its errors.
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
    # requests would import a library of 2.5 MiB to guess the encoding of answers; we read answers as UTF-8. requests
    # warns that this library is missing, and pdpyras warns that pdpyras is deprecated: operators can't act on either.
    warnings.simplefilter("ignore")
    import pdpyras
    import requests
    from requests.adapters import HTTPAdapter
    from requests.cookies import extract_cookies_to_jar
    from urllib3 import HTTPConnectionPool, Retry, Timeout
    from urllib3.exceptions import ConnectTimeoutError, HTTPError, ProxyError, SSLError

_NO_RETRIES = Retry(total=False)


@dataclass(frozen=True, slots=True)
class Response:
    """The API's answer."""

    status: int
    headers: Mapping[str, str]
    text: str


class Unreachable(Exception):
    """No connection was opened, so nothing was sent."""


class NoAnswer(Exception):
    """The event was sent, and no answer arrived."""


class _Endpoint(NamedTuple):
    """A prepared request to one path of the events host, and the pool of connections for it."""

    request: requests.PreparedRequest
    """Method, URL and headers, without a body."""
    pool: HTTPConnectionPool
    """Opens connections to the host or to a proxy, and checks the server's certificate."""
    url: str
    """The URL as it is written in the request line."""


class _SingleAttemptSession(pdpyras.EventsAPISession):  # type: ignore[misc]  # pdpyras is untyped
    """A pdpyras session that sends each event once.

    pdpyras' own `request` sleeps and retries, after a 429 without limit; here the delivery worker decides on retries.

    Headers, ~/.netrc login, proxies, certificates and the connection pool are determined once instead of for each
    event, and urllib3's response is not converted to one of requests. These steps took two thirds of an event's time.
    """

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__("unset")
        self.url = url
        self.timeout = Timeout(connect=timeout, read=timeout)
        self._adapter = HTTPAdapter(pool_connections=2, pool_maxsize=1)
        self.mount("https://", self._adapter)
        self.mount("http://", self._adapter)
        self._environment: dict[str, Any] = {}
        self._endpoints: dict[str, _Endpoint] = {}

    def send_event(self, path: str, body: bytes) -> Response:
        """Send the event to the path, once. Raises errors of requests and urllib3."""
        if self.cookies or path not in self._endpoints:  # cookies are sent in a header, and each answer may change them
            self._endpoints[path] = self._prepare_endpoint(path)
        endpoint = self._endpoints[path]
        headers = {**endpoint.request.headers, "Content-Length": str(len(body))}
        answer = endpoint.pool.urlopen(
            "POST",
            endpoint.url,
            body,
            headers,
            _NO_RETRIES,
            redirect=False,
            assert_same_host=False,
            timeout=self.timeout,
        )
        if answer.get_redirect_location():
            return self._follow_redirect(endpoint.request, body)
        if "Set-Cookie" in answer.headers:
            extract_cookies_to_jar(self.cookies, endpoint.request, answer)  # type: ignore[no-untyped-call]
        return Response(answer.status, answer.headers, answer.data.decode(errors="replace"))

    def close(self) -> None:
        super().close()
        self._endpoints.clear()  # a pool closes its connections when it is garbage-collected

    def _prepare_endpoint(self, path: str) -> _Endpoint:
        event = requests.Request("POST", self.normalize_url(path), self.prepare_headers("POST"))
        prepared = self.prepare_request(event)
        if not self._environment:
            self._environment = self.merge_environment_settings(prepared.url, {}, False, None, None)
        verify, cert, proxies = (self._environment[name] for name in ("verify", "cert", "proxies"))
        pool = cast(
            "HTTPConnectionPool", self._adapter.get_connection_with_tls_context(prepared, verify, proxies, cert)
        )
        self._adapter.cert_verify(pool, prepared.url, verify, cert)  # type: ignore[no-untyped-call]
        return _Endpoint(prepared, pool, self._adapter.request_url(prepared, proxies))

    def _follow_redirect(self, request: requests.PreparedRequest, body: bytes) -> Response:
        """Repeat the request with requests, which decides by the status whether the redirect keeps the body."""
        self._endpoints.clear()  # requests may drop the pool of the first host when it connects to another
        request.prepare_body(body, None)
        response = self.send(request, timeout=self.timeout, **self._environment)
        return Response(response.status_code, response.headers, response.text)


class Session:
    """Keep-alive connections to one events host. Not thread-safe: each thread needs its own."""

    def __init__(self, url: str, timeout: float) -> None:
        self._session = _SingleAttemptSession(url.rstrip("/"), timeout)

    def post(self, path: str, routing_key: str, event: Mapping[str, Any]) -> Response:
        """Send one event, once. Raises Unreachable or NoAnswer."""
        body = orjson.dumps({**event, "routing_key": routing_key})
        try:
            return self._session.send_event(path, body)
        except (requests.RequestException, HTTPError) as error:
            if _never_connected(error):
                raise Unreachable(type(error).__name__) from None
            raise NoAnswer(type(error).__name__) from None

    def close(self) -> None:
        self._session.close()


def _never_connected(error: Exception) -> bool:
    """True if the error occurred before anything was sent."""
    if isinstance(error, requests.RequestException):  # requests wraps urllib3's error
        error = getattr(error.args[0], "reason", error) if error.args else error
    untrusted = isinstance(error, SSLError) and bool(error.args) and isinstance(error.args[0], SSLCertVerificationError)
    # urllib3's error for a refused connection, NewConnectionError, is a ConnectTimeoutError too
    return untrusted or isinstance(error, ConnectTimeoutError | ProxyError)
