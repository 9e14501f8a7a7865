"""Two fake receivers: one like Microsoft Teams' Workflows app, and one for webhooks, which checks signatures.

The fake of Teams follows the page "Create and send messages" of Microsoft's Teams documentation: a message is an
Adaptive Card of at most 28 kB. The webhook receiver follows the Standard Webhooks specification.
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

from channels.registry import CHANNEL_TYPES
from dispatcher.demo.fakes.script import ReplyScript

_MAX_CARD = 28 * 1024
TOLERANCE = 300
"""The webhook receiver refuses a signature whose time differs by more than this many seconds from the current time."""


@dataclass(frozen=True, slots=True)
class Card:
    """An Adaptive Card that the fake of Teams accepted."""

    team: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A message that a webhook receiver accepted."""

    name: str
    key: str
    body: Mapping[str, Any]


@dataclass(slots=True)
class TeamsReceiver:
    """A fake of Teams' Workflows app. Each path `/workflows/NAME` belongs to a separate team, NAME."""

    cards: list[Card] = field(default_factory=list)
    script: ReplyScript = field(default_factory=ReplyScript)
    arrived: Callable[[Card], None] = lambda _: None

    def routes(self) -> list[Route]:
        return [Route("/workflows/{name}", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        return await self.script.play(request, self._handle)

    async def _handle(self, request: Request) -> Response:
        body = await request.body()
        if len(body) > _MAX_CARD:
            return _refusal(413, "RequestEntityTooLarge", "the message is larger than 28 kB")
        try:
            (attachment,) = orjson.loads(body)["attachments"]
            card, kind = attachment["content"], attachment["contentType"]
            problems = CHANNEL_TYPES["teams"].form.problems(card)
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
    """A fake of webhook receivers. Each path `/NAME` belongs to a separate receiver, NAME.

    If `secret` is set, each message must have a signature made with `secret`.
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
        if not at.isdecimal() or abs(time.time() - int(at)) > TOLERANCE:  # noqa: TID251 - a fake uses the real time
            return False
        digest = hmac.new(self.secret.encode(), f"{key}.{at}.".encode() + body, hashlib.sha256).digest()
        expected = f"v1,{base64.b64encode(digest).decode()}"
        return hmac.compare_digest(expected, request.headers.get("webhook-signature", ""))


def _refusal(status: int, code: str, words: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": words}}, status)
