"""Searching for a message whose answer was lost, and the limits of every request, against the demo's Slack."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from channels.contract import InDoubt, Later, Misconfigured, Thread
from channels.slack.channel import SlackChannel, SlackConfig
from dispatcher.demo.fakes.inbox import Conversation, SlackReceiver
from dispatcher.demo.fakes.script import ScriptedReply
from dispatcher.demo.fakes.slack import ALL_SCOPES, SlackMessage
from tests.support.http import Request, ScriptedHttp, answer
from tests.support.servers import ForwardProxy, endless_server
from tests.support.slack import FAILED, TOKEN, message, thread_after

LOST = ScriptedReply(500, b"{}", accept=True)
"""Slack takes the message, and the answer says nothing."""
README_SCOPES = ("chat:write", "users:read.email", "channels:history", "im:history")
"""Scopes without those that find ids."""


@pytest.fixture
def workspace() -> SlackReceiver:
    return SlackReceiver(
        token=TOKEN,
        channels=[Conversation("C0000001", "alerts"), Conversation("C0000004", "secret", private=True)],
        people={"jane@example.com": "U0000001"},
    )


@pytest.fixture
async def channel(url: str) -> AsyncIterator[SlackChannel]:
    opened = SlackChannel(SlackConfig(token=TOKEN, api_url=url, timeout=5))
    yield opened
    await opened.aclose()


async def send_twice(workspace: SlackReceiver, channel: SlackChannel, to: str, thread: Thread | None = None) -> None:
    """Send a message whose answer is lost, and send it again."""
    workspace.script.steps = [LOST]
    with pytest.raises(InDoubt):
        await channel.send(message(to, key="doubtful", thread=thread))
    receipt = await channel.send(message(to, key="doubtful", thread=thread, in_doubt=True))
    assert receipt.reference["ts"] == next(one.ts for one in workspace.messages if one.key == "doubtful")


def arrived(workspace: SlackReceiver) -> int:
    return sum(one.key == "doubtful" for one in workspace.messages)


@pytest.mark.parametrize("to", ["#alerts", "#secret", "C0000004", "jane@example.com", "U0000001"])
async def test_a_message_in_doubt_is_found_wherever_it_was_posted(
    workspace: SlackReceiver, channel: SlackChannel, to: str
) -> None:
    await send_twice(workspace, channel, to)
    assert arrived(workspace) == 1


@pytest.mark.parametrize(
    ("scopes", "to", "found"),
    [
        (tuple(scope for scope in ALL_SCOPES if scope != "groups:read"), "#alerts", True),
        (tuple(scope for scope in ALL_SCOPES if scope != "channels:read"), "#secret", True),
        (tuple(scope for scope in ALL_SCOPES if scope != "groups:read"), "#secret", False),
        (tuple(scope for scope in ALL_SCOPES if scope != "channels:history"), "#alerts", False),
        (README_SCOPES, "#alerts", False),
        (README_SCOPES, "jane@example.com", False),
    ],
)
async def test_without_a_scope_for_the_search_a_message_in_doubt_is_posted_again(
    workspace: SlackReceiver, channel: SlackChannel, scopes: tuple[str, ...], to: str, found: bool
) -> None:
    workspace.scopes = scopes
    workspace.script.steps = [LOST]
    with pytest.raises(InDoubt):
        await channel.send(message(to, key="doubtful"))
    await channel.send(message(to, key="doubtful", in_doubt=True))
    assert arrived(workspace) == (1 if found else 2)


@pytest.mark.parametrize("to", ["#alerts", "jane@example.com"])
@pytest.mark.parametrize("restarted", [False, True])
async def test_the_id_of_an_earlier_post_needs_no_scope(
    workspace: SlackReceiver, channel: SlackChannel, url: str, to: str, restarted: bool
) -> None:
    """The channel remembers the id; after a restart, the thread's earlier message has it."""
    workspace.scopes = README_SCOPES
    first = await channel.send(message(to, key="k1", thread=thread_after(), **FAILED))
    workspace.locked_threads.add(first.reference["ts"])  # so the message in doubt is no reply
    if not restarted:
        await send_twice(workspace, channel, to)
    else:
        other = SlackChannel(SlackConfig(token=TOKEN, api_url=url, timeout=5))
        workspace.script.steps = [ScriptedReply(200, b'{"ok":false,"error":"thread_not_found"}')]
        await send_twice_as_new(workspace, other, to, thread_after(first))
        await other.aclose()
    assert arrived(workspace) == 1


async def send_twice_as_new(workspace: SlackReceiver, channel: SlackChannel, to: str, thread: Thread) -> None:
    """Send a message that its thread refuses, and whose answer is lost when it is posted as new; and send it again."""
    workspace.script.steps = [ScriptedReply(200, b'{"ok":false,"error":"thread_not_found"}'), LOST]
    with pytest.raises(InDoubt):
        await channel.send(message(to, key="doubtful", thread=thread))
    await channel.send(message(to, key="doubtful", thread=thread, in_doubt=True))


@pytest.mark.parametrize("reply", [False, True])
async def test_a_message_in_doubt_is_found_behind_hundreds_of_other_messages(
    workspace: SlackReceiver, channel: SlackChannel, reply: bool
) -> None:
    thread = thread_after(await channel.send(message(key="k1", thread=thread_after(), **FAILED))) if reply else None
    root = workspace.messages[0].ts if reply else None

    def add_others() -> None:
        others: dict[str, Any] = {"text": "other", **({"thread_ts": root} if root else {})}
        for number in range(210):
            ts = f"{time.time() + number / 1e6:.6f}"
            workspace.messages.append(SlackMessage("C0000001", "alerts", ts, others))

    add_others()
    workspace.script.steps = [LOST]
    with pytest.raises(InDoubt):
        await channel.send(message(key="doubtful", thread=thread))
    add_others()
    await channel.send(message(key="doubtful", thread=thread, in_doubt=True))
    assert arrived(workspace) == 1


async def test_messages_from_before_the_delivery_are_not_listed(channel: SlackChannel) -> None:
    asked: list[Request] = []
    async with ScriptedHttp(default=answer(200, b'{"ok":true,"channel":"C0000001","ts":"1.2"}')) as server:
        server.check_request = asked.append
        channel = SlackChannel(SlackConfig(token=TOKEN, api_url=f"{server.url}/api/", timeout=2))
        await channel.send(message("C0000001", in_doubt=True))
        await channel.aclose()
    created_at = message().created_at.timestamp()
    assert f"oldest={created_at - 300:.6f}" in asked[0].path


async def test_a_wrong_token_at_a_look_up_waits_and_posts_nothing(
    workspace: SlackReceiver, channel: SlackChannel
) -> None:
    workspace.token = "xoxb-other"
    for to in ("jane@example.com", "#alerts"):
        before = workspace.requests
        with pytest.raises(Misconfigured, match="invalid_auth") as caught:
            await channel.send(message(to, in_doubt=True))
        assert caught.value.provider_wide
        assert workspace.requests == before + 1, "asking again would not help"
    assert workspace.messages == []


async def test_a_person_is_not_looked_up_without_the_scope(workspace: SlackReceiver, channel: SlackChannel) -> None:
    workspace.scopes = ("chat:write",)
    with pytest.raises(Misconfigured, match=r"lacks the scope users:read\.email") as caught:
        await channel.send(message("jane@example.com"))
    assert not caught.value.provider_wide
    await channel.send(message("#alerts"))


# -- limits


def page_of(kilobytes: int, limit: int) -> bytes:
    messages = [{"ts": f"{number}.1", "text": "x" * 1000 * kilobytes} for number in range(limit)]
    return answer(200, orjson.dumps({"ok": True, "messages": messages}), Connection="close")


async def test_a_page_that_is_too_long_is_asked_for_with_fewer_messages() -> None:
    limits: list[str] = []
    async with ScriptedHttp(default=answer(200, b'{"ok":true,"channel":"C0000001","ts":"1.2"}')) as server:
        server.steps = [page_of(50, 100), page_of(50, 10)]
        server.check_request = lambda request: limits.append(request.path.partition("limit=")[2].partition("&")[0])
        channel = SlackChannel(SlackConfig(token=TOKEN, api_url=f"{server.url}/api/", timeout=5))
        receipt = await channel.send(message("C0000001", in_doubt=True))
        await channel.aclose()
    assert receipt.reference["ts"] == "1.2"
    assert limits == ["100", "10", ""]


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize("to", ["jane@example.com", "C0000001"])
async def test_an_endless_answer_is_read_to_a_limit(encoding: str, to: str) -> None:
    piece = b" " * 100_000 if encoding == "identity" else gzip.compress(b" " * 10_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: {encoding}\r\n\r\n".encode()
    async with endless_server(head, piece) as (base, _):
        channel = SlackChannel(SlackConfig(token=TOKEN, api_url=f"{base}/api/", timeout=5))
        tracemalloc.start()
        with pytest.raises(Later if "@" in to else InDoubt):
            await channel.send(message(to))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        await channel.aclose()
    assert peak < 30_000_000


@pytest.mark.parametrize("to", ["jane@example.com", "C0000001"])
async def test_an_answer_that_drips_ends_with_the_timeout(to: str) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    async with endless_server(head, b" ", pause=0.1) as (base, _):
        channel = SlackChannel(SlackConfig(token=TOKEN, api_url=f"{base}/api/", timeout=1))
        started = time.monotonic()
        with pytest.raises(Later if "@" in to else InDoubt):
            await channel.send(message(to))
        assert time.monotonic() - started < 3
        await channel.aclose()


async def test_a_success_that_repeats_a_long_message_is_a_success() -> None:
    long_answer = orjson.dumps({"ok": True, "channel": "C0000001", "ts": "1.2", "message": {"text": "x" * 200_000}})
    async with ScriptedHttp(default=answer(200, long_answer)) as server:
        channel = SlackChannel(SlackConfig(token=TOKEN, api_url=f"{server.url}/api/", timeout=2))
        receipt = await channel.send(message("C0000001"))
        await channel.aclose()
    assert receipt.reference == {"channel": "C0000001", "ts": "1.2"}


# -- proxies


async def test_the_web_api_and_webhooks_heed_the_proxy_and_its_exceptions(
    workspace: SlackReceiver, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.webhooks = {"T/B/x": "alerts"}
    base = url.removesuffix("/api/")
    options = {"token": TOKEN, "api_url": url, "webhooks": {"hook": {"url": f"{base}/services/T/B/x"}}}
    async with ForwardProxy(int(base.rpartition(":")[2])) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        for name, value in (("NO_PROXY", ""), ("NO_PROXY", "127.0.0.1")):
            monkeypatch.setenv(name, value)
            monkeypatch.delenv(name.lower(), raising=False)
            channel = SlackChannel(SlackConfig.model_validate(options))
            await channel.send(message("jane@example.com"))
            await channel.send(message("hook"))
            await channel.aclose()
    assert len(workspace.messages) == 4
    assert [target.removeprefix(base).partition("?")[0] for target in proxy.targets] == [
        "/api/users.lookupByEmail",
        "/api/chat.postMessage",
        "/services/T/B/x",
    ]
