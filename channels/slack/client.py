"""slack-sdk's client with requests of its own: they read an answer in pieces and up to a limit, heed NO_PROXY, and cache
headers and URLs.

slack-sdk's `api_call` reads an answer whole, and computes URL and headers for each message, which took a third of the
time to send a message. Its headers and its settings are still used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import aiohttp
import orjson
from aiohttp import hdrs
from multidict import CIMultiDict
from slack_sdk.web.async_client import AsyncWebClient
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential
from yarl import URL

from channels.common.body import MAX_POST_ANSWER, AnswerTooLong, read_start, read_whole
from channels.common.http import failed_request, open_session
from channels.common.proxy import proxy_for
from channels.contract import InDoubt, Later, Misconfigured, Never
from channels.slack.answers import error_of

_ACCEPTED = re.compile(
    rb'\s*\{\s*"ok"\s*:\s*true\s*,\s*"channel"\s*:\s*"(?P<channel>\w+)"\s*,\s*"ts"\s*:\s*"(?P<ts>[\d.]+)"'
)
"""The start of a successful answer to a message (Slack, chat.postMessage). The rest of the answer repeats the message,
so it may be longer than the limit."""
_AS_JSON = {hdrs.CONTENT_TYPE: "application/json"}
_CA_FILE = "the environment variable SSL_CERT_FILE"


class Reply(NamedTuple):
    """A successful answer of the Web API."""

    data: Mapping[str, Any]
    headers: Mapping[str, str]


class TooLong(Later):
    """The answer to a look-up is longer than may be read. A page of a list may be shorter with a smaller `limit`."""


class Client(AsyncWebClient):
    """Calls Web API methods and incoming webhooks. Raises the errors of the channel contract."""

    def __init__(self, base_url: str, timeout: float) -> None:
        """`timeout`: maximum number of seconds for a request, from connecting to the end of the answer."""
        self._session = open_session(timeout)
        super().__init__(base_url=base_url, session=self._session, retry_handlers=[], logger=_warnings_only())
        self._urls: dict[str, URL] = {}
        self._proxies: dict[str, str | None] = {}
        self._cached_headers: CIMultiDict[str] = CIMultiDict()

    async def post(self, method: str, body: bytes) -> Mapping[str, Any]:
        """Call a Web API method once, with a JSON body, and return the parsed answer. Raises `Later`, `Never`,
        `UnknownRecipient` or `InDoubt`.
        """
        url = self._url(method)
        try:
            request = self._session.post(
                url, data=body, headers=self._headers(), proxy=self._proxy(self.base_url), allow_redirects=False
            )
            async with request as response:
                answer = _parsed(await read_start(response.content, MAX_POST_ANSWER))
                status, headers = response.status, response.headers
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise failed_request(error, "Slack", provider_wide=True, ca_file=_CA_FILE) from None
        return self._checked(method, status, headers, answer)

    async def get(self, method: str, query: Mapping[str, Any], *, attempts: int = 3) -> Reply:
        """Call a Web API method that changes nothing. It is tried several times, because repeating it does no harm.

        Raises `Later`, `Never` or `UnknownRecipient`.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception(_is_retryable),
            wait=wait_random_exponential(multiplier=0.2, max=2),
            stop=stop_after_attempt(attempts),
            reraise=True,
        )
        try:
            reply: Reply = await retrying(self._get, method, query)
        except InDoubt as error:
            reason = f"Slack gave no answer to {method} that can be used: check channels.slack.api_url"
            raise Later(reason, answer=error.answer) from None
        return reply

    async def post_to_webhook(self, url: str, body: bytes) -> tuple[int, Mapping[str, str], str]:
        """Send the body to an incoming webhook, whose URL is a secret. Returns the status, the headers and the start of
        the text. Raises `Never`, `Later` or `InDoubt` if there is no answer.
        """
        try:
            request = self._session.post(
                url, data=body, headers=_AS_JSON, proxy=self._proxy(url), allow_redirects=False
            )
            async with request as response:
                start = await read_start(response.content, MAX_POST_ANSWER)
                return response.status, response.headers, start.decode(errors="replace")
        except aiohttp.InvalidURL:
            raise Never("the webhook's address is no URL: check channels.slack.webhooks") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise failed_request(error, "Slack", provider_wide=True, ca_file=_CA_FILE) from None

    async def aclose(self) -> None:
        await self._session.close()

    async def _get(self, method: str, query: Mapping[str, Any]) -> Reply:
        try:
            request = self._session.get(
                self._url(method),
                params=query,
                headers=self._headers(),
                proxy=self._proxy(self.base_url),
                allow_redirects=False,
            )
            async with request as response:
                answer = _parsed(await read_whole(response.content))
                status, headers = response.status, response.headers
        except AnswerTooLong as error:
            raise TooLong(f"Slack's method {method}: {error}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise failed_request(error, "Slack", provider_wide=True, ca_file=_CA_FILE) from None
        return Reply(self._checked(method, status, headers, answer), headers)

    def _checked(self, method: str, status: int, headers: Mapping[str, str], answer: Any) -> Mapping[str, Any]:
        """Return the answer if it is a success, else raise its error."""
        if isinstance(answer, dict) and answer.get("ok") is True and status == 200:
            return answer
        raise error_of(method, status, headers, answer, self.token or "")

    def _url(self, method: str) -> URL:
        if method not in self._urls:
            self._urls[method] = URL(f"{self.base_url}{method}")
        return self._urls[method]

    def _proxy(self, url: str) -> str | None:
        if url not in self._proxies:
            self._proxies[url] = proxy_for(url)
        return self._proxies[url]

    def _headers(self) -> CIMultiDict[str]:
        authorization = f"Bearer {self.token}"
        if self._cached_headers.get(hdrs.AUTHORIZATION) != authorization:
            base = {hdrs.CONTENT_TYPE: "application/json;charset=utf-8", hdrs.AUTHORIZATION: authorization}
            self._cached_headers = CIMultiDict({**base, **self.headers})
        return self._cached_headers


def _parsed(body: bytes) -> Any:
    """Parse an answer. Returns None if it is no JSON, and the first fields if it is longer than the limit."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        accepted = _ACCEPTED.match(body) if len(body) == MAX_POST_ANSWER else None
        if accepted is None:
            return None
        return {"ok": True, "channel": accepted["channel"].decode(), "ts": accepted["ts"].decode()}


def _is_retryable(error: BaseException) -> bool:
    if isinstance(error, Misconfigured | TooLong):
        return False
    return isinstance(error, InDoubt) or (isinstance(error, Later) and error.retry_after is None)


def _warnings_only() -> logging.Logger:
    """Return slack-sdk's logger with level WARNING. Without a level, slack-sdk would spend time to format a log message
    for each request.
    """
    logger = logging.getLogger("slack_sdk")
    logger.setLevel(logging.WARNING)
    return logger
