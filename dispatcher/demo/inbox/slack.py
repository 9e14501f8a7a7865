"""A local Slack: the Web API methods that the dispatcher uses, with the real ones' checks and answers.

Rules: Slack's documentation of chat.postMessage, Block Kit's reference, rate limits. Every refusal is HTTP
200 with `ok: false`, as Slack does it, except the rate limit's 429.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dispatcher.demo.inbox.script import Script
from dispatcher.rendering.limits import lint


@dataclass(frozen=True, slots=True)
class SlackMessage:
    """One message that was taken."""

    channel: str
    """The conversation's id."""
    name: str
    """What people call it."""
    ts: str
    body: Mapping[str, Any]

    @property
    def key(self) -> str:
        key: str = self.body.get("metadata", {}).get("event_payload", {}).get("key", "")
        return key


@dataclass(frozen=True, slots=True)
class Conversation:
    """A channel, or a direct message."""

    id: str
    name: str
    archived: bool = False
    member: bool = True


class SlackError(Exception):
    """An answer with `ok: false`."""


@dataclass(slots=True)
class SlackReceiver:
    """The workspace. `channels` by name without `#`; unknown channels are refused, as Slack does."""

    token: str = "xoxb-demo"  # noqa: S105 - no secret: the demo's own
    channels: list[Conversation] = field(default_factory=list)
    people: Mapping[str, str] = field(default_factory=dict)
    """Mail address -> user id."""
    per_second: float | None = None
    """Messages a second and channel, with a burst of three; None: as many as come."""
    messages: list[SlackMessage] = field(default_factory=list)
    scopes: tuple[str, ...] = ("chat:write", "users:read.email", "channels:history")
    """What the token may do; said with every answer, and not enforced."""
    requests: int = 0
    script: Script = field(default_factory=Script)
    arrived: Callable[[SlackMessage], None] = lambda _: None
    _last: dict[str, list[float]] = field(default_factory=dict)

    def routes(self) -> list[Route]:
        return [Route("/api/{method}", self._answer, methods=["GET", "POST"])]

    async def _answer(self, request: Request) -> Response:
        self.requests += 1
        if request.path_params["method"] == "chat.postMessage":
            return await self.script.play(request, self._behave)
        return await self._behave(request)

    async def _behave(self, request: Request) -> Response:
        method = request.path_params["method"]
        asked = await _arguments(request)
        try:
            if request.headers.get("authorization") != f"Bearer {self.token}":
                raise SlackError("invalid_auth" if "authorization" in request.headers else "not_authed")
            answer = self._methods()[method](asked)
        except KeyError:
            answer = {"ok": False, "error": "unknown_method"}
        except SlackError as error:
            answer = {"ok": False, "error": str(error)}
            if str(error) == "ratelimited":
                return JSONResponse(answer, 429, {"Retry-After": "1"})
        return JSONResponse({"ok": True, **answer}, headers={"x-oauth-scopes": ",".join(self.scopes)})

    def _methods(self) -> Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        return {
            "auth.test": lambda _: {"team": "Demo", "user": "dispatcher", "bot_id": "B0000001"},
            "chat.postMessage": self._post,
            "users.lookupByEmail": self._look_up,
            "conversations.list": self._list,
            "conversations.open": self._open,
            "conversations.history": self._history,
        }

    def _post(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        conversation = self._conversation(str(asked.get("channel", "")))
        if conversation.archived:
            raise SlackError("is_archived")
        if not conversation.member:
            raise SlackError("not_in_channel")
        if not asked.get("text") and not asked.get("blocks") and not asked.get("attachments"):
            raise SlackError("no_text")
        if len(str(asked.get("text", ""))) > 40_000:
            raise SlackError("msg_too_long")
        if any("blocks" in problem or "block" in problem for problem in lint("slack", asked)):
            raise SlackError("invalid_blocks")
        self._pace(conversation.id)
        ts = f"{time.time_ns() // 1000 / 1e6 + len(self.messages) * 1e-6:.6f}"
        message = SlackMessage(conversation.id, conversation.name, ts, dict(asked))
        self.messages.append(message)
        self.arrived(message)
        return {"channel": conversation.id, "ts": ts, "message": {"text": asked.get("text", ""), "ts": ts}}

    def _conversation(self, channel: str) -> Conversation:
        for person, user in self.people.items():
            if channel in {user, f"D{user[1:]}"}:
                return Conversation(f"D{user[1:]}", f"@{person}")
        for conversation in self.channels:
            if channel in {conversation.id, f"#{conversation.name}", conversation.name}:
                return conversation
        raise SlackError("channel_not_found")

    def _pace(self, channel: str) -> None:
        if self.per_second is None:
            return
        now = time.monotonic()
        recent = [at for at in self._last.get(channel, []) if now - at < 3 / self.per_second]
        if len(recent) >= 3:
            raise SlackError("ratelimited")
        self._last[channel] = [*recent, now]

    def _look_up(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        user = self.people.get(str(asked.get("email", "")))
        if user is None:
            raise SlackError("users_not_found")
        return {"user": {"id": user}}

    def _list(self, _: Mapping[str, Any]) -> dict[str, Any]:
        listed = [{"id": channel.id, "name": channel.name} for channel in self.channels]
        return {"channels": listed, "response_metadata": {"next_cursor": ""}}

    def _open(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        return {"channel": {"id": self._conversation(str(asked.get("users", ""))).id}}

    def _history(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        there = [message for message in reversed(self.messages) if message.channel == asked.get("channel")]
        told = asked.get("include_all_metadata") == "true"
        return {
            "messages": [
                {"ts": message.ts, **({"metadata": message.body.get("metadata", {})} if told else {})}
                for message in there
            ]
        }


async def _arguments(request: Request) -> Mapping[str, Any]:
    if request.method == "GET":
        return dict(request.query_params)
    body = await request.body()
    if request.headers.get("content-type", "").startswith("application/json"):
        parsed: Mapping[str, Any] = orjson.loads(body)
        return parsed
    return dict(await request.form())
