"""A local Teams workflow and a webhook's receiver, which check what the real ones check, and a signature.

Rules: Microsoft's Teams platform documentation, "Create and send messages" (28 kB, Adaptive Cards); the Standard Webhooks
specification.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dispatcher.demo.fakes.script import Script
from dispatcher.rendering.limits import TEAMS_MESSAGE, lint

TOLERANCE = 300
"""Seconds by which a signature's time may differ from ours."""


@dataclass(frozen=True, slots=True)
class Card:
    """An Adaptive Card that a workflow took."""

    team: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A webhook's message that was taken."""

    name: str
    key: str
    body: Mapping[str, Any]


@dataclass(slots=True)
class TeamsReceiver:
    """Workflows, one at each path `/workflows/NAME`."""

    cards: list[Card] = field(default_factory=list)
    script: Script = field(default_factory=Script)
    arrived: Callable[[Card], None] = lambda _: None

    def routes(self) -> list[Route]:
        return [Route("/workflows/{name}", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        return await self.script.play(request, self._behave)

    async def _behave(self, request: Request) -> Response:
        written = await request.body()
        if len(written) > TEAMS_MESSAGE:
            return _refusal(413, "RequestEntityTooLarge", "the message is larger than 28 kB")
        try:
            (attachment,) = orjson.loads(written)["attachments"]
            card, kind = attachment["content"], attachment["contentType"]
            problems = lint("teams", card)
        except (ValueError, KeyError, TypeError):
            return _refusal(400, "InvalidRequest", "no message with one attachment")
        if kind != "application/vnd.microsoft.card.adaptive" or problems:
            return _refusal(400, "InvalidBotAdaptiveCard", "; ".join(problems) or f"{kind} is no Adaptive Card")
        taken = Card(request.path_params["name"], card)
        self.cards.append(taken)
        self.arrived(taken)
        return Response(status_code=202)


@dataclass(slots=True)
class WebhookReceiver:
    """Receivers, one at each path `/NAME`. With a `secret` every message has to be signed by it."""

    secret: str = ""
    calls: list[Call] = field(default_factory=list)
    script: Script = field(default_factory=Script)
    arrived: Callable[[Call], None] = lambda _: None

    def routes(self) -> list[Route]:
        return [Route("/{name}", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        return await self.script.play(request, self._behave)

    async def _behave(self, request: Request) -> Response:
        written = await request.body()
        if self.secret and not self._signed(request, written):
            return _refusal(401, "Unauthorized", "the signature is wrong, or too old")
        try:
            body = orjson.loads(written)
        except orjson.JSONDecodeError:
            return _refusal(400, "BadRequest", "no JSON")
        call = Call(request.path_params["name"], request.headers.get("Idempotency-Key", ""), body)
        if not any(call.key and (one.name, one.key) == (call.name, call.key) for one in self.calls):
            self.calls.append(call)
            self.arrived(call)
        return Response(status_code=204)

    def _signed(self, request: Request, written: bytes) -> bool:
        key, at = request.headers.get("webhook-id", ""), request.headers.get("webhook-timestamp", "0")
        if not at.isdecimal() or abs(time.time() - int(at)) > TOLERANCE:  # noqa: TID251 - a server's own clock
            return False
        digest = hmac.new(self.secret.encode(), f"{key}.{at}.".encode() + written, hashlib.sha256).digest()
        expected = f"v1,{base64.b64encode(digest).decode()}"
        return hmac.compare_digest(expected, request.headers.get("webhook-signature", ""))


def _refusal(status: int, code: str, words: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": words}}, status)
