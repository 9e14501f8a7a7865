"""A local receiver like Microsoft Teams' Workflows app, and a webhook receiver that checks signatures.

They follow Microsoft's Teams platform documentation, "Create and send messages" (28 kB, Adaptive Cards), and the
Standard Webhooks specification.
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

from dispatcher.demo.fakes.script import ReplyScript
from dispatcher.rendering.limits import TEAMS_MESSAGE, lint

TOLERANCE = 300
"""Maximum difference between a signature's time and the receiver's clock, in seconds."""


@dataclass(frozen=True, slots=True)
class Card:
    """An Adaptive Card that a Teams workflow accepted."""

    team: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """An accepted webhook message."""

    name: str
    key: str
    body: Mapping[str, Any]


@dataclass(slots=True)
class TeamsReceiver:
    """Teams workflows. Each path `/workflows/NAME` is a separate workflow."""

    cards: list[Card] = field(default_factory=list)
    script: ReplyScript = field(default_factory=ReplyScript)
    arrived: Callable[[Card], None] = lambda _: None

    def routes(self) -> list[Route]:
        return [Route("/workflows/{name}", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        return await self.script.play(request, self._handle)

    async def _handle(self, request: Request) -> Response:
        body = await request.body()
        if len(body) > TEAMS_MESSAGE:
            return _refusal(413, "RequestEntityTooLarge", "the message is larger than 28 kB")
        try:
            (attachment,) = orjson.loads(body)["attachments"]
            card, kind = attachment["content"], attachment["contentType"]
            problems = lint("teams", card)
        except (ValueError, KeyError, TypeError):
            return _refusal(400, "InvalidRequest", "no message with one attachment")
        if kind != "application/vnd.microsoft.card.adaptive" or problems:
            return _refusal(400, "InvalidBotAdaptiveCard", "; ".join(problems) or f"{kind} is no Adaptive Card")
        accepted = Card(request.path_params["name"], card)
        self.cards.append(accepted)
        self.arrived(accepted)
        return Response(status_code=202)


@dataclass(slots=True)
class WebhookReceiver:
    """Webhook receivers. Each path `/NAME` is a separate receiver.

    If `secret` is set, each message must be signed with it.
    """

    secret: str = ""
    calls: list[Call] = field(default_factory=list)
    script: ReplyScript = field(default_factory=ReplyScript)
    arrived: Callable[[Call], None] = lambda _: None

    def routes(self) -> list[Route]:
        return [Route("/{name}", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        return await self.script.play(request, self._handle)

    async def _handle(self, request: Request) -> Response:
        body = await request.body()
        if self.secret and not self._signed(request, body):
            return _refusal(401, "Unauthorized", "the signature is wrong, or too old")
        try:
            data = orjson.loads(body)
        except orjson.JSONDecodeError:
            return _refusal(400, "BadRequest", "no JSON")
        call = Call(request.path_params["name"], request.headers.get("Idempotency-Key", ""), data)
        if not any(call.key and (one.name, one.key) == (call.name, call.key) for one in self.calls):
            self.calls.append(call)
            self.arrived(call)
        return Response(status_code=204)

    def _signed(self, request: Request, body: bytes) -> bool:
        key, at = request.headers.get("webhook-id", ""), request.headers.get("webhook-timestamp", "0")
        if not at.isdecimal() or abs(time.time() - int(at)) > TOLERANCE:  # noqa: TID251 - the fake server's clock
            return False
        digest = hmac.new(self.secret.encode(), f"{key}.{at}.".encode() + body, hashlib.sha256).digest()
        expected = f"v1,{base64.b64encode(digest).decode()}"
        return hmac.compare_digest(expected, request.headers.get("webhook-signature", ""))


def _refusal(status: int, code: str, words: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": words}}, status)
