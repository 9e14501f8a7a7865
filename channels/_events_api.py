"""PagerDuty's Events API v2 by pdpyras: the only module that knows the library.

pdpyras is deprecated upstream; whoever replaces it changes this file alone. `Session.post` is its whole door.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from ssl import SSLCertVerificationError
from typing import Any

import orjson

from channels.sparing import without

with warnings.catch_warnings(), without("chardet", "charset_normalizer"):
    # An answer that doesn't say how it is encoded is read as UTF-8, not guessed at: 2.5 MiB. That nobody can guess,
    # and that pdpyras is deprecated, is our business, not our users'.
    warnings.simplefilter("ignore")
    import pdpyras
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.connectionpool import ConnectionPool
    from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError


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


class _Way(HTTPAdapter):
    """The way to one events host, which requests would look up anew for each event: the pool, whether by a proxy, and the
    file of authorities.
    """

    def __init__(self) -> None:
        super().__init__(pool_connections=2, pool_maxsize=1)
        self._url: str | None = None
        self._pool: ConnectionPool | None = None
        self._trusting: ConnectionPool | None = None
        """The pool that has been told whom to trust."""

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, *given: Any, **more: Any
    ) -> ConnectionPool:
        if self._pool is None or request.url != self._url:
            self._pool = super().get_connection_with_tls_context(request, *given, **more)
            self._url = request.url
        return self._pool

    def cert_verify(self, conn: Any, *given: Any) -> None:
        if conn is not self._trusting:
            super().cert_verify(conn, *given)  # type: ignore[no-untyped-call]
            self._trusting = conn

    def close(self) -> None:
        super().close()
        self._pool = self._trusting = None  # its connections are closed when nobody holds it any more


class _OneTry(pdpyras.EventsAPISession):  # type: ignore[misc]  # untyped
    """The library's session without its `request`: that would sleep and repeat, a 429 without end. The courier decides.

    What would be worked out anew for each event is worked out once: the headers and the login of ~/.netrc, the
    environment's proxies and authorities. That was half of what an event cost.
    """

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__("unset")
        self.url = url
        self.timeout = timeout
        way = _Way()
        self.mount("https://", way)
        self.mount("http://", way)
        self._prepared: dict[str, requests.PreparedRequest] = {}
        self._settings: dict[str, Any] = {}

    def hand_over(self, path: str, body: bytes) -> requests.Response:
        """Send it, once. Raises requests' errors."""
        if self.cookies or path not in self._prepared:  # cookies are headers, and may change with each answer
            event = requests.Request("POST", self.normalize_url(path), self.prepare_headers("POST"))
            self._prepared[path] = self.prepare_request(event)
        prepared = self._prepared[path]
        prepared.prepare_body(body, None)
        if not self._settings:
            self._settings = self.merge_environment_settings(prepared.url, {}, False, None, None)
        response: requests.Response = self.send(prepared, timeout=self.timeout, **self._settings)
        return response


class Session:
    """Kept-alive connections to one events host. For one thread at a time."""

    def __init__(self, url: str, timeout: float) -> None:
        self._session = _OneTry(url.rstrip("/"), timeout)

    def post(self, path: str, routing_key: str, event: Mapping[str, Any]) -> Reply:
        """Hand one event over, once. Raises Unreachable or NoAnswer."""
        body = orjson.dumps({**event, "routing_key": routing_key})
        try:
            response = self._session.hand_over(path, body)
        except (requests.RequestException, HTTPError) as error:
            if isinstance(error, requests.ConnectTimeout) or _never_connected(error):
                raise Unreachable(type(error).__name__) from None
            raise NoAnswer(type(error).__name__) from None
        return Reply(response.status_code, response.headers, response.text)

    def close(self) -> None:
        self._session.close()


def _never_connected(error: BaseException | None) -> bool:
    """Whether a requests.ConnectionError came before anything was sent."""
    reason = getattr(error.args[0], "reason", None) if error is not None and error.args else None
    untrusted = (
        isinstance(reason, SSLError) and bool(reason.args) and isinstance(reason.args[0], SSLCertVerificationError)
    )
    return untrusted or isinstance(reason, NewConnectionError | ConnectTimeoutError)
