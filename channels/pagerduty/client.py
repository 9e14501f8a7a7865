"""Sends requests to PagerDuty's Events API v2. No other module imports pdpyras.

pdpyras' authors have deprecated it. To replace pdpyras, change only this module: other modules use only `Session`.
"""

from __future__ import annotations

import logging
import time
import warnings
from ssl import SSLCertVerificationError
from typing import Any

from channels.pagerduty.answers import NoAnswer, Response, Unreachable

with warnings.catch_warnings():  # operators can do nothing about the warning that pdpyras is deprecated
    warnings.simplefilter("ignore")
    import pdpyras
import requests
from urllib3.exceptions import NewConnectionError

CONNECT_SHARE = 0.5
"""Share of the timeout that connecting to one address may take. If connecting takes longer, it is certain that the
event was not sent."""
MAX_ANSWER_BYTES = 64 * 1024
"""Maximum number of bytes that are read from the body of an answer. The remaining bytes are not needed."""
_PIECE = 4096


class Session:
    """Sends one request at a time to one host, and keeps the connection open.

    pdpyras heeds the environment's proxies and certificates (`HTTPS_PROXY`, `NO_PROXY`, `REQUESTS_CA_BUNDLE`).
    """

    def __init__(self, url: str, timeout: float) -> None:
        """`timeout`: the maximum number of seconds of a request. Only the answer's headers may take longer."""
        self._timeout = timeout
        self._deadline = 0.0
        self._body = b""
        self._session = pdpyras.EventsAPISession("unset")  # the routing key is in the body of each request
        self._session.url = url
        self._session.timeout = (timeout * CONNECT_SHARE, timeout)
        self._session.headers["Accept-Encoding"] = "identity"
        self._session.hooks["response"].append(self._read_answer)
        # By default, pdpyras repeats requests after pauses, and without a limit after a 429. Here, the delivery worker
        # decides about each attempt. A status in `retry` makes pdpyras return the answer once `max_http_attempts` is
        # exceeded, which is true for the first request (pdpyras' user guide, "HTTP Retry Configuration").
        self._session.max_network_attempts = 0
        self._session.max_http_attempts = -1
        self._session.retry = dict.fromkeys(range(400, 600), 1)
        self._session.log.setLevel(logging.CRITICAL)  # it logs each answer that is an error, as the worker does

    def post(self, path: str, body: bytes) -> Response:
        """Send one request, without a retry. Raises `Unreachable` or `NoAnswer`."""
        self._deadline = time.monotonic() + self._timeout
        try:
            answer = self._session.post(path, data=body)
        except pdpyras.PDClientError as error:
            raise _classified(error.__cause__) from None
        except OSError as error:  # the file that REQUESTS_CA_BUNDLE names does not exist
            raise Unreachable(str(error)) from None
        return Response(answer.status_code, answer.headers, self._body.decode(errors="replace"))

    def close(self) -> None:
        self._session.close()

    def _read_answer(self, answer: requests.Response, **_: Any) -> None:
        """Read the body in pieces. requests calls this method before it would read the whole body in one call."""
        body = bytearray()
        while len(body) < MAX_ANSWER_BYTES and (piece := answer.raw.read1(_PIECE, decode_content=False)):
            body += piece
            if time.monotonic() > self._deadline:
                answer.close()
                raise NoAnswer("the answer took too long")
        if len(body) >= MAX_ANSWER_BYTES:
            answer.close()
        self._body = bytes(body[:MAX_ANSWER_BYTES])


def _classified(error: BaseException | None) -> Unreachable | NoAnswer:
    """Return `Unreachable` if the error occurred before any byte of the request was sent, else `NoAnswer`."""
    name = type(error).__name__
    cause = getattr(error.args[0], "reason", error) if error is not None and error.args else error
    match error:
        case requests.exceptions.ProxyError():
            return Unreachable(f"{name}; check HTTPS_PROXY and NO_PROXY")
        case requests.exceptions.SSLError() if cause is not None and isinstance(
            cause.args[0], SSLCertVerificationError
        ):
            untrusted = cause.args[0].verify_message
            return Unreachable(f"{name}: {untrusted}; REQUESTS_CA_BUNDLE can name a file with further certificates")
        # ValueError: requests refuses the URL or the proxy's URL
        case requests.exceptions.ConnectTimeout() | ValueError():
            return Unreachable(name)
        case requests.exceptions.ConnectionError() if isinstance(cause, NewConnectionError):
            return Unreachable(name)
        case _:
            return NoAnswer(name)
