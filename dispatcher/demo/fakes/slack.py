"""A local Slack: the Web API methods that the dispatcher uses, with the checks and answers of the real ones.

It follows Slack's documentation of chat.postMessage, Block Kit and rate limits. As in Slack, every refusal is HTTP 200
with `ok: false`, except 429 for the rate limit.
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

from dispatcher.demo.fakes.script import ReplyScript
from dispatcher.rendering.limits import SLACK_TEXT, lint

_CHANGEABLE = ("text", "blocks", "attachments", "metadata")


@dataclass(slots=True)
class SlackMessage:
    """One accepted message, with its edits."""

    channel: str
    """The conversation's id."""
    name: str
    """The conversation's name."""
    ts: str
    body: Mapping[str, Any]
    edits: int = 0

    @property
    def thread(self) -> str | None:
        """The ts of the thread's first message; None for a message outside a thread."""
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
    """One Slack workspace, which refuses messages to unknown channels. Names in `channels` have no `#`."""

    token: str = "xoxb-demo"  # noqa: S105 - no secret: for the demo and tests
    channels: list[Conversation] = field(default_factory=list)
    people: Mapping[str, str] = field(default_factory=dict)
    """Mapping from mail address to user id."""
    per_second: float | None = None
    """Rate limit in messages per second and channel, with a burst of 3; None for no limit."""
    messages: list[SlackMessage] = field(default_factory=list)
    scopes: tuple[str, ...] = ("chat:write", "users:read.email", "channels:history")
    """The token's scopes: sent with every answer, and enforced for joining a channel and reading its history."""
    edit_window: float = float("inf")
    """Number of seconds during which a message can be edited."""
    webhooks: Mapping[str, str] = field(default_factory=dict)
    """Incoming webhooks, as a mapping from the path after `/services/` to the channel's name."""
    requests: int = 0
    script: ReplyScript = field(default_factory=ReplyScript)
    arrived: Callable[[SlackMessage], None] = lambda _: None
    _recent: dict[str, list[float]] = field(default_factory=dict)
    """Mapping from channel id to the times at which the channel's last messages were accepted."""

    def routes(self) -> list[Route]:
        return [
            Route("/api/{method}", self._answer, methods=["GET", "POST"]),
            Route("/services/{path:path}", self._webhook, methods=["POST"]),
        ]

    async def _answer(self, request: Request) -> Response:
        self.requests += 1
        if request.path_params["method"] in {"chat.postMessage", "chat.update"}:
            return await self.script.play(request, self._handle)
        return await self._handle(request)

    async def _handle(self, request: Request) -> Response:
        method = request.path_params["method"]
        arguments = await _arguments(request)
        try:
            if request.headers.get("authorization") != f"Bearer {self.token}":
                raise SlackError("invalid_auth" if "authorization" in request.headers else "not_authed")
            answer = self._methods()[method](arguments)
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
            "chat.postMessage": self._post_message,
            "users.lookupByEmail": self._look_up,
            "conversations.list": self._list,
            "conversations.open": self._open,
            "conversations.history": self._history,
            "conversations.replies": self._replies,
            "conversations.join": self._join,
            "chat.update": self._update,
        }

    def _post_message(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        conversation = self._conversation(str(arguments.get("channel", "")))
        if conversation.archived:
            raise SlackError("is_archived")
        if not conversation.member:
            raise SlackError("not_in_channel")
        if arguments.get("thread_ts") is not None:
            self._check_thread(conversation, str(arguments["thread_ts"]))
        self._check_content(arguments)
        self._check_rate(conversation.id)
        return self._accept(conversation, arguments)

    def _check_thread(self, conversation: Conversation, ts: str) -> None:
        """A thread's first message is in the same channel and is not a reply. Raises SlackError otherwise."""
        parent = self._message(conversation, ts)
        if parent is None:
            raise SlackError("thread_not_found")
        if parent.thread is not None:
            raise SlackError("cannot_reply_to_message")

    def _check_content(self, arguments: Mapping[str, Any]) -> None:
        if not arguments.get("text") and not arguments.get("blocks") and not arguments.get("attachments"):
            raise SlackError("no_text")
        if len(str(arguments.get("text", ""))) > 40_000:
            raise SlackError("msg_too_long")
        if any("blocks" in problem or "block" in problem for problem in lint("slack", arguments)):
            raise SlackError("invalid_blocks")

    def _accept(self, conversation: Conversation, arguments: Mapping[str, Any]) -> dict[str, Any]:
        ts = f"{time.time_ns() // 1000 / 1e6 + len(self.messages) * 1e-6:.6f}"
        message = SlackMessage(conversation.id, conversation.name, ts, dict(arguments))
        self.messages.append(message)
        self.arrived(message)
        return {"channel": conversation.id, "ts": ts, "message": {"text": arguments.get("text", ""), "ts": ts}}

    def _update(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Edit a message. `channel` must be the channel's id, not its name.

        Blocks and attachments that are not given stay as they were.
        """
        conversation = self._conversation(str(arguments.get("channel", "")))
        if conversation.id != arguments["channel"]:
            raise SlackError("channel_not_found")
        if conversation.archived:
            raise SlackError("is_archived")
        message = self._message(conversation, str(arguments.get("ts", "")))
        if message is None:
            raise SlackError("message_not_found")
        if time.time_ns() / 1e9 - float(message.ts) > self.edit_window:
            raise SlackError("edit_window_closed")
        if len(str(arguments.get("text", "")).encode("utf-16-le")) // 2 > SLACK_TEXT:
            raise SlackError("msg_too_long")
        changed = {**message.body, **{name: arguments[name] for name in _CHANGEABLE if name in arguments}}
        self._check_content(changed)
        message.body, message.edits = changed, message.edits + 1
        return {"channel": conversation.id, "ts": message.ts, "text": changed.get("text", "")}

    def _message(self, conversation: Conversation, ts: str) -> SlackMessage | None:
        in_conversation = (message for message in self.messages if message.channel == conversation.id)
        return next((message for message in in_conversation if message.ts == ts), None)

    def _join(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self._check_scope("channels:join")
        conversation = self._conversation(str(arguments.get("channel", "")))
        if conversation.id != arguments["channel"]:
            raise SlackError("channel_not_found")
        if conversation.private:
            raise SlackError("method_not_supported_for_channel_type")
        if conversation.archived:
            raise SlackError("is_archived")
        at = self.channels.index(conversation)
        self.channels[at] = replace(conversation, member=True)
        return {"channel": {"id": conversation.id}}

    def _check_scope(self, scope: str) -> None:
        if scope not in self.scopes:
            raise SlackError("missing_scope", needed=scope, provided=",".join(self.scopes))

    async def _webhook(self, request: Request) -> Response:
        self.requests += 1
        return await self.script.play(request, self._handle_webhook)

    async def _handle_webhook(self, request: Request) -> Response:
        """Answers in plain text, with the statuses in Slack's "Handling errors" for incoming webhooks."""
        name = self.webhooks.get(request.path_params["path"])
        if name is None:
            return PlainTextResponse("no_service", 404)
        try:
            message = orjson.loads(await request.body())
            conversation = self._conversation(name)
            if conversation.archived:
                return PlainTextResponse("channel_is_archived", 410)
            self._check_content(message)
            self._check_rate(conversation.id)
        except (orjson.JSONDecodeError, SlackError) as error:
            limited = str(error) == "ratelimited"
            code = str(error) if isinstance(error, SlackError) else "invalid_payload"
            return PlainTextResponse(code, 429 if limited else 400, {"Retry-After": "1"} if limited else None)
        self._accept(conversation, message)
        return PlainTextResponse("ok")

    def _conversation(self, channel: str) -> Conversation:
        for person, user in self.people.items():
            if channel in {user, f"D{user[1:]}"}:
                return Conversation(f"D{user[1:]}", f"@{person}")
        for conversation in self.channels:
            if channel in {conversation.id, f"#{conversation.name}", conversation.name}:
                return conversation
        raise SlackError("channel_not_found")

    def _check_rate(self, channel: str) -> None:
        if self.per_second is None:
            return
        now = time.monotonic()
        recent = [at for at in self._recent.get(channel, []) if now - at < 3 / self.per_second]
        if len(recent) >= 3:
            raise SlackError("ratelimited")
        self._recent[channel] = [*recent, now]

    def _look_up(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        user = self.people.get(str(arguments.get("email", "")))
        if user is None:
            raise SlackError("users_not_found")
        return {"user": {"id": user}}

    def _list(self, _: Mapping[str, Any]) -> dict[str, Any]:
        listed = [{"id": channel.id, "name": channel.name} for channel in self.channels]
        return {"channels": listed, "response_metadata": {"next_cursor": ""}}

    def _open(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {"channel": {"id": self._conversation(str(arguments.get("users", ""))).id}}

    def _history(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The channel's messages without replies, newest first."""
        self._check_scope("channels:history")
        newest_first = [message for message in reversed(self.messages) if message.channel == arguments.get("channel")]
        return _listed([message for message in newest_first if message.thread is None], arguments)

    def _replies(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A thread's first message and its replies, oldest first. `oldest` filters the replies only."""
        self._check_scope("channels:history")
        conversation = self._conversation(str(arguments.get("channel", "")))
        first = self._message(conversation, str(arguments.get("ts", "")))
        if first is None:
            raise SlackError("thread_not_found")
        replies = [
            message
            for message in self.messages
            if message.channel == conversation.id
            and message.thread == first.ts
            and float(message.ts) > float(arguments.get("oldest", 0))
        ]
        return _listed([first, *replies], arguments)


def _listed(messages: Sequence[SlackMessage], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The answer with at most `limit` messages, and their metadata if `include_all_metadata` is set."""
    with_metadata = arguments.get("include_all_metadata") == "true"
    return {
        "messages": [
            {
                "ts": message.ts,
                **({"thread_ts": message.thread} if message.thread is not None else {}),
                **({"metadata": message.body.get("metadata", {})} if with_metadata else {}),
            }
            for message in messages[: int(arguments.get("limit", 100))]
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
