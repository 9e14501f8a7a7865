"""`dispatcher check`: what it refuses, what it warns of, and that `serve` refuses the same in the same words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from tests.support.service import ROUTING_KEY, command

PLAN = "launch_plan: {project: p, domain: d, name: n}\nnotifications:\n"
WITH_ADMIN = {"flyte_admin": {"endpoint": "flyte:81"}}
CHANNELS: dict[str, Any] = {
    "email": {"host": "relay.example.com", "from": "flyte@example.com"},
    "slack": {"token": "xoxb-hidden"},
    "pagerduty": {"services": {"oncall": {"routing_key": ROUTING_KEY}}},
}


def settings_file(folder: Path, plan: str = "", **changes: Any) -> str:
    (folder / "plan.yaml").write_text(plan)
    file = folder / "dispatcher.yaml"
    settings = {"http": {}, "channels": CHANNELS, "rules": {"launch_plans": ["plan.yaml"]}, **changes}
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(file)


def _lines(file: str) -> list[str]:
    return [line.strip() for line in Path(file).read_text().splitlines()]


def a_rule(channel: str, *recipients: str) -> str:
    return yaml.safe_dump([{"phases": ["FAILED"], channel: {"recipients_email": [*recipients]}}])


async def test_check_names_each_recipient_in_rule_files_that_no_channel_can_reach(tmp_path: Path) -> None:
    rules = (
        PLAN + a_rule("email", "a@example.com, b@example.com", "c@example.com") + a_rule("slack", "dev-alerts", "@jane")
    )
    rules += a_rule("pager_duty", "unknown-service", "oncall") + a_rule("teams", "ml")
    status, out, err = await command("check", "--config", settings_file(tmp_path, rules))
    assert (status, out) == (1, "")
    lines = err.splitlines()
    places = [line.removeprefix(f"{tmp_path}/").partition(" ")[0] for line in lines[:-1]]
    assert places == ["plan.yaml:3:", "plan.yaml:9:", "plan.yaml:9:", "plan.yaml:15:", "plan.yaml:21:"]
    assert lines[-1] == "5 problems found"
    for line, words in zip(
        lines,
        (
            "'a@example.com, b@example.com' can't be reached by email: ",
            "'dev-alerts' can't be reached by slack: ",
            "'@jane' can't be reached by slack: ",
            "'unknown-service' can't be reached by pagerduty: ",
            "'ml' can't be reached by teams: no such channel is configured: add channels.teams to the settings",
            "",
        ),
        strict=True,
    ):
        assert words in line


async def test_another_package_named_channels_is_refused(tmp_path: Path) -> None:
    info = tmp_path / "site" / "channels-4.3.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: channels\nVersion: 4.3.1\n")
    (info / "top_level.txt").write_text("channels\n")
    settings = settings_file(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    refused = "the installed package channels has the import name `channels` too"
    for name in ("check", "serve"):
        status, out, err = await command(name, "--config", settings, env=environment)
        assert (status, out) == (1, "")
        assert refused in err
        assert "install the dispatcher in an environment of its own" in err


async def test_a_recipient_that_an_alias_or_a_fallback_reaches_is_no_problem(tmp_path: Path) -> None:
    rules = PLAN + a_rule("slack", "#dev", "jane@example.com") + a_rule("pager_duty", "someone@example.com")
    channels = {**CHANNELS, "pagerduty": {**CHANNELS["pagerduty"], "fallback": "email"}, "webhook": {}}
    file = settings_file(tmp_path, rules, channels=channels)
    assert (await command("check", "--config", file))[0] == 0


async def test_check_warns_where_nothing_asks_flyte_admin(tmp_path: Path) -> None:
    status, out, err = await command("check", "--config", settings_file(tmp_path))
    assert (status, err) == (0, "")
    assert "rules      warning: nothing asks FlyteAdmin (rules.flyte_admin): " in out
    assert "channels   warning: without FlyteAdmin (rules.flyte_admin) the start of an execution is not known" in out
    email = {"email": {"host": "relay", "sender": "f@example.com"}}
    status, out, err = await command("check", "--config", settings_file(tmp_path, channels=email))
    assert (status, err, "overlap" in out) == (0, "", False)
    status, out, err = await command("check", "--config", settings_file(tmp_path, rules=WITH_ADMIN))
    assert (status, err, "warning" in out) == (0, "", False)


async def test_check_warns_of_matchers_whose_facts_no_source_brings(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    match = [
        {"domain": "production", "phase": "FAILED", "error": {"code": "*"}, "path": ["own"]},
        {"phase": "FAILED", "labels": {"team": "ml"}, "not": {"mode": "child", "parent": "any"}, "path": ["own"]},
    ]
    pagerduty = {**CHANNELS["pagerduty"], "severities": [{"severity": "info", "error": {"kind": "USER"}}]}
    more: dict[str, Any] = {"templates": {"match": match}, "channels": {**CHANNELS, "pagerduty": pagerduty}}
    file = settings_file(tmp_path, "", **more)
    status, out, err = await command("check", "--config", file)
    assert (status, err) == (0, "")
    lines, warnings = _lines(file), []
    for warning in out.splitlines():
        if warning.startswith(found := f"settings   warning: {file}:"):
            number, _, sentence = warning.removeprefix(found).partition(": ")
            warnings.append((lines[int(number) - 1], sentence.partition(", and what isn't known matches")[0]))
    assert warnings == [
        ("- phase: FAILED", "templates.match.1: Flyte's events lack mode and parent"),
        ("- phase: FAILED", "templates.match.1: most of Flyte's events lack labels"),
        ("- severity: info", "channels.pagerduty.severities.0: Flyte's events of aborted executions lack error"),
    ]
    status, out, err = await command("check", "--config", settings_file(tmp_path, "", rules=WITH_ADMIN, **more))
    assert (status, err, "warning" in out) == (0, "", False)


async def test_serve_refuses_what_check_refuses_in_the_same_words(tmp_path: Path) -> None:
    file = settings_file(tmp_path, channels={}, ledger={"url": "mysql://u:hidden@h/d"})
    served = await command("serve", "--config", file)
    checked = await command("check", "--config", file)
    assert (served[:2], checked[:2]) == ((1, ""), (1, ""))
    assert checked[2] == f"{served[2]}2 problems found\n"
    no_channel, no_ledger = served[2].splitlines()
    assert no_channel.startswith(f"{file}: nobody can be notified: add one of email, ")
    assert no_ledger.startswith(f"{file}:7: ledger.url: no such kind of ledger, 'mysql'")
    assert "hidden" not in served[2]


async def test_a_channel_that_does_not_exist_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    file = settings_file(tmp_path)
    assert (await command("ledger", "migrate", "--config", file))[0] == 0
    for arguments, words in (
        (("list", "--channel", "slak"), "there is no channel in the ledger 'slak': did you mean slack?"),
        (("redrive", "--all", "--channel", "slak"), "there is no channel in the ledger 'slak': did you mean slack?"),
        (
            ("redrive", "--all", "--dry-run", "--channel", "x"),
            "there is no channel in the ledger 'x': there are email, pagerduty, slack, teams",
        ),
        (("list", "--execution", "p/d"), "--execution: an execution is project/domain/name, or only its name"),
    ):
        status, out, err = await command("deliveries", *arguments, "--config", file)
        assert (status, out) == (2, ""), arguments
        assert words in " ".join(err.replace("│", "").split())
    status, out, err = await command("send-test", "--channel", "slak", "--to", "x", "--config", file)
    sentence = "no such channel is configured: add channels.slak to the settings; did you mean slack?"
    assert (status, out, err) == (1, "", f"dispatcher: {sentence}\n")
    assert (await command("deliveries", "list", "--channel", "teams", "--config", file))[0] == 0


async def test_check_reads_the_routes_and_warns_of_those_whose_facts_nothing_brings(tmp_path: Path) -> None:
    routes = tmp_path / "routes.yaml"
    routes.write_text(
        "routes:\n"
        "  - {name: all, match: {phase: FAILED, domain: production}, notify: [{email: [a@example.com]}]}\n"
        "  - {name: jo, match: {phase: FAILED, not: {principal: jo}}, notify: [{email: [b@example.com]}]}\n"
    )
    for admin, expected in (({}, [f"routes     warning: {routes}:3: route jo: "]), (WITH_ADMIN, [])):
        settings = settings_file(tmp_path, rules={"routes": ["routes.yaml"], **admin})
        status, out, err = await command("check", "--config", settings)
        assert (status, err) == (0, "")
        assert "routes     ok: 2 routes" in out.splitlines()
        warnings = [line for line in out.splitlines() if line.startswith("routes     warning")]
        assert [one[: len(start)] for one, start in zip(warnings, expected, strict=True)] == expected

    routes.write_text(routes.read_text().replace("a@example.com", "nobody").replace("jo,", "all,"))
    status, out, err = await command("check", "--config", settings_file(tmp_path, rules={"routes": [str(routes)]}))
    assert (status, out) == (1, "")
    assert [line.removeprefix(f"{routes}:").partition(" ")[0] for line in err.splitlines()] == ["3:", "2:", "2"]
    assert "has this name already: choose another" in err
    assert "'nobody' can't be reached by email: " in err


async def test_check_refuses_routes_to_owners_whom_the_settings_do_not_name(tmp_path: Path) -> None:
    routes = tmp_path / "routes.yaml"
    routes.write_text("routes: [{name: a, match: {phase: FAILED}, notify: [owner]}]")
    rules = {"routes": ["routes.yaml"]}
    status, _, err = await command("check", "--config", settings_file(tmp_path, rules=rules))
    assert (status, err.splitlines()[0]) == (
        1,
        f"{routes}:1: route 'a': notify: owner: the settings have no section owners, which says who the owner is",
    )
    owners = {"map": {"jane.doe": "mlteam"}, "fallback": "nobody"}
    contacts = {"ml-team": {"email": ["ml@example.com"]}}
    settings = settings_file(tmp_path, rules=rules, owners=owners, contacts=contacts)
    status, _, err = await command("check", "--config", settings)
    assert status == 1
    assert "owners.map.jane.doe: there is no contact 'mlteam': did you mean ml-team?" in err
    assert "owners.fallback: there is no contact 'nobody': there are ml-team" in err
    owners = {"map": {"jane.doe": "ml-team"}, "label": "team"}
    status, out, _ = await command(
        "check", "--config", settings_file(tmp_path, rules=rules, owners=owners, contacts=contacts)
    )
    assert status == 0
    assert "owners: most of Flyte's events lack labels and principal" in out
