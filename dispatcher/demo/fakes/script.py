"""Scripted HTTP replies: a fake server gives each of them once, then answers normally."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """One reply that replaces the fake's normal answer."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0
    """Seconds before the reply."""
    accept: bool = False
    """Process the request as well, like a server that accepts a message and then fails to confirm it."""


@dataclass(slots=True)
class ReplyScript:
    """The scripted replies that are left, in order."""

    steps: list[ScriptedReply] = field(default_factory=list)

    async def play(self, request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        """The next scripted reply; if none is left, the normal answer, which `handle` gives."""
        if not self.steps:
            return await handle(request)
        reply = self.steps.pop(0)
        if reply.accept:
            await handle(request)
        await asyncio.sleep(reply.delay)  # noqa: TID251 - simulates a slow server
        return Response(reply.body, reply.status, dict(reply.headers), media_type="application/json")
