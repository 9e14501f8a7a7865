"""POST /events of a running service."""

from __future__ import annotations

import asyncio
import io
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dispatcher.flyte.encode import Format, write
from dispatcher.model.phase import Phase
from tests.support import samples
from tests.support.builders import a_launch_plan, an_event
from tests.support.running import running

TOKEN = "token-of-the-publishers"


def rules(folder: Path) -> dict[str, Any]:
    return {"launch_plans": [samples.rules_for_any_version(folder)]}


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    async with running(tmp_path, {"rules": rules(tmp_path)}) as base:
        yield base


async def post(url: str, headers: dict[str, str], body: bytes | io.BytesIO) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.post(f"{url}/events", data=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


def http_headers(pairs: Any) -> dict[str, str]:
    return {name.replace("ce_", "ce-", 1): value.decode() for name, value in pairs}


async def test_binary_and_structured_events_are_recorded_once(url: str) -> None:
    headers, value = samples.sample("v2-workflow-failed-enriched")
    status, answer = await post(url, http_headers(headers), value)
    assert (status, answer["status"], answer["verdict"], len(answer["deliveries"])) == (202, "recorded", "matched", 4)

    headers, value = samples.structured("v2-workflow-failed-enriched")
    status, answer = await post(url, http_headers(headers), value)
    assert (status, answer["status"]) == (202, "duplicate")


async def test_events_other_than_terminal_ones_of_workflows_are_ignored(url: str) -> None:
    for name in ("v1-workflow-running", "v1-node-failed"):
        headers, value = samples.sample(name)
        assert (await post(url, http_headers(headers), value))[1]["status"] == "ignored"


async def test_an_invalid_message_is_rejected_with_a_reason(url: str) -> None:
    status, answer = await post(url, {"content-type": "application/cloudevents+json"}, b"{oops")
    assert (status, answer["status"]) == (400, "rejected")
    assert "broken JSON" in answer["reason"]
    status, answer = await post(url, {"ce-type": "dispatcher.execution.phase_changed.v1"}, b"")
    assert (status, answer["reason"]) == (400, "the message is empty")


async def test_encoded_headers_are_decoded_and_others_refused(url: str) -> None:
    headers, value = samples.sample("v2-workflow-failed-enriched")
    sent = http_headers(headers)
    quoted = {**sent, "ce-type": f'"{sent["ce-type"]}"'}
    percent = {**sent, "ce-type": sent["ce-type"].replace("W", "%57").replace("E", "%45")}
    statuses = [(await post(url, variant, value))[1]["status"] for variant in (quoted, percent)]
    assert statuses == ["recorded", "duplicate"]
    for name in ("ce-type", "ce-subject"):
        status, answer = await post(url, {**sent, name: "%FF"}, value)
        assert (status, answer["reason"]) == (400, f"the header {name} is not UTF-8 after percent-decoding")


async def test_a_structured_event_may_have_headers_of_binary_mode(url: str) -> None:
    _, value = samples.structured("v2-workflow-failed-enriched")
    headers = {"content-type": "application/cloudevents+json", "ce-type": "com.example.other", "ce-specversion": "1.0"}
    assert (await post(url, headers, value))[1]["status"] == "recorded"


async def test_an_event_whose_rules_are_unknown_is_kept_for_a_replay(url: str) -> None:
    headers, value = samples.sample("v1-workflow-failed")
    status, answer = await post(url, http_headers(headers), value)
    assert (status, answer["status"]) == (202, "rejected")
    assert "launch plan unknown" in answer["reason"]


async def test_an_oversized_or_endless_body_is_refused_and_the_next_request_succeeds(url: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    for body in (io.BytesIO(b"x" * (5 * 2**20)), endless()):
        async with aiohttp.ClientSession() as session, session.post(f"{url}/events", data=body) as answer:
            assert (answer.status, "Content Too Large" in await answer.text()) == (413, True)
    written = write(an_event(Phase.SUCCEEDED, launch_plan=a_launch_plan()), Format.NATIVE)
    assert (await post(url, http_headers(written.headers), written.value))[0] == 202


async def test_publishers_need_the_token_if_one_is_set(tmp_path: Path) -> None:
    headers, value = samples.sample("v2-workflow-succeeded")
    async with running(tmp_path, {"rules": rules(tmp_path), "http": {"token": TOKEN}}) as url:
        for wrong in ({}, {"authorization": "Bearer nope"}, {"authorization": TOKEN}):
            status, answer = await post(url, {**http_headers(headers), **wrong}, value)
            assert (status, TOKEN in str(answer)) == (401, False)
        assert (await post(url, {**http_headers(headers), "authorization": f"Bearer {TOKEN}"}, value))[0] == 202


async def test_health_and_readiness_pages_answer(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        for page, status in (("healthz", "alive"), ("readyz", "ready")):
            async with session.get(f"{url}/{page}") as answer:
                assert (answer.status, (await answer.json())["status"]) == (200, status)


async def test_an_unavailable_ledger_gets_503_with_retry_after(url: str, tmp_path: Path) -> None:
    headers, value = samples.sample("v2-workflow-succeeded")
    # In a thread: the service runs in this event loop and could not end its own transaction while the loop is blocked.
    other = sqlite3.connect(tmp_path / "dispatcher.db", isolation_level=None, check_same_thread=False)
    await asyncio.to_thread(other.execute, "BEGIN EXCLUSIVE")  # another process has locked the database
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/events", data=value, headers=http_headers(headers)) as answer,
    ):
        assert (answer.status, "Retry-After" in answer.headers) == (503, True)
    other.execute("ROLLBACK")
    other.close()
    assert (await post(url, http_headers(headers), value))[1]["status"] == "recorded"
