"""The Slack channel against the demo's Slack, which validates tokens, scopes and channels as Slack does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from channels.contract import (
    ChannelError,
    EarlierMessage,
    InDoubt,
    Later,
    Misconfigured,
    Never,
    Thread,
    UnknownRecipient,
)
from channels.slack.answers import SCOPES
from channels.slack.channel import SlackChannel, SlackConfig
from dispatcher.demo.fakes.inbox import Conversation, SlackReceiver
from dispatcher.demo.fakes.script import ScriptedReply
from dispatcher.demo.fakes.slack import ALL_SCOPES
from tests.support.http import ScriptedHttp, answer
from tests.support.servers import breaking_server, proxy_server
from tests.support.slack import FAILED, TOKEN, message, thread_after


@pytest.fixture
def workspace() -> SlackReceiver:
    return SlackReceiver(
        token=TOKEN,
        channels=[
            Conversation("C0000001", "alerts"),
            Conversation("C0000002", "old", archived=True),
            Conversation("C0000003", "private", member=False),
        ],
        people={"jane@example.com": "U0000001"},
    )


@pytest.fixture
async def channel(url: str) -> AsyncIterator[SlackChannel]:
    opened = SlackChannel(SlackConfig(token=TOKEN, api_url=url, recipients={"#dev": "C0000001"}, timeout=2))
    yield opened
    await opened.aclose()


async def test_a_message_arrives_with_its_key_and_without_unfurling(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    receipt = await channel.send(message())

    (arrived,) = workspace.messages
    assert receipt.reference == {"channel": "C0000001", "ts": arrived.ts}
    assert arrived.key == "k1"
    assert (arrived.body["unfurl_links"], arrived.body["unfurl_media"]) == (False, False)


class FailsOnRepr(dict[str, Any]):
    """Content that must be sent to Slack but never formatted for a log, not even for a level that is not logged."""

    def __repr__(self) -> str:
        raise AssertionError("a message's text was formatted for a log")


async def test_a_messages_text_is_never_formatted_for_a_log(workspace: SlackReceiver, channel: SlackChannel) -> None:
    await channel.send(message(text="failed", attachments=[FailsOnRepr(color="#a30200", text="ValueError")]))

    (arrived,) = workspace.messages
    assert arrived.body["attachments"] == [{"color": "#a30200", "text": "ValueError"}]


async def test_a_changed_token_file_is_used_for_the_next_message(
    workspace: SlackReceiver, url: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    channel = SlackChannel(SlackConfig(token_file=file, api_url=url, recipients={"#dev": "C0000001"}))
    await channel.send(message(key="k1"))
    workspace.token = "xoxb-replaced"
    with pytest.raises(Misconfigured):
        await channel.send(message(key="k2"))
    file.write_text(workspace.token)
    await channel.send(message(key="k3"))
    await channel.aclose()

    assert [arrived.key for arrived in workspace.messages] == ["k1", "k3"]


@pytest.mark.parametrize(
    ("recipient", "address"),
    [
        ("#dev", "C0000001"),
        ("#alerts", "#alerts"),
        ("C0000009", "C0000009"),
        ("U0000001", "U0000001"),
        ("jane@example.com", "jane@example.com"),
    ],
)
def test_each_form_of_recipient_has_its_address(channel: SlackChannel, recipient: str, address: str) -> None:
    assert channel.address(recipient) == address


@pytest.mark.parametrize("recipient", ["alerts", "abc-12345@team.slack.com", "", "<!channel>", "#a b"])
def test_a_recipient_that_slack_cannot_reach_is_unknown(channel: SlackChannel, recipient: str) -> None:
    with pytest.raises(UnknownRecipient):
        channel.address(recipient)


async def test_a_person_is_looked_up_once_by_mail_address(workspace: SlackReceiver, channel: SlackChannel) -> None:
    await channel.send(message("jane@example.com", key="k1"))
    before = workspace.requests
    await channel.send(message("jane@example.com", key="k2"))

    assert [arrived.name for arrived in workspace.messages] == ["@jane@example.com"] * 2
    assert workspace.requests == before + 1


async def test_a_person_whom_slack_does_not_know_is_an_unknown_recipient_and_looked_up_once(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    for _ in range(2):
        with pytest.raises(UnknownRecipient, match="nobody in this Slack workspace"):
            await channel.send(message("who@example.com"))
    assert workspace.requests == 1


@pytest.mark.parametrize(
    ("to", "error", "advice"),
    [
        ("#nowhere", "channel_not_found", "invited"),
        ("#old", "is_archived", "archived"),
        ("#private", "not_in_channel", "invite the app"),
    ],
)
async def test_a_refusal_raises_never_and_names_what_to_change(
    channel: SlackChannel, to: str, error: str, advice: str
) -> None:
    with pytest.raises(Never, match=error) as caught:
        await channel.send(message(to))
    assert advice in caught.value.reason


async def test_a_wrong_token_is_reported_without_showing_it(url: str) -> None:
    channel = SlackChannel(SlackConfig(token="xoxb-wrong-one", api_url=url))
    with pytest.raises(Misconfigured, match=r"invalid_auth.*check channels.slack.token") as caught:
        await channel.send(message())
    await channel.aclose()

    assert caught.value.provider_wide
    assert "xoxb" not in f"{caught.value!r} {caught.value.answer}"
    assert TOKEN not in repr(SlackConfig(token=TOKEN))


async def test_each_answer_raises_its_error(workspace: SlackReceiver, channel: SlackChannel) -> None:
    """The meaning of every answer is tested in `test_answers.py`."""
    steps: list[tuple[ScriptedReply, type[ChannelError]]] = [
        (ScriptedReply(429, b'{"ok":false,"error":"ratelimited"}', {"Retry-After": "7"}), Later),
        (ScriptedReply(500, b'{"ok":false,"error":"something"}'), InDoubt),
        (ScriptedReply(200, b"<html>garbage</html>"), InDoubt),
        (ScriptedReply(200, b"[1]"), InDoubt),
        (ScriptedReply(200, b'{"ok":false,"error":"invalid_blocks"}'), Never),
        (ScriptedReply(302, b"", {"Location": "https://example.com/"}), Misconfigured),
        (ScriptedReply(delay=4), InDoubt),
    ]
    for step, error_type in steps:
        workspace.script.steps = [step]
        with pytest.raises(error_type) as caught:
            await channel.send(message())
        assert type(caught.value) is error_type
        if "Retry-After" in step.headers:
            assert isinstance(caught.value, Later)
            assert caught.value.retry_after == timedelta(seconds=7)
    assert workspace.messages == []


async def test_a_message_in_doubt_that_arrived_is_found_and_not_sent_again(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    workspace.script.steps = [ScriptedReply(500, b"{}", accept=True)]
    with pytest.raises(InDoubt):
        await channel.send(message())

    receipt = await channel.send(message(in_doubt=True))

    (arrived,) = workspace.messages
    assert receipt.reference == {"channel": "C0000001", "ts": arrived.ts}


async def test_a_message_in_doubt_that_did_not_arrive_is_sent(workspace: SlackReceiver, channel: SlackChannel) -> None:
    await channel.send(message(in_doubt=True))
    await channel.send(message("U0000001", key="k2", in_doubt=True))

    assert [arrived.key for arrived in workspace.messages] == ["k1", "k2"]


async def test_an_unreachable_slack_is_provider_wide() -> None:
    channel = SlackChannel(SlackConfig(token=TOKEN, api_url="http://127.0.0.1:1/api/"))
    with pytest.raises(Later, match="can't be reached") as caught:
        await channel.send(message())
    await channel.aclose()
    assert caught.value.provider_wide


@pytest.mark.parametrize(
    "answer", [b"", b'HTTP/1.1 200 OK\r\nContent-Length: 50\r\nContent-Type: application/json\r\n\r\n{"ok"']
)
async def test_a_connection_that_breaks_during_the_answer_raises_in_doubt(answer: bytes) -> None:
    async with breaking_server(answer) as base:
        channel = SlackChannel(SlackConfig(token=TOKEN, api_url=f"{base}/api/", timeout=2))
        with pytest.raises(InDoubt):
            await channel.send(message())
        await channel.aclose()


async def test_messages_use_the_proxy_of_the_environment_with_slack_sdks_headers_and_send_its_cookies_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with proxy_server(b"HTTP/1.1 200 OK", b'{"ok": true, "channel": "C1", "ts": "1.2"}') as (proxy, heads):
        monkeypatch.setenv("http_proxy", proxy)
        channel = SlackChannel(SlackConfig(token=TOKEN, api_url="http://slack.test/api/"))
        for key in ("k1", "k2", "k3"):
            await channel.send(message(key=key))
        await channel.aclose()

    assert all(head.startswith(b"POST http://slack.test/api/chat.postMessage HTTP/1.1") for head in heads)
    expected = [f"Authorization: Bearer {TOKEN}", "Content-Type: application/json;charset=utf-8", "User-Agent: Python/"]
    assert all(line.encode() in head for head in heads for line in expected)
    assert [b"Cookie: way=2" in head for head in heads] == [False, True, True]


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>welcome</html>",
        b'["ok"]',
        b"",
    ],
)
async def test_an_answer_that_is_not_slacks_raises_in_doubt(answer: bytes) -> None:
    async with proxy_server(b"HTTP/1.1 200 OK", answer) as (base, _):
        channel = SlackChannel(SlackConfig(token=TOKEN, api_url=base))
        with pytest.raises(InDoubt, match="may have taken the message"):
            await channel.send(message())
        await channel.aclose()


@pytest.mark.parametrize("content_type", [b"text/plain", b"application/gzip"])
async def test_a_success_counts_whatever_content_type_a_proxy_gives_it(content_type: bytes) -> None:
    accepted = answer(200, b'{"ok": true, "channel": "C1", "ts": "1.2"}').replace(b"application/json", content_type)
    async with ScriptedHttp(default=accepted) as server:
        channel = SlackChannel(SlackConfig(token=TOKEN, api_url=f"{server.url}/api/", timeout=2))
        receipt = await channel.send(message())
        await channel.aclose()
    assert receipt.reference == {"channel": "C1", "ts": "1.2"}


async def test_a_redirect_is_not_followed() -> None:
    async with ScriptedHttp(default=answer(307, Location="/elsewhere")) as server:
        channel = SlackChannel(SlackConfig(token=TOKEN, api_url=f"{server.url}/api/", timeout=2))
        with pytest.raises(Misconfigured, match="the answer was 307"):
            await channel.send(message())
        await channel.aclose()
        assert [request.path for request in server.requests] == ["/api/chat.postMessage"]


async def test_a_cancelled_send_leaves_the_channel_usable(workspace: SlackReceiver, channel: SlackChannel) -> None:
    workspace.script.steps = [ScriptedReply(delay=1)]
    task = asyncio.create_task(channel.send(message(key="k1")))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await channel.send(message(key="k2"))

    assert [arrived.key for arrived in workspace.messages] == ["k2"]


async def check_results(channel: SlackChannel) -> list[tuple[bool, str]]:
    return [(finding.ok, finding.message) for finding in await channel.check()]


async def test_check_names_the_app_and_what_each_scope_is_for_and_posts_nothing(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    accepted, *scopes = await check_results(channel)
    assert accepted == (True, "the token is accepted: dispatcher in workspace Demo")
    assert scopes == [(True, f"scope {scope} is there: it {SCOPES[scope]}") for scope in ALL_SCOPES]
    assert workspace.messages == []


@pytest.mark.parametrize(
    ("scopes", "options", "missing"),
    [
        (("channels:history",), {}, ["chat:write"]),
        (("chat:write", "im:history"), {}, []),
        (("chat:write", "im:history"), {"recipients": {"jane": "jane@example.com"}}, ["users:read.email"]),
        (("chat:write", "users:read.email"), {"recipients": {"jane": "jane@example.com"}}, []),
        (ALL_SCOPES, {"join": True}, ["channels:join"]),
        ((*ALL_SCOPES, "channels:join"), {"join": True}, []),
    ],
)
async def test_check_reports_missing_scopes_and_which_of_them_the_settings_need(
    workspace: SlackReceiver, url: str, scopes: tuple[str, ...], options: dict[str, Any], missing: list[str]
) -> None:
    workspace.scopes = scopes
    channel = SlackChannel(SlackConfig.model_validate({"token": TOKEN, "api_url": url, "timeout": 2, **options}))
    findings = await check_results(channel)
    await channel.aclose()
    problems = [text for ok, text in findings if not ok]
    assert len(problems) == len(missing)
    for problem, scope in zip(problems, missing, strict=True):
        assert f"scope {scope} is missing" in problem
        assert "install the app again" in problem
    shown = " ".join(text for _, text in findings)
    assert all(f"scope {scope} " in shown for scope in ALL_SCOPES)


async def test_check_does_not_test_webhooks() -> None:
    by_webhook = SlackChannel(SlackConfig.model_validate({"webhooks": {"#ops": {"url": "http://127.0.0.1:1/x"}}}))
    assert [ok for ok, _ in await check_results(by_webhook)] == [True]


async def test_check_reports_a_wrong_token_and_a_wrong_url(url: str) -> None:
    async with breaking_server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi") as server_url:
        for api_url, token, problem in (
            (url, "xoxb-wrong", "the token is wrong: check channels.slack.token"),
            (f"{server_url}/api/", TOKEN, "check channels.slack.api_url"),
            ("http://127.0.0.1:1/api/", TOKEN, "Slack can't be reached"),
        ):
            channel = SlackChannel(SlackConfig(token=token, api_url=api_url, timeout=2))
            ((ok, text),) = await check_results(channel)
            await channel.aclose()
            assert (ok, problem in text, token in text) == (False, True, False), text


# -- threads

SUCCEEDED: dict[str, Any] = {
    "text": "train.daily succeeded",
    "blocks": [{"type": "header", "text": {"type": "plain_text", "text": "succeeded"}}],
    "attachments": [{"color": "#2eb67d", "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": "took"}}]}],
}


async def test_later_messages_reply_to_the_first_message_of_the_thread(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", thread=thread_after(), **FAILED))
    second = await channel.send(message(key="k2", thread=thread_after(first), **FAILED))
    await channel.send(message(key="k3", thread=thread_after(first, second), **FAILED))

    assert [arrived.thread for arrived in workspace.messages] == [None, first.reference["ts"], first.reference["ts"]]
    assert [arrived.key for arrived in workspace.messages] == ["k1", "k2", "k3"]
    assert second.reference["thread_ts"] == first.reference["ts"]


async def test_a_resolved_notice_updates_the_first_message_and_replies(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", thread=thread_after(), **FAILED))
    second = await channel.send(message(key="k2", thread=thread_after(first), **FAILED))
    await channel.send(message(key="k3", thread=thread_after(first, second, resolves=True), **SUCCEEDED))

    root, _, reply = workspace.messages
    assert (root.edits, root.key, root.body["text"]) == (1, "k1", "train.daily succeeded")
    assert [block["text"]["text"] for block in root.body["blocks"]] == ["succeeded", "failed"]
    assert root.body["attachments"] == [{**FAILED["attachments"][0], "color": "#2eb67d"}]
    assert (reply.thread, reply.body["text"]) == (root.ts, "train.daily succeeded")


async def test_a_first_message_with_text_only_keeps_its_text_below_the_success(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(thread=thread_after(), text="it failed"))
    thread = Thread(
        key="t", earlier=(EarlierMessage(reference=first.reference, content={"text": "it failed"}),), resolves=True
    )
    await channel.send(message(key="k2", thread=thread, text="it works"))
    assert workspace.messages[0].body["text"] == "it works\nit failed"


async def test_a_resolved_notice_is_posted_as_new_if_the_first_message_is_deleted(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", thread=thread_after(), **FAILED))
    del workspace.messages[0]
    await channel.send(message(key="k3", thread=thread_after(first, resolves=True), **SUCCEEDED))
    again = await channel.send(message(key="k4", thread=thread_after(first), **FAILED))

    assert [(arrived.key, arrived.thread) for arrived in workspace.messages] == [("k3", None), ("k4", None)]
    assert "thread_ts" not in again.reference


def refusal(code: str) -> ScriptedReply:
    return ScriptedReply(200, f'{{"ok":false,"error":"{code}"}}'.encode())


@pytest.mark.parametrize(
    "code",
    [
        "restricted_action_thread_locked",
        "restricted_action_non_threadable_channel",
        "cannot_reply_to_message",
        "a_code_of_the_future",
    ],
)
async def test_a_reply_that_the_thread_refuses_is_posted_as_new_and_the_thread_goes_on_there(
    workspace: SlackReceiver, channel: SlackChannel, code: str
) -> None:
    first = await channel.send(message(key="k1", thread=thread_after(), **FAILED))
    workspace.script.steps = [refusal(code)]
    second = await channel.send(message(key="k2", thread=thread_after(first), **FAILED))
    await channel.send(message(key="k3", thread=thread_after(first, second), **FAILED))

    assert [(one.key, one.thread) for one in workspace.messages] == [
        ("k1", None),
        ("k2", None),
        ("k3", second.reference["ts"]),
    ]


async def test_a_success_after_a_locked_thread_is_posted_as_new(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", thread=thread_after(), **FAILED))
    workspace.locked_threads.add(first.reference["ts"])
    await channel.send(message(key="k2", thread=thread_after(first, resolves=True), **SUCCEEDED))
    assert [(one.key, one.thread, one.edits) for one in workspace.messages] == [("k1", None, 1), ("k2", None, 0)]


async def test_a_reply_that_slack_refuses_for_its_content_is_posted_nowhere(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", thread=thread_after(), **FAILED))
    workspace.script.steps = [refusal("invalid_blocks")]
    with pytest.raises(Never, match="invalid_blocks"):
        await channel.send(message(key="k2", thread=thread_after(first), **FAILED))
    assert [one.key for one in workspace.messages] == ["k1"]


@pytest.mark.parametrize(
    "code", ["msg_too_long", "edit_window_closed", "cant_update_message", "invalid_blocks", "a_code_of_the_future"]
)
async def test_the_reply_is_posted_although_slack_refuses_to_change_the_first_message(
    workspace: SlackReceiver, channel: SlackChannel, code: str
) -> None:
    first = await channel.send(message(key="k1", thread=thread_after(), **FAILED))
    workspace.script.steps = [refusal(code)]
    await channel.send(message(key="k2", thread=thread_after(first, resolves=True), **SUCCEEDED))
    assert [(one.key, one.thread) for one in workspace.messages] == [("k1", None), ("k2", first.reference["ts"])]


async def test_a_change_in_doubt_is_tried_once_more_and_then_the_reply_is_posted(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", thread=thread_after(), **FAILED))
    thread = thread_after(first, resolves=True)
    workspace.script.steps = [refusal("internal_error"), refusal("internal_error")]
    with pytest.raises(InDoubt):
        await channel.send(message(key="k2", thread=thread, **SUCCEEDED))
    await channel.send(message(key="k2", thread=thread, in_doubt=True, **SUCCEEDED))
    assert [(one.key, one.thread) for one in workspace.messages] == [("k1", None), ("k2", first.reference["ts"])]


async def test_messages_after_a_new_post_reply_to_it(workspace: SlackReceiver, channel: SlackChannel) -> None:
    first = await channel.send(message(key="k1", thread=thread_after(), **FAILED))
    workspace.messages.clear()
    second = await channel.send(message(key="k2", thread=thread_after(first), **FAILED))
    await channel.send(message(key="k3", thread=thread_after(first, second, resolves=True), **SUCCEEDED))

    root, reply = workspace.messages
    assert (root.key, root.edits, reply.thread) == ("k2", 1, root.ts)


async def test_a_thread_of_an_archived_channel_continues_in_the_channel_that_has_the_name_now(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", thread=thread_after(), **FAILED))
    workspace.channels[0] = Conversation("C0000001", "alerts-old", archived=True)
    workspace.channels.append(Conversation("C0000007", "alerts"))
    for resolves in (False, True):
        await channel.send(message(key="k2", thread=thread_after(first, resolves=resolves), **SUCCEEDED))
    assert [(arrived.channel, arrived.thread) for arrived in workspace.messages[1:]] == [("C0000007", None)] * 2

    del workspace.channels[-1]
    workspace.channels[0] = Conversation("C0000001", "alerts", archived=True)
    with pytest.raises(Never, match="is_archived"):
        await channel.send(message(key="k3", thread=thread_after(first), **SUCCEEDED))


@pytest.mark.parametrize("resolves", [False, True])
async def test_a_reply_in_doubt_that_arrived_is_found_in_its_thread(
    workspace: SlackReceiver, channel: SlackChannel, resolves: bool
) -> None:
    first = await channel.send(message(key="k1", thread=thread_after(), **FAILED))
    update = [ScriptedReply(200, b'{"ok":true}', accept=True)] if resolves else []
    workspace.script.steps = [*update, ScriptedReply(500, b"{}", accept=True)]
    thread = thread_after(first, resolves=resolves)
    with pytest.raises(InDoubt):
        await channel.send(message(key="k2", thread=thread, **SUCCEEDED))

    receipt = await channel.send(message(key="k2", in_doubt=True, thread=thread, **SUCCEEDED))

    _, reply = workspace.messages
    assert receipt.reference == {"channel": "C0000001", "ts": reply.ts, "thread_ts": first.reference["ts"]}


async def test_a_new_post_in_doubt_is_found_in_the_channel_if_its_thread_is_deleted(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", thread=thread_after(), **FAILED))
    workspace.messages.clear()
    await channel.send(message(key="k2", thread=thread_after(first), **FAILED))
    receipt = await channel.send(message(key="k2", in_doubt=True, thread=thread_after(first), **FAILED))

    (arrived,) = workspace.messages
    assert receipt.reference == {"channel": "C0000001", "ts": arrived.ts}


async def test_a_retried_resolved_notice_updates_the_first_message_again_and_replies_once(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", thread=thread_after(), **FAILED))
    thread = thread_after(first, resolves=True)
    workspace.script.steps = [ScriptedReply(200, b'{"ok":true}', accept=True), ScriptedReply(503)]
    with pytest.raises(Later):
        await channel.send(message(key="k2", thread=thread, **SUCCEEDED))
    await channel.send(message(key="k2", thread=thread, **SUCCEEDED))
    assert [(arrived.key, arrived.edits) for arrived in workspace.messages] == [("k1", 2), ("k2", 0)]


def test_the_settings_define_what_a_thread_covers() -> None:
    for thread, thread_by in (("launch_plan", "launch_plan"), ("execution", "execution"), ("none", None)):
        assert SlackChannel(SlackConfig(token=TOKEN, thread=thread)).thread_by("#a") == thread_by


# -- joining


async def test_a_public_channel_is_joined_if_the_settings_allow_it(workspace: SlackReceiver, url: str) -> None:
    workspace.scopes = (*workspace.scopes, "channels:join")
    channel = SlackChannel(SlackConfig(token=TOKEN, api_url=url, join=True, timeout=2))
    await channel.send(message("#private"))
    await channel.aclose()
    assert [arrived.channel for arrived in workspace.messages] == ["C0000003"]


async def test_a_private_channel_cannot_be_joined(workspace: SlackReceiver, url: str) -> None:
    workspace.scopes = (*workspace.scopes, "channels:join")
    workspace.channels[2] = Conversation("C0000003", "private", member=False, private=True)
    channel = SlackChannel(SlackConfig(token=TOKEN, api_url=url, join=True, timeout=2))
    with pytest.raises(Never, match="public channels only: invite it"):
        await channel.send(message("C0000003"))
    await channel.aclose()


@pytest.mark.parametrize("missing", ["channels:join", "channels:read"])
async def test_without_a_scope_for_joining_only_that_channel_waits(
    workspace: SlackReceiver, url: str, missing: str
) -> None:
    workspace.scopes = tuple(scope for scope in (*ALL_SCOPES, "channels:join") if scope != missing)
    if missing == "channels:read":  # groups:read alone would list private channels
        workspace.scopes = tuple(scope for scope in workspace.scopes if scope != "groups:read")
    channel = SlackChannel(SlackConfig(token=TOKEN, api_url=url, join=True, timeout=2))
    with pytest.raises(Misconfigured, match=f"lacks the scope {missing}") as caught:
        await channel.send(message("#private"))
    await channel.aclose()
    assert not caught.value.provider_wide


# -- incoming webhooks

PATH = "T000/B000/secret-of-the-webhook"


@pytest.fixture
def webhook_config(workspace: SlackReceiver, url: str) -> SlackConfig:
    workspace.webhooks = {PATH: "alerts", "old": "old"}
    base = url.removesuffix("/api/")
    webhooks = {
        name: {"url": f"{base}/services/{path}"} for name, path in {"#ops": PATH, "old": "old", "no": "x"}.items()
    }
    return SlackConfig.model_validate({"webhooks": webhooks, "timeout": 2})


@pytest.fixture
async def by_webhook(webhook_config: SlackConfig) -> AsyncIterator[SlackChannel]:
    opened = SlackChannel(webhook_config)
    yield opened
    await opened.aclose()


async def test_a_webhook_posts_without_a_token_and_its_url_is_never_shown(
    workspace: SlackReceiver, by_webhook: SlackChannel, webhook_config: SlackConfig
) -> None:
    receipt = await by_webhook.send(message("#ops"))
    assert [arrived.name for arrived in workspace.messages] == ["alerts"]
    assert (receipt.reference, by_webhook.address("#ops"), by_webhook.thread_by("#ops")) == ({}, "#ops", None)
    assert "secret-of-the-webhook" not in f"{receipt} {by_webhook.wire_preview(message('#ops'))} {webhook_config!r}"
    with pytest.raises(UnknownRecipient, match=r"name it in channels\.slack\.webhooks") as caught:
        by_webhook.address(f"https://hooks.slack.com/services/{PATH}")
    assert "secret" not in str(caught.value).replace("is a secret", "")
    with pytest.raises(UnknownRecipient):
        by_webhook.address("#alerts")


@pytest.mark.parametrize(
    ("to", "step", "error_type", "reason"),
    [
        ("old", None, Never, "channel_is_archived; the webhook's channel is archived"),
        ("no", None, Never, "no_service; the webhook was switched off"),
        ("#ops", ScriptedReply(429, b"rate_limited", {"Retry-After": "7"}), Later, "429"),
        ("#ops", ScriptedReply(delay=4), InDoubt, "did not answer"),
    ],
)
async def test_each_answer_of_a_webhook_raises_its_error(
    workspace: SlackReceiver,
    by_webhook: SlackChannel,
    to: str,
    step: ScriptedReply | None,
    error_type: type[ChannelError],
    reason: str,
) -> None:
    workspace.script.steps = [step] if step else []
    with pytest.raises(error_type, match=reason) as caught:
        await by_webhook.send(message(to))
    assert type(caught.value) is error_type
    assert "secret" not in f"{caught.value!r} {caught.value.answer}"


async def test_an_unreachable_webhook_raises_later_and_an_invalid_url_never(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("https://hooks.example.com/secret")
    webhooks = {"away": {"url": "http://127.0.0.1:1/secret"}, "bad": {"url_file": file}}
    channel = SlackChannel(SlackConfig.model_validate({"webhooks": webhooks}))
    file.write_text("no-secret-url")  # rotated after the start
    with pytest.raises(Later, match="can't be reached"):
        await channel.send(message("away"))
    with pytest.raises(Never, match="is no URL"):
        await channel.send(message("bad"))
    await channel.aclose()
