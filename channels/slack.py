"""Slack by its Web API, through slack-sdk over one shared session.

Answers and limits: Slack's documentation of chat.postMessage, of rate limits and of message metadata. A
Web API answer is HTTP 200 with `ok: false` as often as not, so the body decides.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from channels.contract import (
    EXCERPT,
    Answer,
    ChannelError,
    Finding,
    Later,
    Message,
    Never,
    Receipt,
    Scope,
    Unknown,
    Unserved,
    Wire,
)
from channels.retry_after import retry_after
from channels.secret import SecretFile, one_of, reveal

if TYPE_CHECKING:
    import aiohttp
    from slack_sdk.errors import SlackApiError
    from slack_sdk.web.async_client import AsyncWebClient
    from slack_sdk.web.async_slack_response import AsyncSlackResponse

METADATA_TYPE = "notification_delivery"
"""The event_type of our messages' metadata; its payload is `{"key": …}`."""
REMEMBERED = 3600.0
"""Seconds for which a look-up's answer holds, a miss's too."""
LOOK_BACK = 100
"""Messages of a channel's history in which an earlier attempt is looked for."""

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
    "missing_scope": "the app lacks a scope: it needs chat:write and, for people's addresses, users:read.email",
    "not_in_channel": "invite the app to the channel",
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
_NO_RECIPIENT = {"users_not_found", "user_not_found"}


class SlackConfig(BaseModel):
    """A bot's token, and what launch plans' recipients are called here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: SecretStr | None = None
    token_file: SecretFile | None = None
    api_url: str = Field("https://slack.com/api/", pattern=r"^https?://\S+$")
    recipients: Mapping[str, str] = Field(default_factory=dict)
    """What a rule's recipient means: a #channel, a channel's or user's id, or a person's mail address."""
    thread: Scope | Literal["none"] = "launch_plan"
    """What one thread is about. The launch plan's next success ends it, whichever it is."""
    fallback: Literal["email", "none"] = "none"
    """Where a recipient goes that Slack can't serve."""
    timeout: float = Field(20, gt=0, le=100)
    """Seconds to wait for an answer."""

    @model_validator(mode="after")
    def _has_a_token(self) -> Self:
        one_of("token", self.token, self.token_file)
        if self.token is None and self.token_file is None:
            raise ValueError("give token or token_file: the bot token of your Slack app (xoxb-…)")
        return self


class SlackChannel:
    """Messages to channels and people. Content: `text`, and `blocks` or `attachments`, as chat.postMessage takes them."""

    def __init__(self, config: SlackConfig) -> None:
        self._config = config
        self._client: AsyncWebClient | None = None
        self._session: aiohttp.ClientSession | None = None
        self._known: dict[str, tuple[float, str | None]] = {}
        """What a look-up found, and until when that holds."""

    def address(self, recipient: str) -> str:
        target = self._config.recipients.get(recipient, recipient)
        if _CHANNEL_MAILBOX.fullmatch(target):
            raise Unserved("a Slack channel's own mail address, which takes mail only")
        if not any(form.fullmatch(target) for form in (_CHANNEL_NAME, _CHANNEL_ID, _USER_ID, _PERSON)):
            raise Unserved(
                "neither a #channel, a channel's or user's id, nor a mail address: add it to channels.slack.recipients"
            )
        return target

    def destination(self, recipients: tuple[str, ...]) -> str:
        return recipients[0]

    def scope(self, address: str) -> Scope | None:
        del address
        return None if self._config.thread == "none" else self._config.thread

    def wire(self, message: Message) -> Wire:
        body = _body(message, message.recipients[0])
        return Wire("application/json", orjson.dumps(body, option=orjson.OPT_INDENT_2))

    async def send(self, message: Message) -> Receipt:
        channel = await self._channel(message.recipients[0])
        if message.doubtful and (earlier := await self._earlier(message.key, channel)) is not None:
            return earlier
        answer = await self._call("chat.postMessage", _body(message, channel))
        reference = {"channel": str(answer.get("channel", channel)), "ts": str(answer.get("ts", ""))}
        return Receipt(answer=Answer("ok", f"ts {reference['ts']}"), reference=reference)

    async def check(self) -> Sequence[Finding]:
        """`auth.test`, whose answer also names the token's scopes (`x-oauth-scopes`)."""
        try:
            who, scopes = await self._who_we_are()
        except ChannelError as error:
            return [Finding(error.reason, ok=False)]
        return [Finding(f"the token is accepted: {who}"), *self._lacking(scopes)]

    async def _who_we_are(self) -> tuple[str, frozenset[str] | None]:
        """Our name and the workspace's, and our scopes where Slack names them. Raises Later or Never."""
        try:
            response = await self._response("auth.test", {}, form=True)
        except Unknown as error:  # nothing was changed, whatever happened
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
            lost = "a doubtful message is repeated without a look at what has arrived"
            findings.append(Finding(f"no history scope, {lost}: channels:history lets the app look"))
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
            raise Unserved("nobody in this Slack workspace has that mail address")
        return user

    async def _user_of(self, address: str) -> str | None:
        try:
            answer = await self._look("users.lookupByEmail", {"email": address})
        except Unserved:
            return None
        return str(answer["user"]["id"])

    async def _earlier(self, key: str, channel: str) -> Receipt | None:
        """The message that an earlier attempt left behind, if it did; None too where the app may not look."""
        try:
            identity = await self._conversation(channel)
            if identity is None:
                return None
            query = {"channel": identity, "limit": LOOK_BACK, "include_all_metadata": "true"}
            history = await self._look("conversations.history", query)
        except Never:  # without the history scope nobody can look: post, at the risk of a second message
            return None
        for message in history.get("messages", ()):
            if message.get("metadata", {}).get("event_payload", {}).get("key") == key:
                reference = {"channel": identity, "ts": str(message["ts"])}
                return Receipt(
                    answer=Answer("ok", f"an earlier attempt had arrived: ts {message['ts']}"), reference=reference
                )
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
            answer: Mapping[str, Any] = await tries(self._call, method, query, form=True)
        except Unknown as error:  # nothing was changed, whatever happened
            raise Later(error.reason, answer=error.answer) from None
        return answer

    async def _call(self, method: str, body: Mapping[str, Any], *, form: bool = False) -> Mapping[str, Any]:
        """One call of the Web API. Raises the ChannelError that its answer, or its silence, means."""
        data = (await self._response(method, body, form=form)).data
        if not isinstance(data, dict):
            raise Unknown("Slack gave an answer that is no JSON object; it may have taken the message")
        return data

    async def _response(self, method: str, body: Mapping[str, Any], *, form: bool) -> AsyncSlackResponse:
        """The same, with the answer's headers."""
        import aiohttp  # noqa: PLC0415 - kept out of the command line's start
        from slack_sdk.errors import SlackApiError, SlackClientError  # noqa: PLC0415

        client = await self._ready()
        payload = {"params": body} if form else {"json": body}
        try:
            return await client.api_call(method, http_verb="GET" if form else "POST", **payload)  # type: ignore[arg-type]
        except SlackApiError as error:
            raise _meaning(error) from None
        except aiohttp.ClientConnectorError as error:
            reason = error.strerror or type(error).__name__
            raise Later(f"Slack can't be reached: {reason}", everyone=True) from None
        except (aiohttp.ClientError, TimeoutError, OSError, SlackClientError, AttributeError, ValueError) as error:
            raise Unknown(f"Slack did not answer: {type(error).__name__}; it may have taken the message") from None

    async def _ready(self) -> AsyncWebClient:
        import aiohttp  # noqa: PLC0415
        from slack_sdk.web.async_client import AsyncWebClient  # noqa: PLC0415

        if self._session is None or self._client is None:
            limits = aiohttp.ClientTimeout(total=self._config.timeout)
            self._session = aiohttp.ClientSession(timeout=limits, trust_env=True)
            self._client = AsyncWebClient(base_url=self._config.api_url, session=self._session, retry_handlers=[])
        try:
            self._client.token = reveal(self._config.token, self._config.token_file)
        except OSError as error:
            raise Later(f"channels.slack.token_file can't be read: {error.strerror}", everyone=True) from None
        return self._client


def _body(message: Message, channel: str) -> dict[str, Any]:
    return {
        "channel": channel,
        **message.content,
        "unfurl_links": False,
        "unfurl_media": False,
        "metadata": {"event_type": METADATA_TYPE, "event_payload": {"key": message.key}},
    }


def _worth_asking_again(error: BaseException) -> bool:
    return isinstance(error, Unknown) or (isinstance(error, Later) and error.retry_after is None)


def _meaning(error: SlackApiError) -> ChannelError:
    """What an answer that is not `ok` means. Slack's common errors, sorted by what to do next."""
    response = error.response
    status = int(getattr(response, "status_code", 0) or getattr(response, "status", 0))
    data = getattr(response, "data", None)
    code = str(data.get("error", "")) if isinstance(data, dict) else ""
    answer = Answer(code or str(status), _excerpt(data))
    wish = retry_after(getattr(response, "headers", None) or {})
    if status == 429 or code in _LATER:
        return Later(f"Slack takes no more for now: {code or status}", answer=answer, retry_after=wish)
    if status in {502, 503, 504}:
        return Later(f"Slack is in trouble: {status}", answer=answer, retry_after=wish, everyone=True)
    if code in _UNKNOWN or status >= 500 or not code:
        return Unknown(f"Slack answered {code or status}: it may have taken the message", answer=answer)
    if code in _NO_RECIPIENT:
        return Unserved("no such person in this Slack workspace", answer=answer)
    advice = _ADVICE.get(code)
    return Never(f"Slack refused: {code}{'; ' + advice if advice else ''}", answer=answer)


def _excerpt(data: object) -> str:
    """What Slack said, without what it repeats of the message."""
    if not isinstance(data, dict):
        return ""
    said = {name: data[name] for name in ("error", "needed", "provided", "errors", "warning") if name in data}
    return orjson.dumps(said).decode()[:EXCERPT]
