"""The Teams channel against a scripted server that answers as workflows and connectors do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.contract import ChannelError, InDoubt, Later, Message, Never, UnknownRecipient
from channels.teams.channel import TeamsChannel, TeamsConfig
from channels.teams.limits import MESSAGE
from tests.support.http import ScriptedHttp, answer

HEADLINE = {"type": "TextBlock", "text": "train.daily failed"}
CARD: dict[str, Any] = {"type": "AdaptiveCard", "version": "1.4", "body": [HEADLINE]}
FAILED = b"Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error "


def message(content: Any = None, to: str = "ml") -> Message:
    created_at = datetime(2026, 11, 20, tzinfo=UTC)
    return Message(key="k1", recipients=(to,), content=content or CARD, created_at=created_at)


def channel_to(url: str) -> TeamsChannel:
    return channel_with({"url": f"{url}/workflows/hidden"})


def channel_with(target: dict[str, Any]) -> TeamsChannel:
    options = {"allow_http": True, "allow_networks": ["127.0.0.1/32"], "timeout": 5}
    return TeamsChannel(TeamsConfig.model_validate({**options, "targets": {"ml": target}}))


@pytest.fixture
async def server() -> AsyncIterator[ScriptedHttp]:
    async with ScriptedHttp(default=answer(202, Connection="close")) as opened:
        yield opened


@pytest.fixture
async def channel(server: ScriptedHttp) -> AsyncIterator[TeamsChannel]:
    opened = channel_to(server.url)
    yield opened
    await opened.aclose()


async def test_a_changed_url_file_is_used_for_the_next_message(server: ScriptedHttp, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(f"{server.url}/workflows/one")
    channel = channel_with({"url_file": file})
    await channel.send(message())
    file.write_text(f"{server.url}/workflows/two\n")
    await channel.send(message())
    await channel.aclose()

    assert [request.path for request in server.requests] == ["/workflows/one", "/workflows/two"]


@pytest.mark.parametrize(("status", "body"), [(202, b""), (200, b"1"), (200, b'{"id":"08"}'), (200, b"thank you")])
async def test_a_card_is_accepted_by_workflows_and_connectors(
    server: ScriptedHttp, channel: TeamsChannel, status: int, body: bytes
) -> None:
    server.steps = [answer(status, body, Connection="close")]
    await channel.send(message())

    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": CARD}
    assert server.requests[0].json == {"type": "message", "attachments": [attachment]}


@pytest.mark.parametrize(
    ("status", "body", "error_type"),
    [
        (200, FAILED + b"429 with ContextId tcid=1", Later),
        (200, FAILED + b"503 with ContextId tcid=1", Later),
        (200, FAILED + b"413 with ContextId tcid=1", Never),
        (200, FAILED + b"403 with ContextId tcid=1", Never),
        (200, b"Webhook message delivery failed with error: something else", InDoubt),
        (200, b"<html>please log in</html>", InDoubt),
        (400, b'{"error":{"code":"InvalidRequest"}}', Never),
        (401, b'{"error":{"code":"DirectApiAuthorizationRequired"}}', Never),
        (404, b'{"error":{"code":"WorkflowNotFound"}}', Never),
        (410, b"gone", Never),
        (413, b"", Never),
        (302, b"", Never),
        (429, b"", Later),
        (502, b'{"error":{"code":"NoResponse"}}', Later),
    ],
)
async def test_each_answer_raises_its_error(
    server: ScriptedHttp, channel: TeamsChannel, status: int, body: bytes, error_type: type[ChannelError]
) -> None:
    server.steps = [answer(status, body, Connection="close", Retry_After="9")]
    with pytest.raises(error_type) as caught:
        await channel.send(message())

    assert "hidden" not in f"{caught.value!r} {caught.value.answer}"
    if isinstance(caught.value, Later):
        assert caught.value.retry_after == timedelta(seconds=9)


async def test_the_url_is_masked_in_the_servers_answer(server: ScriptedHttp, channel: TeamsChannel) -> None:
    server.steps = [answer(404, b"no workflow /workflows/hidden, nor hidden", Connection="close")]
    with pytest.raises(Never) as caught:
        await channel.send(message())
    assert "hidden" not in str(caught.value.answer)
    assert "no workflow" in str(caught.value.answer)


async def test_a_card_that_is_too_large_loses_its_largest_part_and_gets_a_note(
    server: ScriptedHttp, channel: TeamsChannel
) -> None:
    details = {"type": "TextBlock", "text": "ä" * 20_000}
    small = {"type": "TextBlock", "text": "this part is kept"}
    await channel.send(message({**CARD, "body": [HEADLINE, details, small]}))

    (request,) = server.requests
    first, second, note = request.json["attachments"][0]["content"]["body"]
    assert len(request.body) <= MESSAGE
    assert (first, second) == (HEADLINE, small)
    assert "too large for Teams" in note["text"]


@given(st.lists(st.integers(0, 30_000), max_size=8))
def test_a_card_of_any_size_fits_and_keeps_its_headline(sizes: list[int]) -> None:
    body = [HEADLINE, *({"type": "TextBlock", "text": "x" * size} for size in sizes)]
    encoded = channel_to("https://example.com").wire_preview(message({**CARD, "body": body})).body
    kept = orjson.loads(encoded)["attachments"][0]["content"]["body"]
    assert len(encoded) <= MESSAGE
    assert kept[0] == HEADLINE
    if sum(sizes) < MESSAGE // 2:
        assert kept == body


def test_a_rule_may_name_a_workflow_by_its_alias_only() -> None:
    channel = channel_to("https://example.com")
    assert channel.address("ml") == "ml"
    with pytest.raises(UnknownRecipient, match=r"add it to channels\.teams\.targets"):
        channel.address("nobody")
    with pytest.raises(UnknownRecipient, match="is a secret") as caught:
        channel.address("https://prod-1.example.com/workflows/hidden")
    assert "hidden" not in str(caught.value)


async def test_check_connects_to_the_targets_and_reports_missing_ones(
    server: ScriptedHttp, channel: TeamsChannel
) -> None:
    (finding,) = await channel.check()
    assert (finding.ok, server.requests) == (True, [])
    (finding,) = await TeamsChannel(TeamsConfig()).check()
    assert (finding.ok, "nobody can be notified" in finding.message) == (False, True)
