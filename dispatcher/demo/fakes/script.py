"""Scripted HTTP replies. A fake server sends each scripted reply once, in order, and then answers normally."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """One HTTP reply that a fake server sends instead of its normal answer."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0
    """The fake server waits this many seconds before the reply."""
    accept: bool = False
    """If True, the fake server accepts the message before it sends this reply, although the reply may be an error."""


@dataclass(slots=True)
class ReplyScript:
    """The scripted replies that the fake server has not sent yet, in order."""

    steps: list[ScriptedReply] = field(default_factory=list)

    async def play(self, request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        """Return the next scripted reply. If no scripted reply is left, return the normal answer from `handle`."""
        if not self.steps:
            return await handle(request)
        reply = self.steps.pop(0)
        if reply.accept:
            await handle(request)
        await asyncio.sleep(reply.delay)  # noqa: TID251 - a fake server waits in real time
        return Response(reply.body, reply.status, dict(reply.headers), media_type="application/json")
