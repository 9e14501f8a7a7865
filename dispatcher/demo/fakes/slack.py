"""A local Slack: the Web API methods that the dispatcher uses, with the real ones' checks and answers.

Rules: Slack's documentation of chat.postMessage, Block Kit's reference, rate limits. Every refusal is HTTP
200 with `ok: false`, as Slack does it, except the rate limit's 429.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from dispatcher.demo.fakes.script import Script
from dispatcher.rendering.limits import SLACK_TEXT, lint

_CHANGEABLE = ("text", "blocks", "attachments", "metadata")


@dataclass(slots=True)
class SlackMessage:
    """One message that was taken, as it reads now."""

    channel: str
    """The conversation's id."""
    name: str
    """What people call it."""
    ts: str
    body: Mapping[str, Any]
    edits: int = 0

    @property
    def thread(self) -> str | None:
        """The ts of the message that it replies to."""
        return self.body.get("thread_ts")

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
    private: bool = False


class SlackError(Exception):
    """An answer with `ok: false`."""

    def __init__(self, code: str, **more: str) -> None:
        super().__init__(code)
        self.more = more


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
    """What the token may do; said with every answer, and enforced for joining and for looking back."""
    edit_window: float = float("inf")
    """Seconds for which the workspace lets messages be edited."""
    webhooks: Mapping[str, str] = field(default_factory=dict)
    """Incoming webhooks: the path after `/services/` -> the name of the channel."""
    requests: int = 0
    script: Script = field(default_factory=Script)
    arrived: Callable[[SlackMessage], None] = lambda _: None
    _last: dict[str, list[float]] = field(default_factory=dict)

    def routes(self) -> list[Route]:
        return [
            Route("/api/{method}", self._answer, methods=["GET", "POST"]),
            Route("/services/{path:path}", self._webhook, methods=["POST"]),
        ]

    async def _answer(self, request: Request) -> Response:
        self.requests += 1
        if request.path_params["method"] in {"chat.postMessage", "chat.update"}:
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
            answer = {"ok": False, "error": str(error), **error.more}
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
            "conversations.replies": self._replies,
            "conversations.join": self._join,
            "chat.update": self._update,
        }

    def _post(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        conversation = self._conversation(str(asked.get("channel", "")))
        if conversation.archived:
            raise SlackError("is_archived")
        if not conversation.member:
            raise SlackError("not_in_channel")
        if asked.get("thread_ts") is not None:
            self._may_reply(conversation, str(asked["thread_ts"]))
        self._readable(asked)
        self._pace(conversation.id)
        return self._take(conversation, asked)

    def _may_reply(self, conversation: Conversation, ts: str) -> None:
        """Threads hang on a message of the same channel that is no reply itself."""
        parent = self._message(conversation, ts)
        if parent is None:
            raise SlackError("thread_not_found")
        if parent.thread is not None:
            raise SlackError("cannot_reply_to_message")

    def _readable(self, asked: Mapping[str, Any]) -> None:
        if not asked.get("text") and not asked.get("blocks") and not asked.get("attachments"):
            raise SlackError("no_text")
        if len(str(asked.get("text", ""))) > 40_000:
            raise SlackError("msg_too_long")
        if any("blocks" in problem or "block" in problem for problem in lint("slack", asked)):
            raise SlackError("invalid_blocks")

    def _take(self, conversation: Conversation, asked: Mapping[str, Any]) -> dict[str, Any]:
        ts = f"{time.time_ns() // 1000 / 1e6 + len(self.messages) * 1e-6:.6f}"
        message = SlackMessage(conversation.id, conversation.name, ts, dict(asked))
        self.messages.append(message)
        self.arrived(message)
        return {"channel": conversation.id, "ts": ts, "message": {"text": asked.get("text", ""), "ts": ts}}

    def _update(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Takes the channel's id only, and keeps the blocks and attachments that it isn't told of."""
        conversation = self._conversation(str(asked.get("channel", "")))
        if conversation.id != asked["channel"]:
            raise SlackError("channel_not_found")
        if conversation.archived:
            raise SlackError("is_archived")
        message = self._message(conversation, str(asked.get("ts", "")))
        if message is None:
            raise SlackError("message_not_found")
        if time.time_ns() / 1e9 - float(message.ts) > self.edit_window:
            raise SlackError("edit_window_closed")
        if len(str(asked.get("text", "")).encode("utf-16-le")) // 2 > SLACK_TEXT:
            raise SlackError("msg_too_long")
        changed = {**message.body, **{name: asked[name] for name in _CHANGEABLE if name in asked}}
        self._readable(changed)
        message.body, message.edits = changed, message.edits + 1
        return {"channel": conversation.id, "ts": message.ts, "text": changed.get("text", "")}

    def _message(self, conversation: Conversation, ts: str) -> SlackMessage | None:
        theirs = (message for message in self.messages if message.channel == conversation.id)
        return next((message for message in theirs if message.ts == ts), None)

    def _join(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self._allowed("channels:join")
        conversation = self._conversation(str(asked.get("channel", "")))
        if conversation.id != asked["channel"]:
            raise SlackError("channel_not_found")
        if conversation.private:
            raise SlackError("method_not_supported_for_channel_type")
        if conversation.archived:
            raise SlackError("is_archived")
        at = self.channels.index(conversation)
        self.channels[at] = replace(conversation, member=True)
        return {"channel": {"id": conversation.id}}

    def _allowed(self, scope: str) -> None:
        if scope not in self.scopes:
            raise SlackError("missing_scope", needed=scope, provided=",".join(self.scopes))

    async def _webhook(self, request: Request) -> Response:
        self.requests += 1
        return await self.script.play(request, self._behave_as_webhook)

    async def _behave_as_webhook(self, request: Request) -> Response:
        """Plain text, with the status that Slack gives: "Handling errors" of incoming webhooks."""
        name = self.webhooks.get(request.path_params["path"])
        if name is None:
            return PlainTextResponse("no_service", 404)
        try:
            asked = orjson.loads(await request.body())
            conversation = self._conversation(name)
            if conversation.archived:
                return PlainTextResponse("channel_is_archived", 410)
            self._readable(asked)
            self._pace(conversation.id)
        except (orjson.JSONDecodeError, SlackError) as error:
            limited = str(error) == "ratelimited"
            code = str(error) if isinstance(error, SlackError) else "invalid_payload"
            return PlainTextResponse(code, 429 if limited else 400, {"Retry-After": "1"} if limited else None)
        self._take(conversation, asked)
        return PlainTextResponse("ok")

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
        """Newest first, without replies."""
        self._allowed("channels:history")
        there = [message for message in reversed(self.messages) if message.channel == asked.get("channel")]
        return _listed([message for message in there if message.thread is None], asked)

    def _replies(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A thread's first message and its replies, oldest first; `oldest` leaves out replies, never the first."""
        self._allowed("channels:history")
        conversation = self._conversation(str(asked.get("channel", "")))
        first = self._message(conversation, str(asked.get("ts", "")))
        if first is None:
            raise SlackError("thread_not_found")
        replies = [
            message
            for message in self.messages
            if message.channel == conversation.id
            and message.thread == first.ts
            and float(message.ts) > float(asked.get("oldest", 0))
        ]
        return _listed([first, *replies], asked)


def _listed(messages: Sequence[SlackMessage], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of messages: at most `limit`, and their metadata where it is asked for."""
    told = asked.get("include_all_metadata") == "true"
    return {
        "messages": [
            {
                "ts": message.ts,
                **({"thread_ts": message.thread} if message.thread is not None else {}),
                **({"metadata": message.body.get("metadata", {})} if told else {}),
            }
            for message in messages[: int(asked.get("limit", 100))]
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
