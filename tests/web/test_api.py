"""The API: its responses, its redrives and replays, and its OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import schemathesis

from dispatcher.flyte.encode import Format, write
from dispatcher.ledger import Deed, Filter
from dispatcher.model.delivery import State
from dispatcher.model.owner import UnresolvedOwner
from dispatcher.model.phase import Phase
from dispatcher.rules import PlanKey, PlanRules, RouteBook, RuleBook
from tests.support.builders import (
    NOW,
    SECOND,
    a_digest,
    a_launch_plan,
    a_route,
    a_rule,
    a_silence,
    an_event,
    an_execution,
    members_of,
    quiet_hours,
)
from tests.support.console import DEAD, ConsoleServer, add_replicas, serve_console
from tests.support.ledger_steps import an_action, record_digest, recorded

READER, OPERATOR = "reader-0123456789abcdef", "operator-0123456789abcdef"
TOKENS = [
    {"name": "dashboard", "token": READER, "scopes": ["read"]},
    {"name": "oncall", "token": OPERATOR, "scopes": ["publish", "read", "operate"]},
]


@pytest.fixture
async def console(tmp_path: Path) -> AsyncIterator[ConsoleServer]:
    async with serve_console(f"sqlite+aiosqlite:///{tmp_path}/ledger.db", tokens=TOKENS) as server:
        yield server


async def call(console: ConsoleServer, path: str, *, token: str = OPERATOR, status: int = 200, **given: Any) -> Any:
    method = (
        "POST"
        if "json" in given or "data" in given or path.partition("?")[0].endswith(("/replay", "/dismiss"))
        else "GET"
    )
    headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **given.pop("headers", {})}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{console.url}/api/v1{path}", headers=headers, **given) as response,
    ):
        assert response.status == status, await response.text()
        content_type = "application/json" if status < 400 else "application/problem+json"
        assert response.content_type == content_type
        return await response.json(content_type=None)


def keys(page: Any) -> list[str]:
    return [entry["key"] for entry in page["entries"]]


async def test_deliveries_are_found_by_every_combination_of_conditions(console: ConsoleServer) -> None:
    await console.finish("first", channels=["email", "slack"])
    await console.deliver("slack", DEAD)
    console.clock.advance(3600 * SECOND)
    await console.finish("second", Phase.TIMED_OUT, channels=["slack"], launch_plan="report.weekly")

    async def found(query: str) -> list[tuple[str, str]]:
        page = await call(console, f"/deliveries{query}")
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
    assert await found("?phase=timed_out&project=flytesnacks&verdict=matched") == [("second", "slack")]
    assert await found("?domain=production&phase=FAILED&channel=email") == [("first", "email")]
    assert await found("?since=30m") == [("second", "slack")]
    assert len(await found("?until=30m")) == 2
    page = await call(console, "/deliveries?channel=slak&launch_plan=report.weakly")
    assert page["hints"] == [
        "there is no channel in the ledger 'slak': did you mean slack?",
        "there is no launch plan in the ledger 'report.weakly': did you mean report.weekly?",
    ]
    refused = await call(console, "/deliveries?state=ded", status=400)
    assert refused["detail"] == "state.0: there is no state 'ded': did you mean dead?"


async def test_executions_are_found_by_the_deliveries_that_they_led_to(console: ConsoleServer) -> None:
    await console.finish("first", channels=["email", "slack"])
    await console.deliver("slack", DEAD)
    await console.finish("second", channels=["email"])
    for query, names in (
        ("state=dead", ["first"]),
        ("state=waiting&channel=email", ["second", "first"]),
        ("state=dead&channel=email", []),
        ("recipient=%23DEV-alerts&phase=FAILED", ["first"]),
    ):
        page = await call(console, f"/executions?{query}")
        assert [entry["execution"]["name"] for entry in page["entries"]] == names, query


async def test_failures_are_counted_by_cause(console: ConsoleServer) -> None:
    for name in ("one", "two"):
        await console.finish(name, error={"message": f"no such file: /data/{name}.csv"})
    await console.finish("fine", Phase.SUCCEEDED)
    answer = await call(console, "/causes?launch_plan=train.daily&since=1h")
    (cause,) = answer["causes"]
    assert (cause["cause_name"], cause["number"], cause["newest"]["name"], answer["since"]) == (
        "no such file: ...",
        2,
        "two",
        None,
    )
    listed = await call(console, f"/executions?cause={cause['cause']}")
    assert [one["execution"]["name"] for one in listed["entries"]] == ["two", "one"]
    explained = await call(console, "/executions/flytesnacks/production/one")
    assert explained["explanations"][0]["event"]["cause"] == cause["cause"]
    assert (await call(console, "/causes?project=none"))["causes"] == []
    await call(console, "/causes?since=soon", status=400)


async def test_pages_have_every_entry_exactly_once(console: ConsoleServer) -> None:
    for number in range(7):
        await console.finish(f"e{number}", channels=["email", "slack", "teams"])
        console.clock.advance((number % 2) * SECOND)  # some at the same time
    everything = keys(await call(console, "/deliveries?limit=500"))
    for query in ("", "&recipient=%23dev-alerts", "&launch_plan=train.daily", "&state=waiting", "&channel=teams"):
        seen: list[str] = []
        after = ""
        while True:
            page = await call(console, f"/deliveries?limit=2{query}{after}")
            seen += keys(page)
            if page["next"] is None:
                break
            after = f"&after={page['next'].replace('+', '%2B')}"
        all_at_once = keys(await call(console, f"/deliveries?limit=500{query}"))
        assert seen == all_at_once
        assert len(set(seen)) == len(seen)
    assert len(everything) == 21
    ended = await call(console, "/executions?limit=4")
    rest = await call(console, f"/executions?limit=4&after={ended['next'].replace('+', '%2B')}")
    assert len({*keys(ended), *keys(rest)}) == 7
    assert rest["next"] is None


async def test_a_delivery_has_its_content_attempts_and_reference(console: ConsoleServer) -> None:
    await console.finish("one", channels=["email"])
    (delivery,) = await console.deliver("email")
    shown = await call(console, f"/deliveries/{delivery.key}")
    assert shown["content"]["subject"] == (delivery.content or {})["subject"]
    assert (shown["state"], shown["attempts"][0]["answer"], shown["reference"]) == (
        "sent",
        "2.0.0 Ok: queued as 4XyZ12",
        {"message_id": "<1@example.com>"},
    )
    assert (await call(console, "/deliveries/nothing", status=404))["status"] == 404


async def test_an_execution_is_explained(console: ConsoleServer) -> None:
    await console.finish("why", channels=["email", "slack"])
    await console.deliver("slack", DEAD)
    shown = await call(console, "/executions/flytesnacks/production/why")
    (explanation,) = shown["explanations"]
    assert [rule["matched"] for rule in explanation["rules"]] == [True, True]
    assert {one["state"] for one in explanation["deliveries"]} == {"waiting", "dead"}
    assert (await call(console, "/executions?verdict=matched"))["entries"][0]["deliveries"] == {"waiting": 1, "dead": 1}
    await call(console, "/executions/flytesnacks/production/other", status=404)


async def test_a_digest_has_no_execution_and_selects_what_it_tells_of(console: ConsoleServer) -> None:
    digest = a_digest()
    await record_digest(console.ledger, digest, *members_of(digest, 3))
    await console.finish("another", channels=["slack"])
    members = (await call(console, f"/deliveries?included_in={digest.key}&limit=9"))["entries"]
    assert [(one["included_in"], one["hold"], one["drop_reason"]) for one in members] == [
        (digest.key, "digest", "digest")
    ] * 3
    executions = (await call(console, f"/executions?included_in={digest.key}"))["entries"]
    assert {one["execution"]["name"] for one in executions} == {"member0000", "member0001", "member0002"}
    assert len((await call(console, f"/deliveries?included_in={digest.key}&phase=ABORTED"))["entries"]) == 0
    (attempted,) = [one for one in await console.deliver("slack", DEAD) if not one.event]
    shown = await call(console, f"/deliveries/{attempted.key}")
    assert (shown["execution"], shown["phase"], shown["kind"], shown["state"]) == (None, None, "digest", "dead")
    assert shown["members"] == {"number": 3, "more": False}
    found = await call(console, "/deliveries?state=dead")
    assert {one["event"] for one in found["entries"]} == {"", "flytesnacks/production/another/FAILED"}
    explained = await call(console, "/executions/flytesnacks/production/member0001")
    (delivery,) = explained["explanations"][0]["deliveries"]
    assert delivery["included_in"] == digest.key
    attempts = [one for one in await console.ledger.queries.latest(limit=9) if one.kind == "attempt"]
    assert {(one.details["event"], str(one.details["kind"])) for one in attempts} == {
        ("", "digest"),
        ("flytesnacks/production/another/FAILED", "notification"),
    }


async def test_a_success_that_led_to_resolved_notices_is_not_one_that_notified_nobody(console: ConsoleServer) -> None:
    await console.finish("broken", channels=["slack", "pagerduty"])
    await console.deliver("slack")
    await console.deliver("pagerduty")
    console.clock.advance(60 * SECOND)
    start = console.clock.now() - 30 * SECOND
    success = await console.finish("well", Phase.SUCCEEDED, channels=(), started_at=start)
    await console.finish("nobody", Phase.SUCCEEDED, channels=(), launch_plan="report.weekly")

    (entry,) = (await call(console, "/executions?verdict=resolved"))["entries"]
    assert entry["execution"]["name"] == "well"
    assert entry["reason"].endswith("; 2 resolved notices to #dev-alerts, ml-platform")
    (other,) = (await call(console, "/executions?verdict=no_matching_rule"))["entries"]
    assert other["execution"]["name"] == "nobody"
    (explanation,) = (await call(console, f"/executions/{success.execution}"))["explanations"]
    assert explanation["event"]["verdict"] == "resolved"
    assert {one["kind"] for one in explanation["deliveries"]} == {"resolved_notice"}
    await console.finish("broken again", channels=["slack"])
    console.clock.advance(60 * SECOND)
    now = console.clock.now()
    later = success.model_copy(update={"execution": an_execution("again"), "started_at": now, "occurred_at": now})
    written = write(later, Format.NATIVE)
    batch = await console.intake.ingest([(written.headers, written.value, "http")])
    assert [one.verdict for one in batch.recorded] == ["resolved"]  # the metrics' label `decision`


async def test_only_the_dead_deliveries_that_match_keys_or_filter_are_redriven(console: ConsoleServer) -> None:
    for name in ("one", "two", "three"):
        await console.finish(name, channels=["slack", "email"])
    dead = await console.deliver("slack", DEAD)
    sent = await console.deliver("email")

    dry = {"filter": {"channel": "slack"}, "dry_run": True}
    found = {"deliveries": 3, "more": False, "dry_run": True, "silenced": 0, "waits_for": []}
    assert await call(console, "/deliveries/redrive", json=dry) == found
    assert not console.wakeups
    by_key = {"keys": [dead[0].key, sent[0].key]}
    assert (await call(console, "/deliveries/redrive", json=by_key))["deliveries"] == 1
    assert (await call(console, "/deliveries/redrive", json={"filter": {"execution": dead[1].event.split("/")[2]}}))[
        "deliveries"
    ] == 1
    assert (await call(console, "/deliveries/redrive", json={"filter": {"recipient": "#dev-alerts"}}))[
        "deliveries"
    ] == 1
    assert len(console.wakeups) == 3
    with_reason = {"keys": [dead[0].key], "reason": "x" * 1001}
    await call(console, "/deliveries/redrive", json=with_reason, status=400)
    states = [stored.delivery.state for stored in await console.ledger.history.find(Filter(channel="slack"), limit=9)]
    assert states == [State.WAITING] * 3


async def test_waiting_deliveries_are_retried_now_and_cancelled_and_dead_ones_dismissed(console: ConsoleServer) -> None:
    for name in ("one", "two"):
        await console.finish(name, channels=["slack", "email"])
    await console.deliver("slack", DEAD)
    everything: dict[str, Any] = {"filter": {}}
    now = await call(console, "/deliveries/retry-now", json=everything)
    assert (now["deliveries"], [(one["kind"], one["deliveries"]) for one in now["waits_for"]]) == (2, [("replica", 2)])
    cancelled = await call(console, "/deliveries/cancel", json={"filter": {"execution": "one"}})
    assert cancelled == {"deliveries": 1, "more": False, "dry_run": False, "silenced": 0, "waits_for": []}
    assert (await call(console, "/deliveries/dismiss", json={**everything, "reason": "a test"}))["deliveries"] == 2
    dropped = (await call(console, "/deliveries?state=dropped"))["entries"]
    assert sorted(one["drop_reason"] for one in dropped) == ["cancelled", "dismissed", "dismissed"]
    (waiting,) = (await call(console, "/deliveries?state=waiting"))["entries"]
    assert waiting["execution"]["name"] == "two"
    assert len(console.wakeups) == 3


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
async def test_an_invalid_redrive_request_is_refused(console: ConsoleServer, body: Any, status: int) -> None:
    assert (await call(console, "/deliveries/redrive", json=body, status=status))["title"] == "Bad Request"


async def test_who_redrove_a_delivery_and_why_is_in_its_history(console: ConsoleServer) -> None:
    await console.finish("why", channels=["slack"])
    (dead,) = await console.deliver("slack", DEAD)
    await call(console, "/deliveries/redrive", json={"filter": {"channel": "slack"}, "reason": "invited the bot"})
    (action,) = (await call(console, f"/deliveries/{dead.key}"))["actions"]
    assert datetime.fromisoformat(action.pop("at")) == console.clock.now()
    assert action == {"who": "oncall", "what": "redrive", "scope": "channel slack", "why": "invited the bot"}
    (explanation,) = (await call(console, "/executions/flytesnacks/production/why"))["explanations"]
    assert [one["why"] for one in explanation["deliveries"][0]["actions"]] == ["invited the bot"]


async def test_who_would_be_notified_is_told_by_the_rules_without_an_event(tmp_path: Path) -> None:
    key = PlanKey("flytesnacks", "production", "train.daily")
    rules = (a_rule("#ml", channel="slack", defined_at="train.yaml:7"),)
    routes = (a_route("big", "#big", channel="slack", phase="TIMED_OUT", labels={"size": "big"}),)
    book = RuleBook({key: PlanRules(key, rules)}, RouteBook(routes))
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    async with serve_console(url, tokens=TOKENS, rules=lambda: book) as console:
        answer = await call(console, "/rules/who?launch_plan=flytesnacks/production/train.daily")
        assert {one["event"]["phase"]: len(one["deliveries"]) for one in answer["phases"]} == {
            "FAILED": 1,
            "TIMED_OUT": 0,
            "ABORTED": 0,
            "SUCCEEDED": 0,
        }
        (delivery,) = answer["phases"][0]["deliveries"]
        assert (delivery["channel"], delivery["recipients"], delivery["state"]) == ("slack", ["#ml"], "planned")
        (possible,) = answer["phases"][1]["possible"]
        assert (possible["name"], possible["condition"]) == ("big", "only if labels.size is big")
        other = await call(console, "/rules/who?launch_plan=flytesnacks/production/train.dayly&phase=failed")
        assert (other["known"], "did you mean flytesnacks/production/train.daily?" in other["hint"]) == (False, True)
        await call(console, "/rules/who?launch_plan=a/b", status=400)
        await call(console, "/rules/who", status=400)
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {READER}"}) as session:
            for query, words, status in (
                ("", "Name a launch plan", 200),
                ("?launch_plan=flytesnacks/production/train.daily", "Slack to #ml</strong>", 200),
                ("?launch_plan=flytesnacks/production/train.daily&phase=succeeded", "is for SUCCEEDED", 200),
                ("?launch_plan=flytesnacks/production/train.daily", "only if labels.size is big", 200),
                (
                    "?launch_plan=flytesnacks/production/train.dayly&phase=failed",
                    "did you mean flytesnacks/production/train",
                    200,
                ),
                ("?launch_plan=nonsense", "names no launch plan", 400),
            ):
                async with session.get(f"{console.url}/console/rules{query}") as page:
                    text = await page.text()
                    assert (page.status, words in text) == (status, True), query
                    assert ("These are today's rules" in text) == ("train.daily" in query)


async def test_routes_and_contacts_in_effect_are_listed_page_by_page(tmp_path: Path) -> None:
    names = [f"r{number}" for number in range(5)]
    quiet = quiet_hours("route", days="sat-sun")
    routes = [a_route(name, "#ops", channel="slack", domain="<b>", quiet=quiet) for name in names]
    book = RuleBook({}, RouteBook(tuple(routes)))
    contacts = {
        "ml-team": {"slack": ["#ml"]},
        "on-call": {"include": ["ml-team"], "severity": "critical", "slack": ["#x"], "digest": {}},
    }
    given = {"channels": {"slack": {"token": "xoxb-hidden"}}, "contacts": contacts}
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    async with serve_console(url, tokens=TOKENS, rules=lambda: book, given=given) as console:
        first = await call(console, "/routes?limit=3")
        assert ([one["name"] for one in first["entries"]], first["next"], first["total"]) == (names[:3], "r2", 5)
        last = await call(console, f"/routes?limit=3&after={first['next']}")
        assert ([one["name"] for one in last["entries"]], last["next"]) == (names[3:], None)
        assert first["entries"][0]["notify"] == [{"slack": ["#ops"]}]
        assert first["entries"][0]["quiet"][0]["days"] == ["sat-sun"]
        assert (await call(console, "/routes?recipient=%23ops&limit=1"))["next"] == "r0"
        assert (await call(console, "/routes?recipient=nobody"))["entries"] == []
        await call(console, "/routes?after=gone", status=400)
        listed = (await call(console, "/contacts"))["contacts"]
        assert [(one["name"], len(one["everybody"]), one["severity"]) for one in listed] == [
            ("ml-team", 1, ""),
            ("on-call", 2, "critical"),
        ]
        assert [one["digest"] for one in listed] == [None, {"after": 3, "within": "600s", "every": "900s"}]
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {READER}"}) as session:
            for query, words, status in (
                ("", "domain is &lt;b&gt;, phase is FAILED", 200),
                ("", "Slack to #x, Slack to #ml", 200),
                ("", "quiet hours sat-sun all day UTC", 200),
                ("", "critical, digest every 15 min after 3 messages within 10 min", 200),
                ("?limit=2", "after=r1", 200),
                ("?limit=2&after=r1", '<li data-place="3">', 200),
                ("?recipient=nobody", "None of 5 routes", 200),
                ("?after=gone", "begin with the first page", 400),
            ):
                async with session.get(f"{console.url}/console/rules/routes{query}") as page:
                    assert (page.status, words in await page.text()) == (status, True), query


async def test_a_token_with_only_the_read_scope_cannot_redrive(console: ConsoleServer) -> None:
    await console.finish("one", channels=["slack"])
    await console.deliver("slack", DEAD)
    refused = await call(console, "/deliveries/redrive", token=READER, json={"filter": {}}, status=403)
    assert refused["detail"] == "dashboard has no scope operate"
    await call(console, "/deliveries", token=READER)
    await call(console, "/deliveries", token="", status=401)
    (stored,) = await console.ledger.history.find(Filter(), limit=2)
    assert stored.delivery.state is State.DEAD


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Cookie": "any=1"}, 403),
        ({"Cookie": "any=1", "X-CSRF-Token": "guessed"}, 403),
    ],
)
async def test_without_tokens_a_program_on_this_machine_needs_no_csrf_token(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    async with serve_console(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as open_console:
        await call(open_console, "/deliveries/redrive", token="", json={"filter": {}}, headers=headers, status=status)
        await call(open_console, "/rejected/x/replay", token="", headers=headers, status=404 if status == 200 else 403)


async def test_a_body_that_is_not_json_or_too_large_is_refused(console: ConsoleServer) -> None:
    await call(console, "/deliveries/redrive", data=b"x=1", status=415)
    json: dict[str, Any] = {"headers": {"Content-Type": "application/json"}}
    await call(console, "/deliveries/redrive", data=b"{", status=400, **json)
    await call(console, "/deliveries/redrive", data=b" " * 300_000, status=413, **json)


async def test_a_rejected_message_is_shown_and_replayed_only_once(console: ConsoleServer) -> None:
    await console.intake.ingest([([("content-type", b"application/cloudevents+json")], b"{oops", "t/0@1")])
    (entry,) = (await call(console, "/rejected?replayed=false"))["entries"]
    assert (await call(console, f"/rejected/{entry['id']}"))["body"] == "{oops"
    again = await call(console, f"/rejected/{entry['id']}/replay")
    assert (again["accepted"], "broken JSON" in again["message"]) == (False, True)
    await console.ledger.rejected.mark_replayed(
        entry["id"], event=None, action=an_action(Deed.REPLAY, at=console.clock.now())
    )
    await call(console, f"/rejected/{entry['id']}/replay", status=409)
    assert (await call(console, "/rejected?replayed=false"))["entries"] == []
    await call(console, f"/rejected/{entry['id']}/dismiss", status=409)


async def test_a_dismissed_message_no_longer_counts_and_can_still_be_replayed(console: ConsoleServer) -> None:
    await console.intake.ingest([([("content-type", b"application/cloudevents+json")], b"{oops", "t/0@1")])
    (entry,) = (await call(console, "/rejected"))["entries"]
    assert await call(console, f"/rejected/{entry['id']}/dismiss?reason=a+test") == {"id": entry["id"]}
    await call(console, f"/rejected/{entry['id']}/dismiss", status=409)
    await call(console, "/rejected/x/dismiss", status=404)
    assert (await call(console, "/rejected?replayed=false"))["entries"] == []
    assert (await call(console, "/status"))["rejected"]["number"] == 0
    assert (await call(console, f"/rejected/{entry['id']}"))["dismissed_at"] is not None
    assert not (await call(console, f"/rejected/{entry['id']}/replay"))["accepted"]
    await call(console, "/rejected/nothing", status=404)


async def test_status_counts_and_time_buckets(console: ConsoleServer) -> None:
    await console.finish("one", channels=["slack", "email"], ago=10 * SECOND)
    await console.deliver("slack", DEAD)
    await console.deliver("email")
    await console.finish("two", channels=["email"])
    console.clock.advance(SECOND)
    status = await call(console, "/status")
    assert (status["dead"]["number"], status["waiting"]["number"], status["rejected"]["number"]) == (1, 1, 0)
    time_buckets = (await call(console, "/lag?range=1h"))["time_buckets"]
    assert len(time_buckets) == 12
    assert time_buckets[-1]["by_state"] == {"sent": 1, "dead": 1, "waiting": 1, "dropped": 0}
    assert time_buckets[-1]["lag_p50_seconds"] == pytest.approx(10.18, abs=0.01)
    assert time_buckets[0]["lag_p95_seconds"] is None


async def test_owners_who_are_not_known_are_listed(console: ConsoleServer) -> None:
    event = an_event(name="unowned")
    owner = UnresolvedOwner("ci", "", "principal ci is not in owners.map", "", event.key, NOW, NOW)
    entry = replace(recorded(event=event), unresolved_owner=owner)
    await console.ledger.record([entry], [], now=NOW)
    (found,) = (await call(console, "/unresolved-owners"))["owners"]
    assert (found["principal"], found["event"], found["events"], found["instead"]) == ("ci", event.key, 1, "")
    headers = {"Authorization": f"Bearer {READER}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{console.url}/console/rules/owners") as page,
    ):
        text = await page.text()
    for words in ("principal ci", "1 event, newest", "nobody was notified instead", owner.reason, "production/unowned"):
        assert words in text


async def test_replicas_say_how_they_are(console: ConsoleServer) -> None:
    await add_replicas(console)
    replicas = (await call(console, "/replicas"))["replicas"]
    assert [(one["name"], one["lag"]) for one in replicas] == [
        ("dispatcher-66d1-old:1", None),
        ("dispatcher-7f9c-b8rt:1", 1840),
        ("dispatcher-7f9c-x2k4:1", 12),
    ]
    assert replicas[1]["components"]["kafka"] == "the brokers do not answer"
    assert replicas[1]["channels"]["slack"]["breaker_open_since"] is not None


async def test_unknown_paths_and_invalid_parameters_are_answered_with_problem_details(console: ConsoleServer) -> None:
    await call(console, "/nothing", status=404)
    await call(console, "/no%0Athing", status=400)
    await call(console, "/deliveries?color=red", status=400)
    await call(console, "/deliveries?limit=0", status=400)
    await call(console, "/deliveries?limit=1&limit=2", status=400)
    await call(console, "/deliveries?after=x", status=400)
    await call(console, "/deliveries?since=2026-13-01", status=400)
    await call(console, "/status", status=405, data=b"")


async def test_responses_match_the_openapi_document(console: ConsoleServer) -> None:
    await console.finish("one", channels=["slack", "email"])
    dead = await console.deliver("slack", DEAD)
    digest = a_digest()
    await record_digest(console.ledger, digest, *members_of(digest, 1))
    await console.intake.ingest([([("content-type", b"application/cloudevents+json")], b"{oops", "t/0@1")])
    rejected = (await console.ledger.queries.rejected(limit=1)).entries[0]
    await console.ledger.silences.add(a_silence(), an_action(Deed.SILENCE))
    schema = schemathesis.openapi.from_dict(await call(console, "/openapi.json"))
    operations: list[tuple[str, str, dict[str, Any]]] = [
        ("/status", "GET", {}),
        ("/lag", "GET", {}),
        ("/executions", "GET", {}),
        ("/causes", "GET", {}),
        (
            "/executions/{project}/{domain}/{name}",
            "GET",
            {"project": "flytesnacks", "domain": "production", "name": "one"},
        ),
        ("/deliveries", "GET", {}),
        ("/deliveries/{key}", "GET", {"key": dead[0].key}),
        ("/deliveries/{key}", "GET", {"key": digest.key}),
        ("/silences", "GET", {}),
        ("/silences/{id}", "GET", {"id": "5f0c2a9d"}),
        ("/silences/{id}/end", "POST", {"id": "5f0c2a9d"}),
        ("/rejected", "GET", {}),
        ("/rejected/{id}", "GET", {"id": rejected.id}),
        ("/rejected/{id}/replay", "POST", {"id": rejected.id}),
        ("/rejected/{id}/dismiss", "POST", {"id": rejected.id}),
    ]

    def check() -> None:
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        for path, method, parameters in operations:
            case = schema[path][method].Case(path_parameters=parameters)
            response = case.call_and_validate(base_url=f"{console.url}/api/v1", headers=headers)
            assert response.status_code == 200
        redrive = schema["/deliveries/redrive"]["POST"].Case(
            body={"keys": [dead[0].key]}, media_type="application/json"
        )
        assert redrive.call_and_validate(base_url=f"{console.url}/api/v1", headers=headers).status_code == 200
        written = write(an_event(Phase.FAILED, launch_plan=a_launch_plan()), Format.NATIVE)
        ours = {name.replace("ce_", "ce-", 1): value.decode() for name, value in written.headers}
        for body, given, status in (
            (json.loads(written.value or b""), ours, 202),
            ({}, ours, 400),
            ({}, {"ce-type": "another"}, 202),
            ({}, {"Content-Encoding": "gzip"}, 415),
        ):
            publish = schema["/events"]["POST"].Case(body=body, media_type="application/json", headers=given)
            assert publish.call_and_validate(base_url=console.url, headers=headers | given).status_code == status
        case = schema["/status"]["GET"].Case()
        too_long = case.call_and_validate(base_url=f"{console.url}/api/v1", headers=headers, params={"x": "x" * 9000})
        assert too_long.status_code == 414
        limited = [case.call_and_validate(base_url=f"{console.url}/api/v1").status_code for _ in range(220)]
        assert set(limited) == {401, 429}

    await asyncio.to_thread(check)


async def test_generated_requests_get_documented_responses(console: ConsoleServer, tmp_path: Path) -> None:
    await console.finish("one", channels=["slack", "email"])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{console.url}/api/v1/openapi.json"),
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
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()[-4000:]
