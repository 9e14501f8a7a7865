"""The settings decide a message's links and PagerDuty's severity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from channels.registry import CHANNEL_TYPES
from dispatcher.config.settings import Settings, load
from dispatcher.errors import SettingsError
from dispatcher.model.event import Event
from dispatcher.model.phase import Phase
from dispatcher.runtime.wiring import make_renderer
from tests.support.builders import a_launch_plan, an_event, an_execution

LOGS = "https://logs.example.com/?q={project}.{domain}.{name}&from=now-1d"
SEVERITIES = [
    {"severity": "info", "phase": "ABORTED"},
    {"severity": "warning", "domain": ["dev*", "staging"], "not": {"labels": {"tier": "1"}}},
    {"severity": "critical", "phase": ["FAILED", "TIMED_OUT"], "labels": {"team": "ml-*"}},
]


def settings(folder: Path, **options: Any) -> Settings:
    file = folder / "dispatcher.yaml"
    pagerduty = {"services": {"ml": {"routing_key": "0" * 32}}, "severities": SEVERITIES}
    file.write_text(yaml.safe_dump({"channels": {"pagerduty": pagerduty}, **options}))
    return load(file)


def event(phase: Phase = Phase.FAILED, *, name: str = "a1", domain: str = "production", **labels: str) -> Event:
    finished = an_event(phase, labels=labels, launch_plan=a_launch_plan())
    return finished.model_copy(update={"execution": an_execution(name, domain=domain)})


@pytest.mark.parametrize(
    ("finished", "severity"),
    [
        (event(), "error"),
        (event(Phase.TIMED_OUT, team="ml-ops"), "critical"),
        (event(team="web"), "error"),
        (event(domain="development", team="ml-ops"), "warning"),
        (event(domain="staging", team="web"), "warning"),
        (event(domain="staging", tier="1"), "error"),
        (event(domain="staging"), "error"),  # the label isn't known
        (event(Phase.ABORTED, domain="staging"), "info"),
        (event(Phase.SUCCEEDED, team="ml-ops"), "info"),
    ],
)
def test_the_first_matching_severity_wins_else_the_phases_own(tmp_path: Path, finished: Event, severity: str) -> None:
    content = make_renderer(settings(tmp_path)).render("pagerduty", finished)
    assert content["payload"]["severity"] == severity


def test_messages_link_to_the_console_and_to_the_logs(tmp_path: Path) -> None:
    renderer = make_renderer(settings(tmp_path, logs_url=LOGS, console_url="https://flyte.example.com/console"))
    finished = event(name="a&b é")
    logs = "https://logs.example.com/?q=flytesnacks.production.a%26b%20%C3%A9&from=now-1d"

    links = renderer.render("pagerduty", finished)["links"]
    assert [link["text"] for link in links] == ["Open the execution", "Open the logs"]
    assert links[1]["href"] == logs
    slack = renderer.render("slack", finished)
    assert CHANNEL_TYPES["slack"].form.problems(slack) == []
    (buttons,) = [block for block in slack["attachments"][0]["blocks"] if block["type"] == "actions"]
    assert [button["url"] for button in buttons["elements"]][1] == logs


def test_without_addresses_in_the_settings_there_are_no_links(tmp_path: Path) -> None:
    renderer = make_renderer(settings(tmp_path))
    assert "links" not in renderer.render("pagerduty", event())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"logs_url": "javascript:alert(1)"}, "logs_url"),
        ({"logs_url": "https://x y"}, "logs_url"),
    ],
)
def test_a_logs_url_that_is_no_link_is_refused(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        settings(tmp_path, **options)
