"""Slack against a server that checks what Slack checks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.applications import Starlette

from channels.contract import ChannelError, Later, Message, Never, Unknown, Unserved
from channels.slack import SlackChannel, SlackConfig
from dispatcher.demo.inbox import Conversation, SlackReceiver
from dispatcher.demo.inbox.script import Misstep
from dispatcher.web.server import serving
from tests.support.servers import breaking_server

TOKEN = "xoxb-secret-of-the-tests"


def message(to: str = "#alerts", *, key: str = "k1", doubtful: bool = False, **content: Any) -> Message:
    return Message(
        key=key,
        recipients=(to,),
        content=content or {"text": "train.daily failed"},
        created_at=datetime(2026, 11, 20, tzinfo=UTC),
        doubtful=doubtful,
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
    with pytest.raises(Unserved):
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
        with pytest.raises(Unserved, match="nobody in this Slack workspace"):
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
        (Misstep(429, b'{"ok":false,"error":"ratelimited"}', {"Retry-After": "7"}), Later),
        (Misstep(200, b'{"ok":false,"error":"ratelimited"}'), Later),
        (Misstep(200, b'{"ok":false,"error":"service_unavailable"}'), Later),
        (Misstep(503, b"upstream"), Later),
        (Misstep(200, b'{"ok":false,"error":"internal_error"}'), Unknown),
        (Misstep(200, b'{"ok":false,"error":"fatal_error"}'), Unknown),
        (Misstep(500, b'{"ok":false,"error":"something"}'), Unknown),
        (Misstep(200, b"<html>garbage</html>"), Unknown),
        (Misstep(200, b"[1]"), Unknown),
        (Misstep(200, b'{"ok":false,"error":"invalid_blocks"}'), Never),
        (Misstep(200, b'{"ok":false,"error":"never_heard_of"}'), Never),
        (Misstep(delay=4), Unknown),
    ],
)
async def test_every_answer_has_its_meaning(
    workspace: SlackReceiver, channel: SlackChannel, step: Misstep, kind: type[ChannelError]
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
    workspace.script.steps = [Misstep(500, b"{}", accept=True)]
    with pytest.raises(Unknown):
        await channel.send(message())

    receipt = await channel.send(message(doubtful=True))

    (arrived,) = workspace.messages
    assert receipt.reference == {"channel": "C0000001", "ts": arrived.ts}


async def test_a_doubtful_message_that_had_not_arrived_is_sent(workspace: SlackReceiver, channel: SlackChannel) -> None:
    await channel.send(message(doubtful=True))
    await channel.send(message("U0000001", key="k2", doubtful=True))

    assert [arrived.key for arrived in workspace.messages] == ["k1", "k2"]


async def test_slack_that_is_not_there_is_everyones_trouble() -> None:
    channel = SlackChannel(SlackConfig(token=TOKEN, api_url="http://127.0.0.1:1/api/"))
    with pytest.raises(Later, match="can't be reached") as caught:
        await channel.send(message())
    await channel.aclose()
    assert caught.value.everyone


@pytest.mark.parametrize(
    "answer", [b"", b'HTTP/1.1 200 OK\r\nContent-Length: 50\r\nContent-Type: application/json\r\n\r\n{"ok"']
)
async def test_a_connection_that_breaks_in_mid_answer_leaves_a_doubt(answer: bytes) -> None:
    async with breaking_server(answer) as base:
        channel = SlackChannel(SlackConfig(token=TOKEN, api_url=f"{base}/api/", timeout=2))
        with pytest.raises(Unknown):
            await channel.send(message())
        await channel.aclose()


async def test_a_cancelled_send_leaves_the_channel_usable(workspace: SlackReceiver, channel: SlackChannel) -> None:
    workspace.script.steps = [Misstep(delay=1)]
    task = asyncio.create_task(channel.send(message(key="k1")))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await channel.send(message(key="k2"))

    assert [arrived.key for arrived in workspace.messages] == ["k2"]


async def checked(channel: SlackChannel) -> list[tuple[bool, str]]:
    return [(finding.ok, finding.says) for finding in await channel.check()]


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


async def test_a_check_finds_a_wrong_token_and_a_slack_that_is_none(url: str) -> None:
    async with breaking_server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi") as stranger:
        for where, token, words in (
            (url, "xoxb-wrong", "the token is wrong: check channels.slack.token"),
            (f"{stranger}/api/", TOKEN, "check channels.slack.api_url"),
            ("http://127.0.0.1:1/api/", TOKEN, "Slack can't be reached"),
        ):
            channel = SlackChannel(SlackConfig(token=token, api_url=where, timeout=2))
            ((ok, says),) = await checked(channel)
            await channel.aclose()
            assert (ok, words in says, token in says) == (False, True, False), says
