"""Calls Slack's Web API with slack-sdk, and incoming webhooks, over one aiohttp session.

slack-sdk would repeat some requests, read an answer of any length, follow redirects and ignore NO_PROXY. So its retry
handlers are switched off, and the session that it gets bounds the time and the length of answers and refuses redirects.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import aiohttp
import orjson
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from channels.common.body import MAX_POST_ANSWER, AnswerTooLong, read_start, read_whole
from channels.common.http import URL_CACHE_SIZE, failed_request, open_session
from channels.common.proxy import proxy_for
from channels.contract import InDoubt, Later, Misconfigured, Never
from channels.slack.answers import error_of

_ACCEPTED = re.compile(
    rb'\s*\{\s*"ok"\s*:\s*true\s*,\s*"channel"\s*:\s*"(?P<channel>\w+)"\s*,\s*"ts"\s*:\s*"(?P<ts>[\d.]+)"'
)
"""The start of a successful answer to a message (Slack, chat.postMessage). The rest of the answer repeats the message,
so it may be longer than the limit."""
_BY_GET = frozenset({"conversations.history", "conversations.list", "conversations.replies", "users.lookupByEmail"})
"""The look-ups that slack-sdk sends as GET. It sends all other methods as POST."""
_AS_JSON = {"Content-Type": "application/json"}
_CA_FILE = "the environment variable SSL_CERT_FILE"


class Reply(NamedTuple):
    """A successful answer of the Web API."""

    data: Mapping[str, Any]
    headers: Mapping[str, str]


class TooLong(Later):
    """The answer to a look-up is longer than may be read. A page of a list may be shorter with a smaller `limit`."""


class Client:
    """Calls Web API methods and incoming webhooks. Raises the errors of the channel contract."""

    def __init__(self, base_url: str, timeout: float) -> None:
        """`timeout`: maximum number of seconds for a request, from connecting to the end of the answer."""
        redirects = aiohttp.TraceConfig()
        redirects.on_request_redirect.append(_refuse_redirect)
        self._session = open_session(
            timeout, response_class=_BoundedAnswer, json_serialize=_json, trace_configs=[redirects]
        )
        self._web = AsyncWebClient(base_url=base_url, session=self._session, retry_handlers=[], logger=_warnings_only())
        self._proxy = lru_cache(URL_CACHE_SIZE)(proxy_for)

    def use_token(self, token: str | None) -> None:
        """Send further requests with this token."""
        self._web.token = token

    async def post(self, method: str, body: dict[str, Any]) -> Mapping[str, Any]:
        """Call a Web API method once, with a JSON body, and return the parsed answer. Raises `Later`, `Never`,
        `UnknownRecipient` or `InDoubt`.
        """
        return (await self._call(method, json=body)).data

    async def look_up(self, method: str, query: Mapping[str, str], *, attempts: int = 3) -> Reply:
        """Call a Web API method that changes nothing. It is tried several times, because repeating it does no harm.

        Raises `Later`, `Never` or `UnknownRecipient`.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception(_is_retryable),
            wait=wait_random_exponential(multiplier=0.2, max=2),
            stop=stop_after_attempt(attempts),
            reraise=True,
        )
        verb = "GET" if method in _BY_GET else "POST"
        try:
            return await retrying(self._call, method, http_verb=verb, params=dict(query))
        except InDoubt as error:
            reason = f"Slack gave no answer to {method} that can be used: check channels.slack.api_url"
            raise Later(reason, answer=error.answer) from None

    async def post_to_webhook(self, url: str, body: bytes) -> tuple[int, Mapping[str, str], str]:
        """Send the body to an incoming webhook, whose URL is a secret. Returns the status, the headers and the start of
        the text. Raises `Never`, `Later` or `InDoubt` if there is no answer.
        """
        try:
            request = self._session.post(
                url, data=body, headers=_AS_JSON, proxy=self._proxy(url), allow_redirects=False
            )
            async with request as response:
                return response.status, response.headers, (await response.read()).decode(errors="replace")
        except aiohttp.InvalidURL:
            raise Never("the webhook's address is no URL: check channels.slack.webhooks") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise failed_request(error, "Slack", provider_wide=True, ca_file=_CA_FILE) from None

    async def aclose(self) -> None:
        await self._session.close()

    async def _call(self, method: str, **request: Any) -> Reply:
        """Call a Web API method once. `request`: the options of slack-sdk's `api_call`."""
        try:
            self._web.proxy = self._proxy(self._web.base_url)
            answer: Any = await self._web.api_call(method, **request)
        except SlackApiError as error:
            answer = error.response
        except AnswerTooLong as error:
            raise TooLong(f"Slack's method {method}: {error}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise failed_request(error, "Slack", provider_wide=True, ca_file=_CA_FILE) from None
        if isinstance(answer.data, dict) and answer.data.get("ok") is True and answer.status_code == 200:
            return Reply(answer.data, answer.headers)
        raise error_of(method, answer.status_code, answer.headers, answer.data, self._web.token or "")


class _BoundedAnswer(aiohttp.ClientResponse):
    """An answer of which no more is read than is needed: of a message's answer the start, of a look-up's the whole.

    Everything is taken for JSON, whatever a proxy calls it: else slack-sdk would take the text for the parsed answer.
    """

    @property
    def content_type(self) -> str:
        return "application/json"

    async def read(self) -> bytes:
        """Return the body, decompressed. Raises `AnswerTooLong` if a look-up's is longer than it may be."""
        return await (read_whole(self.content) if self.method == "GET" else read_start(self.content, MAX_POST_ANSWER))

    async def json(self, **_: Any) -> dict[str, Any] | None:
        """Return the parsed answer; None if it is no JSON object. Of a longer answer to a message, return the first
        fields.
        """
        body = await self.read()
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError:
            accepted = _ACCEPTED.match(body) if len(body) == MAX_POST_ANSWER else None
            if accepted is None:
                return None
            return {"ok": True, "channel": accepted["channel"].decode(), "ts": accepted["ts"].decode()}
        return parsed if isinstance(parsed, dict) else None


async def _refuse_redirect(
    _session: aiohttp.ClientSession, _context: SimpleNamespace, redirect: aiohttp.TraceRequestRedirectParams
) -> None:
    """Slack's Web API never redirects, and a message must not go to another host."""
    redirect.response.close()
    raise error_of("", redirect.response.status, {}, None, "")


def _json(body: Any) -> str:
    return orjson.dumps(body).decode()


def _is_retryable(error: BaseException) -> bool:
    if isinstance(error, Misconfigured | TooLong):
        return False
    return isinstance(error, InDoubt) or (isinstance(error, Later) and error.retry_after is None)


def _warnings_only() -> logging.Logger:
    """Return slack-sdk's logger with level WARNING. Without a level, slack-sdk would format each request for its log,
    with the message's text.
    """
    logger = logging.getLogger("slack_sdk")
    logger.setLevel(logging.WARNING)
    return logger
