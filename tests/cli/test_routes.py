"""`dispatcher routes` and `dispatcher contacts`, and what `rules who` says of routes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from tests.support.flyte_admin import recorded
from tests.support.service import ask
from tests.support.terminal import invoke, run

ROUTES = """
routes:
  - name: production-failures
    match: {project: [fraud-*, flytesnacks], domain: production, phase: [FAILED, TIMED_OUT], not: {labels: {tier: "3"}}}
    notify: [ml-team, {email: [audit@example.com]}]
    severity: critical
  - name: every-failure
    match: {domain: production, phase: FAILED}
    notify: [{slack: ["#ops"]}]
  - name: slow
    match: {domain: production, phase: [FAILED, TIMED_OUT], duration: {longer_than: 2h}, error: {message: "(?i)oom"}}
    notify: [{slack: ["#slow"]}]
    rules: replace
    stop: true
  - name: last
    match: {domain: production, phase: FAILED, labels: {team: [ml, data]}}
    notify: [on-call]
  - name: third
    match: {domain: production, phase: FAILED}
    notify: [on-call]
    streak: 3
  - name: works-again
    match: {domain: production, principal: jo}
    notify: [on-call]
    streak: 2
    on: resolved
"""
SLOW = "error.message matches (?i)oom, duration is longer than 2 h"
CONTACTS = {
    "ml-team": {"slack": ["#ml-alerts"], "email": ["ml@example.com"]},
    "on-call": {"include": ["ml-team"], "email": ["on-call@example.com"], "timezone": "Asia/Tokyo"},
}


def settings_file(folder: Path, routes: str = ROUTES, **changes: Any) -> str:
    (folder / "routes").mkdir(exist_ok=True)
    (folder / "routes" / "production.yaml").write_text(routes)
    channels = {
        "email": {"host": "relay.example.com", "from": "flyte@example.com"},
        "slack": {"token": "xoxb-hidden"},
    }
    settings = {"rules": {"routes": ["./routes"]}, "channels": channels, "contacts": CONTACTS, **changes}
    file = folder / "dispatcher.yaml"
    file.write_text(yaml.safe_dump(settings))
    return str(file)


@pytest.fixture
def config(tmp_path: Path) -> str:
    return settings_file(tmp_path)


async def listed(*arguments: str) -> Any:
    answer = await invoke(*arguments, "--json")
    assert answer.status == 0, answer.err
    return json.loads(answer.out)


async def test_routes_are_listed_in_their_order_as_files_write_them(config: str, tmp_path: Path) -> None:
    found = await listed("routes", "list", "--config", config)
    place = f"{tmp_path}/routes/production.yaml"
    assert [(one["name"], one["defined_at"]) for one in found] == [
        ("production-failures", f"{place}:3"),
        ("every-failure", f"{place}:7"),
        ("slow", f"{place}:10"),
        ("last", f"{place}:15"),
        ("third", f"{place}:18"),
        ("works-again", f"{place}:22"),
    ]
    written = {"routes": [{name: one[name] for name in one if name != "defined_at" and one[name]} for one in found]}
    (tmp_path / "routes" / "production.yaml").write_text(yaml.safe_dump(written))
    again = await listed("routes", "list", "--config", config)
    assert [{**one, "defined_at": ""} for one in again] == [{**one, "defined_at": ""} for one in found]

    answer = await invoke("routes", "list", "--config", config)
    for words in (
        "project is fraud-* or flytesnacks, domain is production, phase is FAILED or TIMED_OUT, unless labels.tier is 3",
        SLOW,
        "ml-team, email: audit@example.com",
        "stops, replaces Flyte's rules",
        "waits for the end of a streak of 2 failures",
    ):
        assert words in answer.out


async def test_routes_to_somebody_are_those_that_name_a_contact_with_the_address(config: str) -> None:
    for recipient, names in (
        ("ML@example.com", ["production-failures", "last", "third", "works-again"]),
        ("on-call", ["last", "third", "works-again"]),
        ("#OPS", ["every-failure"]),
        ("nobody", []),
    ):
        found = await listed("routes", "list", "--recipient", recipient, "--config", config)
        assert [one["name"] for one in found] == names


async def test_the_list_of_rules_says_that_there_are_routes_too(config: str) -> None:
    answer = await invoke("rules", "list", "--config", config)
    assert (answer.status, answer.err) == (0, "routes apply too: routes list shows them\n")


async def test_an_invalid_route_is_named_beside_the_others(tmp_path: Path) -> None:
    config = settings_file(tmp_path, contacts={})
    answer = await invoke("routes", "list", "--json", "--config", config)
    assert [one["name"] for one in json.loads(answer.out)] == ["every-failure", "slow"]
    assert "production.yaml:5: route 'production-failures': notify: there is no contact 'ml-team'" in answer.err


async def test_contacts_are_listed_with_the_line_in_the_settings(config: str) -> None:
    first, second = await listed("contacts", "list", "--config", config)
    assert (first["name"], first["include"], first["timezone"]) == ("ml-team", [], "")
    assert second["recipients"] == [{"channel": "email", "recipient": "on-call@example.com"}]
    assert second["everybody"] == [*second["recipients"], *first["everybody"]]
    assert (second["include"], second["timezone"]) == (["ml-team"], "Asia/Tokyo")
    assert [one["defined_at"] for one in (first, second)] == [f"{config}:{line}" for line in (9, 14)]
    answer = await invoke("contacts", "list", "--config", config)
    assert "email: ml@example.com" in answer.out


async def test_rules_who_says_which_routes_match_and_what_the_others_depend_on(config: str) -> None:
    data = await listed("rules", "who", "flytesnacks/production/train", "--config", config)
    phases = {one["event"]["phase"]: one for one in data["phases"]}
    failed = phases["FAILED"]
    assert not data["known"]
    assert [(one["recipients"], one["rules"][0]["name"]) for one in failed["deliveries"]] == [
        (["#ops"], "every-failure")
    ]
    assert [(one["name"], one["depends_on"]) for one in failed["possible"]] == [
        ("production-failures", ["not.labels.tier"]),
        ("slow", ["duration", "error.message"]),
        ("last", ["labels.team"]),
        ("third", []),
    ]
    assert [one["condition"] for one in failed["possible"]] == [
        "unless labels.tier is 3",
        f"only if {SLOW}; then no later route applies; then Flyte's rules don't apply",
        "only if labels.team is ml or data",
        "waits for a streak of 3 failures",
    ]
    named = [to for one in failed["possible"][0]["deliveries"] for to in one["addresses"]]
    assert named == ["ml@example.com", "#ml-alerts", "audit@example.com"]
    assert failed["possible"][0]["deliveries"][0]["severity"] == "critical"
    (resolved,) = phases["SUCCEEDED"]["possible"]
    assert resolved["condition"] == "only if principal is jo; waits for the end of a streak of 2 failures"
    assert phases["ABORTED"]["possible"] == []

    answer = await invoke("rules", "who", "flytesnacks/production/train", "--config", config)
    assert answer.status == 0
    for words in ("#ops", "all its conditions hold", "unless labels.tier is 3", "last (", "nobody"):
        assert words in answer.out
    assert answer.err.endswith("for launch plan flytesnacks/production/train, but routes apply to it\n")
    answer = await invoke("rules", "who", "flytesnacks/staging/train", "--config", config)
    assert (answer.status, answer.out) == (1, "")


async def test_the_owner_is_named_as_such_because_each_execution_has_its_own(tmp_path: Path) -> None:
    matches = {"all": {}, "ml": {"labels": {"team": "ml"}}}
    routes = [
        {"name": name, "match": {"phase": "FAILED", **match}, "notify": ["owner", "ml-team"]}
        for name, match in matches.items()
    ]
    owners = {"map": {"jo": "on-call"}, "label": "owner", "fallback": "on-call"}
    config = settings_file(tmp_path, yaml.safe_dump({"routes": routes}), owners=owners)
    data = await listed("rules", "who", "flytesnacks/production/train", "--phase", "failed", "--config", config)
    (failed,) = data["phases"]
    assert [one["addresses"] for one in failed["deliveries"]] == [["ml@example.com"], ["#ml-alerts"]]
    assert [(one["name"], one["depends_on"], one["condition"]) for one in failed["possible"]] == [
        ("ml", ["labels.team"], "only if labels.team is ml"),
        ("all", ["labels", "principal"], "labels and principal say who the owner is"),
    ]
    to = [[recipient for to in one["deliveries"] for recipient in to["recipients"]] for one in failed["possible"]]
    assert to == [["ml@example.com", "#ml-alerts", "owner"], ["owner"]]
    answer = await invoke("rules", "who", "flytesnacks/production/train", "--config", config)
    assert "all (" in answer.out
    assert "on-call@example.com" not in answer.out
    assert "the owner is not known" not in answer.out
    assert "not known" not in failed["event"]["reason"]


async def test_a_route_that_stops_for_sure_hides_those_behind_it(tmp_path: Path) -> None:
    stopping = ROUTES.replace('notify: [{slack: ["#ops"]}]', "notify: [on-call]\n    stop: true")
    config = settings_file(tmp_path, stopping)
    data = await listed("rules", "who", "flytesnacks/production/train", "--phase", "failed", "--config", config)
    assert [one["name"] for one in data["phases"][0]["possible"]] == ["production-failures"]


async def test_flyteadmin_says_the_workflow_and_the_version_that_routes_want(tmp_path: Path) -> None:
    plan = recorded("train.daily.launch_plan")
    workflow = plan["spec"]["workflowId"]["name"]
    async with LocalFlyteAdmin() as server:
        server.add_launch_plan({**plan, "closure": {"state": "ACTIVE"}})
        admin = {"endpoint": server.endpoint, "insecure": True, "timeout": "2s"}
        config = Path(settings_file(tmp_path, rules={"routes": ["./routes"], "flyte_admin": admin}))
        routes = [
            {"name": name, "match": {"phase": "FAILED", **match}, "notify": ["ml-team"]}
            for name, match in (
                ("this", {"workflow": workflow, "version": plan["id"]["version"]}),
                ("other", {"workflow": "others.*"}),
            )
        ]
        (tmp_path / "routes" / "production.yaml").write_text(yaml.safe_dump({"routes": routes}))
        data = await ask(config, "rules", "who", "flytesnacks/production/train.daily", "--phase", "failed")
    (forecast,) = data["phases"]
    assert forecast["possible"] == []
    assert {rule["name"] for one in forecast["deliveries"] for rule in one["rules"]} == {"", "this"}


async def test_lint_finds_nothing_in_good_routes_and_names_each_mistake_with_its_line(tmp_path: Path) -> None:
    config = settings_file(tmp_path)
    answer = await invoke("routes", "lint", "--config", config)
    assert (answer.status, answer.out, answer.err) == (0, "routes  ok\n", "")
    assert (await listed("routes", "lint", "--config", config)) == {"findings": []}

    mistakes = [
        {"name": "stops", "match": {"phase": "FAILED"}, "notify": ["on-call"], "stop": True},
        {"name": "behind", "match": {"phase": "FAILED", "domain": "d"}, "notify": [{"pagerduty": ["nobody"]}]},
        {"name": "never", "match": {"phase": "ABORTED", "not": {"phase": "ABORTED"}}, "notify": ["on-call"]},
        {"name": "refused", "match": {"phase": "RUNNING"}, "notify": ["on-call"]},
    ]
    contacts = {**CONTACTS, "spare": {"include": ["also"]}, "also": {"email": ["also@example.com"]}}
    contacts["zone"] = {"email": ["ml@example.com"], "timezone": "Asia/Tokyo"}
    config = settings_file(tmp_path, yaml.safe_dump({"routes": mistakes}, sort_keys=False), contacts=contacts)
    answer = await invoke("routes", "lint", "--json", "--config", config)
    assert answer.status == 1
    found = json.loads(answer.out)["findings"]
    assert [one["result"] for one in found] == ["problem"] * 4 + ["warning"] * 2
    assert found[-1]["message"].endswith("; a refused rule or route may name it")
    for one, words in zip(
        found,
        (
            "production.yaml:24: route 'refused': match.phase.0: RUNNING is not a terminal phase",
            "production.yaml:8: route 'behind': is never reached: stops (",
            "production.yaml:15: route 'never': matches no event: its not covers all that the rest of it matches",
            "production.yaml:8: 'nobody' can't be reached by pagerduty: no such channel",
            "dispatcher.yaml:9: contacts.also: no rule in files, route, contact, owners or fallback_recipients names it",
            "contacts.spare: no rule in files",
        ),
        strict=True,
    ):
        assert words in one["message"]
    answer = await invoke("routes", "lint", "--config", config)
    assert (answer.status, answer.out) == (1, "")
    assert answer.err.endswith("4 problems found\n")


NIGHT = {"from": "20:00", "to": "10:00", "zone": "Europe/Berlin"}


async def test_quiet_hours_and_digests_are_listed_and_named_where_they_may_hold_a_message(tmp_path: Path) -> None:
    routes = [
        {
            "name": "night",
            "match": {"phase": "FAILED"},
            "notify": ["board"],
            "quiet": [NIGHT, {"days": "sat-sun", "zone": "UTC"}],
        },
        {"name": "some", "match": {"phase": "FAILED", "labels": {"a": "b"}}, "notify": ["ml"]},
    ]
    contacts = {
        "board": {"email": ["board@example.com"], "digest": {"every": "1h"}},
        "ml": {"email": ["ml@example.com"], "quiet": {**NIGHT, "except": "2026-12-31"}, "timezone": "Europe/Berlin"},
    }
    config = settings_file(tmp_path, yaml.safe_dump({"routes": routes}), contacts=contacts)
    found = await listed("routes", "list", "--config", config)
    assert found[0]["quiet"][0] == {"days": ["mon-sun"], **NIGHT, "dates": [], "except": []}
    of_route = "20:00-10:00 Europe/Berlin; sat-sun all day UTC"
    assert f"quiet hours {of_route}" in (await invoke("routes", "list", "--config", config)).out
    board, ml = await listed("contacts", "list", "--config", config)
    assert (board["quiet"], board["digest"]) == ([], {"after": 3, "within": "600s", "every": "3600s"})
    assert (ml["quiet"][0]["except"], ml["digest"]) == (["2026-12-31"], None)
    of_ml, digest = "20:00-10:00 Europe/Berlin except 2026-12-31", "digest every 1 h after 3 messages within 10 min"
    assert [board["options"], ml["options"]] == [[digest], ["Europe/Berlin", f"quiet hours {of_ml}"]]
    assert digest in (await invoke("contacts", "list", "--config", config)).out

    who = ("rules", "who", "flytesnacks/production/train", "--phase", "failed", "--config", config)
    (failed,) = (await listed(*who))["phases"]
    assert failed["deliveries"][0]["may_hold"] == [f"quiet hours of route night: {of_route}", digest]
    assert failed["possible"][0]["deliveries"][0]["may_hold"] == [f"quiet hours of contact ml: {of_ml}"]
    out = (await invoke(*who)).out
    assert all(words in out for words in (digest, f"quiet hours of contact ml: {of_ml}"))


async def test_lint_names_quiet_hours_and_digests_without_effect(tmp_path: Path) -> None:
    over = {"dates": "2025-12-24..2025-12-26", "zone": "UTC"}
    routes = [{"name": "r", "match": {"phase": "FAILED"}, "notify": ["ml", "pager"], "quiet": [NIGHT, over]}]
    contacts = {
        "ml": {"email": ["ml@example.com"], "quiet": over},
        "pager": {"pagerduty": ["svc"], "digest": {}},
    }
    channels = {
        "email": {"host": "relay.example.com", "from": "flyte@example.com"},
        "pagerduty": {"services": {"svc": {"routing_key": "0" * 32}}},
    }
    config = settings_file(tmp_path, yaml.safe_dump({"routes": routes}), contacts=contacts, channels=channels)
    found = json.loads((await invoke("routes", "lint", "--json", "--config", config)).out)["findings"]
    window = "all day UTC on 2025-12-24..2025-12-26: all its dates are over"
    assert [(one["result"], one["message"].partition(": ")[2]) for one in found] == [
        ("warning", f"contacts.ml.quiet: {window}"),
        ("warning", f"route 'r': quiet: {window}"),
        ("problem", "contacts.pager.digest: it has no effect: all channels of the contact page, and have no digests"),
    ]


async def test_contacts_of_owners_are_used_and_a_label_may_name_any_contact(tmp_path: Path) -> None:
    route = {"name": "own", "match": {"phase": "FAILED"}, "notify": ["owner", "on-call", "ml-team"]}
    names = ("mapped", "fallback", "spare")
    contacts = {**CONTACTS, **{name: {"email": [f"{name}@example.com"]} for name in names}}
    for label, warnings in (("", []), ("team", ["the label team of an execution may name it"])):
        owners = {"map": {"jo": "mapped"}, "label": label, "fallback": "fallback"}
        config = settings_file(tmp_path, yaml.safe_dump({"routes": [route]}), contacts=contacts, owners=owners)
        found = json.loads((await invoke("routes", "lint", "--json", "--config", config)).out)["findings"]
        (finding,) = found
        assert "contacts.spare: no rule in files" in finding["message"]
        assert [finding["message"].rpartition("; ")[2]] == (warnings or [finding["message"]])
    (listed_route,) = await listed("routes", "list", "--config", config)
    assert set(listed_route["notify"]) == {"owner", "on-call", "ml-team"}


async def test_a_contact_that_rules_in_flyteadmin_may_name_is_a_warning(tmp_path: Path) -> None:
    rules = {"routes": ["./routes"], "flyte_admin": {"endpoint": "127.0.0.1:1", "insecure": True}}
    config = settings_file(tmp_path, rules=rules, contacts={**CONTACTS, "spare": {"email": ["spare@example.com"]}})
    (finding,) = (await listed("routes", "lint", "--config", config))["findings"]
    assert (finding["result"], finding["message"].endswith("rules in FlyteAdmin may name it")) == ("warning", True)
    answer = await invoke("routes", "lint", "--config", config)
    assert (answer.status, answer.out, "(warning)" in answer.err) == (0, "routes  ok\n", True)
    assert (
        await invoke("routes", "lint", "--config", settings_file(tmp_path, contacts={"a": {"include": ["a"]}}))
    ).status == 1


async def test_preview_of_a_contacts_name_says_which_recipients_it_has(config: str) -> None:
    answer = await invoke("preview", "--channel", "slack", "--recipient", "ml-team", "--config", config)
    words = "ml-team is a contact: preview ml@example.com on email or #ml-alerts on slack"
    assert (answer.status, words in " ".join(answer.err.split())) == (2, True), answer.err


async def test_the_records_of_a_narrow_terminal_name_what_a_route_matches_and_whom_it_notifies(config: str) -> None:
    (written,) = await run([("routes", "list", "--config", config)], {"COLUMNS": "80", "NO_COLOR": "1"})
    for column, text in (("matches", "domain is production, phase is FAILED"), ("notifies", "slack: #ops")):
        assert f"\x1b[2m{column} \x1b[0m{text}" in written.terminal
