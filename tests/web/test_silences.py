"""Silences in the API and in the console."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dispatcher.ledger import Deed
from tests.support.console import DEAD, ConsoleServer, serve_console

READER, OPERATOR = "reader-0123456789abcdef", "operator-0123456789abcdef"
TOKENS = [
    {"name": "dashboard", "token": READER, "scopes": ["read"]},
    {"name": "oncall", "token": OPERATOR, "scopes": ["read", "operate"]},
]
WANTED: dict[str, Any] = {"match": {"project": "flytesnacks"}, "for": "2h", "reason": "upgrade"}


@pytest.fixture
async def console(tmp_path: Path) -> AsyncIterator[ConsoleServer]:
    async with serve_console(f"sqlite+aiosqlite:///{tmp_path}/ledger.db", tokens=TOKENS) as server:
        yield server


async def request(console: ConsoleServer, path: str, *, token: str = OPERATOR, status: int = 200, **given: Any) -> Any:
    """Ask for a path: JSON of the API, or a page of the console, or where the console leads to."""
    method = "POST" if given.keys() & {"json", "data"} or path.partition("?")[0].endswith("/end") else "GET"
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{console.url}{path}", headers=headers, allow_redirects=False, **given) as answer,
    ):
        assert answer.status == status, await answer.text()
        if status == 303:
            return answer.headers["Location"]
        return await answer.json() if "json" in answer.content_type else await answer.text()


async def test_the_api_tries_adds_lists_extends_and_ends_silences(console: ConsoleServer) -> None:
    await console.finish("one", channels=["slack", "email"])
    tried = await request(console, "/api/v1/silences/add", json={**WANTED, "dry_run": True})
    assert tried["silence"] is None
    assert (tried["would_have_held"]["messages"], tried["would_have_held"]["events"]) == (3, 1)
    assert (await request(console, "/api/v1/silences"))["silences"] == []

    added = (await request(console, "/api/v1/silences/add", json=WANTED))["silence"]
    assert (added["state"], added["author"], added["holds"], added["then"]) == ("in force", "oncall", 3, "summary")
    assert {(one["channel"], one["address"], one["messages"]) for one in added["holds_for"]} == {
        ("slack", "#dev-alerts", 1),
        ("email", "dev-team@example.com", 1),
        ("email", "on-call@example.com", 1),
    }
    assert await console.deliver("slack") == []
    path = f"/api/v1/silences/{added['id']}"
    extended = await request(console, f"{path}/extend", json={"for": "1h", "reason": "slow"})
    assert extended["ends_at"] == (console.clock.now() + timedelta(hours=3)).isoformat().replace("+00:00", "Z")
    assert (await request(console, path, token=READER))["holds"] == 3
    console.clock.advance(timedelta(minutes=1))
    assert (await request(console, f"{path}/end?reason=done"))["state"] == "ended"
    assert (await request(console, "/api/v1/silences"))["silences"] == []
    assert len((await request(console, "/api/v1/silences?ended=true"))["silences"]) == 1
    done = await console.ledger.history.latest_actions(limit=9)
    assert [(one.what, one.who, one.why) for one in done] == [
        (Deed.END_SILENCE, "oncall", "done"),
        (Deed.EXTEND_SILENCE, "oncall", "slow"),
        (Deed.SILENCE, "oncall", "upgrade"),
    ]

    for wrong, problem in (
        ({"match": {}}, "no key"),
        ({"match": {"cluster": "a"}}, "match: cluster: unknown option"),
        ({"for": "8d"}, "at most 7 d"),
        ({"for": None}, "an end"),
        ({"ends_at": "2026-11-21T00:00:00Z"}, "either for how long, or until when"),
        ({"starts_at": "2026-11-20T00:00:00Z"}, "begins now or later"),
        ({"reason": ""}, "reason: must not be empty"),
        ({"then": "mail"}, "then: "),
    ):
        answer = await request(console, "/api/v1/silences/add", json={**WANTED, **wrong}, status=400)
        assert problem in answer["detail"], answer
    await request(console, f"{path}/end", status=409)
    await request(console, f"{path}/extend", json={"for": "1h"}, status=409)
    await request(console, "/api/v1/silences/none", status=404)
    await request(console, "/api/v1/silences/add", token=READER, json=WANTED, status=403)
    await request(console, f"{path}/end", token=READER, status=403)


async def test_the_console_adds_a_silence_for_an_execution_extends_it_and_ends_it(console: ConsoleServer) -> None:
    await console.finish("one", channels=["email"])
    page = await request(console, "/console/executions/flytesnacks/production/one")
    assert "silences/add?execution=flytesnacks%2Fproduction%2Fone" in page
    lines = "project=flytesnacks\ndomain=production\nlaunch_plan=train.daily"
    for query in ("execution=flytesnacks/production/one", "recipient=on-call@example.com"):
        assert f">{lines}</textarea>" in await request(console, f"/console/silences/add?{query}")
    form = await request(console, "/console/silences/add?launch_plan=train.daily&project=flytesnacks")
    assert ">project=flytesnacks\nlaunch_plan=train.daily</textarea>" in form

    given = {"match": lines, "reason": "upgrade <1>", "for": "2h", "then": "", "starts_at": ""}
    tried = await request(console, "/console/silences/add", data={**given, "try": "1"})
    assert "It would have held 2 messages of 1 execution." in tried
    assert "Warning: many of Flyte&#39;s events do not say launch_plan" in tried
    assert "No silences." in await request(console, "/console/silences", token=READER)
    for wrong, problem in ((("match", "project"), "not a key with a value"), (("for", "x"), "not a duration")):
        refused = await request(console, "/console/silences/add", data={**given, wrong[0]: wrong[1]}, status=400)
        assert problem in refused
        assert "upgrade &lt;1&gt;" in refused, "what was typed is still there"

    where = await request(console, "/console/silences/add", data=given, status=303)
    page = await request(console, where)
    assert re.search(r"in force.*upgrade &lt;1&gt;.*2 deliveries.*on-call@example.com", page, re.DOTALL)
    listed = await request(console, f"/console/deliveries?held_by={where.rpartition('/')[2]}&held=true")
    assert listed.count("Email to ") >= 2
    assert "Holds 2 deliveries" in await request(console, "/console/silences")
    assert "<button>Extend</button>" not in await request(console, where, token=READER)
    await request(console, f"{where}/extend", data={"for": "0h"}, status=400)
    await request(console, f"{where}/extend", data={"for": "1h"}, status=303)
    console.clock.advance(timedelta(minutes=1))
    await request(console, f"{where}/end", token=READER, data={}, status=403)
    await request(console, f"{where}/end", data={"reason": "done"}, status=303)
    assert "Ended" in await request(console, where)
    await request(console, f"{where}/end", data={}, status=409)
    await request(console, "/console/silences/none", status=404)
    assert "ended" in await request(console, "/console/silences?ended=true")


async def test_who_redrives_or_retries_what_a_silence_covers_is_told_so(console: ConsoleServer) -> None:
    await console.finish("one", channels=["slack", "email"])
    (dead,) = await console.deliver("slack", DEAD)
    await request(console, "/api/v1/silences/add", json=WANTED)

    assert "covers 1 of them" in re.sub(r"<[^>]+>", "", await request(console, f"/console/redrive?key={dead.key}"))
    everything: dict[str, Any] = {"filter": {}}
    tried = await request(console, "/api/v1/deliveries/redrive", json={**everything, "dry_run": True})
    assert (tried["deliveries"], tried["silenced"]) == (1, 1)
    redriven = await request(console, "/api/v1/deliveries/redrive", json=everything)
    assert (redriven["deliveries"], redriven["silenced"]) == (1, 1)
    assert [one.key for one in await console.deliver("slack")] == [dead.key], "it goes out all the same"
    retried = await request(console, "/api/v1/deliveries/retry-now", json=everything)
    assert (retried["deliveries"], retried["silenced"]) == (2, 2)
    assert len(await console.deliver("email")) == 2
