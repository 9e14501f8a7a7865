"""`dispatcher rules`: lists rules, and says who would be notified without an event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from tests.support import samples
from tests.support.flyte_admin import recorded
from tests.support.service import ask
from tests.support.terminal import invoke

PLAN = "flytesnacks/production/train.daily"


def settings_file(folder: Path, **rules: Any) -> str:
    file = folder / "dispatcher.yaml"
    channels = {
        "email": {"host": "relay.example.com", "from": "flyte@example.com"},
        "slack": {"token": "xoxb-hidden"},
    }
    file.write_text(yaml.safe_dump({"rules": rules, "channels": channels}))
    return str(file)


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Settings with the sample launch plan's four rules, mail and Slack, and no PagerDuty."""
    return settings_file(tmp_path, launch_plans=[samples.rules_for_any_version(tmp_path)])


async def test_rules_in_files_are_listed_by_the_same_filters(config: str) -> None:
    for given, number in (
        ((), 4),
        (("--channel", "email"), 2),
        (("--phase", "succeeded"), 1),
        (("--recipient", "ON-CALL@example.com"), 1),
        (("--project", "flytesnacks", "--launch-plan", "train.daily"), 4),
        (("--domain", "development"), 0),
    ):
        listed = json.loads((await invoke("rules", "list", *given, "--json", "--config", config)).out)
        assert len(listed) == number, given
    answer = await invoke("rules", "list", "--config", config)
    assert (answer.status, PLAN in answer.out, "#dev-alerts" in answer.out) == (0, True, True)
    assert (await invoke("rules", "list", "--phase", "RUNNING", "--config", config)).status == 2


async def test_who_would_be_notified_is_said_for_each_phase_with_the_reason(config: str) -> None:
    answer = await invoke("rules", "who", PLAN, "--json", "--config", config)
    data = json.loads(answer.out)
    found = {
        one["event"]["phase"]: [(to["channel"], to["state"]) for to in one["deliveries"]] for one in data["phases"]
    }
    assert list(found) == ["FAILED", "TIMED_OUT", "ABORTED", "SUCCEEDED"]
    assert found["FAILED"] == [("slack", "planned"), ("pagerduty", "dead"), ("email", "planned")]
    assert found["SUCCEEDED"] == [("email", "planned")]
    assert all(not rule["matched"] for rule in data["phases"][2]["rules"] if "ABORTED" not in rule["phases"])

    answer = await invoke("rules", "who", PLAN, "--phase", "failed", "--config", config)
    assert answer.status == 0
    for words in ("#dev-alerts", "FAILED is among its phases", "no such channel is configured", "Options can replace"):
        assert words in answer.out
    assert "SUCCEEDED" not in answer.out


async def test_an_unknown_launch_plan_is_refused_with_the_near_ones(config: str) -> None:
    answer = await invoke("rules", "who", "flytesnacks/production/train.dayly", "--config", config)
    assert (answer.status, answer.out, f"did you mean {PLAN}?" in answer.err) == (1, "", True)
    answer = await invoke("rules", "who", PLAN)
    assert (answer.status, answer.err) == (1, f"dispatcher: there are no rules for launch plan {PLAN}\n")
    for given, words in (
        ("train.daily", "names no launch plan: write project/domain/name"),
        ("a/b/c@\0", "launch_plan: must match pattern"),
        ("a/" + "b" * 256 + "/c", "domain: must have at most 255 characters"),
    ):
        answer = await invoke("rules", "who", given, "--config", config)
        assert (answer.status, words in answer.err) == (2, True), answer.err


async def test_flyteadmin_is_asked_for_the_active_version_or_else_the_newest(tmp_path: Path) -> None:
    plan = recorded("train.daily.launch_plan")

    def version(name: str, state: str, rules: int) -> dict[str, Any]:
        metadata = {"notifications": plan["spec"]["entityMetadata"]["notifications"][:rules]}
        return {
            "id": {**plan["id"], "version": name},
            "spec": {**plan["spec"], "entityMetadata": metadata},
            "closure": {"state": state},
        }

    async with LocalFlyteAdmin() as server:
        admin = {"endpoint": server.endpoint, "insecure": True, "timeout": "2s"}
        config = Path(settings_file(tmp_path, flyte_admin=admin))

        async def rules_now(*phase: str) -> tuple[str, int]:
            data = await ask(config, "rules", "who", PLAN, *phase)
            return data["launch_plan"]["version"], len(data["phases"][0]["rules"])

        server.add_launch_plan(version("v1", "INACTIVE", 1))
        server.add_launch_plan(version("v2", "INACTIVE", 2))
        assert await rules_now() == ("v2", 2)
        server.add_launch_plan(version("v3", "ACTIVE", 3))
        server.add_launch_plan(version("v4", "INACTIVE", 4))
        assert await rules_now("--phase", "FAILED") == ("v3", 3)
        data = await ask(config, "rules", "who", f"{PLAN}@v4")
        assert len(data["phases"][0]["rules"]) == 4
        assert "FlyteAdmin" in data["phases"][0]["event"]["reason"]
