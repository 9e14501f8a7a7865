"""The API: what it tells, what it does, and that it keeps to its own description."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import schemathesis

from dispatcher.ledger import DeliveryFilter
from dispatcher.model.delivery import State
from dispatcher.model.phase import Phase
from tests.support.builders import SECOND
from tests.support.console import DEAD, Site, site

READER, OPERATOR = "reader-0123456789abcdef", "operator-0123456789abcdef"
TOKENS = [
    {"name": "dashboard", "token": READER, "scopes": ["read"]},
    {"name": "oncall", "token": OPERATOR, "scopes": ["read", "operate"]},
]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(f"sqlite+aiosqlite:///{tmp_path}/ledger.db", tokens=TOKENS) as made:
        yield made


async def ask(place: Site, path: str, *, token: str = OPERATOR, status: int = 200, **given: Any) -> Any:
    method = "POST" if "json" in given or "data" in given or path.endswith("/replay") else "GET"
    headers = {"Authorization": f"Bearer {token}", **given.pop("headers", {})} if token else {}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{place.url}/api/v1{path}", headers=headers, **given) as answer,
    ):
        assert answer.status == status, await answer.text()
        kind = "application/json" if status < 400 else "application/problem+json"
        assert answer.content_type == kind
        return await answer.json(content_type=None)


def keys(page: Any) -> list[str]:
    return [entry["key"] for entry in page["entries"]]


async def test_deliveries_are_found_by_whatever_is_known_of_them(place: Site) -> None:
    await place.ends("first", told=["email", "slack"])
    await place.arrives("slack", DEAD)
    place.clock.advance(3600 * SECOND)
    await place.ends("second", Phase.TIMED_OUT, told=["slack"], launch_plan="report.weekly")

    async def found(query: str) -> list[tuple[str, str]]:
        page = await ask(place, f"/deliveries{query}")
        return [(entry["execution"]["name"], entry["channel"]) for entry in page["entries"]]

    assert await found("") == [("second", "slack"), *await found("?execution=first")]
    assert await found("?state=dead") == [("first", "slack")]
    assert await found("?state=dead&state=sent&channel=slack") == [("first", "slack")]
    assert await found("?recipient=DEV-team@example.com") == [("first", "email")]
    assert await found("?recipient=dev-team@example.com&channel=slack") == []
    assert await found("?recipient=%23dev-alerts") == [("second", "slack"), ("first", "slack")]
    assert await found("?launch_plan=report.weekly") == [("second", "slack")]
    assert await found("?launch_plan=train.daily&state=dead") == [("first", "slack")]
    assert await found("?execution=flytesnacks/production/second") == [("second", "slack")]
    assert await found("?execution=flytesnacks/production/second&recipient=nobody") == []
    assert await found("?since=30m") == [("second", "slack")]
    assert len(await found("?until=30m")) == 2


async def test_pages_follow_one_another_without_gap_or_repetition(place: Site) -> None:
    for number in range(7):
        await place.ends(f"e{number}", told=["email", "slack", "teams"])
        place.clock.advance((number % 2) * SECOND)  # some at the same moment
    everything = keys(await ask(place, "/deliveries?limit=500"))
    for query in ("", "&recipient=%23dev-alerts", "&launch_plan=train.daily", "&state=waiting", "&channel=teams"):
        seen: list[str] = []
        after = ""
        while True:
            page = await ask(place, f"/deliveries?limit=2{query}{after}")
            seen += keys(page)
            if page["next"] is None:
                break
            after = f"&after={page['next'].replace('+', '%2B')}"
        whole = keys(await ask(place, f"/deliveries?limit=500{query}"))
        assert seen == whole
        assert len(set(seen)) == len(seen)
    assert len(everything) == 21
    ended = await ask(place, "/executions?limit=4")
    rest = await ask(place, f"/executions?limit=4&after={ended['next'].replace('+', '%2B')}")
    assert len({*keys(ended), *keys(rest)}) == 7
    assert rest["next"] is None


async def test_a_delivery_is_told_whole(place: Site) -> None:
    await place.ends("whole", told=["email"])
    (delivery,) = await place.arrives("email")
    told = await ask(place, f"/deliveries/{delivery.key}")
    assert told["content"]["subject"] == delivery.content["subject"]
    assert (told["state"], told["attempts"][0]["answer"], told["reference"]) == (
        "sent",
        "2.0.0 Ok: queued as 4XyZ12",
        {"message_id": "<1@example.com>"},
    )
    assert (await ask(place, "/deliveries/nothing", status=404))["status"] == 404


async def test_an_execution_is_explained(place: Site) -> None:
    await place.ends("why", told=["email", "slack"])
    await place.arrives("slack", DEAD)
    told = await ask(place, "/executions/flytesnacks/production/why")
    (account,) = told["accounts"]
    assert [rule["matched"] for rule in account["rules"]] == [True, True]
    assert {one["state"] for one in account["deliveries"]} == {"waiting", "dead"}
    assert (await ask(place, "/executions?verdict=owed"))["entries"][0]["deliveries"] == {"waiting": 1, "dead": 1}
    await ask(place, "/executions/flytesnacks/production/other", status=404)


async def test_dead_deliveries_are_redriven_by_key_and_by_filter_and_only_those(place: Site) -> None:
    for name in ("one", "two", "three"):
        await place.ends(name, told=["slack", "email"])
    dead = await place.arrives("slack", DEAD)
    sent = await place.arrives("email")

    dry = {"filter": {"channel": "slack"}, "dry_run": True}
    assert await ask(place, "/deliveries/redrive", json=dry) == {"deliveries": 3, "many": False, "dry_run": True}
    assert not place.rung
    by_key = {"keys": [dead[0].key, sent[0].key]}
    assert (await ask(place, "/deliveries/redrive", json=by_key))["deliveries"] == 1
    assert (await ask(place, "/deliveries/redrive", json={"filter": {"execution": dead[1].event.split("/")[2]}}))[
        "deliveries"
    ] == 1
    assert (await ask(place, "/deliveries/redrive", json={"filter": {"recipient": "#dev-alerts"}}))["deliveries"] == 1
    assert len(place.rung) == 3
    states = [filed.delivery.state for filed in await place.ledger.find(DeliveryFilter(channel="slack"), limit=9)]
    assert states == [State.WAITING] * 3


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"keys": []}, 400),
        ({"keys": ["x"]}, 400),
        ({"keys": ["0" * 32], "filter": {}}, 400),
        ({"filter": {"since": "soon"}}, 400),
        ({"filter": {"colour": "red"}}, 400),
        ([], 400),
    ],
)
async def test_an_order_that_is_not_clear_is_refused(place: Site, body: Any, status: int) -> None:
    assert (await ask(place, "/deliveries/redrive", json=body, status=status))["title"] == "Bad Request"


async def test_who_may_only_read_changes_nothing(place: Site) -> None:
    await place.ends("one", told=["slack"])
    await place.arrives("slack", DEAD)
    refused = await ask(place, "/deliveries/redrive", token=READER, json={"filter": {}}, status=403)
    assert refused["detail"] == "dashboard has no scope operate"
    await ask(place, "/deliveries", token=READER)
    await ask(place, "/deliveries", token="", status=401)
    (filed,) = await place.ledger.find(DeliveryFilter(), limit=2)
    assert filed.delivery.state is State.DEAD


async def test_bodies_that_are_no_json_or_too_large_are_refused(place: Site) -> None:
    await ask(place, "/deliveries/redrive", data=b"x=1", status=415)
    json: dict[str, Any] = {"headers": {"Content-Type": "application/json"}}
    await ask(place, "/deliveries/redrive", data=b"{", status=400, **json)
    await ask(place, "/deliveries/redrive", data=b" " * 300_000, status=413, **json)


async def test_a_rejected_message_is_looked_at_and_replayed_once(place: Site) -> None:
    await place.intake.take([([("content-type", b"application/cloudevents+json")], b"{oops", "t/0@1")])
    (entry,) = (await ask(place, "/rejected?replayed=false"))["entries"]
    assert (await ask(place, f"/rejected/{entry['id']}"))["body"] == "{oops"
    again = await ask(place, f"/rejected/{entry['id']}/replay")
    assert (again["understood"], "broken JSON" in again["says"]) == (False, True)
    await place.ledger.replayed(entry["id"], now=place.clock.now())
    await ask(place, f"/rejected/{entry['id']}/replay", status=409)
    assert (await ask(place, "/rejected?replayed=false"))["entries"] == []
    await ask(place, "/rejected/nothing", status=404)


async def test_how_the_ledger_stands_and_how_it_went(place: Site) -> None:
    await place.ends("one", told=["slack", "email"], ago=10 * SECOND)
    await place.arrives("slack", DEAD)
    await place.arrives("email")
    await place.ends("two", told=["email"])
    place.clock.advance(SECOND)
    status = await ask(place, "/status")
    assert (status["dead"]["number"], status["waiting"]["number"], status["rejected"]["number"]) == (1, 1, 0)
    time_buckets = (await ask(place, "/lag?range=1h"))["stretches"]
    assert len(time_buckets) == 12
    assert time_buckets[-1]["numbers"] == {"sent": 1, "dead": 1, "waiting": 1}
    assert time_buckets[-1]["lag_p50_seconds"] == pytest.approx(10.18, abs=0.01)
    assert time_buckets[0]["lag_p95_seconds"] is None


async def test_what_is_not_there_and_what_cannot_be_asked_are_problems(place: Site) -> None:
    await ask(place, "/nothing", status=404)
    await ask(place, "/deliveries?color=red", status=400)
    await ask(place, "/deliveries?limit=0", status=400)
    await ask(place, "/deliveries?limit=1&limit=2", status=400)
    await ask(place, "/deliveries?after=x", status=400)
    await ask(place, "/deliveries?since=2026-13-01", status=400)
    await ask(place, "/status", status=405, data=b"")


async def test_real_answers_are_as_the_document_says(place: Site) -> None:
    await place.ends("one", told=["slack", "email"])
    dead = await place.arrives("slack", DEAD)
    await place.intake.take([([("content-type", b"application/cloudevents+json")], b"{oops", "t/0@1")])
    refused = (await place.ledger.queries.rejected(limit=1)).entries[0]
    schema = schemathesis.openapi.from_dict(await ask(place, "/openapi.json"))
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("/status", "GET", {}),
        ("/lag", "GET", {}),
        ("/executions", "GET", {}),
        (
            "/executions/{project}/{domain}/{name}",
            "GET",
            {"project": "flytesnacks", "domain": "production", "name": "one"},
        ),
        ("/deliveries", "GET", {}),
        ("/deliveries/{key}", "GET", {"key": dead[0].key}),
        ("/rejected", "GET", {}),
        ("/rejected/{id}", "GET", {"id": refused.id}),
        ("/rejected/{id}/replay", "POST", {"id": refused.id}),
    ]

    def check() -> None:
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        for path, method, parameters in asked:
            case = schema[path][method].Case(path_parameters=parameters)
            response = case.call_and_validate(base_url=f"{place.url}/api/v1", headers=headers)
            assert response.status_code == 200
        order = schema["/deliveries/redrive"]["POST"].Case(body={"keys": [dead[0].key]}, media_type="application/json")
        assert order.call_and_validate(base_url=f"{place.url}/api/v1", headers=headers).status_code == 200

    await asyncio.to_thread(check)


async def test_the_document_holds_for_whatever_is_asked(place: Site, tmp_path: Path) -> None:
    await place.ends("one", told=["slack", "email"])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{place.url}/api/v1/openapi.json"),
        *("--header", f"Authorization: Bearer {OPERATOR}", "--exclude-path", "/stream"),
        *(
            "--phases",
            "examples,coverage,fuzzing",
            "--max-examples",
            "3",
            "--seed",
            "7",
            "--workers",
            "1",
            "--no-color",
        ),
        *("--exclude-checks", "positive_data_acceptance,ignored_auth"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(100):
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()[-4000:]
