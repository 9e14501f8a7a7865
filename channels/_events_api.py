"""PagerDuty's Events API v2 by pdpyras: the only module that knows the library.

pdpyras is deprecated upstream; whoever replaces it changes this file alone. `Session.post` is its whole door.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import requests
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # its deprecation is our business, not our users'
    import pdpyras


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


class _Answered(Exception):
    def __init__(self, response: requests.Response) -> None:
        self.response = response


class _OneTry(pdpyras.EventsAPISession):  # type: ignore[misc]  # untyped
    """The library's session without its retries: it would sleep and repeat, a 429 without end. The courier decides.

    What requests would work out anew for each event is worked out once: the headers and the login of ~/.netrc, the
    environment's proxies and authorities. That was half of what an event cost.
    """

    max_network_attempts = 0

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__("unset")
        self.url = url
        self.timeout = timeout
        self._prepared: dict[str, requests.PreparedRequest] = {}
        self._environment: dict[str, Mapping[str, Any]] = {}

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        if self.cookies:  # which are headers, and may change with each answer
            return super().prepare_request(request)  # type: ignore[no-any-return]  # untyped
        if request.url not in self._prepared:
            self._prepared[request.url] = super().prepare_request(request)
        prepared = self._prepared[request.url]
        prepared.prepare_body(request.data, None)
        return prepared

    def merge_environment_settings(self, url: str, *given: Any) -> Mapping[str, Any]:
        if url not in self._environment:
            self._environment[url] = super().merge_environment_settings(url, *given)
        return self._environment[url]

    def postprocess(self, response: requests.Response) -> None:
        raise _Answered(response)


class Session:
    """Kept-alive connections to one events host. For one thread at a time."""

    def __init__(self, url: str, timeout: float) -> None:
        self._session = _OneTry(url.rstrip("/"), timeout)

    def post(self, path: str, routing_key: str, event: Mapping[str, Any]) -> Reply:
        """Hand one event over, once. Raises Unreachable or NoAnswer."""
        body = orjson.dumps({**event, "routing_key": routing_key})
        try:
            self._session.post(path, data=body)
        except _Answered as answered:
            response = answered.response
            return Reply(response.status_code, response.headers, response.text)
        except pdpyras.PDClientError as error:
            cause = error.__cause__
            if isinstance(cause, requests.ConnectTimeout) or _never_connected(cause):
                raise Unreachable(type(cause).__name__) from None
            raise NoAnswer(type(cause).__name__) from None
        raise NoAnswer("no response")

    def close(self) -> None:
        self._session.close()


def _never_connected(error: BaseException | None) -> bool:
    """Whether a requests.ConnectionError came before anything was sent."""
    reason = getattr(error.args[0], "reason", None) if error is not None and error.args else None
    return isinstance(reason, NewConnectionError | ConnectTimeoutError)
