"""A fake Slack: serves locally the Web API methods that the dispatcher uses, with the same checks and answers as Slack.

The fake follows Slack's documentation of chat.postMessage, Block Kit and rate limits. As in Slack, a refusal has HTTP
status 200 and `ok: false`. Only a refusal because of the rate limit has HTTP status 429.
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

from channels.registry import CHANNEL_TYPES
from dispatcher.demo.fakes.script import ReplyScript
from dispatcher.web.forms import read_form

_MAX_UPDATE = 4000
_CHANGEABLE = ("text", "blocks", "attachments", "metadata")
ALL_SCOPES = (
    "chat:write",
    "users:read.email",
    "channels:history",
    "groups:history",
    "im:history",
    "channels:read",
    "groups:read",
    "im:write",
)
"""The scopes that a bot should have, except that for joining channels."""


@dataclass(slots=True)
class SlackMessage:
    """One message that Slack accepted. `edits` counts how often the message was edited."""

    channel: str
    """The id of the Slack channel or direct message that contains this message."""
    name: str
    """The name of the Slack channel, or of the person in a direct message."""
    ts: str
    body: Mapping[str, Any]
    edits: int = 0

    @property
    def thread(self) -> str | None:
        """The `ts` of the thread's first message, if this message is a reply; otherwise None."""
        return self.body.get("thread_ts")

    @property
    def key(self) -> str:
        key: str = self.body.get("metadata", {}).get("event_payload", {}).get("key", "")
        return key


@dataclass(frozen=True, slots=True)
class Conversation:
    """A Slack channel, or the direct messages with one person."""

    id: str
    name: str
    archived: bool = False
    member: bool = True
    private: bool = False


class SlackError(Exception):
    """Raised to refuse a request. The answer to the client then has `ok: false` and the error's code."""

    def __init__(self, code: str, **more: str) -> None:
        super().__init__(code)
        self.more = more


@dataclass(slots=True)
class SlackReceiver:
    """A fake Slack workspace. It refuses messages to channels that are not in `channels`. Names there have no `#`."""

    token: str = "xoxb-demo"  # noqa: S105 - only fake servers accept this value
    channels: list[Conversation] = field(default_factory=list)
    people: Mapping[str, str] = field(default_factory=dict)
    """Mapping from each person's mail address to the Slack user id."""
    per_second: float | None = None
    """Rate limit of each Slack channel in messages per second, with a burst of 3. None means no limit."""
    messages: list[SlackMessage] = field(default_factory=list)
    scopes: tuple[str, ...] = ALL_SCOPES
    """The token's scopes. The answers contain them in a header. The fake refuses a request without the right scope."""
    locked_threads: set[str] = field(default_factory=set)
    """The `ts` of the first messages of threads that an admin has locked."""
    edit_window: float = float("inf")
    """A message can be edited until this many seconds after it was sent."""
    webhooks: Mapping[str, str] = field(default_factory=dict)
    """Incoming webhooks: mapping from the path after `/services/` to the name of the webhook's channel."""
    requests: int = 0
    script: ReplyScript = field(default_factory=ReplyScript)
    arrived: Callable[[SlackMessage], None] = lambda _: None
    _recent: dict[str, list[float]] = field(default_factory=dict)
    """Mapping from a channel id to the times of the last accepted messages, which the rate limit counts."""

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
        self._check_scope("chat:write")
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
        """Raise SlackError if the message `ts` is not in this conversation, or is itself a reply in a thread."""
        parent = self._message(conversation, ts)
        if parent is None:
            raise SlackError("thread_not_found")
        if parent.thread is not None:
            raise SlackError("cannot_reply_to_message")
        if ts in self.locked_threads:
            raise SlackError("restricted_action_thread_locked")

    def _check_content(self, arguments: Mapping[str, Any]) -> None:
        if not arguments.get("text") and not arguments.get("blocks") and not arguments.get("attachments"):
            raise SlackError("no_text")
        if len(str(arguments.get("text", ""))) > 40_000:
            raise SlackError("msg_too_long")
        if any("block" in problem for problem in CHANNEL_TYPES["slack"].form.problems(arguments)):
            raise SlackError("invalid_blocks")

    def _accept(self, conversation: Conversation, arguments: Mapping[str, Any]) -> dict[str, Any]:
        ts = f"{time.time_ns() // 1000 / 1e6 + len(self.messages) * 1e-6:.6f}"
        message = SlackMessage(conversation.id, conversation.name, ts, dict(arguments))
        self.messages.append(message)
        self.arrived(message)
        return {"channel": conversation.id, "ts": ts, "message": {"text": arguments.get("text", ""), "ts": ts}}

    def _update(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Edit a message. The argument `channel` must be the channel's id, not its name.

        If the arguments contain no blocks or no attachments, the message keeps its old blocks or attachments.
        """
        self._check_scope("chat:write")
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
        if len(str(arguments.get("text", "")).encode("utf-16-le")) // 2 > _MAX_UPDATE:
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
        """Accept a message to an incoming webhook. As in Slack, an answer is plain text and has an HTTP status."""
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
        self._check_scope("users:read.email")
        user = self.people.get(str(arguments.get("email", "")))
        if user is None:
            raise SlackError("users_not_found")
        return {"user": {"id": user}}

    def _list(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the Slack channels of the requested types; without `types`, only public channels are listed."""
        types = str(arguments.get("types", "public_channel")).split(",")
        for kind, scope in (("public_channel", "channels:read"), ("private_channel", "groups:read")):
            if kind in types:
                self._check_scope(scope)
        listed = [
            {"id": channel.id, "name": channel.name}
            for channel in self.channels
            if ("private_channel" if channel.private else "public_channel") in types
            and (channel.member or not channel.private)
            and not (channel.archived and arguments.get("exclude_archived") == "true")
        ]
        page, metadata = _page(listed, arguments)
        return {"channels": page, **metadata}

    def _open(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self._check_scope("im:write")
        return {"channel": {"id": self._conversation(str(arguments.get("users", ""))).id}}

    def _history(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the channel's messages, newest first, without the replies in threads."""
        channel = self._readable(arguments)
        newest_first = [
            message
            for message in reversed(self.messages)
            if message.channel == channel.id and message.thread is None and _is_newer(message, arguments)
        ]
        return _listed(newest_first, arguments)

    def _replies(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return a thread's first message and its replies, oldest first.

        The argument `oldest` omits older replies, but never the thread's first message.
        """
        conversation = self._readable(arguments)
        first = self._message(conversation, str(arguments.get("ts", "")))
        if first is None:
            raise SlackError("thread_not_found")
        replies = [
            message
            for message in self.messages
            if message.channel == conversation.id and message.thread == first.ts and _is_newer(message, arguments)
        ]
        return _listed([first, *replies], arguments)

    def _readable(self, arguments: Mapping[str, Any]) -> Conversation:
        """Return the conversation with the id in the arguments. Raises SlackError if the app may not read it."""
        conversation = self._conversation(str(arguments.get("channel", "")))
        if conversation.id != arguments.get("channel"):
            raise SlackError("channel_not_found")
        if conversation.id.startswith("D"):
            self._check_scope("im:history")
        else:
            self._check_scope("groups:history" if conversation.private else "channels:history")
        if not conversation.member:
            raise SlackError("not_in_channel")
        return conversation


def _is_newer(message: SlackMessage, arguments: Mapping[str, Any]) -> bool:
    return float(message.ts) > float(arguments.get("oldest", 0))


def _page(items: Sequence[Any], arguments: Mapping[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """Return the items on the requested page, and the metadata with the cursor of the next page."""
    start, limit = int(arguments.get("cursor") or 0), int(arguments.get("limit", 100))
    following = str(start + limit) if start + limit < len(items) else ""
    return items[start : start + limit], {"response_metadata": {"next_cursor": following}}


def _listed(messages: Sequence[SlackMessage], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer with a page of messages. It contains metadata only if `include_all_metadata` is set."""
    with_metadata = arguments.get("include_all_metadata") == "true"
    page, metadata = _page(messages, arguments)
    return {
        "messages": [
            {
                "ts": message.ts,
                **({"thread_ts": message.thread} if message.thread is not None else {}),
                **({"metadata": message.body.get("metadata", {})} if with_metadata else {}),
            }
            for message in page
        ],
        **metadata,
    }


async def _arguments(request: Request) -> Mapping[str, Any]:
    if request.headers.get("content-type", "").startswith("application/json"):
        parsed: Mapping[str, Any] = orjson.loads(await request.body())
        return parsed
    return {**request.query_params, **await read_form(request)}
