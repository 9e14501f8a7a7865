"""Slack by its Web API, through slack-sdk over one shared session.

Answers and limits: Slack's documentation of chat.postMessage, of rate limits and of message metadata. A
Web API answer is HTTP 200 with `ok: false` as often as not, so the body decides.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from channels.common.retry_after import retry_after
from channels.common.secret import SecretFile, SecretUrl, reject_both, reveal
from channels.contract import (
    EXCERPT,
    Answer,
    ChannelError,
    Content,
    Finding,
    InDoubt,
    Later,
    Message,
    Never,
    Receipt,
    ThreadBy,
    UnknownRecipient,
    WirePreview,
)

if TYPE_CHECKING:
    import aiohttp
    from slack_sdk.errors import SlackApiError
    from slack_sdk.web.async_slack_response import AsyncSlackResponse

    from channels.slack.client import Client

Heard = TypeVar("Heard")

METADATA_TYPE = "notification_delivery"
"""The event_type of our messages' metadata; its payload is `{"key": …}`."""
REMEMBERED = 3600.0
"""Seconds for which a look-up's answer holds, a miss's too."""
LOOK_BACK = 100
"""Messages of a channel or a thread in which an earlier attempt is looked for."""
CLOCKS_DIFFER = 300.0
"""Seconds by which Slack's clock may be behind ours: an earlier attempt is looked for so long before its delivery."""
LONGEST_UPDATE = 4000
"""Characters of `text` that chat.update takes; more is `msg_too_long`."""
MOST_BLOCKS = 50

_CHANNEL_ID = re.compile(r"[CGD][A-Z0-9]{6,}")
_USER_ID = re.compile(r"[UW][A-Z0-9]{6,}")
_CHANNEL_NAME = re.compile(r"#[^\s#,<>&]{1,80}")
_PERSON = re.compile(r"[^@\s<>]+@[^@\s<>]+\.[^@\s<>]+")
_CHANNEL_MAILBOX = re.compile(r".+@[\w.-]+\.slack\.com", re.IGNORECASE)

_ADVICE = {
    "not_authed": "set channels.slack.token",
    "invalid_auth": "the token is wrong: check channels.slack.token",
    "account_inactive": "the token's account is gone: install the app again",
    "token_revoked": "the token was revoked: install the app again and change channels.slack.token",
    "token_expired": "the token has expired: change channels.slack.token",
    "missing_scope": "the app lacks a scope: it needs chat:write; for people's addresses users:read.email, to join channels:join",
    "method_not_supported_for_channel_type": "the app can join public channels only: invite it",
    "not_in_channel": "invite the app to the channel, or set channels.slack.join",
    "channel_not_found": "no such channel, or a private one that the app was not invited to",
    "is_archived": "the channel is archived: name another in the rule or in channels.slack.recipients",
    "restricted_action": "the workspace does not let the app post there: ask its admin",
    "invalid_blocks": "the template makes blocks that Slack refuses: run dispatcher preview",
    "invalid_attachments": "the template makes attachments that Slack refuses: run dispatcher preview",
    "msg_too_long": "the message is too long: run dispatcher preview",
    "no_text": "the message is empty: run dispatcher preview",
    "ekm_access_denied": "the workspace's admin has stopped posting",
    "team_access_not_granted": "the app is not installed in that workspace",
}
_LATER = {
    "ratelimited",
    "rate_limited",
    "service_unavailable",
    "request_timeout",
    "team_added_to_org",
    "org_login_required",
}
_UNKNOWN = {"internal_error", "fatal_error"}
"""Slack's words: "possible some aspect of the operation succeeded before the error"."""
_WEBHOOK_ADVICE = {
    "invalid_payload": "the template makes what Slack refuses: run dispatcher preview",
    "invalid_blocks": "the template makes blocks that Slack refuses: run dispatcher preview",
    "no_text": "the message is empty: run dispatcher preview",
    "channel_is_archived": "the webhook's channel is archived: make a webhook for another",
    "channel_not_found": "the webhook's channel is gone: make a webhook for another",
    "no_service": "the webhook was switched off or removed: make a new one",
    "no_team": "the webhook's workspace is gone",
    "invalid_token": "the webhook's address is wrong: check channels.slack.webhooks",
    "action_prohibited": "the workspace's admin has restricted posting there",
    "posting_to_general_channel_denied": "the webhook's creator may not post there",
}
"""Slack, "Handling errors" of incoming webhooks."""
_AS_JSON = {"Content-Type": "application/json"}
_NO_RECIPIENT = {"users_not_found", "user_not_found"}


_NO_THREAD = {
    "thread_not_found",
    "message_not_found",
    "cannot_reply_to_message",
    "edit_window_closed",
    "cant_update_message",
    "is_archived",
    "channel_not_found",
}
"""The thread can't go on: its first message is gone or can't be changed any more, or its channel was archived."""
_WEBHOOK_LATER = {"rollup_error"}
"""Of a webhook's answers with status 500; Slack's "Changes to webhook errors"."""


class SlackWebhook(SecretUrl):
    """An incoming webhook: posts into one channel, without a token, threads or look-ups."""


class SlackConfig(BaseModel):
    """A bot's token, or webhooks, and what launch plans' recipients are called here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: SecretStr | None = None
    token_file: SecretFile | None = None
    api_url: str = Field("https://slack.com/api/", pattern=r"^https?://\S+$")
    """`https://slack-gov.com/api/` for GovSlack; an Enterprise Grid's own host works as well."""
    recipients: Mapping[str, str] = Field(default_factory=dict)
    """What a rule's recipient means: a #channel, a channel's or user's id, or a person's mail address."""
    webhooks: Mapping[str, SlackWebhook] = Field(default_factory=dict)
    """Incoming webhooks, by the names that launch plans use for them."""
    join: bool = False
    """Whether the app joins a public channel that it is not in, instead of giving up; needs the scope channels:join."""
    thread: ThreadBy | Literal["none"] = "launch_plan"
    """What one thread is about. The launch plan's next success ends it, whichever it is."""
    fallback: Literal["email", "none"] = "none"
    """Where a recipient goes that Slack can't serve."""
    timeout: float = Field(20, gt=0, le=100)
    """Seconds to wait for an answer."""

    @model_validator(mode="after")
    def _has_a_token(self) -> Self:
        reject_both("token", self.token, self.token_file)
        if self.token is None and self.token_file is None and not self.webhooks:
            raise ValueError("give token or token_file: the bot token of your Slack app (xoxb-…)")
        return self


class SlackChannel:
    """Messages to channels and people. Content: `text`, and `blocks` or `attachments`, as chat.postMessage takes them."""

    def __init__(self, config: SlackConfig) -> None:
        self._config = config
        self._client: Client | None = None
        self._session: aiohttp.ClientSession | None = None
        self._known: dict[str, tuple[float, str | None]] = {}
        """What a look-up found, and until when that holds."""

    def address(self, recipient: str) -> str:
        if recipient in self._config.webhooks:
            return recipient
        if recipient.startswith("https://"):
            raise UnknownRecipient(
                "a webhook's address is a secret: name it in channels.slack.webhooks, and use that name"
            )
        if self._config.token is None and self._config.token_file is None:
            raise UnknownRecipient(
                "no such webhook in channels.slack.webhooks, and without channels.slack.token nothing else"
            )
        target = self._config.recipients.get(recipient, recipient)
        if _CHANNEL_MAILBOX.fullmatch(target):
            raise UnknownRecipient(
                "a Slack channel's own mail address, which takes mail only", reachable_by=("email", target)
            )
        if not any(form.fullmatch(target) for form in (_CHANNEL_NAME, _CHANNEL_ID, _USER_ID, _PERSON)):
            raise UnknownRecipient(
                "neither a #channel, a channel's or user's id, nor a mail address: add it to channels.slack.recipients"
            )
        return target

    def destination(self, recipients: tuple[str, ...]) -> str:
        return recipients[0]

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
            return await self._send_by(webhook, message)
        channel = await self._channel(message.recipients[0])
        thread = _thread_of(message)
        if message.in_doubt and (earlier := await self._earlier(message, thread, channel)) is not None:
            return earlier
        if thread is not None:
            try:
                return await self._go_on(message, thread)
            except Never as refusal:
                if refusal.answer is None or refusal.answer.status not in _NO_THREAD:
                    raise
        return await self._post(_body(message, channel))

    async def _go_on(self, message: Message, thread: _Thread) -> Receipt:
        """Reply in the thread; good news changes its first message too, first: changing it twice does no harm."""
        talk = message.thread
        if talk is not None and talk.resolves and not talk.superseded:
            content = _recovered(thread.content, message.content)
            await self._call("chat.update", {"channel": thread.channel, "ts": thread.ts, **content})
        return await self._post(_body(message, thread.channel, thread=thread.ts))

    async def _post(self, body: Mapping[str, Any]) -> Receipt:
        """Post, into a channel that has to be joined first where the settings say so."""
        try:
            answer = await self._call("chat.postMessage", body)
        except Never as refusal:
            if not self._config.join or refusal.answer is None or refusal.answer.status != "not_in_channel":
                raise
            await self._join(str(body["channel"]))
            answer = await self._call("chat.postMessage", body)
        reference = {"channel": str(answer.get("channel", body["channel"])), "ts": str(answer.get("ts", ""))}
        if "thread_ts" in body:
            reference["thread_ts"] = body["thread_ts"]
        return Receipt(answer=Answer("ok", f"ts {reference['ts']}"), reference=reference)

    async def _join(self, channel: str) -> None:
        """Raises Later, or Never where the channel can't be joined."""
        identity = await self._conversation(channel)
        try:
            await self._call("conversations.join", {"channel": identity or channel})
        except InDoubt as error:  # joining twice does no harm
            raise Later(error.reason, answer=error.answer) from None

    async def _send_by(self, webhook: SlackWebhook, message: Message) -> Receipt:
        """Post by an incoming webhook, which answers in plain text and says nothing of where the message is."""
        import aiohttp  # noqa: PLC0415

        try:
            url = reveal(webhook.url, webhook.url_file) or ""
        except OSError as error:
            raise Later(f"the webhook's url_file can't be read: {error.strerror}") from None
        body = {**message.content, "unfurl_links": False, "unfurl_media": False}
        try:
            sending = self._opened().post(url, data=orjson.dumps(body), headers=_AS_JSON, allow_redirects=False)
            async with sending as response:
                said = (await response.content.read(EXCERPT)).decode(errors="replace")
                status, wish = response.status, retry_after(response.headers)
        except aiohttp.InvalidURL:
            raise Never("the webhook's address is no URL: check channels.slack.webhooks") from None
        except aiohttp.ClientConnectorError as error:
            reason = error.strerror or type(error).__name__
            raise Later(f"Slack can't be reached: {reason}", provider_wide=True) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise InDoubt(f"Slack did not answer: {type(error).__name__}; it may have taken the message") from None
        return _webhook_receipt(status, said.replace(url, "********"), wish)

    async def check(self) -> Sequence[Finding]:
        """`auth.test`, whose answer also names the token's scopes (`x-oauth-scopes`). Webhooks can't be tried unheard."""
        if self._config.token is None and self._config.token_file is None:
            return [Finding("webhooks alone: they can't be tried without telling somebody")]
        try:
            who, scopes = await self._who_we_are()
        except ChannelError as error:
            return [Finding(error.reason, ok=False)]
        return [Finding(f"the token is accepted: {who}"), *self._lacking(scopes)]

    async def _who_we_are(self) -> tuple[str, frozenset[str] | None]:
        """Our name and the workspace's, and our scopes where Slack names them. Raises Later or Never."""
        try:
            response = await self._asked("auth.test", {})
        except InDoubt as error:  # nothing was changed, whatever happened
            raise Later("Slack did not answer auth.test: check channels.slack.api_url", answer=error.answer) from None
        data = response.data if isinstance(response.data, dict) else {}
        headers = {str(name).lower(): str(value) for name, value in response.headers.items()}
        told = headers.get("x-oauth-scopes")
        scopes = None if told is None else frozenset(scope.strip() for scope in told.split(","))
        return f"{data.get('user', '?')} in workspace {data.get('team', '?')}", scopes

    def _lacking(self, scopes: frozenset[str] | None) -> list[Finding]:
        """What the app can't do for want of a scope. Wrong is what the settings need; the rest is only said."""
        if scopes is None:
            return [Finding("Slack doesn't say which scopes the token has: chat:write is needed")]
        advice = "add it to the app under OAuth & Permissions, and install the app again"
        if "chat:write" not in scopes:
            return [Finding(f"scope chat:write is missing, nothing can be posted: {advice}", ok=False)]
        findings = [Finding("scope chat:write is there")]
        if "users:read.email" not in scopes:
            named = any(_PERSON.fullmatch(target) for target in self._config.recipients.values())
            lost = "people can't be found by their mail address"
            findings.append(Finding(f"scope users:read.email is missing, {lost}: {advice}", ok=not named))
        if not scopes & {"channels:history", "groups:history", "im:history"}:
            lost = "a in_doubt message is repeated without a look at what has arrived"
            findings.append(Finding(f"no history scope, {lost}: channels:history lets the app look"))
        if self._config.join and "channels:join" not in scopes:
            findings.append(Finding(f"scope channels:join is missing, channels can't be joined: {advice}", ok=False))
        return findings

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _channel(self, address: str) -> str:
        """Where to post. A user's id will do: Slack opens the direct message with our app by itself."""
        if not _PERSON.fullmatch(address):
            return address
        user = await self._remembered(address, self._user_of)
        if user is None:
            raise UnknownRecipient("nobody in this Slack workspace has that mail address")
        return user

    async def _user_of(self, address: str) -> str | None:
        try:
            answer = await self._look("users.lookupByEmail", {"email": address})
        except UnknownRecipient:
            return None
        return str(answer["user"]["id"])

    async def _earlier(self, message: Message, thread: _Thread | None, channel: str) -> Receipt | None:
        """The message that an earlier attempt left behind, if it did: in its thread, else in the channel."""
        if thread is not None:
            since = message.created_at.timestamp() - CLOCKS_DIFFER
            query = {"ts": thread.ts, "oldest": f"{since:.6f}"}
            found = await self._found("conversations.replies", message.key, thread.channel, query)
            if found is not None:
                return found
        try:
            identity = await self._conversation(channel)
        except Never:
            return None
        return None if identity is None else await self._found("conversations.history", message.key, identity, {})

    async def _found(self, method: str, key: str, channel: str, query: Mapping[str, Any]) -> Receipt | None:
        """The message of that key among those that a method lists; None too where the app may not look."""
        asked = {"channel": channel, "limit": LOOK_BACK, "include_all_metadata": "true", **query}
        try:
            listed = await self._look(method, asked)
        except Never:  # without the history scope nobody can look: post, at the risk of a second message
            return None
        for message in listed.get("messages", ()):
            if message.get("metadata", {}).get("event_payload", {}).get("key") == key:
                ts, root = str(message["ts"]), str(message.get("thread_ts", message["ts"]))
                reference = {"channel": channel, "ts": ts} | ({"thread_ts": root} if root != ts else {})
                return Receipt(answer=Answer("ok", f"an earlier attempt had arrived: ts {ts}"), reference=reference)
        return None

    async def _conversation(self, channel: str) -> str | None:
        """The conversation's id, which reading history demands where posting takes a name or a user."""
        if _USER_ID.fullmatch(channel):
            opened = await self._look("conversations.open", {"users": channel})
            return str(opened["channel"]["id"])
        if channel.startswith("#"):
            return await self._remembered(channel, self._channel_named)
        return channel

    async def _channel_named(self, name: str) -> str | None:
        cursor = ""
        while True:
            page = await self._look("conversations.list", {"limit": 1000, "exclude_archived": "true", "cursor": cursor})
            for channel in page.get("channels", ()):
                if channel.get("name") == name.removeprefix("#"):
                    return str(channel["id"])
            cursor = page.get("response_metadata", {}).get("next_cursor", "")
            if not cursor:
                return None

    async def _remembered(self, asked: str, look_up: Any) -> str | None:
        now = asyncio.get_running_loop().time()
        until, answer = self._known.get(asked, (0.0, None))
        if until <= now:
            answer = await look_up(asked)
            self._known[asked] = (now + REMEMBERED, answer)
        return answer

    async def _look(self, method: str, query: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask something that changes nothing: repeated in place, for a moment, where the answer was no answer."""
        tries = AsyncRetrying(
            retry=retry_if_exception(_worth_asking_again),
            wait=wait_random_exponential(multiplier=0.2, max=2),
            stop=stop_after_attempt(3),
            reraise=True,
        )
        try:
            answer: AsyncSlackResponse = await tries(self._asked, method, query)
        except InDoubt as error:  # nothing was changed, whatever happened
            raise Later(error.reason, answer=error.answer) from None
        if not isinstance(answer.data, dict):
            raise Later("Slack gave an answer that is no JSON object")
        return answer.data

    async def _asked(self, method: str, query: Mapping[str, Any]) -> AsyncSlackResponse:
        """Ask the Web API, once: its answer, with the headers. Raises as `_call` does."""
        client = self._ready()
        return await _heard(client, client.api_call(method, http_verb="GET", params=dict(query)))

    async def _call(self, method: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have the Web API do something, once. Raises the ChannelError that its answer, or its silence, means."""
        client = self._ready()
        return await _heard(client, client.post(method, orjson.dumps(body)))

    def _opened(self) -> aiohttp.ClientSession:
        import aiohttp  # noqa: PLC0415

        if self._session is None:
            limits = aiohttp.ClientTimeout(total=self._config.timeout)
            # slack-sdk finds the proxy by itself; aiohttp would look into ~/.netrc for each message, in a thread.
            self._session = aiohttp.ClientSession(timeout=limits)
        return self._session

    def _ready(self) -> Client:
        if self._client is None:
            from channels.slack.client import Client  # noqa: PLC0415 - kept out of the command line's start

            self._client = Client(f"{self._config.api_url.rstrip('/')}/", self._opened())
        try:
            self._client.token = reveal(self._config.token, self._config.token_file)
        except OSError as error:
            raise Later(f"channels.slack.token_file can't be read: {error.strerror}", provider_wide=True) from None
        return self._client


@dataclass(frozen=True, slots=True)
class _Thread:
    """A thread that has begun: where its first message is, and what it says if we know."""

    channel: str
    ts: str
    content: Content | None


def _thread_of(message: Message) -> _Thread | None:
    """The thread that the last of the earlier messages is in, or has begun; None where none has."""
    earlier = message.thread.earlier if message.thread is not None else ()
    placed = [one for one in earlier if one.reference.get("ts") and one.reference.get("channel")]
    if not placed:
        return None
    last = placed[-1].reference
    ts = last.get("thread_ts", last["ts"])
    content = next((one.content for one in placed if one.reference["ts"] == ts), None)
    return _Thread(last["channel"], ts, content)


def _recovered(first: Content | None, news: Content) -> dict[str, Any]:
    """What a thread's first message says from now on: the good news, and below it in its colour what it said before.

    Blocks and attachments are always named: chat.update keeps those that it isn't told of.
    """
    first = first or {}
    color = next((one["color"] for one in news.get("attachments", ()) if "color" in one), None)
    blocks = [*news.get("blocks", ()), *first.get("blocks", ())][:MOST_BLOCKS]
    attachments = [{**one, **({"color": color} if color else {})} for one in first.get("attachments", ())]
    text = str(news.get("text", ""))
    if not blocks and first.get("text"):
        text = f"{text}\n{first['text']}"[: LONGEST_UPDATE // 2]  # Slack counts some characters twice
    return {"text": text, "blocks": blocks, "attachments": attachments}


def _webhook_receipt(status: int, said: str, wish: timedelta | None) -> Receipt:
    """Read a webhook's answer. Raises the ChannelError that it means."""
    code = said.strip() if re.fullmatch(r"[a-z_]{1,60}", said.strip()) else ""
    answer = Answer(str(status), code)
    match status:
        case 200:
            return Receipt(answer=answer)
        case 429:
            raise Later("Slack takes no more for now: 429", answer=answer, retry_after=wish)
        case 502 | 503 | 504:
            raise Later(f"Slack is in trouble: {status}", answer=answer, retry_after=wish, provider_wide=True)
        case _ if code in _WEBHOOK_LATER:
            raise Later(f"Slack takes no more for now: {code}", answer=answer, retry_after=wish)
        case _ if status >= 500 or status < 300:
            raise InDoubt(f"Slack answered {code or status}: it may have taken the message", answer=answer)
        case _:
            advice = _WEBHOOK_ADVICE.get(code, "check the webhook in channels.slack.webhooks")
            raise Never(f"Slack refused: {code or status}; {advice}", answer=answer)


def _body(message: Message, channel: str, *, thread: str | None = None) -> dict[str, Any]:
    return {
        "channel": channel,
        **({"thread_ts": thread} if thread is not None else {}),
        **message.content,
        "unfurl_links": False,
        "unfurl_media": False,
        "metadata": {"event_type": METADATA_TYPE, "event_payload": {"key": message.key}},
    }


def _worth_asking_again(error: BaseException) -> bool:
    return isinstance(error, InDoubt) or (isinstance(error, Later) and error.retry_after is None)


async def _heard(client: Client, answer: Awaitable[Heard]) -> Heard:
    """What the Web API answers. Raises the ChannelError that its answer, or its silence, means."""
    import aiohttp  # noqa: PLC0415 - kept out of the command line's start
    from slack_sdk.errors import SlackApiError, SlackClientError  # noqa: PLC0415

    try:
        return await answer
    except SlackApiError as error:
        raise _meaning(error, client.token or "") from None
    except aiohttp.ClientConnectorError as error:
        reason = error.strerror or type(error).__name__
        raise Later(f"Slack can't be reached: {reason}", provider_wide=True) from None
    except (aiohttp.ClientError, TimeoutError, OSError, SlackClientError, AttributeError, ValueError) as error:
        raise InDoubt(f"Slack did not answer: {type(error).__name__}; it may have taken the message") from None


def _meaning(error: SlackApiError, token: str) -> ChannelError:
    """What an answer that is not `ok` means. Slack's common errors, sorted by what to do next."""
    response = error.response
    status = int(getattr(response, "status_code", 0) or getattr(response, "status", 0))
    data = getattr(response, "data", None)
    code = _without(token, str(data.get("error", "")) if isinstance(data, dict) else "")
    answer = Answer(code or str(status), _excerpt(data, token))
    wish = retry_after(getattr(response, "headers", None) or {})
    if status == 429 or code in _LATER:
        return Later(f"Slack takes no more for now: {code or status}", answer=answer, retry_after=wish)
    if status in {502, 503, 504}:
        return Later(f"Slack is in trouble: {status}", answer=answer, retry_after=wish, provider_wide=True)
    if code in _UNKNOWN or status >= 500 or not code:
        return InDoubt(f"Slack answered {code or status}: it may have taken the message", answer=answer)
    if code in _NO_RECIPIENT:
        return UnknownRecipient("no such person in this Slack workspace", answer=answer)
    advice = _ADVICE.get(code)
    return Never(f"Slack refused: {code}{'; ' + advice if advice else ''}", answer=answer)


def _without(token: str, said: str) -> str:
    """A proxy at `api_url` may repeat what it was shown."""
    return said.replace(token, "********") if token else said


def _excerpt(data: object, token: str) -> str:
    """What Slack said, without what it repeats of the message."""
    if not isinstance(data, dict):
        return ""
    said = {name: data[name] for name in ("error", "needed", "provided", "errors", "warning") if name in data}
    return _without(token, orjson.dumps(said).decode())[:EXCERPT]
