"""The webhook channel against a scripted HTTP server; signatures are verified as a receiver does it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import time
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from channels.contract import ChannelError, InDoubt, Later, Message, Never, UnknownRecipient
from channels.webhook.channel import WebhookChannel, WebhookConfig
from dispatcher.parsing.cloudevents import decode_http_attribute
from tests.support.http import Request, ScriptedHttp, answer
from tests.support.servers import endless_server

SIGNING_KEY = base64.b64encode(b"the key of the tests").decode()
CONTENT = {"text": "größer", "phase": "failed"}
CLOSE: Any = {"Connection": "close"}


def message(to: str = "ops", *, key: str = "k1") -> Message:
    return Message(key=key, recipients=(to,), content=CONTENT, created_at=datetime(2026, 11, 20, 9, 14, 21, tzinfo=UTC))


def config(url: str = "", *, hosts: tuple[str, ...] = (), section: Any = None, **target: Any) -> WebhookConfig:
    options = {"allow_http": True, "allow_networks": ["127.0.0.0/8"], "timeout": 5, "allow_hosts": hosts}
    targets = {"ops": {"url": f"{url}/hooks/flyte", **target}} if url else {}
    return WebhookConfig.model_validate({**options, "targets": targets, **(section or {})})


def channel(url: str = "", **settings: Any) -> WebhookChannel:
    return WebhookChannel(config(url, **settings))


@pytest.fixture
async def server() -> AsyncIterator[ScriptedHttp]:
    async with ScriptedHttp(default=answer(200, **CLOSE)) as opened:
        yield opened


async def send_and_close(channel: WebhookChannel, *messages: Message) -> None:
    for one in messages:
        await channel.send(one)
    await channel.aclose()


def assert_signed(request: Request, key: bytes) -> None:
    """Verify the signature as the Standard Webhooks specification describes it."""
    headers = request.headers
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 60
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request.body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


async def test_the_content_is_posted_as_json_with_its_key(server: ScriptedHttp) -> None:
    webhook = channel(server.url)
    receipt = await webhook.send(message())
    await webhook.aclose()

    (request,) = server.requests
    assert (request.method, request.path, request.json) == ("POST", "/hooks/flyte", CONTENT)
    assert (request.headers["content-type"], request.headers["idempotency-key"]) == ("application/json", "k1")
    assert "webhook-signature" not in request.headers
    assert receipt.reference == {"idempotency_key": "k1"}
    assert request.body == webhook.wire_preview(message()).body


@pytest.mark.parametrize(
    ("secret", "key"), [(f"whsec_{SIGNING_KEY}", b"the key of the tests"), ("any text ä", "any text ä".encode())]
)
async def test_a_message_is_signed_with_a_timestamp(
    server: ScriptedHttp, secret: str, key: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{secret}\n")
    await send_and_close(channel(server.url, secret=secret), message())
    await send_and_close(channel(server.url, secret_file=file), message())

    for request in server.requests:
        assert_signed(request, key)


async def test_an_unusable_secret_raises_an_error_and_nothing_is_sent_unsigned(
    server: ScriptedHttp, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    for secret, error_type, reason in (
        ("", Later, "can't be read: it is empty"),
        ("whsec_äöü", Never, "base64"),
        (None, Later, "can't be read"),
    ):
        file.write_text("x")
        webhook = channel(server.url, secret_file=file)
        if secret is None:
            file.unlink()
        else:
            file.write_text(secret)
        with pytest.raises(error_type, match=reason):
            await webhook.send(message())
        await webhook.aclose()
    assert server.requests == []


async def test_custom_headers_come_from_values_and_from_files_read_for_each_message(
    server: ScriptedHttp, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("Bearer one\n")
    webhook = channel(server.url, headers={"X-Team": "ml", "Authorization": {"value_file": str(file)}})
    await webhook.send(message())
    file.write_text("Bearer two\n")
    await webhook.send(message(key="k2"))
    file.write_text("Bearer\r\nX-Evil: 1")
    with pytest.raises(Never, match="header Authorization's value_file must hold one line"):
        await webhook.send(message(key="k3"))
    await webhook.aclose()

    assert [request.headers["authorization"] for request in server.requests] == ["Bearer one", "Bearer two"]
    assert server.requests[0].headers["x-team"] == "ml"


@pytest.mark.parametrize("mode", ["binary", "structured"])
async def test_in_cloudevents_modes_the_message_is_the_events_data(server: ScriptedHttp, mode: str) -> None:
    await send_and_close(channel(server.url, mode=mode), message())

    (request,) = server.requests
    attributes = {
        "specversion": "1.0",
        "id": "k1",
        "source": "/flyte-notification-dispatcher",
        "type": "dispatcher.notification.v1",
        "time": "2026-11-20T09:14:21+00:00",
    }
    if mode == "structured":
        assert request.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
        assert request.json == {**attributes, "datacontenttype": "application/json", "data": CONTENT}
    else:
        assert request.headers["content-type"] == "application/json"
        assert {name: request.headers[f"ce-{name}"] for name in attributes} == attributes
        assert request.json == CONTENT


@pytest.mark.parametrize("source", ["/flyte%20prod", '/say/"hello"', "urn:flyte:a%2Fb?c=d#e", "/%", "%FF"])
async def test_attributes_in_headers_are_percent_encoded(server: ScriptedHttp, source: str) -> None:
    for mode in ("binary", "structured"):
        await send_and_close(channel(server.url, section={"source": source}, mode=mode), message())

    binary, structured = server.requests
    header = binary.headers["ce-source"]
    assert decode_http_attribute(header.encode()).decode() == structured.json["source"] == source
    assert header == source.replace("%", "%25").replace('"', "%22")


@pytest.mark.parametrize(
    ("status", "error_type"),
    [
        (400, Never),
        (401, Never),
        (404, Never),
        (410, Never),
        (413, Never),
        (422, Never),
        (301, Never),
        (307, Never),
        (408, Later),
        (425, Later),
        (429, Later),
        (500, Later),
        (502, Later),
        (503, Later),
        (600, InDoubt),
    ],
)
async def test_each_status_raises_its_error_without_following_redirects(
    server: ScriptedHttp, status: int, error_type: type[ChannelError]
) -> None:
    headers = {"Location": f"{server.url}/elsewhere", "Retry_After": "7"}
    server.steps = [answer(status, b"said the server", **CLOSE, **headers)]
    webhook = channel(server.url)
    with pytest.raises(error_type) as caught:
        await webhook.send(message())
    await webhook.aclose()

    assert caught.value.reason.startswith("ops ")
    given = caught.value.answer
    assert given is not None
    assert (given.status, given.text) == (str(status), "said the server")
    assert len(server.requests) == 1  # no redirect is followed
    if isinstance(caught.value, Later):
        assert (caught.value.retry_after, caught.value.provider_wide) == (timedelta(seconds=7), False)


async def test_an_allowed_url_in_a_rule_is_posted_to_and_its_answer_is_not_shown(server: ScriptedHttp) -> None:
    webhook = channel(hosts=("127.0.0.1:*",))
    url = f"{server.url}/from/a/rule?x=1"
    address = webhook.address(url)
    assert webhook.destination((address,)) == server.url
    await webhook.send(message(address))
    server.steps = [answer(403, b"the page of an internal server", **CLOSE)]
    with pytest.raises(Never) as caught:
        await webhook.send(message(address))
    await webhook.aclose()

    assert server.requests[0].path == "/from/a/rule?x=1"
    assert "internal" not in str(caught.value.answer)
    assert "/from" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://other.example.org/x", "add it to channels.webhook.allow_hosts"),
        ("https://169.254.169.254/latest", "private, local or reserved"),
        ("https://[::1]/", "private, local or reserved"),
        ("https://user:pw@hooks.example.com/", "holds a login"),
        ("https://", "no https URL"),
        ("nobody", "add it to channels.webhook.targets"),
    ],
)
def test_an_address_that_rules_may_not_use_is_an_unknown_recipient(url: str, reason: str) -> None:
    webhook = WebhookChannel(WebhookConfig(allow_hosts=("hooks.example.com", "1*", "[*")))
    with pytest.raises(UnknownRecipient, match=reason):
        webhook.address(url)
    assert webhook.address("https://hooks.example.com/a") == "https://hooks.example.com/a"


async def test_an_address_that_the_settings_no_longer_allow_gets_no_message(server: ScriptedHttp) -> None:
    webhook = channel()
    for address in (f"{server.url}/x", "ops"):
        with pytest.raises(UnknownRecipient):
            await webhook.send(message(address))
    await webhook.aclose()
    assert server.requests == []


async def test_plain_http_and_private_addresses_are_forbidden_by_default(server: ScriptedHttp, tmp_path: Path) -> None:
    for section, reason in (
        ({"allow_http": False}, "set channels.webhook.allow_http"),
        ({"allow_networks": []}, "private"),
    ):
        with pytest.raises(ValidationError, match=f"targets.ops: .*{reason}"):
            channel(server.url, section=section)
        file = tmp_path / "url"
        file.write_text("https://hooks.example.com/x")
        webhook = channel(section={**section, "targets": {"ops": {"url_file": file}}})
        file.write_text(server.url)
        with pytest.raises(Never, match=reason):
            await webhook.send(message())
        await webhook.aclose()
    assert server.connections == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"targets": {"x": {}}}, "give url or url_file"),
        ({"targets": {"https://x": {"url": "https://x"}}}, "an alias, no URL"),
        ({"targets": {"x": {"url": "https://x", "headers": {"Webhook-Id": "1"}}}}, "sets by itself"),
        ({"targets": {"x": {"url": "https://x", "headers": {"a b": "1"}}}}, "no header's name"),
        ({"targets": {"x": {"url": "https://x", "headers": {"A": "hidden\n"}}}}, "one line of ASCII"),
        ({"allow_networks": ["10.0.0.1/8"]}, "not a valid IPv4 or IPv6 network"),
    ],
)
def test_invalid_settings_are_refused_without_showing_values(options: Any, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem) as caught:
        WebhookConfig.model_validate(options)
    assert "hidden" not in str([error["msg"] for error in caught.value.errors()])


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_an_endless_answer_is_read_to_64_kb(encoding: str) -> None:
    piece = b"x" * 10_000 if encoding == "identity" else gzip.compress(b"x" * 10_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: {encoding}\r\n\r\n".encode()
    async with endless_server(head, piece) as (url, sent):
        webhook = channel(url)
        tracemalloc.start()
        receipt = await webhook.send(message())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        await webhook.aclose()
    assert receipt.answer.status == "200"
    assert peak < 4_000_000, sent


async def test_an_answer_that_drips_ends_with_the_timeout() -> None:
    async with endless_server(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x", pause=0.1) as (url, _):
        webhook = channel(url, section={"timeout": 1})
        started = time.monotonic()
        with pytest.raises(InDoubt, match="did not answer: TimeoutError"):
            await webhook.send(message())
        assert time.monotonic() - started < 3
        await webhook.aclose()


@pytest.mark.parametrize(
    ("url", "options", "answer_text"),
    [
        ("/hooks?sig=CANARY%2Fsig", {}, b"sig CANARY%2Fsig is wrong"),
        ("/hooks?sig=CANARY%2Fsig", {}, b"sig CANARY/sig is wrong"),
        ("/hooks?sig=CANARY%2Fsig", {}, b'{"url": "sig=CANARY%2fsig"}'),
        ("/hooks?sig=CANARY%2Fsig", {}, b'{"error": "sig CANARY\\/sig"}'),
        ("/hooks?a=1&CANARY", {}, b"no CANARY here"),
        ("/hooks/CANARY%20tail", {}, b"nothing at CANARY tail"),
        ("/hooks/CANARY+tail", {}, b"nothing at CANARY tail"),
        ("/hooks?sig=CANARY%26%3C", {}, b"<p>CANARY&amp;&lt;</p>"),
        ("/hooks?sig=CANARY%26%3C", {}, b'{"sig": "CANARY\\u0026\\u003c"}'),
        ("/hooks?sig=CANARY%252Fsig", {}, b"CANARY/sig is wrong"),
        ("/hooks?sig=CANARY%2Bsig", {}, b'{"sig": "CANARY\\u002Bsig"}'),
        ("/hooks?sig=CANARY%2Bsig", {}, b"<p>CANARY&#x2B;sig, CANARY&#43;sig</p>"),
        ("/hooks?sig=CANARY%2Fsig", {}, b"CANARY%2F%73ig"),
        ("/hooks?sig=CANARY%F0%9F%98%80x", {}, b'{"sig": "CANARY\\ud83d\\ude00x"}'),
        ("/hooks?sig=CANARY%09x", {}, b'{"sig": "CANARY\\tx"}'),
        ("/hooks", {"headers": {"Authorization": "Bearer CANARY-1"}}, b"token CANARY-1 has expired"),
        (
            "/hooks",
            {"headers": {"Authorization": f"Basic {base64.b64encode(b'flyte:CANARY').decode()}"}},
            b"flyte:CANARY is no login",
        ),
        ("/hooks", {"headers": {"X-Key": "a/CANARY"}}, b"key a%2FCANARY is unknown"),
        ("/hooks", {"secret": f"whsec_{'Q0FOQVJZ'}"}, b"expected the key Q0FOQVJZ"),
    ],
)
async def test_a_secret_that_the_receiver_repeats_is_masked_in_any_form(
    server: ScriptedHttp, url: str, options: Any, answer_text: bytes
) -> None:
    server.default = answer(403, answer_text, **CLOSE)
    target = {"url": f"{server.url}{url}", **options}
    webhook = channel(section={"targets": {"ops": target}})
    with pytest.raises(Never) as caught:
        await webhook.send(message())
    await webhook.aclose()
    shown = str(caught.value.answer)
    assert "********" in shown
    assert not [secret for secret in ("CANARY", "Q0FOQVJZ") if secret in shown]


async def test_check_reports_reachable_and_unreachable_targets(server: ScriptedHttp) -> None:
    section = {"targets": {"ops": {"url": server.url}, "gone": {"url": "http://127.0.0.1:1/hidden"}}}
    webhook = channel(section=section)
    reachable, unreachable = await webhook.check()
    await webhook.aclose()
    assert (reachable.ok, unreachable.ok) == (True, False)
    assert "gone can't be reached" in unreachable.message
    assert "hidden" not in unreachable.message
    (finding,) = await WebhookChannel(WebhookConfig()).check()
    assert (finding.ok, "nobody can be notified" in finding.message) == (False, True)


def test_a_preview_shows_the_message_without_secrets() -> None:
    settings = config("https://hooks.example.com", secret="hidden", mode="structured")
    preview = WebhookChannel(settings).wire_preview(message())
    assert (preview.media_type, orjson.loads(preview.body)["data"]) == ("application/cloudevents+json", CONTENT)
    assert "hidden" not in f"{preview} {settings!r}"
