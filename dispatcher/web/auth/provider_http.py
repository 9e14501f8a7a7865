"""The HTTP transport of the OpenID Connect client: it limits time and size of an answer, and heeds the proxy of the
environment. httpx itself limits only the time between two parts of an answer.

It is imported only if `http.oidc` is set, because httpx is an optional dependency.
"""

from __future__ import annotations

import asyncio
from typing import Self

import httpx

from channels.common.body import MAX_LOOKUP_ANSWER, AnswerTooLong
from channels.common.proxy import proxy_for

REQUEST_TIMEOUT = 10.0
"""Maximum seconds for a whole request to the provider."""
HEADERS = {"Accept-Encoding": "identity"}
"""The headers of each request. An answer that is compressed nevertheless is refused, because httpx would decompress it
without a limit."""


class BoundedTransport(httpx.AsyncBaseTransport):
    """Sends requests through the proxy of the environment, and reads each answer whole."""

    def __init__(self) -> None:
        self._transports: dict[str | None, httpx.AsyncHTTPTransport] = {}

    async def __aenter__(self) -> Self:
        return self

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the answer with its body. Raises `TimeoutError` if it takes longer than REQUEST_TIMEOUT,
        `AnswerTooLong` if it is too long, `UnusableProxy`, `ValueError` if it is compressed, and httpx's errors.
        """
        proxy = proxy_for(str(request.url))
        if proxy not in self._transports:
            self._transports[proxy] = httpx.AsyncHTTPTransport(proxy=proxy)
        async with asyncio.timeout(REQUEST_TIMEOUT):
            response = await self._transports[proxy].handle_async_request(request)
            try:
                body = await _read(response)
            finally:
                await response.aclose()
        return httpx.Response(response.status_code, headers=response.headers, content=body, request=request)

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()


async def _read(response: httpx.Response) -> bytes:
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise ValueError(f"the provider's answer is compressed ({encoding[:20]}), although it must not be")
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > MAX_LOOKUP_ANSWER:
            raise AnswerTooLong(f"the answer is longer than {MAX_LOOKUP_ANSWER} bytes")
    return bytes(body)
