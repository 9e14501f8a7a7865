"""PagerDuty against a server that checks what the Events API v2 checks."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import trustme
from starlette.applications import Starlette

from channels.contract import (
    ChannelError,
    EarlierMessage,
    InDoubt,
    Later,
    Message,
    Never,
    Thread,
    UnknownRecipient,
)
from channels.pagerduty.channel import MASK, PagerDutyChannel, PagerDutyConfig
from dispatcher.demo.fakes.inbox import PagerDutyReceiver
from dispatcher.demo.fakes.script import ScriptedReply
from dispatcher.web.server import serving
from tests.support.http import ScriptedHttp
from tests.support.servers import breaking_server, proxy_server

KEY = "0123456789abcdef0123456789abcdef"
PAYLOAD = {"summary": "train.daily failed", "source": "p/d/n", "severity": "error"}
EVENT = {"event_action": "trigger", "payload": PAYLOAD}


def message(to: str = "ml", *, key: str = "k1", content: Any = EVENT, thread: Thread | None = None) -> Message:
    made = datetime(2026, 11, 20, tzinfo=UTC)
    return Message(key=key, recipients=(to,), content=content, created_at=made, thread=thread)


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


# A server whose client breaks off the handshake leaves its socket to the garbage collector, in asyncio of Python 3.11.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_certificate_that_nobody_vouches_for_is_no_connection_and_so_no_doubt() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    async with ScriptedHttp(tls=context) as server:
        untrusted = PagerDutyChannel(config(server.url.replace("127.0.0.1", "localhost")))
        with pytest.raises(Later, match="PagerDuty can't be reached: SSLError"):
            await untrusted.send(message())
        await untrusted.aclose()
        assert server.requests == []


async def test_a_trigger_opens_an_incident_and_its_repetition_merges(
    account: PagerDutyReceiver, channel: PagerDutyChannel
) -> None:
    receipt = await channel.send(message())
    await channel.send(message())
    await channel.send(message(key="k2"))

    assert receipt.reference == {"dedup_key": "k1"}
    assert [(incident.dedup_key, len(incident.events)) for incident in account.incidents] == [("k1", 2), ("k2", 1)]


SAID = (EarlierMessage(reference={"dedup_key": "talk"}, content=EVENT),)
TALK, FAILED_AGAIN = Thread(key="talk"), Thread(key="talk", earlier=SAID)
WELL = Thread(key="talk", earlier=SAID, resolves=True)


async def test_a_conversation_is_one_incident_and_its_recovery_resolves_it(
    account: PagerDutyReceiver, channel: PagerDutyChannel
) -> None:
    for key, talk in (("k1", TALK), ("k2", FAILED_AGAIN), ("k3", WELL), ("k3", WELL), ("k4", TALK)):
        receipt = await channel.send(message(key=key, thread=talk))
        assert receipt.reference == {"dedup_key": "talk"}

    told = [([event["event_action"] for event in one.events], one.status) for one in account.incidents]
    assert told == [(["trigger", "trigger", "resolve"], "resolved"), (["trigger"], "triggered")]


async def test_nothing_is_resolved_that_was_not_triggered_and_what_is_over_pages_nobody(
    account: PagerDutyReceiver, channel: PagerDutyChannel
) -> None:
    receipt = await channel.send(message(thread=Thread(key="talk", resolves=True)))
    with pytest.raises(Never, match="nobody was paged: it has succeeded since then"):
        await channel.send(message(thread=Thread(key="talk", superseded=True)))
    with pytest.raises(Never, match="nothing was resolved: it has failed since then"):
        await channel.send(message(thread=Thread(key="talk", earlier=SAID, resolves=True, superseded=True)))

    assert (account.requests, receipt.answer.status) == (0, "none")


def test_incidents_are_about_what_the_settings_say() -> None:
    for incident in ("launch_plan", "execution"):
        settings = PagerDutyConfig(incident=incident)
        assert PagerDutyChannel(settings).thread_by("ml") == incident


async def test_a_services_own_severity_goes_first(url: str, account: PagerDutyReceiver) -> None:
    channel = PagerDutyChannel(config(url, severity="critical"))
    await channel.send(message())
    await channel.aclose()

    assert account.incidents[0].events[0]["payload"]["severity"] == "critical"


async def test_a_routing_key_is_read_from_its_file_at_each_use(
    url: str, account: PagerDutyReceiver, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("not yet the key of anything at all\n")
    services = {"ml": {"routing_key_file": file}}
    channel = PagerDutyChannel(PagerDutyConfig.model_validate({"events_url": url, "services": services}))
    with pytest.raises(Never):
        await channel.send(message())
    file.write_text(KEY + "\n")
    await channel.send(message())
    await channel.aclose()

    assert len(account.incidents) == 1


async def test_details_are_dropped_before_an_event_is_too_large(
    account: PagerDutyReceiver, channel: PagerDutyChannel
) -> None:
    payload = {**PAYLOAD, "custom_details": {"error": "x" * 600_000}}

    await channel.send(message(content={**EVENT, "payload": payload}))

    (event,) = account.incidents[0].events
    assert event["payload"]["summary"] == "train.daily failed"
    assert "left out" in event["payload"]["custom_details"]["note"]


async def test_details_that_pagerduty_takes_are_kept_in_whichever_letters(
    account: PagerDutyReceiver, channel: PagerDutyChannel
) -> None:
    payload = {**PAYLOAD, "custom_details": {"error": "ж" * 200_000}}  # in UTF-8 400 kB, escaped three times as much

    await channel.send(message(content={**EVENT, "payload": payload}))

    (event,) = account.incidents[0].events
    assert event["payload"] == payload


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (ScriptedReply(400, b'{"status":"invalid event","errors":["x"]}'), Never),
        (ScriptedReply(403), Never),
        (ScriptedReply(429, b"{}", {"Retry-After": "30"}), Later),
        (ScriptedReply(429, b"{}"), Later),
        (ScriptedReply(500), Later),
        (ScriptedReply(503), Later),
        (ScriptedReply(200, b"<html>"), InDoubt),
        (ScriptedReply(202, b"", accept=True, delay=3), InDoubt),
    ],
)
async def test_every_answer_has_its_meaning_at_the_first_try(
    account: PagerDutyReceiver, channel: PagerDutyChannel, step: ScriptedReply, kind: type[ChannelError]
) -> None:
    account.script.steps = [step]

    with pytest.raises(kind) as caught:
        await channel.send(message())

    assert type(caught.value) is kind
    assert account.requests == 1  # the library's own retries sleep, and one of them never ends
    if "Retry-After" in step.headers:
        assert isinstance(caught.value, Later)
        assert caught.value.retry_after == timedelta(seconds=30)


async def test_pagerduty_that_is_not_there_is_everyones_trouble() -> None:
    channel = PagerDutyChannel(config("http://127.0.0.1:1"))
    with pytest.raises(Later, match="can't be reached") as caught:
        await channel.send(message())
    await channel.aclose()
    assert caught.value.provider_wide


async def test_a_proxy_that_is_not_there_leaves_no_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    channel = PagerDutyChannel(config("http://events.pagerduty.test"))
    with pytest.raises(Later, match="can't be reached: ProxyError"):
        await channel.send(message())
    await channel.aclose()


async def test_every_event_goes_by_the_environments_proxy_and_shows_the_cookies_it_got(
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


async def test_no_event_goes_by_the_proxy_where_the_environment_excepts_pagerduty(
    account: PagerDutyReceiver, channel: PagerDutyChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    await channel.send(message(key="k1"))
    await channel.send(message(key="k2"))

    assert [incident.dedup_key for incident in account.incidents] == ["k1", "k2"]


async def test_a_redirect_takes_every_event_along(account: PagerDutyReceiver, url: str) -> None:
    elsewhere = f"HTTP/1.1 307 Elsewhere\r\nLocation: {url}/v2/enqueue".encode()
    async with proxy_server(elsewhere, b"{}") as (address, _):
        channel = PagerDutyChannel(config(address).model_copy(update={"connections": 1}))
        await channel.send(message(key="k1"))
        await channel.send(message(key="k2"))
        await channel.aclose()

    assert [incident.dedup_key for incident in account.incidents] == ["k1", "k2"]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 202 OK\r\nContent-Length: 50\r\n\r\n{"])
async def test_a_connection_that_breaks_in_mid_answer_leaves_a_doubt(answer: bytes) -> None:
    async with breaking_server(answer) as base:
        channel = PagerDutyChannel(config(base))
        with pytest.raises(InDoubt):
            await channel.send(message())
        await channel.aclose()


async def test_the_loop_goes_on_while_pagerduty_is_slow(account: PagerDutyReceiver, channel: PagerDutyChannel) -> None:
    account.script.steps = [ScriptedReply(202, b"{}", delay=0.5) for _ in range(4)]
    sending = [asyncio.create_task(channel.send(message(key=f"k{number}"))) for number in range(4)]
    ticks = 0
    while not all(task.done() for task in sending):
        await asyncio.sleep(0.01)
        ticks += 1
    await asyncio.gather(*sending)

    assert ticks > 20


def test_who_is_no_service_here_is_unserved_with_advice() -> None:
    channel = PagerDutyChannel(config("http://127.0.0.1:1"))
    with pytest.raises(UnknownRecipient, match=r"channels\.pagerduty\.services"):
        channel.address("on-call@example.com")
    assert channel.address("ml") == "ml"


async def test_routing_keys_do_not_show(account: PagerDutyReceiver, channel: PagerDutyChannel, url: str) -> None:
    account.services = {}
    with pytest.raises(Never) as caught:
        await channel.send(message())

    shown = f"{caught.value!r} {caught.value.answer} {config(url)!r} {channel.wire_preview(message()).body.decode()}"
    assert KEY not in shown
    assert orjson.loads(channel.wire_preview(message()).body)["routing_key"] == MASK


async def test_a_check_reaches_pagerduty_and_opens_no_incident(
    account: PagerDutyReceiver, channel: PagerDutyChannel
) -> None:
    (finding,) = await channel.check()
    assert (finding.ok, finding.message) == (True, "ml: PagerDuty is reached and has nothing against the routing key")
    assert (account.requests, account.incidents) == (1, [])


@pytest.mark.parametrize(
    ("key", "words"),
    [("f" * 32, "doesn't know the routing key"), ("too-short", "9 characters, not 32")],
)
async def test_a_check_finds_a_wrong_routing_key(url: str, key: str, words: str) -> None:
    channel = PagerDutyChannel(config(url, routing_key=key))
    (finding,) = await channel.check()
    await channel.aclose()
    assert (finding.ok, words in finding.message, key in finding.message) == (False, True, False)


async def test_a_check_finds_a_wrong_address_and_that_there_are_no_services(url: str) -> None:
    for where, words in (("http://127.0.0.1:1", "can't be reached"), (f"{url}/elsewhere", "answered 404")):
        channel = PagerDutyChannel(config(where))
        (finding,) = await channel.check()
        await channel.aclose()
        assert (finding.ok, words in finding.message) == (False, True), finding.message
    nobody = PagerDutyChannel(PagerDutyConfig(events_url=url))
    (finding,) = await nobody.check()
    await nobody.aclose()
    assert (finding.ok, "nobody can be paged" in finding.message) == (False, True)
