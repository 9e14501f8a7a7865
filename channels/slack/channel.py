"""The Slack channel: posts messages through the Web API with slack-sdk, or through incoming webhooks.

Limits, and the meaning of answers, follow Slack's documentation of chat.postMessage, rate limits and message metadata.
The Web API reports most errors with HTTP 200 and `ok: false`, so only the body shows whether a request has succeeded.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
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

Result = TypeVar("Result")

METADATA_TYPE = "notification_delivery"
"""The `event_type` in the metadata of the dispatcher's Slack messages. The metadata's payload is `{"key": …}` with the
delivery's key."""
LOOKUP_TTL = 3600.0
"""Seconds for which the result of a look-up (the id for a name or mail address) is cached. That nothing was found is
cached too."""
HISTORY_LIMIT = 100
"""Maximum number of messages in a Slack channel or thread that are searched for a message from an earlier attempt."""
MAX_CLOCK_SKEW = 300.0
"""Maximum number of seconds by which Slack's clock may be behind ours. To find the message of an earlier attempt, the
search in a thread starts this long before `created_at`."""
MAX_UPDATE_TEXT = 4000
"""Maximum number of characters of `text` in a request to chat.update. Slack refuses a longer text with `msg_too_long`.
"""
MAX_BLOCKS = 50

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
    "missing_scope": (
        "the app lacks a scope: it needs chat:write; for people's addresses users:read.email, to join channels:join"
    ),
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
_IN_DOUBT = {"internal_error", "fatal_error"}
"""Error codes after which the message may have arrived. Slack's documentation of these codes says: "possible some
aspect of the operation succeeded before the error"."""
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
"""Mapping from an error code of an incoming webhook to advice for the operator. The codes are from Slack's "Handling
errors" for incoming webhooks."""
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
"""Error codes which mean that the thread can't be continued, so the message is posted outside the thread. For example,
the first message of the thread was deleted, or the Slack channel is archived."""
_WEBHOOK_LATER = {"rollup_error"}
"""Error codes of temporary failures that an incoming webhook reports with status 500 (Slack, "Changes to webhook
errors")."""


class SlackWebhook(SecretUrl):
    """An incoming webhook. It posts to one Slack channel and needs no token, but it supports no threads and no
    look-ups.
    """


class SlackConfig(BaseModel):
    """The settings of the Slack channel: a bot token or incoming webhooks, and aliases for recipients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: SecretStr | None = None
    token_file: SecretFile | None = None
    api_url: str = Field("https://slack.com/api/", pattern=r"^https?://\S+$")
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


class SlackChannel:
    """Sends messages to Slack channels and people. Content: `text`, and `blocks` or `attachments`, as in
    chat.postMessage.
    """

    def __init__(self, config: SlackConfig) -> None:
        self._config = config
        self._client: Client | None = None
        self._session: aiohttp.ClientSession | None = None
        self._lookups: dict[str, tuple[float, str | None]] = {}
        """Mapping from a name that was looked up to the cached result: the time at which it expires, on the event
        loop's clock, and the id, or None if nothing was found."""

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
            return await self._send_by_webhook(webhook, message)
        channel = await self._channel(message.recipients[0])
        root = _thread_root(message)
        if message.in_doubt and (earlier := await self._find_earlier_attempt(message, root, channel)) is not None:
            return earlier
        if root is not None:
            try:
                return await self._reply(message, root)
            except Never as refusal:
                if refusal.answer is None or refusal.answer.status not in _NO_THREAD:
                    raise
        return await self._post_message(_body(message, channel))

    async def _reply(self, message: Message, root: _ThreadRoot) -> Receipt:
        """Reply in the thread. If the message is a resolved notice, first update the first message of the thread.

        The update comes before the reply, because it can be repeated without harm: if the reply fails, a retry does
        both again.
        """
        thread = message.thread
        if thread is not None and thread.resolves and not thread.superseded:
            content = _resolved_content(root.content, message.content)
            await self._call("chat.update", {"channel": root.channel, "ts": root.ts, **content})
        return await self._post_message(_body(message, root.channel, thread_ts=root.ts))

    async def _post_message(self, body: Mapping[str, Any]) -> Receipt:
        """Post a message.

        If Slack refuses because the app is not in the Slack channel, and the setting `join` is true, join and post
        again.
        """
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
        """Join a public Slack channel. Raises `Never` if the app can't join it, `Later` if joining failed for now."""
        channel_id = await self._conversation_id(channel)
        try:
            await self._call("conversations.join", {"channel": channel_id or channel})
        except InDoubt as error:  # try again later, because joining twice does no harm
            raise Later(error.reason, answer=error.answer) from None

    async def _send_by_webhook(self, webhook: SlackWebhook, message: Message) -> Receipt:
        """Post through an incoming webhook. The webhook answers with plain text, which does not identify the posted
        message.
        """
        import aiohttp  # noqa: PLC0415

        try:
            url = reveal(webhook.url, webhook.url_file) or ""
        except OSError as error:
            raise Later(f"the webhook's url_file can't be read: {error.strerror}") from None
        body = {**message.content, "unfurl_links": False, "unfurl_media": False}
        try:
            request = self._open_session().post(url, data=orjson.dumps(body), headers=_AS_JSON, allow_redirects=False)
            async with request as response:
                text = (await response.content.read(EXCERPT)).decode(errors="replace")
                status, delay = response.status, retry_after(response.headers)
        except aiohttp.InvalidURL:
            raise Never("the webhook's address is no URL: check channels.slack.webhooks") from None
        except aiohttp.ClientConnectorError as error:
            reason = error.strerror or type(error).__name__
            raise Later(f"Slack can't be reached: {reason}", provider_wide=True) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise InDoubt(f"Slack did not answer: {type(error).__name__}; it may have taken the message") from None
        return _webhook_receipt(status, text.replace(url, "********"), delay)

    async def check(self) -> Sequence[Finding]:
        """Test the token with `auth.test`, and check its scopes. Webhooks are not tested, because a test would post a
        message.
        """
        if self._config.token is None and self._config.token_file is None:
            return [Finding("webhooks only: they can't be tested without posting a message")]
        try:
            identity, scopes = await self._identity_and_scopes()
        except ChannelError as error:
            return [Finding(error.reason, ok=False)]
        return [Finding(f"the token is accepted: {identity}"), *self._scope_findings(scopes)]

    async def _identity_and_scopes(self) -> tuple[str, frozenset[str] | None]:
        """Return the app's name with its workspace, and the token's scopes; None for the scopes if Slack doesn't name
        them.

        Raises `Later` or `Never`.
        """
        try:
            response = await self._get("auth.test", {})
        except InDoubt as error:  # the request changes nothing, so it can be repeated
            raise Later("Slack did not answer auth.test: check channels.slack.api_url", answer=error.answer) from None
        data = response.data if isinstance(response.data, dict) else {}
        headers = {str(name).lower(): str(value) for name, value in response.headers.items()}
        header = headers.get("x-oauth-scopes")
        scopes = None if header is None else frozenset(scope.strip() for scope in header.split(","))
        return f"{data.get('user', '?')} in workspace {data.get('team', '?')}", scopes

    def _scope_findings(self, scopes: frozenset[str] | None) -> list[Finding]:
        """Return a finding for each missing scope: a problem if the settings need the scope, else only a remark."""
        if scopes is None:
            return [Finding("Slack doesn't say which scopes the token has: chat:write is needed")]
        advice = "add it to the app under OAuth & Permissions, and install the app again"
        if "chat:write" not in scopes:
            return [Finding(f"scope chat:write is missing, nothing can be posted: {advice}", ok=False)]
        findings = [Finding("scope chat:write is there")]
        if "users:read.email" not in scopes:
            needed = any(_PERSON.fullmatch(target) for target in self._config.recipients.values())
            effect = "people can't be found by their mail address"
            findings.append(Finding(f"scope users:read.email is missing, {effect}: {advice}", ok=not needed))
        if not scopes & {"channels:history", "groups:history", "im:history"}:
            effect = "a message that is in doubt is sent again without a search for the first attempt"
            findings.append(Finding(f"no history scope, {effect}: channels:history allows the search"))
        if self._config.join and "channels:join" not in scopes:
            findings.append(Finding(f"scope channels:join is missing, channels can't be joined: {advice}", ok=False))
        return findings

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _channel(self, address: str) -> str:
        """Return the Slack channel to post to.

        For a person, this is the user id: Slack then posts to the direct message with that person.
        """
        if not _PERSON.fullmatch(address):
            return address
        user = await self._cached_lookup(address, self._user_id)
        if user is None:
            raise UnknownRecipient("nobody in this Slack workspace has that mail address")
        return user

    async def _user_id(self, address: str) -> str | None:
        try:
            answer = await self._query("users.lookupByEmail", {"email": address})
        except UnknownRecipient:
            return None
        return str(answer["user"]["id"])

    async def _find_earlier_attempt(self, message: Message, root: _ThreadRoot | None, channel: str) -> Receipt | None:
        """Search for a message that an earlier attempt posted, first in the thread, then in the Slack channel.

        None if no such message is found.
        """
        if root is not None:
            since = message.created_at.timestamp() - MAX_CLOCK_SKEW
            query = {"ts": root.ts, "oldest": f"{since:.6f}"}
            found = await self._search("conversations.replies", message.key, root.channel, query)
            if found is not None:
                return found
        try:
            channel_id = await self._conversation_id(channel)
        except Never:
            return None
        return None if channel_id is None else await self._search("conversations.history", message.key, channel_id, {})

    async def _search(self, method: str, key: str, channel: str, query: Mapping[str, Any]) -> Receipt | None:
        """Search for a message with this delivery key among the messages that a Web API method lists.

        None if no message has the key, or if the app lacks the scope to list messages.
        """
        parameters = {"channel": channel, "limit": HISTORY_LIMIT, "include_all_metadata": "true", **query}
        try:
            page = await self._query(method, parameters)
        except Never:  # a scope is missing, so post again; the message may appear twice
            return None
        for message in page.get("messages", ()):
            if message.get("metadata", {}).get("event_payload", {}).get("key") == key:
                ts, thread_ts = str(message["ts"]), str(message.get("thread_ts", message["ts"]))
                reference = {"channel": channel, "ts": ts} | ({"thread_ts": thread_ts} if thread_ts != ts else {})
                return Receipt(answer=Answer("ok", f"an earlier attempt had arrived: ts {ts}"), reference=reference)
        return None

    async def _conversation_id(self, channel: str) -> str | None:
        """Return the id of a Slack channel or direct message; None if there is no such Slack channel.

        The Web API methods that list messages accept no channel names and no user ids.
        """
        if _USER_ID.fullmatch(channel):
            opened = await self._query("conversations.open", {"users": channel})
            return str(opened["channel"]["id"])
        if channel.startswith("#"):
            return await self._cached_lookup(channel, self._channel_id)
        return channel

    async def _channel_id(self, name: str) -> str | None:
        cursor = ""
        while True:
            page = await self._query(
                "conversations.list", {"limit": 1000, "exclude_archived": "true", "cursor": cursor}
            )
            for channel in page.get("channels", ()):
                if channel.get("name") == name.removeprefix("#"):
                    return str(channel["id"])
            cursor = page.get("response_metadata", {}).get("next_cursor", "")
            if not cursor:
                return None

    async def _cached_lookup(self, name: str, look_up: Callable[[str], Awaitable[str | None]]) -> str | None:
        now = asyncio.get_running_loop().time()
        expires_at, result = self._lookups.get(name, (0.0, None))
        if expires_at <= now:
            result = await look_up(name)
            self._lookups[name] = (now + LOOKUP_TTL, result)
        return result

    async def _query(self, method: str, query: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call a Web API method that changes nothing. It is tried up to three times, because repeating it does no harm.

        Raises `Later` or `Never`.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception(_is_retryable),
            wait=wait_random_exponential(multiplier=0.2, max=2),
            stop=stop_after_attempt(3),
            reraise=True,
        )
        try:
            answer: AsyncSlackResponse = await retrying(self._get, method, query)
        except InDoubt as error:  # the request changes nothing, so it can be repeated
            raise Later(error.reason, answer=error.answer) from None
        if not isinstance(answer.data, dict):
            raise Later("Slack gave an answer that is no JSON object")
        return answer.data

    async def _get(self, method: str, query: Mapping[str, Any]) -> AsyncSlackResponse:
        """Send one GET request, and return the answer with its headers. Raises the same errors as `_call`."""
        client = self._client_with_token()
        return await _translate_errors(client, client.api_call(method, http_verb="GET", params=dict(query)))

    async def _call(self, method: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call a Web API method once, with a JSON body. Raises `Later`, `Never`, `UnknownRecipient` or `InDoubt`."""
        client = self._client_with_token()
        return await _translate_errors(client, client.post(method, orjson.dumps(body)))

    def _open_session(self) -> aiohttp.ClientSession:
        import aiohttp  # noqa: PLC0415

        if self._session is None:
            limits = aiohttp.ClientTimeout(total=self._config.timeout)
            # `trust_env` stays off: with it, aiohttp would read ~/.netrc for each message. The proxy settings of the
            # environment still apply, because slack-sdk reads them.
            self._session = aiohttp.ClientSession(timeout=limits)
        return self._session

    def _client_with_token(self) -> Client:
        if self._client is None:
            # Imported late: at the top of the file, slack-sdk would slow down every command.
            from channels.slack.client import Client  # noqa: PLC0415

            self._client = Client(f"{self._config.api_url.rstrip('/')}/", self._open_session())
        try:
            self._client.token = reveal(self._config.token, self._config.token_file)
        except OSError as error:
            raise Later(f"channels.slack.token_file can't be read: {error.strerror}", provider_wide=True) from None
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
    blocks = [*success.get("blocks", ()), *first.get("blocks", ())][:MAX_BLOCKS]
    attachments = [{**one, **({"color": color} if color else {})} for one in first.get("attachments", ())]
    text = str(success.get("text", ""))
    if not blocks and first.get("text"):
        # Slack counts some characters twice, so only half of the limit is used.
        text = f"{text}\n{first['text']}"[: MAX_UPDATE_TEXT // 2]
    return {"text": text, "blocks": blocks, "attachments": attachments}


def _webhook_receipt(status: int, text: str, delay: timedelta | None) -> Receipt:
    """Return the receipt if the webhook accepted the message, else raise the error. `delay`: the Retry-After time."""
    code = text.strip() if re.fullmatch(r"[a-z_]{1,60}", text.strip()) else ""
    answer = Answer(str(status), code)
    match status:
        case 200:
            return Receipt(answer=answer)
        case 429:
            raise Later("Slack takes no more for now: 429", answer=answer, retry_after=delay)
        case 502 | 503 | 504:
            raise Later(f"Slack is in trouble: {status}", answer=answer, retry_after=delay, provider_wide=True)
        case _ if code in _WEBHOOK_LATER:
            raise Later(f"Slack takes no more for now: {code}", answer=answer, retry_after=delay)
        case _ if status >= 500 or status < 300:
            raise InDoubt(f"Slack answered {code or status}: it may have taken the message", answer=answer)
        case _:
            advice = _WEBHOOK_ADVICE.get(code, "check the webhook in channels.slack.webhooks")
            raise Never(f"Slack refused: {code or status}; {advice}", answer=answer)


def _body(message: Message, channel: str, *, thread_ts: str | None = None) -> dict[str, Any]:
    return {
        "channel": channel,
        **({"thread_ts": thread_ts} if thread_ts is not None else {}),
        **message.content,
        "unfurl_links": False,
        "unfurl_media": False,
        "metadata": {"event_type": METADATA_TYPE, "event_payload": {"key": message.key}},
    }


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, InDoubt) or (isinstance(error, Later) and error.retry_after is None)


async def _translate_errors(client: Client, request: Awaitable[Result]) -> Result:
    """Await a request of the client. If it fails, raise the `ChannelError` for Slack's error answer or the failed
    connection.
    """
    import aiohttp  # noqa: PLC0415 - imported late: aiohttp would slow down every command
    from slack_sdk.errors import SlackApiError, SlackClientError  # noqa: PLC0415

    try:
        return await request
    except SlackApiError as error:
        raise _error_for(error, client.token or "") from None
    except aiohttp.ClientConnectorError as error:
        reason = error.strerror or type(error).__name__
        raise Later(f"Slack can't be reached: {reason}", provider_wide=True) from None
    except (aiohttp.ClientError, TimeoutError, OSError, SlackClientError, AttributeError, ValueError) as error:
        raise InDoubt(f"Slack did not answer: {type(error).__name__}; it may have taken the message") from None


def _error_for(error: SlackApiError, token: str) -> ChannelError:
    """Return the `ChannelError` for an answer of the Web API that reports an error."""
    response = error.response
    status = int(getattr(response, "status_code", 0) or getattr(response, "status", 0))
    data = getattr(response, "data", None)
    code = _masked(token, str(data.get("error", "")) if isinstance(data, dict) else "")
    answer = Answer(code or str(status), _excerpt(data, token))
    delay = retry_after(getattr(response, "headers", None) or {})
    if status == 429 or code in _LATER:
        return Later(f"Slack takes no more for now: {code or status}", answer=answer, retry_after=delay)
    if status in {502, 503, 504}:
        return Later(f"Slack is in trouble: {status}", answer=answer, retry_after=delay, provider_wide=True)
    if code in _IN_DOUBT or status >= 500 or not code:
        return InDoubt(f"Slack answered {code or status}: it may have taken the message", answer=answer)
    if code in _NO_RECIPIENT:
        return UnknownRecipient("no such person in this Slack workspace", answer=answer)
    advice = _ADVICE.get(code)
    return Never(f"Slack refused: {code}{'; ' + advice if advice else ''}", answer=answer)


def _masked(token: str, text: str) -> str:
    """Return the text with the token masked, because a proxy at `api_url` may repeat the token in its answer."""
    return text.replace(token, "********") if token else text


def _excerpt(data: object, token: str) -> str:
    """Return only the error fields of Slack's answer, because other fields may repeat the message."""
    if not isinstance(data, dict):
        return ""
    fields = {name: data[name] for name in ("error", "needed", "provided", "errors", "warning") if name in data}
    return _masked(token, orjson.dumps(fields).decode())[:EXCERPT]
