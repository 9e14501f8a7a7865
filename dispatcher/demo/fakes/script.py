"""What receivers can be told to do wrong: answers to give, once each, before they behave again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response


@dataclass(frozen=True, slots=True)
class Misstep:
    """One answer that a healthy server would not give."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0
    """Seconds before the answer."""
    accept: bool = False
    """Take the message all the same, as a server does that dies before it can say so."""


@dataclass(slots=True)
class Script:
    """Missteps still to make, in order."""

    steps: list[Misstep] = field(default_factory=list)

    async def play(self, request: Request, behave: Callable[[Request], Awaitable[Response]]) -> Response:
        """Answer a request: by the next misstep, or as one should."""
        if not self.steps:
            return await behave(request)
        step = self.steps.pop(0)
        if step.accept:
            await behave(request)
        await asyncio.sleep(step.delay)  # noqa: TID251 - a server's own slowness, not waited for by any rule of ours
        return Response(step.body, step.status, dict(step.headers), media_type="application/json")
