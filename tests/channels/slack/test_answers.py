"""Each documented answer of Slack's Web API and incoming webhooks: its outcome, and its advice."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from channels.contract import ChannelError, InDoubt, Later, Misconfigured, Never, UnknownRecipient
from channels.slack.answers import MEANINGS, SCOPES, Fault, error_of, fault_of, webhook_error

TOKEN = "xoxb-secret-of-the-tests"
RETRY_AFTER = {"Retry-After": "7"}
WEBHOOK_URL = f"https://hooks.slack.com/services/{'T000/B000'}/secret_of_the_webhook"

OURS, OURS_HERE = (Misconfigured, True), (Misconfigured, False)
DOCUMENTED: dict[str, tuple[tuple[type[ChannelError], bool], str]] = {
    "not_authed": (OURS, "set channels.slack.token"),
    "invalid_auth": (OURS, "check channels.slack.token"),
    "account_inactive": (OURS, "install the app again"),
    "token_revoked": (OURS, "install the app again"),
    "token_expired": (OURS, "change channels.slack.token"),
    "not_allowed_token_type": (OURS, "xoxb-"),
    "metadata_must_be_sent_from_app": (OURS, "xoxb-"),
    "missing_scope": (OURS, "chat:write, which posts messages"),
    "app_access_restricted": (OURS, "admin"),
    "accesslimited": (OURS, "allowed addresses"),
    "enterprise_is_restricted": (OURS, "install the app in a workspace"),
    "two_factor_setup_required": (OURS, "two-factor"),
    "is_bot": (OURS, "xoxb-"),
    "method_deprecated": (OURS, "update the dispatcher"),
    "deprecated_endpoint": (OURS, "update the dispatcher"),
    "unknown_method": (OURS, "check channels.slack.api_url"),
    "message_limit_exceeded": (OURS, "number of messages"),
    "team_access_not_granted": (OURS_HERE, "install the app in that workspace"),
    "ratelimited": ((Later, False), "takes no more for now"),
    "rate_limited": ((Later, False), "takes no more for now"),
    "service_unavailable": ((Later, False), "takes no more for now"),
    "request_timeout": ((Later, False), "takes no more for now"),
    "team_added_to_org": ((Later, False), "takes no more for now"),
    "org_login_required": ((Later, False), "takes no more for now"),
    "internal_error": ((InDoubt, False), "it may have taken the message"),
    "fatal_error": ((InDoubt, False), "it may have taken the message"),
    "users_not_found": ((UnknownRecipient, False), "no such person"),
    "user_not_found": ((UnknownRecipient, False), "no such person"),
    "user_disabled": ((UnknownRecipient, False), "no such person"),
    "user_not_visible": ((UnknownRecipient, False), "no such person"),
    "channel_not_found": ((Never, False), "no such channel"),
    "not_in_channel": ((Never, False), "invite the app"),
    "is_archived": ((Never, False), "name another"),
    "is_inactive": ((Never, False), "frozen, archived or deleted"),
    "channel_is_limited_access": ((Never, False), "invite the app"),
    "method_not_supported_for_channel_type": ((Never, False), "public channels only"),
    "too_many_members": ((Never, False), "name another"),
    "restricted_action": ((Never, False), "ask the workspace's admin"),
    "restricted_action_read_only_channel": ((Never, False), "read-only"),
    "restricted_action_thread_only_channel": ((Never, False), "replies only"),
    "ekm_access_denied": ((Never, False), "admin"),
    "access_denied": ((Never, False), "invite the app"),
    "no_permission": ((Never, False), "invite the app"),
    "messages_tab_disabled": ((Never, False), "App Home"),
    "team_not_found": ((Never, False), "by its id"),
    "cannot_reply_to_message": ((Never, False), ""),
    "restricted_action_thread_locked": ((Never, False), ""),
    "restricted_action_non_threadable_channel": ((Never, False), ""),
    "message_not_found": ((Never, False), ""),
    "edit_window_closed": ((Never, False), ""),
    "cant_update_message": ((Never, False), ""),
    "block_mismatch": ((Never, False), ""),
    "update_failed": ((Never, False), ""),
    "streaming_state_conflict": ((Never, False), ""),
    "external_channel_migrating": ((Never, False), ""),
    "no_text": ((Never, False), "dispatcher preview"),
    "msg_too_long": ((Never, False), "dispatcher preview"),
    "msg_blocks_too_long": ((Never, False), "dispatcher preview"),
    "invalid_blocks": ((Never, False), "dispatcher preview"),
    "invalid_blocks_format": ((Never, False), "dispatcher preview"),
    "invalid_attachments": ((Never, False), "dispatcher preview"),
    "too_many_attachments": ((Never, False), "dispatcher preview"),
    "attachment_payload_limit_exceeded": ((Never, False), "dispatcher preview"),
    "markdown_text_conflict": ((Never, False), "dispatcher preview"),
    "too_many_contact_cards": ((Never, False), "dispatcher preview"),
    "invalid_metadata_format": ((Never, False), "must not set metadata"),
    "invalid_metadata_schema": ((Never, False), "must not set metadata"),
    "metadata_too_large": ((Never, False), "must not set metadata"),
    "slack_connect_canvas_sharing_blocked": ((Never, False), "canvas"),
    "slack_connect_file_link_sharing_blocked": ((Never, False), "file"),
    "slack_connect_lists_sharing_blocked": ((Never, False), "list"),
    "invalid_arg_name": ((Never, False), ""),
    "a_code_of_the_future": ((Never, False), ""),
}
"""Documented codes of the methods that the channel calls, and two others: the error with `provider_wide`, and a part of
the reason."""


def error(code: str, *, method: str = "chat.postMessage", status: int = 200, **fields: Any) -> ChannelError:
    return error_of(method, status, RETRY_AFTER, {"ok": False, "error": code, **fields}, TOKEN)


@pytest.mark.parametrize("code", DOCUMENTED)
def test_each_code_has_its_outcome_and_its_advice(code: str) -> None:
    (outcome, provider_wide), advice = DOCUMENTED[code]
    found = error(code, needed="chat:write", provided="im:write")
    assert type(found) is outcome
    assert advice in found.reason
    assert found.answer is not None
    assert found.answer.status == code
    if isinstance(found, Later):
        assert found.provider_wide == provider_wide
        assert found.retry_after == (timedelta(seconds=7) if outcome is Later else None)


def test_the_table_has_no_code_that_is_not_tested() -> None:
    undocumented = {"thread_not_found", "thread_locked", "invalid_thread_ts"}
    assert set(MEANINGS) - undocumented <= set(DOCUMENTED)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("restricted_action_thread_locked", Fault.THREAD),
        ("message_not_found", Fault.THREAD),
        ("is_archived", Fault.CHANNEL),
        ("edit_window_closed", Fault.CHANGE),
        ("invalid_blocks", Fault.MESSAGE),
        ("a_code_of_the_future", None),
    ],
)
def test_a_refusal_says_what_it_is_about(code: str, fault: Fault | None) -> None:
    found = error(code)
    assert isinstance(found, Never)
    assert fault_of(found) is fault


@pytest.mark.parametrize(
    ("method", "needed", "named", "provider_wide"),
    [
        ("chat.postMessage", "chat:write", ["chat:write, which posts messages"], True),
        ("users.lookupByEmail", "users:read.email", ["users:read.email, which finds people"], False),
        ("conversations.list", "channels:read,groups:read", ["channels:read, which", "groups:read, which"], False),
        ("chat.postMessage", "chat:write:bot", ["chat:write:bot"], True),
        ("chat.postMessage", None, ["that chat.postMessage needs"], True),
        ("chat.postMessage", "\x1b[31m" + "x" * 1000, ["that chat.postMessage needs"], True),
    ],
)
def test_a_missing_scope_is_named_with_its_purpose(
    method: str, needed: str | None, named: list[str], provider_wide: bool
) -> None:
    fields: dict[str, Any] = {"needed": needed} if needed else {}
    found = error("missing_scope", method=method, **fields)
    assert isinstance(found, Misconfigured)
    assert found.provider_wide == provider_wide
    assert [words for words in [*named, "install the app again"] if words not in found.reason] == []
    assert found.reason.isprintable()
    assert all(scope in "".join(SCOPES) for scope in SCOPES)


@pytest.mark.parametrize(
    ("status", "data", "outcome", "provider_wide", "reason"),
    [
        (429, {"error": "ratelimited"}, Later, False, "takes no more for now"),
        (429, None, Later, False, "429"),
        (502, None, Later, True, "in trouble"),
        (503, {"error": "something"}, Later, True, "in trouble"),
        (504, None, Later, True, "in trouble"),
        (500, {"error": "something"}, InDoubt, False, "may have taken the message"),
        (500, None, InDoubt, False, "may have taken the message"),
        (200, None, InDoubt, False, "may have taken the message"),
        (200, ["ok"], InDoubt, False, "may have taken the message"),
        (200, {"ok": "yes"}, InDoubt, False, "may have taken the message"),
        (407, None, Misconfigured, True, "HTTPS_PROXY"),
        (302, None, Misconfigured, True, "check channels.slack.api_url"),
        (404, None, Misconfigured, True, "check channels.slack.api_url"),
        (413, None, Never, False, "too long"),
        (403, {"error": "invalid_blocks"}, Never, False, "invalid_blocks"),
    ],
)
def test_each_status_of_the_web_api_has_its_outcome(
    status: int, data: object, outcome: type[ChannelError], provider_wide: bool, reason: str
) -> None:
    found = error_of("chat.postMessage", status, RETRY_AFTER, data, TOKEN)
    assert type(found) is outcome
    assert reason in found.reason
    if isinstance(found, Later):
        assert found.provider_wide == provider_wide


def test_the_token_is_masked_in_codes_and_answers() -> None:
    found = error(f"no {TOKEN}", needed=TOKEN)
    assert TOKEN not in f"{found.reason} {found.answer}"


@pytest.mark.parametrize(
    ("status", "text", "outcome", "advice"),
    [
        (200, "ok", None, ""),
        (400, "invalid_payload", Never, "dispatcher preview"),
        (400, "no_text", Never, "dispatcher preview"),
        (400, "invalid_blocks", Never, "dispatcher preview"),
        (400, "too_many_attachments", Never, "dispatcher preview"),
        (400, "user_not_found", Never, "make a webhook for another"),
        (403, "action_prohibited", Never, "restricted posting"),
        (403, "invalid_token", Never, "check channels.slack.webhooks"),
        (403, "team_disabled", Never, "workspace is gone"),
        (403, "posting_to_general_channel_denied", Never, "may not post there"),
        (404, "channel_not_found", Never, "make a webhook for another"),
        (404, "no_service", Never, "make a new one"),
        (404, "no_active_hooks", Never, "make a new one"),
        (404, "no_service_id", Never, "check channels.slack.webhooks"),
        (404, "no_team", Never, "workspace is gone"),
        (410, "channel_is_archived", Never, "make a webhook for another"),
        (404, "<html>", Never, "check the webhook"),
        (302, "", Never, "check the webhook"),
        (407, "", Misconfigured, "HTTPS_PROXY"),
        (429, "rate_limited", Later, "429"),
        (500, "rollup_error", Later, "rollup_error"),
        (503, "<html>", Later, "503"),
        (500, "oops!", InDoubt, "may have taken the message"),
        (204, "", InDoubt, "may have taken the message"),
    ],
)
def test_each_answer_of_a_webhook_has_its_outcome_and_its_advice(
    status: int, text: str, outcome: type[ChannelError] | None, advice: str
) -> None:
    found = webhook_error(status, RETRY_AFTER, text, WEBHOOK_URL)
    assert (type(found) if found is not None else None) is outcome
    assert found is None or advice in found.reason
    if outcome is Later:
        assert isinstance(found, Later)
        assert found.retry_after == timedelta(seconds=7)


def test_a_webhooks_secret_is_no_code() -> None:
    found = webhook_error(404, {}, "secret_of_the_webhook", WEBHOOK_URL)
    assert found is not None
    assert "secret" not in f"{found.reason} {found.answer}"
