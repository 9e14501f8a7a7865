"""The PagerDuty channel against the demo's Events API v2, which validates events and routing keys."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
import trustme
from starlette.applications import Starlette

from channels.contract import (
    EarlierMessage,
    InDoubt,
    Later,
    Message,
    Never,
    Thread,
    UnknownRecipient,
)
from channels.pagerduty.answers import MASK
from channels.pagerduty.channel import PagerDutyChannel, PagerDutyConfig
from dispatcher.demo.fakes.inbox import PagerDutyReceiver
from dispatcher.demo.fakes.script import ScriptedReply
from dispatcher.web.server import serving
from tests.support.http import ScriptedHttp
from tests.support.servers import breaking_server, proxy_server

KEY = "0123456789abcdef0123456789abcdef"
PAYLOAD = {"summary": "train.daily failed", "source": "p/d/n", "severity": "error"}
EVENT = {"event_action": "trigger", "payload": PAYLOAD}


def message(to: str = "ml", *, key: str = "k1", content: Any = EVENT, thread: Thread | None = None) -> Message:
    created_at = datetime(2026, 11, 20, tzinfo=UTC)
    return Message(key=key, recipients=(to,), content=content, created_at=created_at, thread=thread)


def config(url: str, **service: Any) -> PagerDutyConfig:
    return PagerDutyConfig.model_validate(
        {"events_url": url, "services": {"ml": {"routing_key": KEY, **service}}, "timeout": 1}
    )


@pytest.fixture
def account() -> PagerDutyReceiver:
    return PagerDutyReceiver(services={KEY: "ML platform"})


@pytest.fixture
async def url(account: PagerDutyReceiver) -> AsyncIterator[str]:
    async with serving(Starlette(routes=account.routes()), "127.0.0.1", 0) as base:
        yield base


@pytest.fixture
async def channel(url: str) -> AsyncIterator[PagerDutyChannel]:
    opened = PagerDutyChannel(config(url))
    yield opened
    await opened.aclose()


# In Python 3.11, asyncio leaves a server's socket to the garbage collector if the client breaks off the TLS handshake.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_untrusted_certificate_raises_later_and_nothing_is_sent() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    async with ScriptedHttp(tls=context) as server:
        untrusted = PagerDutyChannel(config(server.url.replace("127.0.0.1", "localhost")))
        with pytest.raises(Later, match="PagerDuty can't be reached: SSLError"):
            await untrusted.send(message())
        await untrusted.aclose()
        assert server.requests == []


async def test_a_trigger_opens_an_incident_and_a_repeated_one_is_merged(
    account: PagerDutyReceiver, channel: PagerDutyChannel
) -> None:
    receipt = await channel.send(message())
    await channel.send(message())
    await channel.send(message(key="k2"))

    assert receipt.reference == {"dedup_key": "k1"}
    assert [(incident.dedup_key, len(incident.events)) for incident in account.incidents] == [("k1", 2), ("k2", 1)]


EARLIER = (EarlierMessage(reference={"dedup_key": "thread"}, content=EVENT),)
FIRST_FAILURE, SECOND_FAILURE = Thread(key="thread"), Thread(key="thread", earlier=EARLIER)
RESOLVED = Thread(key="thread", earlier=EARLIER, resolves=True)


async def test_a_thread_is_one_incident_and_the_resolved_notice_resolves_it(
    account: PagerDutyReceiver, channel: PagerDutyChannel
) -> None:
    for key, thread in (
        ("k1", FIRST_FAILURE),
        ("k2", SECOND_FAILURE),
        ("k3", RESOLVED),
        ("k3", RESOLVED),
        ("k4", FIRST_FAILURE),
    ):
        receipt = await channel.send(message(key=key, thread=thread))
        assert receipt.reference == {"dedup_key": "thread"}

    incidents = [([event["event_action"] for event in one.events], one.status) for one in account.incidents]
    assert incidents == [(["trigger", "trigger", "resolve"], "resolved"), (["trigger"], "triggered")]


async def test_nothing_is_sent_for_a_resolved_notice_without_an_incident(
    account: PagerDutyReceiver, channel: PagerDutyChannel
) -> None:
    receipt = await channel.send(message(thread=Thread(key="thread", resolves=True)))
    assert (account.requests, receipt.answer.status) == (0, "none")


def test_the_settings_define_what_an_incident_covers() -> None:
    for incident in ("launch_plan", "execution"):
        settings = PagerDutyConfig(incident=incident)
        assert PagerDutyChannel(settings).thread_by("ml") == incident


async def test_a_services_severity_takes_precedence(url: str, account: PagerDutyReceiver) -> None:
    channel = PagerDutyChannel(config(url, severity="critical"))
    await channel.send(message())
    await channel.aclose()

    assert account.incidents[0].events[0]["payload"]["severity"] == "critical"


async def test_a_routing_key_file_is_read_for_each_event(url: str, account: PagerDutyReceiver, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("f" * 32)  # a key that PagerDuty does not know
    services = {"ml": {"routing_key_file": file}}
    channel = PagerDutyChannel(PagerDutyConfig.model_validate({"events_url": url, "services": services}))
    with pytest.raises(Never):
        await channel.send(message())
    file.write_text(KEY + "\n")
    await channel.send(message())
    await channel.aclose()

    assert len(account.incidents) == 1


async def test_an_event_that_is_too_large_loses_its_details(
    account: PagerDutyReceiver, channel: PagerDutyChannel
) -> None:
    payload = {**PAYLOAD, "custom_details": {"error": "x" * 600_000}}

    await channel.send(message(content={**EVENT, "payload": payload}))

    (event,) = account.incidents[0].events
    assert event["payload"]["summary"] == "train.daily failed"
    assert "too large" in event["payload"]["custom_details"]["left_out"]


async def test_details_below_the_limit_are_kept_in_any_script(
    account: PagerDutyReceiver, channel: PagerDutyChannel
) -> None:
    payload = {**PAYLOAD, "custom_details": {"error": "ж" * 200_000}}  # 400 kB in UTF-8, but 1.2 MB with JSON escapes

    await channel.send(message(content={**EVENT, "payload": payload}))

    (event,) = account.incidents[0].events
    assert event["payload"] == payload


async def test_an_event_without_an_answer_is_in_doubt(account: PagerDutyReceiver, channel: PagerDutyChannel) -> None:
    account.script.steps = [ScriptedReply(202, b"", accept=True, delay=1.5)]
    with pytest.raises(InDoubt, match="did not answer within 1 s; it may have taken the event"):
        await channel.send(message())
    assert account.requests == 1


async def test_an_unreachable_pagerduty_is_provider_wide() -> None:
    channel = PagerDutyChannel(config("http://127.0.0.1:1"))
    with pytest.raises(Later, match="can't be reached") as caught:
        await channel.send(message())
    await channel.aclose()
    assert caught.value.provider_wide


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("http_proxy", "http://127.0.0.1:1", "ProxyError; check HTTPS_PROXY and NO_PROXY"),
        ("http_proxy", "http://", "InvalidProxyURL"),
        ("https_proxy", "http://127.0.0.1:1", "ProxyError; check HTTPS_PROXY and NO_PROXY"),
        ("REQUESTS_CA_BUNDLE", "/no/such/file", "/no/such/file"),
    ],
)
async def test_an_environment_that_prevents_connections_raises_later(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(name, value)
    scheme = "http" if name == "http_proxy" else "https"
    channel = PagerDutyChannel(config(f"{scheme}://events.pagerduty.test"))
    with pytest.raises(Later, match=f"can't be reached: .*{problem}") as caught:
        await channel.send(message())
    await channel.aclose()
    assert caught.value.provider_wide


@pytest.mark.parametrize(
    "url",
    [
        "https://events.pagerduty.com",
        "https://events.pagerduty.com/",
        "https://events.pagerduty.com/v2",
        "https://events.pagerduty.com/v2/enqueue",
        "https://events.pagerduty.com/v2/change/enqueue/",
    ],
)
def test_events_url_may_name_an_endpoint(url: str) -> None:
    assert PagerDutyConfig(events_url=url).events_url == "https://events.pagerduty.com"


def test_events_url_may_have_a_path() -> None:
    assert PagerDutyConfig(events_url="http://gateway/pd/v2/enqueue").events_url == "http://gateway/pd"


async def test_events_use_the_proxy_of_the_environment_and_send_its_cookies_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with proxy_server(b"HTTP/1.1 202 Accepted", b"{}") as (proxy, heads):
        monkeypatch.setenv("http_proxy", proxy)
        channel = PagerDutyChannel(config("http://events.pagerduty.test").model_copy(update={"connections": 1}))
        for key in ("k1", "k2", "k3"):
            await channel.send(message(key=key))
        await channel.aclose()

    assert all(head.startswith(b"POST http://events.pagerduty.test/v2/enqueue HTTP/1.1") for head in heads)
    assert [b"Cookie: way=2" in head for head in heads] == [False, True, True]


async def test_events_bypass_the_proxy_if_no_proxy_names_pagerduty(
    account: PagerDutyReceiver, channel: PagerDutyChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    await channel.send(message(key="k1"))
    await channel.send(message(key="k2"))

    assert [incident.dedup_key for incident in account.incidents] == ["k1", "k2"]


async def test_events_follow_a_redirect(account: PagerDutyReceiver, url: str) -> None:
    redirect = f"HTTP/1.1 307 Elsewhere\r\nLocation: {url}/v2/enqueue".encode()
    async with proxy_server(redirect, b"{}") as (address, _):
        channel = PagerDutyChannel(config(address).model_copy(update={"connections": 1}))
        await channel.send(message(key="k1"))
        await channel.send(message(key="k2"))
        await channel.aclose()

    assert [incident.dedup_key for incident in account.incidents] == ["k1", "k2"]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 202 OK\r\nContent-Length: 50\r\n\r\n{"])
async def test_a_connection_that_breaks_during_the_answer_raises_in_doubt(answer: bytes) -> None:
    async with breaking_server(answer) as base:
        channel = PagerDutyChannel(config(base))
        with pytest.raises(InDoubt):
            await channel.send(message())
        await channel.aclose()


async def test_the_event_loop_is_not_blocked_while_pagerduty_is_slow(
    account: PagerDutyReceiver, channel: PagerDutyChannel
) -> None:
    account.script.steps = [ScriptedReply(202, b"{}", delay=0.5) for _ in range(4)]
    sending = [asyncio.create_task(channel.send(message(key=f"k{number}"))) for number in range(4)]
    ticks = 0
    while not all(task.done() for task in sending):
        await asyncio.sleep(0.01)
        ticks += 1
    await asyncio.gather(*sending)

    assert ticks > 20


def test_a_recipient_that_is_no_service_is_unknown() -> None:
    channel = PagerDutyChannel(config("http://127.0.0.1:1"))
    with pytest.raises(UnknownRecipient, match=r"channels\.pagerduty\.services"):
        channel.address("on-call@example.com")
    assert channel.address("ml") == "ml"


async def test_routing_keys_do_not_appear_in_errors_or_previews(
    account: PagerDutyReceiver, channel: PagerDutyChannel, url: str
) -> None:
    account.services = {}
    with pytest.raises(Never) as caught:
        await channel.send(message())

    shown = f"{caught.value!r} {caught.value.answer} {config(url)!r} {channel.wire_preview(message()).body.decode()}"
    assert KEY not in shown
    assert orjson.loads(channel.wire_preview(message()).body)["routing_key"] == MASK


async def test_check_connects_to_pagerduty_and_opens_no_incident(
    account: PagerDutyReceiver, channel: PagerDutyChannel
) -> None:
    (finding,) = await channel.check()
    assert (finding.ok, finding.message) == (True, "ml: PagerDuty is reached and has nothing against the routing key")
    assert (account.requests, account.incidents) == (1, [])


@pytest.mark.parametrize(
    ("key", "problem"),
    [("f" * 32, "doesn't know the routing key"), ("too-short", "9 characters, not 32")],
)
async def test_check_reports_a_wrong_routing_key(url: str, key: str, problem: str) -> None:
    channel = PagerDutyChannel(config(url, routing_key=key))
    (finding,) = await channel.check()
    await channel.aclose()
    assert (finding.ok, problem in finding.message, key in finding.message) == (False, True, False)


async def test_check_reports_a_wrong_url_and_missing_services(url: str) -> None:
    for events_url, problem in (("http://127.0.0.1:1", "can't be reached"), (f"{url}/elsewhere", "answered 404")):
        channel = PagerDutyChannel(config(events_url))
        (finding,) = await channel.check()
        await channel.aclose()
        assert (finding.ok, problem in finding.message) == (False, True), finding.message
    without_services = PagerDutyChannel(PagerDutyConfig(events_url=url))
    (finding,) = await without_services.check()
    await without_services.aclose()
    assert (finding.ok, "nobody can be paged" in finding.message) == (False, True)
