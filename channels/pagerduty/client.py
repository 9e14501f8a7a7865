"""A client for PagerDuty's Events API v2. No other module imports pdpyras.

pdpyras' authors have deprecated it. To replace pdpyras, change only this module: other modules use only `Session.post`,
its result and its errors.
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
    # requests would import a library of 2.5 MiB that guesses the encoding of answers. It is not needed, because answers
    # are read as UTF-8. Two warnings are hidden, because operators can do nothing about them: requests warns that the
    # library is missing, and pdpyras warns that pdpyras is deprecated.
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
    """PagerDuty's answer to an event."""

    status: int
    headers: Mapping[str, str]
    text: str


class Unreachable(Exception):
    """The connection could not be opened, so the event was not sent."""


class NoAnswer(Exception):
    """The event was sent, but no answer arrived, so it is unknown whether PagerDuty received the event."""


class _Endpoint(NamedTuple):
    """The connection pool for one API path, and the parts of its requests that are the same for every event."""

    request: requests.PreparedRequest
    """The HTTP method, URL and headers of the request, without a body."""
    pool: HTTPConnectionPool
    """Opens connections to the API's host or to a proxy, and checks the server's certificate."""
    url: str
    """The URL as written in the HTTP request line: only the path, or the whole URL for some proxies."""


class _SingleAttemptSession(pdpyras.EventsAPISession):  # type: ignore[misc]  # pdpyras has no types
    """A pdpyras session that sends each event once, without retries.

    pdpyras' own method `request` sleeps and retries, after a 429 without limit. It is not used, because here the
    delivery worker decides on retries.

    Headers, ~/.netrc login, proxies, certificates and the connection pool are determined once instead of for each
    event, and urllib3's response is not converted to a response of requests. These steps took two thirds of an event's
    time.
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
        """Send the event to the API path once, without a retry. Raises the errors of requests and urllib3."""
        if self.cookies or path not in self._endpoints:  # cookies may have changed: set the headers again
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
        self._endpoints.clear()  # drops the pools, which closes their connections

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
        """Send the request again through requests, which follows the redirect and decides by the status whether to keep
        the body.
        """
        self._endpoints.clear()  # requests may drop the pools when it connects to another host, so forget them
        request.prepare_body(body, None)
        response = self.send(request, timeout=self.timeout, **self._environment)
        return Response(response.status_code, response.headers, response.text)


class Session:
    """Sends events to one host and keeps the connection open. Not thread-safe: each thread needs its own session."""

    def __init__(self, url: str, timeout: float) -> None:
        self._session = _SingleAttemptSession(url.rstrip("/"), timeout)

    def post(self, path: str, routing_key: str, event: Mapping[str, Any]) -> Response:
        """Send one event once, without a retry. Raises `Unreachable` or `NoAnswer`."""
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
    """True if the error occurred before any byte of the event was sent."""
    if isinstance(error, requests.RequestException):  # get urllib3's error, which requests has wrapped
        error = getattr(error.args[0], "reason", error) if error.args else error
    untrusted = isinstance(error, SSLError) and bool(error.args) and isinstance(error.args[0], SSLCertVerificationError)
    # `ConnectTimeoutError` includes its subclass `NewConnectionError`, urllib3's error for a refused connection.
    return untrusted or isinstance(error, ConnectTimeoutError | ProxyError)
