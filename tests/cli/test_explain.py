"""`dispatcher explain`, for executions in the ledger and for events in files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from channels.contract import Answer, Receipt
from dispatcher.clock import SystemClock
from dispatcher.config.settings import load
from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.explain import rules_among
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import Intake
from dispatcher.ledger import Ledger, Settlement
from dispatcher.model.delivery import Dead, Retry, Sent
from dispatcher.model.event import Event, Options
from dispatcher.model.phase import Phase
from dispatcher.model.rate_limit import AdmissionControl, RateLimit
from dispatcher.rules.files import RuleFiles
from dispatcher.runtime.wiring import make_contents, make_planner, open_channels
from tests.support import samples
from tests.support.builders import NOW, SECOND, a_launch_plan, a_notification, an_event, an_execution
from tests.support.flyte_admin import a_finished_execution
from tests.support.flyte_admin import recorded as recorded_answer
from tests.support.service import ask, command

EXECUTION = "flytesnacks/production/akx7b9q2vjt5fm4c8h2d"
FIELDS = ["event", "rules", "deliveries", "disabled_by"]
ENRICHED = str(samples.FOLDER / "v2-workflow-failed-enriched.json")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings with the sample launch plan's four rules, mail and Slack, and no PagerDuty."""
    file = tmp_path / "dispatcher.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "rules": {"launch_plans": [samples.rules_for_any_version(tmp_path)]},
                "channels": {
                    "email": {"host": "relay.example.com", "from": "flyte@example.com"},
                    "slack": {"token": "xoxb-hidden"},
                },
            }
        )
    )
    return file


async def record(config: Path, *messages: Any) -> None:
    """Record messages in the ledger as the service does, without sending deliveries."""
    settings = load(config)
    rules = RuleFiles(settings.rules.launch_plans)
    rules.load()
    planner = make_planner(settings, open_channels(settings))
    async with Ledger(settings.ledger.url) as ledger:
        intake = Intake(ledger, lambda: rules.book, planner, make_contents(settings, planner.contacts), SystemClock())
        encoded = [write(message, Format.NATIVE) if isinstance(message, Event) else message for message in messages]
        for number, message in enumerate(encoded):
            headers, value = message if isinstance(message, tuple) else (message.headers, message.value)
            await intake.ingest([(headers, value, f"t/0@{number}")])


async def settle(config: Path, channel: str, *outcomes: Sent | Retry | Dead) -> None:
    """Settle each delivery of the channel with these outcomes in turn, a minute apart."""
    async with Ledger(load(config).ledger.url) as ledger:
        for number, outcome in enumerate(outcomes, start=1):
            now = SystemClock().now() + timedelta(minutes=number)
            admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=now)
            for delivery in (
                await ledger.claim(channel, 9, lease="w", until=now + SECOND, admission=admission)
            ).deliveries:
                await ledger.settle(
                    Settlement(delivery=delivery, outcome=outcome, started_at=now, ended_at=now + SECOND)
                )


def rules_in(account: Mapping[str, Any]) -> list[tuple[str, bool, str]]:
    return [(rule["channel"], rule["matched"], rule["reason"]) for rule in account["rules"]]


MATCHED = "FAILED is among its phases"


async def test_a_recorded_execution_is_explained_with_each_rule_delivery_and_attempt(config: Path) -> None:
    event = an_event(
        launch_plan=a_launch_plan(), labels={"team": "ml", "tier": "1"}, started_at=NOW - timedelta(hours=3)
    )
    await record(config, event)
    await settle(
        config,
        "email",
        Retry(NOW, "greylisted", Answer("451", "come back")),
        Sent(Receipt(answer=Answer("250", "queued as 42"))),
    )
    await settle(config, "slack", Dead("Slack refused: channel_not_found", Answer("channel_not_found", "no such")))

    account = await ask(config, "explain", EXECUTION)

    assert list(account) == FIELDS
    assert (account["event"]["phase"], account["event"]["verdict"], account["event"]["position"]) == (
        "FAILED",
        "matched",
        "t/0@0",
    )
    assert list(account["rules"][0]) == [
        "name",
        "defined_at",
        "phases",
        "channel",
        "recipients",
        "matched",
        "reason",
        "owner",
    ]
    assert rules_in(account) == [
        ("email", False, "is for SUCCEEDED, not FAILED"),
        ("slack", True, MATCHED),
        ("pagerduty", True, MATCHED),
        ("email", True, MATCHED),
    ]
    states = {delivery["channel"]: (delivery["state"], delivery["reason"]) for delivery in account["deliveries"]}
    assert states == {
        "email": ("sent", ""),
        "slack": ("dead", "Slack refused: channel_not_found"),
        "pagerduty": ("dead", "no such channel is configured: add channels.pagerduty to the settings"),
    }
    (mail,) = [delivery for delivery in account["deliveries"] if delivery["channel"] == "email"]
    assert list(mail)[:3] == ["channel", "recipients", "state"]
    assert [(attempt["outcome"], attempt["status"], attempt["answer"]) for attempt in mail["attempts"]] == [
        ("retry", "451", "come back"),
        ("sent", "250", "queued as 42"),
    ]
    assert account["disabled_by"] is None

    status, out, err = await command("explain", EXECUTION, "--config", str(config))
    assert (status, err) == (0, "")
    for words in (
        "3 rules of launch plan flytesnacks/production/train.daily",
        "is for SUCCEEDED, not FAILED",
        "451 come back: greylisted",
        "250 queued as 42",
        "t/0@0",
        "team=ml, tier=1",
        f"{NOW - timedelta(hours=3):%Y-%m-%d %H:%M:%S}",
    ):
        assert words in out


@pytest.mark.parametrize("option", [(), ("--event",)], ids=["an argument", "an option"])
async def test_an_event_file_is_explained_by_the_rules_and_nothing_is_recorded(
    config: Path, option: tuple[str, ...]
) -> None:
    account = await ask(config, "explain", *option, ENRICHED)

    assert list(account) == FIELDS
    assert account["event"]["execution"]["name"] == "av2e-failu-labels-af33wv"
    assert [matched for _, matched, _ in rules_in(account)] == [False, True, True, True]
    assert [(delivery["channel"], delivery["recipients"], delivery["state"]) for delivery in account["deliveries"]] == [
        ("slack", ["#dev-alerts"], "planned"),
        ("pagerduty", ["pagerduty-service-key@example.com"], "dead"),
        ("email", ["dev-team@example.com", "on-call@example.com"], "planned"),
    ]
    assert not (config.parent / "dispatcher.db").exists()


async def test_the_switch_that_disabled_notifications_is_named_before_and_after_recording(config: Path) -> None:
    disabled = an_event(launch_plan=a_launch_plan(), options=Options(disable_notifications=True))
    file = config.parent / "event.json"
    file.write_bytes(write(disabled, Format.NATIVE).value)
    await record(config, disabled)

    for what in (EXECUTION, str(file)):
        account = await ask(config, "explain", what)
        assert (account["disabled_by"], account["deliveries"]) == ("options.disable_notifications", [])
        assert {reason for _, _, reason in rules_in(account)} == {"disabled by options.disable_notifications"}
        assert account["event"]["verdict"] == "disabled"
    out = (await command("explain", EXECUTION, "--config", str(config)))[1]
    assert "no notifications" in out


async def test_rules_that_an_executions_own_list_replaced_are_named(config: Path) -> None:
    own = Options(notifications=(a_notification("own@example.com"),))
    await record(config, an_event(launch_plan=a_launch_plan(), options=own))

    account = await ask(config, "explain", EXECUTION)

    assert account["rules"][0]["defined_at"] == "options.notifications[0]"
    assert {reason for _, matched, reason in rules_in(account) if not matched} == {
        "replaced by the execution's own list"
    }


async def test_each_delivery_names_all_rules_that_ask_for_it(config: Path) -> None:
    own = Options(notifications=(a_notification("a@example.com"), a_notification("A@example.com", "b@example.com")))
    event = an_event(options=own)
    file = config.parent / "event.json"
    file.write_bytes(write(event, Format.NATIVE).value)
    await record(config, event)

    for what in (EXECUTION, str(file)):
        account = await ask(config, "explain", what)
        assert [delivery["recipients"] for delivery in account["deliveries"]] == [["a@example.com"], ["b@example.com"]]
        assert [[rule["defined_at"] for rule in delivery["rules"]] for delivery in account["deliveries"]] == [
            ["options.notifications[0]", "options.notifications[1]"],
            ["options.notifications[1]"],
        ]
        assert [rule["name"] for delivery in account["deliveries"] for rule in delivery["rules"]] == [""] * 3
        assert [reason for _, _, reason in rules_in(account)] == [MATCHED, MATCHED]
    assert "1, 2" in (await command("explain", EXECUTION, "--config", str(config)))[1]


AUDIT = {"email": ["audit@example.com"]}


def with_a_route_to_a_contact(config: Path, beside: object = AUDIT) -> Path:
    """`beside`: whom the route notifies before the contact."""
    settings = yaml.safe_load(config.read_text())
    settings["rules"]["routes"] = ["routes.yaml"]
    team = {"slack": ["#team"], "email": ["dev-team@example.com"], "severity": "critical"}
    settings["contacts"] = {"team": team, "jos-team": {"email": ["jo@example.com"]}}
    settings["owners"] = {"map": {"jo": "jos-team"}}
    config.write_text(yaml.safe_dump(settings))
    route = {"name": "all", "match": {"phase": "FAILED"}, "notify": [beside, "team"]}
    (config.parent / "routes.yaml").write_text(yaml.safe_dump({"routes": [route]}))
    return config


async def test_a_contacts_deliveries_have_the_numbers_of_the_rules_that_name_the_contact(config: Path) -> None:
    account = await ask(with_a_route_to_a_contact(config), "explain", ENRICHED)

    *_, of_audit, of_team = account["rules"]
    assert [(rule["channel"], rule["recipients"]) for rule in (of_audit, of_team)] == [
        ("email", ["audit@example.com"]),
        ("", ["team"]),
    ]
    numbers = {tuple(one["recipients"]): rules_among(one, account["rules"]) for one in account["deliveries"]}
    assert numbers == {
        ("#dev-alerts",): [2],
        ("pagerduty-service-key@example.com",): [3],
        ("dev-team@example.com",): [4, 6],
        ("on-call@example.com",): [4],
        ("audit@example.com",): [5],
        ("#team",): [6],
    }
    assert {one["severity"] for one in account["deliveries"] if one["rules"][-1]["name"] == "all"} == {"", "critical"}


async def test_an_owners_delivery_has_the_number_of_the_rule_for_the_owner(config: Path) -> None:
    with_a_route_to_a_contact(config, "owner")
    event = config.parent / "event.json"
    event.write_bytes(write(an_event(principal="jo", launch_plan=a_launch_plan()), Format.NATIVE).value)
    account = await ask(config, "explain", str(event))
    numbers = {one["recipients"][0]: rules_among(one, account["rules"]) for one in account["deliveries"]}
    of_owner, of_contact = [number for number, rule in enumerate(account["rules"], start=1) if rule["name"] == "all"]
    assert (account["rules"][of_owner - 1]["recipients"], numbers["jo@example.com"]) == (["jos-team"], [of_owner])
    assert numbers["#team"] == [of_contact]
    (to_owner,) = [one for one in account["deliveries"] if one["recipients"] == ["jo@example.com"]]
    instead = {"recipients": ["data@example.com"], "rules": [{**to_owner["rules"][0], "owner": False}]}
    assert rules_among(instead, [account["rules"][of_owner - 1]]) == [1]


async def test_every_terminal_event_of_an_execution_and_each_rejected_message_is_explained(config: Path) -> None:
    bare = write(an_event(), Format.FLYTE_V1)
    headers, value = bare.headers, bare.value
    broken = value.replace(b'"FAILED"', b'"EXPLODED"')
    assert broken != value
    others = an_event(Phase.SUCCEEDED, name="another", launch_plan=a_launch_plan())
    await record(
        config,
        an_event(Phase.FAILED, launch_plan=a_launch_plan()),
        an_event(Phase.ABORTED, launch_plan=a_launch_plan()),
        (headers, value),
        (headers, broken),
        (headers, broken.replace(b"akx7b9q2vjt5fm4c8h2d", b"akx7b9q2vjt5fm4c8h2d2")),
        others,
    )

    first = await ask(config, "explain", EXECUTION)

    assert list(first) == [*FIELDS, "others"]
    explanations = [first, *first["others"]]
    assert [(account["event"].get("phase"), account["event"]["verdict"]) for account in explanations] == [
        ("FAILED", "matched"),
        ("ABORTED", "matched"),
        ("FAILED", "rejected"),
        (None, "rejected"),
    ]
    assert [list(account) for account in first["others"]] == [FIELDS] * 3
    assert "launch plan unknown" in explanations[2]["event"]["reason"]
    assert "unknown phase 'EXPLODED'" in explanations[3]["event"]["reason"]
    assert all(
        delivery["event"].endswith(account["event"]["phase"])
        for account in explanations[:2]
        for delivery in account["deliveries"]
    )
    out = (await command("explain", EXECUTION, "--config", str(config)))[1]
    for words in ("FAILED", "ABORTED", "launch plan unknown", "EXPLODED", explanations[3]["event"]["rejected_id"]):
        assert words in out


async def test_an_execution_with_only_a_rejected_message_is_explained(config: Path) -> None:
    await record(config, samples.sample("v1-workflow-failed"))

    account = await ask(config, "explain", "flytesnacks/production/av1-failu-none-auxcgw")

    assert list(account) == FIELDS
    assert (account["event"]["verdict"], account["rules"], account["deliveries"]) == ("rejected", [], [])


async def test_an_unknown_execution_gives_an_error_with_what_to_check(config: Path) -> None:
    await record(config)
    status, out, err = await command("explain", "p/d/n", "--config", str(config))
    assert (status, out) == (1, "")
    assert "nothing is recorded about p/d/n" in err
    assert "it has no events at all" in err

    await record(config, an_event(launch_plan=a_launch_plan()))
    status, out, err = await command("explain", "p/d/n", "--config", str(config), "--json")
    assert (status, out) == (1, "")
    for words in ("its newest event was recorded at", "ledger.retention (90 days)", "cloudEvents.enable"):
        assert words in err


async def test_an_event_whose_phase_is_not_terminal_causes_no_notifications(config: Path) -> None:
    account = await ask(config, "explain", str(samples.FOLDER / "v2-workflow-running.json"))
    event = account["event"]
    assert (event["phase"], event["verdict"], account["deliveries"]) == ("RUNNING", "not_terminal", [])


async def test_flyteadmin_is_asked_about_an_event_in_a_file_if_it_is_configured(config: Path) -> None:
    bare = str(samples.FOLDER / "v2-workflow-failed.json")
    execution = an_execution("av2-failu-none-a1ij08")
    async with LocalFlyteAdmin() as server:
        server.add(a_finished_execution(execution))
        admin = {"endpoint": server.endpoint, "insecure": True, "timeout": "1s"}
        (config.parent / "dispatcher.yaml").write_text(yaml.safe_dump({"rules": {"flyte_admin": admin}}))
        account = await ask(config, "explain", bare)
        assert account["event"]["verdict"] == "matched"
        assert account["event"]["launch_plan"]["name"] == "train.daily"
        assert [matched for _, matched, _ in rules_in(account)] == [False, True, True, True]

        server.add({**recorded_answer("execution-notifications-disabled"), "id": execution.model_dump()})
        account = await ask(config, "explain", bare)
        assert (account["event"]["verdict"], account["disabled_by"]) == ("disabled", "spec.disable_all")

    status, out, err = await command("explain", bare, "--config", str(config))
    assert (status, out) == (1, "")
    assert "rules.flyte_admin.endpoint" in err


async def test_explain_also_reports_invalid_rules(config: Path) -> None:
    (config.parent / "plan.yaml").write_text(
        "{project: p, domain: d, name: n, notifications: [{phases: [RUNNING], email: {recipients_email: [a@b.c]}}]}"
    )
    (config.parent / "dispatcher.yaml").write_text("rules: {launch_plans: [plan.yaml]}")
    status, out, err = await command("explain", ENRICHED, "--config", str(config), "--json")
    assert (status, json.loads(out)["event"]["verdict"]) == (0, "no_matching_rule")
    assert "plan.yaml:1: rule 1: phases: RUNNING is not a terminal phase" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name an execution"),
        (("a/b/c", "--event", ENRICHED), "name an execution"),
        (("abc",), "'abc' names no execution"),
        (("a/b/" + "c" * 256,), "at most 255"),
        (("c" * 5000,), "names no execution"),
        ((str(Path(__file__)),), "broken JSON"),
        ((str(samples.FOLDER / "v1-task-failed.json"),), "an event of another type"),
    ],
)
async def test_an_argument_that_is_neither_an_execution_nor_an_event_file_is_a_usage_error(
    config: Path, arguments: tuple[str, ...], words: str
) -> None:
    status, _, err = await command("explain", *arguments, "--config", str(config), env={"COLUMNS": "1000"})
    assert (status, words in err) == (2, True), err
