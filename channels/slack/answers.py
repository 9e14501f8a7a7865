"""What each answer of Slack means for a message, and what an operator can do about it.

Sources: the error lists of the Web API methods in Slack's documentation (chat.postMessage, chat.update,
conversations.*, users.lookupByEmail, auth.test), and "Handling errors" and "Changes to webhook errors" for incoming
webhooks. The Web API reports most errors with HTTP 200 and `ok: false`, so only the body shows whether a request has
succeeded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

import orjson

from channels.common.retry_after import retry_after
from channels.common.secret import mask, secrets_of_url
from channels.contract import EXCERPT, Answer, ChannelError, InDoubt, Later, Misconfigured, Never, UnknownRecipient


class Fault(Enum):
    """What a refusal is about. It decides about the outcome."""

    OURS = "ours"
    """The app or its token: every message waits until a person has acted."""
    OURS_HERE = "ours, here"
    """The app or its token, for some messages only: these wait until a person has acted."""
    BUSY = "busy"
    """Slack takes no message for now: the same message is sent again later."""
    UNKNOWN = "unknown"
    """The message may have arrived: it is searched for before it is sent again."""
    RECIPIENT = "recipient"
    """There is no such person: another channel may reach the recipient."""
    CHANNEL = "channel"
    """The Slack channel takes no message of the app. A reply is posted again outside its thread, because the recipient's
    name may belong to another channel now."""
    THREAD = "thread"
    """The thread can't be continued: the reply is posted outside it."""
    CHANGE = "change"
    """The first message of a thread can't be changed: the reply is posted all the same."""
    MESSAGE = "message"
    """Slack refuses this message: it is dead."""


class Meaning(NamedTuple):
    """One row of a table of answers."""

    fault: Fault
    advice: str = ""
    """What a person can change."""


_PREVIEW = "run dispatcher preview to see what is wrong with the template"
_WORKSPACE = "ask the workspace's admin"
_REINSTALL = "install the app again and change channels.slack.token"
_INVITE = "invite the app to the channel"

MEANINGS: Mapping[str, Meaning] = {
    # the app and its token
    "not_authed": Meaning(Fault.OURS, "set channels.slack.token"),
    "invalid_auth": Meaning(Fault.OURS, "the token is wrong: check channels.slack.token"),
    "account_inactive": Meaning(Fault.OURS, f"the token's account is gone: {_REINSTALL}"),
    "token_revoked": Meaning(Fault.OURS, f"the token was revoked: {_REINSTALL}"),
    "token_expired": Meaning(Fault.OURS, f"the token has expired: {_REINSTALL}"),
    "not_allowed_token_type": Meaning(Fault.OURS, "set channels.slack.token to the app's bot token (xoxb-…)"),
    "metadata_must_be_sent_from_app": Meaning(Fault.OURS, "set channels.slack.token to the app's bot token (xoxb-…)"),
    "is_bot": Meaning(Fault.OURS, "set channels.slack.token to the bot token of a Slack app (xoxb-…)"),
    "missing_scope": Meaning(Fault.OURS),  # the answer says which scope
    "app_access_restricted": Meaning(Fault.OURS, f"the workspace restricts the app: {_WORKSPACE}"),
    "accesslimited": Meaning(
        Fault.OURS, "the app may not be used from this network: check the app's allowed addresses"
    ),
    "enterprise_is_restricted": Meaning(Fault.OURS, "install the app in a workspace, and use that token"),
    "two_factor_setup_required": Meaning(Fault.OURS, "the token's account must set up two-factor authentication"),
    "method_deprecated": Meaning(Fault.OURS, "check channels.slack.api_url, or update the dispatcher"),
    "deprecated_endpoint": Meaning(Fault.OURS, "check channels.slack.api_url, or update the dispatcher"),
    "unknown_method": Meaning(Fault.OURS, "check channels.slack.api_url"),
    "message_limit_exceeded": Meaning(Fault.OURS, "the workspace has used up its number of messages"),
    "team_access_not_granted": Meaning(Fault.OURS_HERE, "install the app in that workspace"),
    # Slack itself
    "ratelimited": Meaning(Fault.BUSY),
    "rate_limited": Meaning(Fault.BUSY),
    "service_unavailable": Meaning(Fault.BUSY),
    "request_timeout": Meaning(Fault.BUSY),
    "team_added_to_org": Meaning(Fault.BUSY),
    "org_login_required": Meaning(Fault.BUSY),
    # "It's possible some aspect of the operation succeeded before the error was raised"
    "internal_error": Meaning(Fault.UNKNOWN),
    "fatal_error": Meaning(Fault.UNKNOWN),
    # the recipient
    "users_not_found": Meaning(Fault.RECIPIENT),
    "user_not_found": Meaning(Fault.RECIPIENT),
    "user_disabled": Meaning(Fault.RECIPIENT),
    "user_not_visible": Meaning(Fault.RECIPIENT),
    # the Slack channel
    "channel_not_found": Meaning(Fault.CHANNEL, "no such channel, or a private one that the app was not invited to"),
    "not_in_channel": Meaning(Fault.CHANNEL, f"{_INVITE}, or set channels.slack.join"),
    "is_archived": Meaning(
        Fault.CHANNEL, "the channel is archived: name another in the rule or in channels.slack.recipients"
    ),
    "is_inactive": Meaning(Fault.CHANNEL, "the channel is frozen, archived or deleted"),
    "channel_is_limited_access": Meaning(Fault.CHANNEL, _INVITE),
    "method_not_supported_for_channel_type": Meaning(Fault.CHANNEL, "the app can join public channels only: invite it"),
    "too_many_members": Meaning(Fault.CHANNEL, "nobody else can join the channel: name another"),
    "restricted_action": Meaning(Fault.CHANNEL, f"the workspace does not let the app post there: {_WORKSPACE}"),
    "restricted_action_read_only_channel": Meaning(Fault.CHANNEL, "the channel is read-only: let the app post there"),
    "restricted_action_thread_only_channel": Meaning(
        Fault.CHANNEL, "the channel takes replies only: name another in the rule"
    ),
    "ekm_access_denied": Meaning(Fault.CHANNEL, f"the workspace's admin has stopped posting there: {_WORKSPACE}"),
    "access_denied": Meaning(Fault.CHANNEL, _INVITE),
    "no_permission": Meaning(Fault.CHANNEL, _INVITE),
    "messages_tab_disabled": Meaning(Fault.CHANNEL, "switch the Messages tab on, under App Home of the Slack app"),
    "team_not_found": Meaning(Fault.CHANNEL, "with a token for an organization, name the channel by its id"),
    # the thread
    "thread_not_found": Meaning(Fault.THREAD),
    "invalid_thread_ts": Meaning(Fault.THREAD),
    "message_not_found": Meaning(Fault.THREAD),
    "cannot_reply_to_message": Meaning(Fault.THREAD),
    "thread_locked": Meaning(Fault.THREAD),
    "restricted_action_thread_locked": Meaning(Fault.THREAD),
    "restricted_action_non_threadable_channel": Meaning(Fault.THREAD),
    # the change of a thread's first message
    "edit_window_closed": Meaning(Fault.CHANGE),
    "cant_update_message": Meaning(Fault.CHANGE),
    "block_mismatch": Meaning(Fault.CHANGE),
    "update_failed": Meaning(Fault.CHANGE),
    "streaming_state_conflict": Meaning(Fault.CHANGE),
    "external_channel_migrating": Meaning(Fault.CHANGE),
    # the message
    "no_text": Meaning(Fault.MESSAGE, "the message is empty: run dispatcher preview"),
    "msg_too_long": Meaning(Fault.MESSAGE, "the message is too long: run dispatcher preview"),
    "msg_blocks_too_long": Meaning(Fault.MESSAGE, "the message's blocks are too long: run dispatcher preview"),
    "invalid_blocks": Meaning(Fault.MESSAGE, _PREVIEW),
    "invalid_blocks_format": Meaning(Fault.MESSAGE, _PREVIEW),
    "invalid_attachments": Meaning(Fault.MESSAGE, _PREVIEW),
    "too_many_attachments": Meaning(Fault.MESSAGE, _PREVIEW),
    "attachment_payload_limit_exceeded": Meaning(Fault.MESSAGE, _PREVIEW),
    "markdown_text_conflict": Meaning(Fault.MESSAGE, _PREVIEW),
    "too_many_contact_cards": Meaning(Fault.MESSAGE, _PREVIEW),
    "invalid_metadata_format": Meaning(Fault.MESSAGE, "the template must not set metadata"),
    "invalid_metadata_schema": Meaning(Fault.MESSAGE, "the template must not set metadata"),
    "metadata_too_large": Meaning(Fault.MESSAGE, "the template must not set metadata"),
    "slack_connect_canvas_sharing_blocked": Meaning(Fault.MESSAGE, f"the message links to a canvas: {_WORKSPACE}"),
    "slack_connect_file_link_sharing_blocked": Meaning(Fault.MESSAGE, f"the message links to a file: {_WORKSPACE}"),
    "slack_connect_lists_sharing_blocked": Meaning(Fault.MESSAGE, f"the message links to a list: {_WORKSPACE}"),
}
"""The meaning of each error code of the Web API. A code that is not in the table refuses the message; a reply with such
a code is first posted outside its thread."""

WEBHOOK_MEANINGS: Mapping[str, Meaning] = {
    "rollup_error": Meaning(Fault.BUSY),
    "invalid_payload": Meaning(Fault.MESSAGE, _PREVIEW),
    "invalid_blocks": Meaning(Fault.MESSAGE, _PREVIEW),
    "no_text": Meaning(Fault.MESSAGE, "the message is empty: run dispatcher preview"),
    "too_many_attachments": Meaning(Fault.MESSAGE, _PREVIEW),
    "channel_is_archived": Meaning(Fault.CHANNEL, "the webhook's channel is archived: make a webhook for another"),
    "channel_not_found": Meaning(Fault.CHANNEL, "the webhook's channel is gone: make a webhook for another"),
    "user_not_found": Meaning(Fault.CHANNEL, "the webhook's person is gone: make a webhook for another"),
    "no_service": Meaning(Fault.CHANNEL, "the webhook was switched off or removed: make a new one"),
    "no_service_id": Meaning(Fault.CHANNEL, "the webhook's address is wrong: check channels.slack.webhooks"),
    "no_active_hooks": Meaning(Fault.CHANNEL, "the webhook was switched off: make a new one"),
    "no_team": Meaning(Fault.CHANNEL, "the webhook's workspace is gone"),
    "team_disabled": Meaning(Fault.CHANNEL, "the webhook's workspace is gone"),
    "invalid_token": Meaning(Fault.CHANNEL, "the webhook's address is wrong: check channels.slack.webhooks"),
    "action_prohibited": Meaning(Fault.CHANNEL, "the workspace's admin has restricted posting there"),
    "posting_to_general_channel_denied": Meaning(Fault.CHANNEL, "the webhook's creator may not post there"),
}
"""The meaning of each error code of an incoming webhook, which answers with plain text."""

SCOPES: Mapping[str, str] = {
    "chat:write": "posts messages",
    "users:read.email": "finds people by their mail address",
    "channels:history": "searches public channels for a message whose answer was lost",
    "groups:history": "searches private channels for a message whose answer was lost",
    "im:history": "searches direct messages for a message whose answer was lost",
    "channels:read": "finds the id of a public channel that a rule names, to search it or to join it",
    "groups:read": "finds the id of a private channel that a rule names, to search it",
    "im:write": "finds the direct messages with a person, to search them",
    "channels:join": "joins public channels",
}
"""Mapping from each scope that the app may need to what it is for (Slack, "Scopes")."""
INSTALL_AGAIN = "add it to the app under OAuth & Permissions, and install the app again"
_POSTING = frozenset({"chat.postMessage", "chat.update", "auth.test"})
"""The methods without which no message can be sent."""
_SCOPE = re.compile(r"[a-z][a-z:._]{1,60}")
_CODE = re.compile(r"[a-z_]{1,60}")


def error_of(method: str, status: int, headers: Mapping[str, str], data: object, token: str) -> ChannelError:
    """Return the error for an answer of the Web API that is no success.

    `data`: the parsed body, or None if it is no JSON. The token is masked, because a proxy may repeat it.
    """
    fields = data if isinstance(data, dict) else {}
    code = mask(str(fields.get("error") or ""), [token])[:EXCERPT]
    answer = Answer(code or str(status), _excerpt(fields, token))
    meaning = MEANINGS.get(code, Meaning(Fault.MESSAGE))
    if meaning.fault is Fault.BUSY:
        return _error(meaning, code, answer, headers)
    if (by_status := _error_of_status(status, code, answer, headers)) is not None:
        return by_status
    if code == "missing_scope":
        return _missing_scope(str(fields.get("needed", "")), method, answer)
    if code:
        return _error(meaning, code, answer, headers)
    if status == 413:
        return Never("Slack refused: 413; the message is too long: run dispatcher preview", answer=answer)
    if 300 <= status <= 499:
        reason = f"the answer was {status}, which Slack never gives: check channels.slack.api_url and HTTPS_PROXY"
        return Misconfigured(reason, answer=answer)
    return InDoubt(f"Slack answered {status}: it may have taken the message", answer=answer)


def webhook_error(status: int, headers: Mapping[str, str], text: str, url: str) -> ChannelError | None:
    """Return the error for an answer of an incoming webhook; None if it accepted the message. `url`: a secret."""
    code = webhook_code(text, url)
    answer = Answer(str(status), code)
    if status == 200:
        return None
    if code in WEBHOOK_MEANINGS:
        return _error(WEBHOOK_MEANINGS[code], code, answer, headers)
    if (by_status := _error_of_status(status, "", answer, headers)) is not None:
        return by_status
    if status < 300:
        return InDoubt(f"Slack answered {status}: it may have taken the message", answer=answer)
    return Never(f"Slack refused: {code or status}; check the webhook in channels.slack.webhooks", answer=answer)


def webhook_code(text: str, url: str) -> str:
    """Return the code in a webhook's answer, such as `ok`; empty if there is none. `url`: a secret."""
    code = mask(text.strip(), secrets_of_url(url))
    return code if _CODE.fullmatch(code) else ""


def fault_of(refusal: Never) -> Fault | None:
    """Return what a refusal of the Web API is about; None if its code is not in the table."""
    meaning = MEANINGS.get(refusal.answer.status) if refusal.answer is not None else None
    return meaning.fault if meaning is not None else None


def _error(meaning: Meaning, code: str, answer: Answer, headers: Mapping[str, str]) -> ChannelError:
    refused = f"Slack refused: {code}{'; ' + meaning.advice if meaning.advice else ''}"
    match meaning.fault:
        case Fault.OURS:
            return Misconfigured(refused, answer=answer)
        case Fault.OURS_HERE:
            return Misconfigured(refused, answer=answer, provider_wide=False)
        case Fault.BUSY:
            return Later(f"Slack takes no more for now: {code}", answer=answer, retry_after=retry_after(headers))
        case Fault.UNKNOWN:
            return InDoubt(f"Slack answered {code}: it may have taken the message", answer=answer)
        case Fault.RECIPIENT:
            return UnknownRecipient("no such person in this Slack workspace", answer=answer)
        case Fault.CHANNEL | Fault.THREAD | Fault.CHANGE | Fault.MESSAGE:
            return Never(refused, answer=answer)


def _error_of_status(status: int, code: str, answer: Answer, headers: Mapping[str, str]) -> ChannelError | None:
    """Return the error for an HTTP status that says more than the code; None if the code decides."""
    delay = retry_after(headers)
    if status == 429:
        return Later(f"Slack takes no more for now: {code or status}", answer=answer, retry_after=delay)
    if status in {502, 503, 504}:
        return Later(f"Slack is in trouble: {status}", answer=answer, retry_after=delay, provider_wide=True)
    if status == 407:
        return Misconfigured("the proxy wants a login (407): write it in HTTPS_PROXY", answer=answer)
    if status >= 500:
        return InDoubt(f"Slack answered {code or status}: it may have taken the message", answer=answer)
    return None


def _missing_scope(needed: str, method: str, answer: Answer) -> Misconfigured:
    """Return the error for a missing scope. Without the scope of a look-up, other messages may still be posted."""
    scopes = [scope for scope in re.split(r"[,\s]+", needed) if _SCOPE.fullmatch(scope)][:5]
    named = " or ".join(f"{scope}, which {SCOPES[scope]}" if scope in SCOPES else scope for scope in scopes)
    reason = f"the app lacks the scope {named or 'that ' + method + ' needs'}: {INSTALL_AGAIN}"
    return Misconfigured(f"Slack refused: missing_scope; {reason}", answer=answer, provider_wide=method in _POSTING)


def _excerpt(fields: Mapping[str, Any], token: str) -> str:
    """Return only the error fields of Slack's answer, because other fields may repeat the message."""
    shown = {name: fields[name] for name in ("error", "needed", "provided", "errors", "warning") if name in fields}
    return mask(orjson.dumps(shown).decode(), [token])[:EXCERPT] if shown else ""


OUTCOMES = """
| Slack | `ok: true` | 429, `ratelimited`, `service_unavailable`, `request_timeout`, 502 to 504, no connection; [an `error` that refuses the app](#slack), 3xx and 4xx without an `error` | every other `error` | 500, `internal_error`, `fatal_error`, no answer, no JSON |
| Slack's webhooks | 200 | 429, `rollup_error`, 502 to 504, no connection | every other 3xx and 4xx | other 5xx, no answer |
"""
