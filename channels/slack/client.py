"""Slack's Web API by slack-sdk, with a short way for what is posted: the only module that loads the library.

slack-sdk stays the client: of its settings, its proxy, its headers, its errors and of every look-up.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import ClientSession, hdrs
from multidict import CIMultiDict
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.web.async_slack_response import AsyncSlackResponse
from yarl import URL


class Client(AsyncWebClient):
    """slack-sdk's client. Its own `api_call` works out anew for each message what is the same for all of them: the
    method's URL, whether it is deprecated, the headers, what a retry would need. That was a third of what a send cost.
    """

    def __init__(self, base_url: str, session: ClientSession) -> None:
        super().__init__(base_url=base_url, session=session, retry_handlers=[], logger=_quiet())
        self._session = session
        self._urls: dict[str, URL] = {}
        self._posting: CIMultiDict[str] = CIMultiDict()

    async def post(self, method: str, body: bytes) -> Mapping[str, Any]:
        """`api_call` with a body that is JSON already: what was answered. Raises as `api_call` does."""
        if method not in self._urls:
            self._urls[method] = URL(f"{self.base_url}{method}")
        sending = self._session.post(self._urls[method], data=body, headers=self._headers(), proxy=self.proxy)
        async with sending as response:
            try:
                answer = orjson.loads(await response.read())
            except orjson.JSONDecodeError:
                answer = None
        if isinstance(answer, dict) and answer.get("ok") and response.status == 200:
            return answer
        whole = AsyncSlackResponse(
            client=self,
            http_verb="POST",
            api_url=str(self._urls[method]),
            req_args={},
            data=answer,
            headers=response.headers,  # type: ignore[arg-type]  # as slack-sdk itself hands them on
            status_code=response.status,
        )
        raise SlackApiError("an answer that is not ok", whole)  # type: ignore[no-untyped-call]

    def _headers(self) -> CIMultiDict[str]:
        login = f"Bearer {self.token}"
        if self._posting.get(hdrs.AUTHORIZATION) != login:
            own = {hdrs.CONTENT_TYPE: "application/json;charset=utf-8", hdrs.AUTHORIZATION: login}
            self._posting = CIMultiDict({**own, **self.headers})
        return self._posting


def _quiet() -> logging.Logger:
    """For slack-sdk, which takes a logger without a level for one that wants each request and answer written out."""
    logger = logging.getLogger("slack_sdk")
    logger.setLevel(logging.WARNING)
    return logger
