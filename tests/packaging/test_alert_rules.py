"""Alerts, dashboard, runbook and docs/metrics.md agree with the metrics and commands that exist."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.testing
import yaml

from dispatcher.cli import app
from dispatcher.observability.metrics import MetricDescription, Metrics
from tests.support.prometheus import needs_promtool, promtool

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules.yaml"
TESTS = ROOT / "deploy/prometheus/tests.yaml"
DASHBOARD = ROOT / "deploy/grafana/dispatcher.json"
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
RUNBOOK_URL = "https://dispatcher.example.com/runbook.html"
METRICS = (ROOT / "docs/metrics.md").read_text()


DESCRIPTIONS = {one.name: one for one in Metrics().descriptions}
TABLE = re.compile(r"^\| `(dispatcher_\w+)` \| (\w+) \| (.*?) \| (.*?) \| `(.*)` \|$", re.MULTILINE)
SELECTOR = re.compile(r"\b(dispatcher_\w+)(?:\{([^}]*)\})?")
PROMETHEUS_LABELS = {"job", "instance", "le"}


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> Iterator[dict[str, Any]]:
    yield from (panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row")


def queries_of_the_dashboard() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def all_queries() -> list[str]:
    documented = [query for *_, query in TABLE.findall(METRICS)]
    return [*queries_of_the_dashboard(), *(rule["expr"] for rule in alerts()), *documented]


def metric(name: str) -> MetricDescription:
    """The metric that a series belongs to."""
    if name not in DESCRIPTIONS:
        name = re.sub(r"_(bucket|sum|count)$", "", name)
        assert DESCRIPTIONS[name].kind == "histogram", name
    return DESCRIPTIONS[name]


def test_the_list_of_metrics_matches_the_code() -> None:
    def row(one: MetricDescription) -> tuple[str, str, str, str]:
        return one.name, one.kind, ", ".join(f"`{label}`" for label in one.labels) or "none", one.meaning

    assert [row[:4] for row in TABLE.findall(METRICS)] == [row(one) for one in DESCRIPTIONS.values()]


def test_a_documented_query_uses_its_metric() -> None:
    for name, *_, query in TABLE.findall(METRICS):
        assert name in {metric(found).name for found, _ in SELECTOR.findall(query)}, query


def test_every_label_is_explained() -> None:
    explained = set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| [^|]+ \|$", METRICS, re.MULTILINE)))
    )
    assert {label for one in DESCRIPTIONS.values() for label in one.labels} - {"version", "python"} <= explained


def test_queries_name_metrics_and_labels_that_exist() -> None:
    for query in all_queries():
        selected = SELECTOR.findall(query)
        labels = {label for name, _ in selected for label in metric(name).labels} | PROMETHEUS_LABELS
        for name, matchers in selected:
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert used <= {*metric(name).labels, *PROMETHEUS_LABELS}, query
        for group in re.findall(r"by \(([^)]*)\)", query):
            assert {label.strip() for label in group.split(",")} <= labels, query


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {metric(name).name for query in queries_of_the_dashboard() for name, _ in SELECTOR.findall(query)}
    assert shown == DESCRIPTIONS.keys()


def test_the_dashboards_panels_are_visible_and_have_unique_ids() -> None:
    all_panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in all_panels}) == len(all_panels)
    places = [
        (place["x"] + dx, place["y"] + dy)
        for place in (panel["gridPos"] for panel in all_panels)
        for dx in range(place["w"])
        for dy in range(place["h"])
    ]
    assert len(places) == len(set(places))
    assert all(x < 24 for x, _ in places)


@needs_promtool
def test_all_queries_are_valid_promql(tmp_path: Path) -> None:
    names = {"$__rate_interval": "5m", "$job": "x", "$channel": "x"}
    rules = []
    for number, query in enumerate([*queries_of_the_dashboard(), *(query for *_, query in TABLE.findall(METRICS))]):
        for name, value in names.items():
            query = query.replace(name, value)  # noqa: PLW2901
        rules.append({"record": f"query:{number}", "expr": query})
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "rules.yaml"))


@needs_promtool
def test_the_alerts_fire_as_their_tests_expect() -> None:
    promtool("test", "rules", str(TESTS))


def test_every_alert_fires_in_a_test() -> None:
    firing = {
        one["alertname"]
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for one in test["alert_rule_test"]
        if one.get("exp_alerts")
    }
    assert firing == {rule["alert"] for rule in alerts()}


def test_every_alert_has_an_entry_in_the_runbook_and_every_entry_an_alert() -> None:
    entries = re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)
    assert entries == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOK_URL}#{rule['alert'].lower()}"
        text = RUNBOOK.partition(f"## {rule['alert']}\n")[2].partition("\n## ")[0]
        assert "\nDo:" in text, rule["alert"]


def test_links_within_the_runbook_have_targets() -> None:
    entries = {entry.lower() for entry in re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)}
    assert {link for _, link in re.findall(r"\[(\w+)\]\(#(\w+)\)", RUNBOOK)} <= entries


def test_the_runbooks_commands_exist_with_their_options() -> None:
    commands = sorted(set(re.findall(r"^\$ dispatcher (.*)$", RUNBOOK, re.MULTILINE)))
    assert len(commands) > 10
    for command in commands:
        words = shlex.split(command)
        names = itertools.takewhile(lambda word: re.fullmatch(r"[a-z][a-z-]*", word), words)
        result = typer.testing.CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert result.exit_code == 0, command
        for option in (word for word in words if word.startswith("--")):
            assert option in result.output, command
