"""The Slack channel: posts messages through the Web API with slack-sdk, or through incoming webhooks.

Limits follow Slack's documentation of chat.postMessage, chat.update, rate limits and message metadata. `answers.py` says
what Slack's answers mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from channels.common.network import HttpUrl
from channels.common.secret import HeaderToken, HeaderTokenFile, SecretUrl, reject_both, reveal
from channels.common.text import units
from channels.contract import (
    NOTE,
    Answer,
    Channel,
    ChannelError,
    ChannelType,
    Content,
    Finding,
    InDoubt,
    Later,
    Message,
    Misconfigured,
    Never,
    Receipt,
    ThreadBy,
    UnknownRecipient,
    WirePreview,
)
from channels.slack.answers import INSTALL_AGAIN, OUTCOMES, SCOPES, Fault, fault_of, webhook_code, webhook_error
from channels.slack.limits import BLOCKS, FORM, TEXT
from channels.slack.lookups import Lookups, is_person, is_user_id
from channels.slack.mrkdwn import cut_mrkdwn, escape_mrkdwn
from channels.slack.preview import STYLE, draw

if TYPE_CHECKING:
    from channels.slack.client import Client

METADATA_TYPE = "notification_delivery"
"""The `event_type` in the metadata of the dispatcher's Slack messages. The metadata's payload is `{"key": …}` with the
delivery's key."""

_CHANNEL_ID = re.compile(r"[CGD][A-Z0-9]{6,}")
_CHANNEL_NAME = re.compile(r"#[^\s#,<>&]{1,80}")
_CHANNEL_MAILBOX = re.compile(r".+@[\w.-]+\.slack\.com", re.IGNORECASE)


class SlackWebhook(SecretUrl):
    """An incoming webhook. It posts to one Slack channel and needs no token, but it supports no threads and no
    look-ups.
    """


class SlackConfig(BaseModel):
    """The settings of the Slack channel: a bot token or incoming webhooks, and aliases for recipients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: HeaderToken | None = None
    token_file: HeaderTokenFile | None = None
    api_url: HttpUrl = "https://slack.com/api/"
    """The URL of Slack's Web API. For GovSlack it is `https://slack-gov.com/api/`; an Enterprise Grid organization may
    have its own host."""
    recipients: Mapping[str, str] = Field(default_factory=dict)
    """Mapping from an alias that rules use to the recipient: a #channel, channel id, user id or mail address."""
    webhooks: Mapping[str, SlackWebhook] = Field(default_factory=dict)
    """Mapping from an alias that rules use to an incoming webhook."""
    join: bool = False
    """If true, the Slack app joins a public Slack channel when it must post there and is not a member. To join, it
    needs the scope channels:join."""
    thread: ThreadBy | Literal["none"] = "launch_plan"
    """Whether one thread covers all executions of a launch plan or a single execution. In both cases, the launch plan's
    next success closes the thread. `none` means that messages form no threads."""
    fallback: Literal["email", "none"] = "none"
    """The channel that notifies recipients whom Slack can't reach. `none`: no other channel does."""
    timeout: float = Field(20, gt=0, le=100)
    """Maximum number of seconds for one request, from connecting to the answer."""

    @model_validator(mode="after")
    def _has_a_token(self) -> Self:
        reject_both("token", self.token, self.token_file)
        if self.token is None and self.token_file is None and not self.webhooks:
            raise ValueError("give token or token_file: the bot token of your Slack app (xoxb-…)")
        return self


class SlackChannel(Channel):
    """Sends messages to Slack channels and people. Content: `text`, and `blocks` or `attachments`, as in
    chat.postMessage.
    """

    def __init__(self, config: SlackConfig) -> None:
        self._config = config
        self._client: Client | None = None
        self._lookups = Lookups(self._client_with_token, config.timeout)

    def address(self, recipient: str) -> str:
        if recipient in self._config.webhooks:
            return recipient
        if recipient.startswith("https://"):
            raise UnknownRecipient(
                "a webhook's address is a secret: name it in channels.slack.webhooks, and use that name"
            )
        if not self._has_token:
            raise UnknownRecipient(
                "no such webhook in channels.slack.webhooks, and without channels.slack.token nothing else"
            )
        target = self._config.recipients.get(recipient, recipient)
        if _CHANNEL_MAILBOX.fullmatch(target):
            raise UnknownRecipient(
                "a Slack channel's own mail address, which takes mail only", reachable_by=("email", target)
            )
        is_channel = _CHANNEL_NAME.fullmatch(target) or _CHANNEL_ID.fullmatch(target)
        if not is_channel and not is_user_id(target) and not is_person(target):
            raise UnknownRecipient(
                "neither a #channel, a channel's or user's id, nor a mail address: add it to channels.slack.recipients"
            )
        return target

    def thread_by(self, address: str) -> ThreadBy | None:
        if self._config.thread == "none" or address in self._config.webhooks:
            return None
        return self._config.thread

    def wire_preview(self, message: Message) -> WirePreview:
        body = _body(message, message.recipients[0])
        return WirePreview("application/json", orjson.dumps(body, option=orjson.OPT_INDENT_2))

    async def send(self, message: Message) -> Receipt:
        webhook = self._config.webhooks.get(message.recipients[0])
        if webhook is not None:
            return await self._send_by_webhook(webhook, message)
        channel = await self._lookups.channel_to_post_to(message.recipients[0])
        root = _thread_root(message)
        if message.in_doubt:
            place = (root.channel, root.ts) if root is not None else None
            earlier = await self._lookups.find_earlier_attempt(message, place, channel)
            if earlier is not None:
                return earlier
        if root is not None and (reply := await self._reply(message, root)) is not None:
            return reply
        return await self._post_message(_body(message, channel))

    async def _reply(self, message: Message, root: _ThreadRoot) -> Receipt | None:
        """Reply in the thread. If the message is a resolved notice, first update the first message of the thread.

        Returns None if the thread can't be continued. The update comes before the reply, because it can be repeated
        without harm: if the reply fails, a retry does both again.
        """
        thread = message.thread
        resolves = thread is not None and thread.resolves
        if resolves and not await self._update_root(message, root):
            return None
        try:
            return await self._post_message(_body(message, root.channel, thread_ts=root.ts))
        except Never as refusal:
            if fault_of(refusal) is Fault.MESSAGE:
                raise
            return None

    async def _update_root(self, message: Message, root: _ThreadRoot) -> bool:
        """Show the success in the first message of the thread. Returns False if the thread can't be continued.

        If Slack refuses the change, the reply is posted all the same. If the change is in doubt, it is tried again
        once, in the next attempt.
        """
        content = _resolved_content(root.content, message.content)
        try:
            await self._call("chat.update", {"channel": root.channel, "ts": root.ts, **content})
        except Never as refusal:
            return fault_of(refusal) not in {Fault.THREAD, Fault.CHANNEL}
        except InDoubt:
            if not message.in_doubt:
                raise
        return True

    async def _post_message(self, body: Mapping[str, Any]) -> Receipt:
        """Post a message.

        If Slack refuses because the app is not in the Slack channel, and the setting `join` is true, join and post
        again.
        """
        channel = str(body["channel"])
        try:
            answer = await self._call("chat.postMessage", body)
        except Never as refusal:
            if not self._config.join or refusal.answer is None or refusal.answer.status != "not_in_channel":
                raise
            await self._join(channel)
            answer = await self._call("chat.postMessage", body)
        reference = {"channel": str(answer.get("channel", channel)), "ts": str(answer.get("ts", ""))}
        self._lookups.remember(channel, reference["channel"])
        if "thread_ts" in body:
            reference["thread_ts"] = body["thread_ts"]
        return Receipt(answer=Answer("ok", f"ts {reference['ts']}"), reference=reference)

    async def _join(self, channel: str) -> None:
        """Join a public Slack channel. Raises `Never` if the app can't join it, `Later` if joining failed for now."""
        target = await self._lookups.channel_to_join(channel)
        try:
            await self._call("conversations.join", {"channel": target})
        except InDoubt as error:  # try again later, because joining twice does no harm
            raise Later(error.reason, answer=error.answer) from None

    async def _send_by_webhook(self, webhook: SlackWebhook, message: Message) -> Receipt:
        """Post through an incoming webhook. The webhook answers with plain text, which does not identify the posted
        message.
        """
        try:
            url = reveal(webhook.url, webhook.url_file) or ""
        except OSError as error:
            reason = f"the webhook's url_file can't be read: {error.strerror}"
            raise Misconfigured(reason, provider_wide=False) from None
        body = {**_with_note(message), "unfurl_links": False, "unfurl_media": False}
        status, headers, text = await self._open_client().post_to_webhook(url, orjson.dumps(body))
        if (problem := webhook_error(status, headers, text, url)) is not None:
            raise problem
        return Receipt(answer=Answer(str(status), webhook_code(text, url)))

    async def check(self) -> Sequence[Finding]:
        """Test the token with `auth.test`, and check its scopes. Webhooks are not tested, because a test would post a
        message.
        """
        if not self._has_token:
            return [Finding("webhooks only: they can't be tested without posting a message")]
        try:
            reply = await self._client_with_token().look_up("auth.test", {}, attempts=1)
        except ChannelError as error:
            return [Finding(error.reason, ok=False)]
        identity = f"{reply.data.get('user', '?')} in workspace {reply.data.get('team', '?')}"
        header = reply.headers.get("x-oauth-scopes")
        scopes = None if header is None else frozenset(scope.strip() for scope in header.split(","))
        return [Finding(f"the token is accepted: {identity}"), *self._scope_findings(scopes)]

    def _scope_findings(self, scopes: frozenset[str] | None) -> list[Finding]:
        """Return a finding for each scope. A missing scope is a problem if the settings need it, else a remark."""
        if scopes is None:
            return [Finding("Slack doesn't say which scopes the token has: chat:write is needed")]
        names_people = any(is_person(target) for target in self._config.recipients.values())
        needed = {"chat:write"} | ({"users:read.email"} if names_people else set())
        needed |= {"channels:join"} if self._config.join else set()
        findings = []
        for scope, purpose in SCOPES.items():
            if scope in scopes:
                findings.append(Finding(f"scope {scope} is there: it {purpose}"))
            elif scope in needed or scope != "channels:join":
                text = f"scope {scope} is missing, which {purpose}: {INSTALL_AGAIN}"
                findings.append(Finding(text, ok=scope not in needed))
        return findings

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _call(self, method: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call a Web API method once, with a JSON body. Raises `Later`, `Never`, `UnknownRecipient` or `InDoubt`."""
        return await self._client_with_token().post(method, dict(body))

    @property
    def _has_token(self) -> bool:
        return self._config.token is not None or self._config.token_file is not None

    def _client_with_token(self) -> Client:
        client = self._open_client()
        try:
            client.use_token(reveal(self._config.token, self._config.token_file))
        except OSError as error:
            raise Misconfigured(f"channels.slack.token_file can't be read: {error.strerror}") from None
        return client

    def _open_client(self) -> Client:
        if self._client is None:
            # Imported late: at the top of the file, slack-sdk would slow down every command.
            from channels.slack.client import Client  # noqa: PLC0415

            self._client = Client(f"{self._config.api_url.rstrip('/')}/", self._config.timeout)
        return self._client


@dataclass(frozen=True, slots=True)
class _ThreadRoot:
    """The first message of a Slack thread: its Slack channel, its timestamp, and its content if known."""

    channel: str
    ts: str
    content: Content | None


def _thread_root(message: Message) -> _ThreadRoot | None:
    """Return the first message of the Slack thread that contains the newest earlier message.

    None if no earlier message has a Slack channel and a timestamp (`ts`).
    """
    earlier = message.thread.earlier if message.thread is not None else ()
    sent = [one for one in earlier if one.reference.get("ts") and one.reference.get("channel")]
    if not sent:
        return None
    last = sent[-1].reference
    ts = last.get("thread_ts", last["ts"])
    content = next((one.content for one in sent if one.reference["ts"] == ts), None)
    return _ThreadRoot(last["channel"], ts, content)


def _resolved_content(first: Content | None, success: Content) -> dict[str, Any]:
    """Return the new content of a thread's first message: the success, then the failure in the success's colour.

    Blocks and attachments are always set, because chat.update keeps the fields that a request does not contain.
    """
    first = first or {}
    color = next((one["color"] for one in success.get("attachments", ()) if "color" in one), None)
    blocks = [*success.get("blocks", ()), *first.get("blocks", ())][:BLOCKS]
    attachments = [{**one, **({"color": color} if color else {})} for one in first.get("attachments", ())]
    text = str(success.get("text", ""))
    if not blocks and first.get("text"):
        # Slack counts some characters twice, so only half of the limit is used.
        text = f"{text}\n{first['text']}"[: TEXT // 2]
    return {"text": text, "blocks": blocks, "attachments": attachments}


def _with_note(message: Message) -> Content:
    """Return the content with the note as a block after the others; at the end of the text if there are no blocks,
    because Slack shows no text beside blocks.
    """
    content, note = message.content, message.note
    if not note:
        return content
    blocks = content.get("blocks")
    if blocks and isinstance(blocks, list):
        context = {"type": "context", "elements": [{"type": "plain_text", "emoji": False, "text": note}]}
        return {**content, "blocks": [*blocks[: BLOCKS - 1], context]}
    shown = cut_mrkdwn(escape_mrkdwn(note), NOTE)
    text = cut_mrkdwn(str(content.get("text", "")), TEXT - len("\n") - units(shown))
    return {**content, "text": f"{text}\n{shown}"}


def _body(message: Message, channel: str, *, thread_ts: str | None = None) -> dict[str, Any]:
    return {
        "channel": channel,
        **({"thread_ts": thread_ts} if thread_ts is not None else {}),
        **_with_note(message),
        "unfurl_links": False,
        "unfurl_media": False,
        "metadata": {"event_type": METADATA_TYPE, "event_payload": {"key": message.key}},
    }


CHANNEL_TYPE = ChannelType(
    config=SlackConfig,
    open=SlackChannel,
    title="Slack",
    rate="1/s",  # Slack allows one message per second and Slack channel, with short bursts (Slack, "Rate limits")
    burst=3,
    form=FORM,
    draw=draw,
    style=STYLE,
    example={"token": "example"},
    example_recipient="#alerts",
    aliases="recipients",
    outcomes=OUTCOMES,
)
