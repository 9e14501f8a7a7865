"""Webhooks against a server that verifies what it gets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from channels.contract import ChannelError, InDoubt, Later, Message, Never, UnknownRecipient
from channels.webhook.channel import WebhookChannel, WebhookConfig
from tests.support.http import Request, ScriptedHttp, answer

KEY = base64.b64encode(b"the key of the tests").decode()
CONTENT = {"text": "größer", "phase": "failed"}
CLOSE: Any = {"Connection": "close"}


def message(to: str = "ops", *, key: str = "k1") -> Message:
    return Message(key=key, recipients=(to,), content=CONTENT, created_at=datetime(2026, 11, 20, 9, 14, 21, tzinfo=UTC))


def channel(url: str = "", *, hosts: tuple[str, ...] = (), section: Any = None, **target: Any) -> WebhookChannel:
    options = {"allow_http": True, "allow_networks": ["127.0.0.0/8"], "timeout": 1, "allow_hosts": hosts}
    targets = {"ops": {"url": f"{url}/hooks/flyte", **target}} if url else {}
    return WebhookChannel(WebhookConfig.model_validate({**options, "targets": targets, **(section or {})}))


@pytest.fixture
async def server() -> AsyncIterator[ScriptedHttp]:
    async with ScriptedHttp(usual=answer(200, **CLOSE)) as opened:
        yield opened


async def sent(channel: WebhookChannel, *messages: Message) -> None:
    for one in messages:
        await channel.send(one)
    await channel.aclose()


def verified(request: Request, key: bytes) -> None:
    """As a receiver does it by the Standard Webhooks specification."""
    headers = request.headers
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 60
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request.body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


async def test_the_templates_json_arrives_with_its_key(server: ScriptedHttp) -> None:
    hook = channel(server.url)
    receipt = await hook.send(message())
    await hook.aclose()

    (request,) = server.requests
    assert (request.method, request.path, request.json) == ("POST", "/hooks/flyte", CONTENT)
    assert (request.headers["content-type"], request.headers["idempotency-key"]) == ("application/json", "k1")
    assert "webhook-signature" not in request.headers
    assert receipt.reference == {"idempotency_key": "k1"}
    assert request.body == hook.wire_preview(message()).body


@pytest.mark.parametrize(
    ("secret", "key"), [(f"whsec_{KEY}", b"the key of the tests"), ("any text ä", "any text ä".encode())]
)
async def test_a_message_is_signed_with_its_time(server: ScriptedHttp, secret: str, key: bytes, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{secret}\n")
    await sent(channel(server.url, secret=secret), message())
    await sent(channel(server.url, secret_file=file), message())

    for request in server.requests:
        verified(request, key)


async def test_nothing_goes_out_unsigned_where_a_signature_is_wanted(server: ScriptedHttp, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    for words, kind, text in (("", Never, "is empty"), ("whsec_äöü", Never, "base64"), (None, Later, "can't be read")):
        file.write_text("x")
        hook = channel(server.url, secret_file=file)
        if words is None:
            file.unlink()
        else:
            file.write_text(words)
        with pytest.raises(kind, match=text):
            await hook.send(message())
        await hook.aclose()
    assert server.requests == []


async def test_headers_come_from_values_and_files_that_are_read_each_time(server: ScriptedHttp, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("Bearer one\n")
    hook = channel(server.url, headers={"X-Team": "ml", "Authorization": {"value_file": str(file)}})
    await hook.send(message())
    file.write_text("Bearer two\n")
    await hook.send(message(key="k2"))
    file.write_text("Bearer\r\nX-Evil: 1")
    with pytest.raises(Never, match="header Authorization's value_file must hold one line"):
        await hook.send(message(key="k3"))
    await hook.aclose()

    assert [request.headers["authorization"] for request in server.requests] == ["Bearer one", "Bearer two"]
    assert server.requests[0].headers["x-team"] == "ml"


@pytest.mark.parametrize("mode", ["binary", "structured"])
async def test_a_cloud_event_carries_the_message_as_its_data(server: ScriptedHttp, mode: str) -> None:
    await sent(channel(server.url, mode=mode), message())

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


@pytest.mark.parametrize(
    ("status", "kind"),
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
async def test_every_status_has_its_meaning(server: ScriptedHttp, status: int, kind: type[ChannelError]) -> None:
    elsewhere = {"Location": f"{server.url}/elsewhere", "Retry_After": "7"}
    server.steps = [answer(status, b"said the server", **CLOSE, **elsewhere)]
    hook = channel(server.url)
    with pytest.raises(kind) as caught:
        await hook.send(message())
    await hook.aclose()

    assert caught.value.reason.startswith("ops ")
    assert (caught.value.answer.status, caught.value.answer.text) == (str(status), "said the server")  # type: ignore[union-attr]  # there is one
    assert len(server.requests) == 1  # no redirect was followed
    if isinstance(caught.value, Later):
        assert (caught.value.retry_after, caught.value.everyone) == (timedelta(seconds=7), False)


async def test_a_url_of_a_rules_is_posted_to_where_the_settings_allow_it(server: ScriptedHttp) -> None:
    hook = channel(hosts=("127.0.0.1:*",))
    url = f"{server.url}/from/a/rule?x=1"
    address = hook.address(url)
    assert hook.destination((address,)) == server.url
    await hook.send(message(address))
    server.steps = [answer(403, b"the page of a server inside", **CLOSE)]
    with pytest.raises(Never) as caught:
        await hook.send(message(address))
    await hook.aclose()

    assert server.requests[0].path == "/from/a/rule?x=1"
    assert "inside" not in str(caught.value.answer)
    assert "/from" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://other.example.org/x", "add it to channels.webhook.allow_hosts"),
        ("https://169.254.169.254/latest", "private, local or reserved"),
        ("https://[::1]/", "private, local or reserved"),
        ("https://user:pw@hooks.example.com/", "holds a login"),
        ("https://", "no https URL"),
        ("nobody", "add it to channels.webhook.targets"),
    ],
)
def test_whom_a_rule_may_not_name(url: str, words: str) -> None:
    hook = WebhookChannel(WebhookConfig(allow_hosts=("hooks.example.com", "1*", "[*")))
    with pytest.raises(UnknownRecipient, match=words):
        hook.address(url)
    assert hook.address("https://hooks.example.com/a") == "https://hooks.example.com/a"


async def test_what_the_settings_no_longer_allow_is_not_sent(server: ScriptedHttp) -> None:
    hook = channel()
    for address in (f"{server.url}/x", "ops"):
        with pytest.raises(UnknownRecipient):
            await hook.send(message(address))
    await hook.aclose()
    assert server.requests == []


async def test_plain_http_and_private_addresses_are_forbidden_by_themselves(server: ScriptedHttp) -> None:
    for section, words in (
        ({"allow_http": False}, "set channels.webhook.allow_http"),
        ({"allow_networks": []}, "private"),
    ):
        hook = channel(server.url, section=section)
        with pytest.raises(Never, match=words):
            await hook.send(message())
        await hook.aclose()
    assert server.connections == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": {"x": {}}}, "give url or url_file"),
        ({"targets": {"https://x": {"url": "https://x"}}}, "an alias, no URL"),
        ({"targets": {"x": {"url": "https://x", "headers": {"Webhook-Id": "1"}}}}, "sets by itself"),
        ({"targets": {"x": {"url": "https://x", "headers": {"a b": "1"}}}}, "no header's name"),
        ({"targets": {"x": {"url": "https://x", "headers": {"A": "hidden\n"}}}}, "one line of ASCII"),
        ({"allow_networks": ["10.0.0.1/8"]}, "not a valid IPv4 or IPv6 network"),
    ],
)
def test_settings_that_cannot_hold_are_refused_without_showing_values(options: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        WebhookConfig.model_validate(options)
    assert "hidden" not in str([error["msg"] for error in caught.value.errors()])


async def test_a_huge_answer_is_not_read_to_its_end(server: ScriptedHttp) -> None:
    server.steps = [answer(200, b"x" * 5_000_000, **CLOSE)[:100_000]]
    await sent(channel(server.url), message())
    assert len(server.requests) == 1


async def test_a_check_names_what_is_reached(server: ScriptedHttp) -> None:
    section = {"targets": {"ops": {"url": server.url}, "gone": {"url": "http://127.0.0.1:1/hidden"}}}
    hook = channel(section=section)
    reached, gone = await hook.check()
    await hook.aclose()
    assert (reached.ok, gone.ok) == (True, False)
    assert "gone can't be reached" in gone.says
    assert "hidden" not in gone.says
    (finding,) = await WebhookChannel(WebhookConfig()).check()
    assert (finding.ok, "nobody can be told" in finding.says) == (False, True)


def test_what_would_be_sent_is_shown_without_secrets() -> None:
    hook = channel("https://hooks.example.com", secret="whsec_hidden", mode="structured")
    wire = hook.wire_preview(message())
    assert (wire.media_type, orjson.loads(wire.body)["data"]) == ("application/cloudevents+json", CONTENT)
    assert "hidden" not in f"{wire} {hook._config!r}"
