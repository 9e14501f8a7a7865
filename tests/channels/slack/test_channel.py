"""Slack against a server that checks what Slack checks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from channels.contract import (
    ChannelError,
    EarlierMessage,
    InDoubt,
    Later,
    Message,
    Never,
    Receipt,
    UnknownRecipient,
)
from channels.contract import (
    Thread as Talk,
)
from channels.slack.channel import SlackChannel, SlackConfig
from dispatcher.demo.fakes.inbox import Conversation, SlackReceiver
from dispatcher.demo.fakes.script import ScriptedReply
from dispatcher.web.server import serving
from tests.support.servers import breaking_server, proxy_server

TOKEN = "xoxb-secret-of-the-tests"


def message(
    to: str = "#alerts", *, key: str = "k1", in_doubt: bool = False, talk: Talk | None = None, **content: Any
) -> Message:
    return Message(
        key=key,
        recipients=(to,),
        content=content or {"text": "train.daily failed"},
        created_at=datetime(2026, 11, 20, tzinfo=UTC),
        thread=talk,
        in_doubt=in_doubt,
    )


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
async def url(workspace: SlackReceiver) -> AsyncIterator[str]:
    async with serving(Starlette(routes=workspace.routes()), "127.0.0.1", 0) as base:
        yield f"{base}/api/"


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


class NeverWritten(dict[str, Any]):
    """What must go to Slack alone, and into no line of a log, not even one that nobody keeps."""

    def __repr__(self) -> str:
        raise AssertionError("a message's text was written out")


async def test_a_message_is_written_out_for_slack_alone(workspace: SlackReceiver, channel: SlackChannel) -> None:
    await channel.send(message(text="failed", attachments=[NeverWritten(color="#a30200", text="ValueError")]))

    (arrived,) = workspace.messages
    assert arrived.body["attachments"] == [{"color": "#a30200", "text": "ValueError"}]


async def test_a_token_that_was_replaced_is_used_for_the_next_message(
    workspace: SlackReceiver, url: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    channel = SlackChannel(SlackConfig(token_file=file, api_url=url, recipients={"#dev": "C0000001"}))
    await channel.send(message(key="k1"))
    workspace.token = "xoxb-replaced"
    with pytest.raises(Never):
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
def test_recipients_as_people_write_them_have_addresses(channel: SlackChannel, recipient: str, address: str) -> None:
    assert channel.address(recipient) == address


@pytest.mark.parametrize("recipient", ["alerts", "abc-12345@team.slack.com", "", "<!channel>", "#a b"])
def test_what_slack_cannot_reach_is_unserved(channel: SlackChannel, recipient: str) -> None:
    with pytest.raises(UnknownRecipient):
        channel.address(recipient)


async def test_a_person_is_reached_by_mail_address_and_looked_up_once(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    await channel.send(message("jane@example.com", key="k1"))
    before = workspace.requests
    await channel.send(message("jane@example.com", key="k2"))

    assert [arrived.name for arrived in workspace.messages] == ["@jane@example.com"] * 2
    assert workspace.requests == before + 1


async def test_a_person_whom_slack_does_not_know_is_unserved_and_asked_for_once(
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
async def test_a_refusal_is_final_and_says_what_to_change(
    channel: SlackChannel, to: str, error: str, advice: str
) -> None:
    with pytest.raises(Never, match=error) as caught:
        await channel.send(message(to))
    assert advice in caught.value.reason


async def test_a_wrong_token_says_so_without_showing_it(url: str) -> None:
    channel = SlackChannel(SlackConfig(token="xoxb-wrong-one", api_url=url))
    with pytest.raises(Never, match=r"invalid_auth.*check channels.slack.token") as caught:
        await channel.send(message())
    await channel.aclose()

    assert "xoxb" not in f"{caught.value!r} {caught.value.answer}"
    assert TOKEN not in repr(SlackConfig(token=TOKEN))


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (ScriptedReply(429, b'{"ok":false,"error":"ratelimited"}', {"Retry-After": "7"}), Later),
        (ScriptedReply(200, b'{"ok":false,"error":"ratelimited"}'), Later),
        (ScriptedReply(200, b'{"ok":false,"error":"service_unavailable"}'), Later),
        (ScriptedReply(503, b"upstream"), Later),
        (ScriptedReply(200, b'{"ok":false,"error":"internal_error"}'), InDoubt),
        (ScriptedReply(200, b'{"ok":false,"error":"fatal_error"}'), InDoubt),
        (ScriptedReply(500, b'{"ok":false,"error":"something"}'), InDoubt),
        (ScriptedReply(200, b"<html>garbage</html>"), InDoubt),
        (ScriptedReply(200, b"[1]"), InDoubt),
        (ScriptedReply(200, b'{"ok":false,"error":"invalid_blocks"}'), Never),
        (ScriptedReply(200, b'{"ok":false,"error":"never_heard_of"}'), Never),
        (ScriptedReply(delay=4), InDoubt),
    ],
)
async def test_every_answer_has_its_meaning(
    workspace: SlackReceiver, channel: SlackChannel, step: ScriptedReply, kind: type[ChannelError]
) -> None:
    workspace.script.steps = [step]

    with pytest.raises(kind) as caught:
        await channel.send(message())

    assert type(caught.value) is kind
    if "Retry-After" in step.headers:
        assert isinstance(caught.value, Later)
        assert caught.value.retry_after == timedelta(seconds=7)


async def test_a_doubtful_message_that_had_arrived_is_found_and_not_sent_again(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    workspace.script.steps = [ScriptedReply(500, b"{}", accept=True)]
    with pytest.raises(InDoubt):
        await channel.send(message())

    receipt = await channel.send(message(in_doubt=True))

    (arrived,) = workspace.messages
    assert receipt.reference == {"channel": "C0000001", "ts": arrived.ts}


async def test_a_doubtful_message_that_had_not_arrived_is_sent(workspace: SlackReceiver, channel: SlackChannel) -> None:
    await channel.send(message(in_doubt=True))
    await channel.send(message("U0000001", key="k2", in_doubt=True))

    assert [arrived.key for arrived in workspace.messages] == ["k1", "k2"]


async def test_slack_that_is_not_there_is_everyones_trouble() -> None:
    channel = SlackChannel(SlackConfig(token=TOKEN, api_url="http://127.0.0.1:1/api/"))
    with pytest.raises(Later, match="can't be reached") as caught:
        await channel.send(message())
    await channel.aclose()
    assert caught.value.provider_wide


@pytest.mark.parametrize(
    "answer", [b"", b'HTTP/1.1 200 OK\r\nContent-Length: 50\r\nContent-Type: application/json\r\n\r\n{"ok"']
)
async def test_a_connection_that_breaks_in_mid_answer_leaves_a_doubt(answer: bytes) -> None:
    async with breaking_server(answer) as base:
        channel = SlackChannel(SlackConfig(token=TOKEN, api_url=f"{base}/api/", timeout=2))
        with pytest.raises(InDoubt):
            await channel.send(message())
        await channel.aclose()


async def test_every_message_goes_by_the_environments_proxy_with_the_librarys_headers_and_the_cookies_it_got(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with proxy_server(b"HTTP/1.1 200 OK", b'{"ok": true, "channel": "C1", "ts": "1.2"}') as (proxy, heads):
        monkeypatch.setenv("http_proxy", proxy)
        channel = SlackChannel(SlackConfig(token=TOKEN, api_url="http://slack.test/api/"))
        for key in ("k1", "k2", "k3"):
            await channel.send(message(key=key))
        await channel.aclose()

    assert all(head.startswith(b"POST http://slack.test/api/chat.postMessage HTTP/1.1") for head in heads)
    told = [f"Authorization: Bearer {TOKEN}", "Content-Type: application/json;charset=utf-8", "User-Agent: Python/"]
    assert all(line.encode() in head for head in heads for line in told)
    assert [b"Cookie: way=2" in head for head in heads] == [False, True, True]


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>welcome</html>",
        b'["ok"]',
        b"",
    ],
)
async def test_an_answer_that_is_none_of_slacks_leaves_a_doubt(answer: bytes) -> None:
    async with proxy_server(b"HTTP/1.1 200 OK", answer) as (base, _):
        channel = SlackChannel(SlackConfig(token=TOKEN, api_url=base))
        with pytest.raises(InDoubt, match="may have taken the message"):
            await channel.send(message())
        await channel.aclose()


async def test_a_cancelled_send_leaves_the_channel_usable(workspace: SlackReceiver, channel: SlackChannel) -> None:
    workspace.script.steps = [ScriptedReply(delay=1)]
    task = asyncio.create_task(channel.send(message(key="k1")))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await channel.send(message(key="k2"))

    assert [arrived.key for arrived in workspace.messages] == ["k2"]


async def checked(channel: SlackChannel) -> list[tuple[bool, str]]:
    return [(finding.ok, finding.message) for finding in await channel.check()]


async def test_a_check_names_who_we_are_and_says_nothing_to_anybody(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    assert await checked(channel) == [
        (True, "the token is accepted: dispatcher in workspace Demo"),
        (True, "scope chat:write is there"),
    ]
    assert workspace.messages == []


@pytest.mark.parametrize(
    ("scopes", "people", "wrong"),
    [
        (("channels:history",), {}, ["chat:write"]),
        (("chat:write", "im:history"), {}, []),
        (("chat:write", "im:history"), {"jane": "jane@example.com"}, ["users:read.email"]),
        (("chat:write", "users:read.email"), {"jane": "jane@example.com"}, []),
    ],
)
async def test_a_check_finds_the_scopes_that_the_settings_need(
    workspace: SlackReceiver, url: str, scopes: tuple[str, ...], people: dict[str, str], wrong: list[str]
) -> None:
    workspace.scopes = scopes
    channel = SlackChannel(SlackConfig(token=TOKEN, api_url=url, recipients=people, timeout=2))
    findings = await checked(channel)
    await channel.aclose()
    problems = [says for ok, says in findings if not ok]
    assert len(problems) == len(wrong)
    for problem, scope in zip(problems, wrong, strict=True):
        assert f"scope {scope} is missing" in problem
        assert "install the app again" in problem


async def test_a_check_finds_that_channels_cannot_be_joined_and_that_webhooks_cannot_be_tried(
    workspace: SlackReceiver, url: str
) -> None:
    channel = SlackChannel(SlackConfig(token=TOKEN, api_url=url, join=True, timeout=2))
    (problem,) = [says for ok, says in await checked(channel) if not ok]
    await channel.aclose()
    assert "scope channels:join is missing" in problem
    hooks = SlackChannel(SlackConfig.model_validate({"webhooks": {"#ops": {"url": "http://127.0.0.1:1/x"}}}))
    assert [ok for ok, _ in await checked(hooks)] == [True]


async def test_a_check_finds_a_wrong_token_and_a_slack_that_is_none(url: str) -> None:
    async with breaking_server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi") as server_url:
        for where, token, words in (
            (url, "xoxb-wrong", "the token is wrong: check channels.slack.token"),
            (f"{server_url}/api/", TOKEN, "check channels.slack.api_url"),
            ("http://127.0.0.1:1/api/", TOKEN, "Slack can't be reached"),
        ):
            channel = SlackChannel(SlackConfig(token=token, api_url=where, timeout=2))
            ((ok, says),) = await checked(channel)
            await channel.aclose()
            assert (ok, words in says, token in says) == (False, True, False), says


# -- threads

FAILED: dict[str, Any] = {
    "text": "train.daily failed",
    "blocks": [{"type": "header", "text": {"type": "plain_text", "text": "failed"}}],
    "attachments": [{"color": "#e01e5a", "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": "why"}}]}],
}
WELL: dict[str, Any] = {
    "text": "train.daily succeeded",
    "blocks": [{"type": "header", "text": {"type": "plain_text", "text": "succeeded"}}],
    "attachments": [{"color": "#2eb67d", "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": "took"}}]}],
}


def after(*receipts: Receipt, resolves: bool = False) -> Talk:
    """The conversation in which these were said, all with the content `FAILED`."""
    earlier = tuple(EarlierMessage(reference=receipt.reference, content=FAILED) for receipt in receipts)
    return Talk(key="talk", earlier=earlier, resolves=resolves)


async def test_later_messages_reply_to_the_first_and_never_to_a_reply(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", talk=after(), **FAILED))
    second = await channel.send(message(key="k2", talk=after(first), **FAILED))
    await channel.send(message(key="k3", talk=after(first, second), **FAILED))

    assert [arrived.thread for arrived in workspace.messages] == [None, first.reference["ts"], first.reference["ts"]]
    assert [arrived.key for arrived in workspace.messages] == ["k1", "k2", "k3"]
    assert second.reference["thread_ts"] == first.reference["ts"]


async def test_a_recovery_changes_the_first_message_and_replies(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", talk=after(), **FAILED))
    second = await channel.send(message(key="k2", talk=after(first), **FAILED))
    await channel.send(message(key="k3", talk=after(first, second, resolves=True), **WELL))

    root, _, reply = workspace.messages
    assert (root.edits, root.key, root.body["text"]) == (1, "k1", "train.daily succeeded")
    assert [block["text"]["text"] for block in root.body["blocks"]] == ["succeeded", "failed"]
    assert root.body["attachments"] == [{**FAILED["attachments"][0], "color": "#2eb67d"}]
    assert (reply.thread, reply.body["text"]) == (root.ts, "train.daily succeeded")


async def test_a_recovery_that_is_over_replies_and_changes_nothing(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", talk=after(), **FAILED))
    await channel.send(message(key="k2", talk=replace(after(first, resolves=True), superseded=True), **WELL))
    assert [(arrived.key, arrived.edits) for arrived in workspace.messages] == [("k1", 0), ("k2", 0)]


async def test_a_first_message_of_text_alone_keeps_its_words_below_the_good_news(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(talk=after(), text="it failed"))
    talk = Talk(
        key="t", earlier=(EarlierMessage(reference=first.reference, content={"text": "it failed"}),), resolves=True
    )
    await channel.send(message(key="k2", talk=talk, text="it works"))
    assert workspace.messages[0].body["text"] == "it works\nit failed"


async def test_a_recovery_whose_first_message_is_gone_or_cannot_be_changed_is_posted_anew(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", talk=after(), **FAILED))
    workspace.edit_window = -1
    await channel.send(message(key="k2", talk=after(first, resolves=True), **WELL))
    del workspace.messages[0]
    await channel.send(message(key="k3", talk=after(first, resolves=True), **WELL))
    again = await channel.send(message(key="k4", talk=after(first), **FAILED))

    assert [(arrived.key, arrived.thread) for arrived in workspace.messages] == [
        ("k2", None),
        ("k3", None),
        ("k4", None),
    ]
    assert "thread_ts" not in again.reference


async def test_what_followed_a_new_post_replies_to_that(workspace: SlackReceiver, channel: SlackChannel) -> None:
    first = await channel.send(message(key="k1", talk=after(), **FAILED))
    workspace.messages.clear()
    second = await channel.send(message(key="k2", talk=after(first), **FAILED))
    await channel.send(message(key="k3", talk=after(first, second, resolves=True), **WELL))

    root, reply = workspace.messages
    assert (root.key, root.edits, reply.thread) == ("k2", 1, root.ts)


async def test_a_thread_in_an_archived_channel_goes_on_in_the_channel_that_has_the_name_now(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", talk=after(), **FAILED))
    workspace.channels[0] = Conversation("C0000001", "alerts-old", archived=True)
    workspace.channels.append(Conversation("C0000007", "alerts"))
    for resolves in (False, True):
        await channel.send(message(key="k2", talk=after(first, resolves=resolves), **WELL))
    assert [(arrived.channel, arrived.thread) for arrived in workspace.messages[1:]] == [("C0000007", None)] * 2

    del workspace.channels[-1]
    workspace.channels[0] = Conversation("C0000001", "alerts", archived=True)
    with pytest.raises(Never, match="is_archived"):
        await channel.send(message(key="k3", talk=after(first), **WELL))


@pytest.mark.parametrize("resolves", [False, True])
async def test_a_doubtful_reply_that_had_arrived_is_found_in_its_thread(
    workspace: SlackReceiver, channel: SlackChannel, resolves: bool
) -> None:
    first = await channel.send(message(key="k1", talk=after(), **FAILED))
    well = [ScriptedReply(200, b'{"ok":true}', accept=True)] if resolves else []
    workspace.script.steps = [*well, ScriptedReply(500, b"{}", accept=True)]
    talk = after(first, resolves=resolves)
    with pytest.raises(InDoubt):
        await channel.send(message(key="k2", talk=talk, **WELL))

    receipt = await channel.send(message(key="k2", in_doubt=True, talk=talk, **WELL))

    _, reply = workspace.messages
    assert receipt.reference == {"channel": "C0000001", "ts": reply.ts, "thread_ts": first.reference["ts"]}


async def test_a_doubtful_new_post_is_found_in_the_channel_where_its_thread_is_gone(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", talk=after(), **FAILED))
    workspace.messages.clear()
    await channel.send(message(key="k2", talk=after(first), **FAILED))
    receipt = await channel.send(message(key="k2", in_doubt=True, talk=after(first), **FAILED))

    (arrived,) = workspace.messages
    assert receipt.reference == {"channel": "C0000001", "ts": arrived.ts}


async def test_a_reply_that_has_to_wait_changes_the_first_message_again_and_is_said_once(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    first = await channel.send(message(key="k1", talk=after(), **FAILED))
    good = after(first, resolves=True)
    workspace.script.steps = [ScriptedReply(200, b'{"ok":true}', accept=True), ScriptedReply(503)]
    with pytest.raises(Later):
        await channel.send(message(key="k2", talk=good, **WELL))
    await channel.send(message(key="k2", talk=good, **WELL))
    assert [(arrived.key, arrived.edits) for arrived in workspace.messages] == [("k1", 2), ("k2", 0)]


def test_threads_are_about_what_the_settings_say() -> None:
    for thread, scope in (("launch_plan", "launch_plan"), ("execution", "execution"), ("none", None)):
        assert SlackChannel(SlackConfig(token=TOKEN, thread=thread)).thread_by("#a") == scope


# -- joining


async def test_a_public_channel_is_joined_when_the_settings_say_so(workspace: SlackReceiver, url: str) -> None:
    workspace.scopes = (*workspace.scopes, "channels:join")
    channel = SlackChannel(SlackConfig(token=TOKEN, api_url=url, join=True, timeout=2))
    await channel.send(message("#private"))
    await channel.aclose()
    assert [arrived.channel for arrived in workspace.messages] == ["C0000003"]


@pytest.mark.parametrize(
    ("scopes", "private", "words"),
    [
        (("chat:write",), False, r"missing_scope.*channels:join"),
        (("chat:write", "channels:join"), True, "public channels only: invite it"),
    ],
)
async def test_what_cannot_be_joined_is_refused_with_advice(
    workspace: SlackReceiver, url: str, scopes: tuple[str, ...], private: bool, words: str
) -> None:
    workspace.scopes = scopes
    workspace.channels[2] = Conversation("C0000003", "private", member=False, private=private)
    channel = SlackChannel(SlackConfig(token=TOKEN, api_url=url, join=True, timeout=2))
    with pytest.raises(Never, match=words):
        await channel.send(message("#private"))
    await channel.aclose()


# -- incoming webhooks

PATH = "T000/B000/secret-of-the-webhook"


@pytest.fixture
async def by_webhook(workspace: SlackReceiver, url: str) -> AsyncIterator[SlackChannel]:
    workspace.webhooks = {PATH: "alerts", "old": "old"}
    base = url.removesuffix("/api/")
    webhooks = {
        name: {"url": f"{base}/services/{path}"} for name, path in {"#ops": PATH, "old": "old", "no": "x"}.items()
    }
    opened = SlackChannel(SlackConfig.model_validate({"webhooks": webhooks, "timeout": 1}))
    yield opened
    await opened.aclose()


async def test_a_webhook_posts_without_a_token_and_its_address_never_shows(
    workspace: SlackReceiver, by_webhook: SlackChannel
) -> None:
    receipt = await by_webhook.send(message("#ops"))
    assert [arrived.name for arrived in workspace.messages] == ["alerts"]
    assert (receipt.reference, by_webhook.address("#ops"), by_webhook.thread_by("#ops")) == ({}, "#ops", None)
    assert "secret-of-the-webhook" not in f"{receipt} {by_webhook.wire_preview(message('#ops'))} {by_webhook._config!r}"
    with pytest.raises(UnknownRecipient, match=r"name it in channels\.slack\.webhooks") as caught:
        by_webhook.address(f"https://hooks.slack.com/services/{PATH}")
    assert "secret" not in str(caught.value).replace("is a secret", "")
    with pytest.raises(UnknownRecipient):
        by_webhook.address("#alerts")


@pytest.mark.parametrize(
    ("to", "step", "kind", "words"),
    [
        ("old", None, Never, "channel_is_archived; the webhook's channel is archived"),
        ("no", None, Never, "no_service; the webhook was switched off"),
        ("#ops", ScriptedReply(403, b"action_prohibited"), Never, "restricted posting"),
        ("#ops", ScriptedReply(400, b"invalid_payload"), Never, "dispatcher preview"),
        ("#ops", ScriptedReply(302, b""), Never, "check the webhook"),
        ("#ops", ScriptedReply(429, b"rate_limited", {"Retry-After": "7"}), Later, "429"),
        ("#ops", ScriptedReply(500, b"rollup_error"), Later, "rollup_error"),
        ("#ops", ScriptedReply(503, b"<html>"), Later, "503"),
        ("#ops", ScriptedReply(500, b"oops!"), InDoubt, "500"),
        ("#ops", ScriptedReply(delay=2), InDoubt, "did not answer"),
    ],
)
async def test_every_answer_to_a_webhook_has_its_meaning(
    workspace: SlackReceiver,
    by_webhook: SlackChannel,
    to: str,
    step: ScriptedReply | None,
    kind: type[ChannelError],
    words: str,
) -> None:
    workspace.script.steps = [step] if step else []
    with pytest.raises(kind, match=words) as caught:
        await by_webhook.send(message(to))
    assert type(caught.value) is kind
    assert "secret" not in f"{caught.value!r} {caught.value.answer}"


async def test_a_webhook_that_is_not_there_is_everyones_trouble_and_one_that_is_no_url_is_refused() -> None:
    webhooks = {"away": {"url": "http://127.0.0.1:1/secret"}, "bad": {"url": "no-secret-url"}}
    channel = SlackChannel(SlackConfig.model_validate({"webhooks": webhooks}))
    with pytest.raises(Later, match="can't be reached"):
        await channel.send(message("away"))
    with pytest.raises(Never, match="is no URL"):
        await channel.send(message("bad"))
    await channel.aclose()
