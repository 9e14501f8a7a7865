"""Launch plans from files: every format that Flyte writes, and the messages about invalid rules."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from flyteidl.admin.launch_plan_pb2 import LaunchPlan
from google.protobuf.json_format import MessageToJson

from dispatcher.model.phase import Phase
from dispatcher.rules import PlanKey
from dispatcher.rules.files import RuleFiles
from tests.support import samples
from tests.support.waiting import until

DAILY = PlanKey("flytesnacks", "production", "train.daily", "v1.4.2")
RULE = "  - phases: [FAILED]\n    email: {recipients_email: [a@example.com]}\n"
PLAN = "launch_plan: {project: p, domain: d, name: lp}\nnotifications:\n"


def loaded(*paths: Path) -> RuleFiles:
    files = RuleFiles(paths)
    files.load()
    return files


def problems(files: RuleFiles) -> list[str]:
    return [f"{problem.file.name}:{problem.line}: {problem.message}" for problem in files.problems]


@pytest.mark.parametrize("kind", ["json", "pb"])
def test_a_launch_plan_as_flyte_writes_it_is_read_with_all_its_rules(kind: str) -> None:
    files = loaded(samples.LAUNCH_PLANS / f"train.daily.launch_plan.{kind}")

    assert not files.problems
    rules = [rule.notification for rule in files.book.plans[DAILY].rules]
    assert [(rule.channel, rule.recipients) for rule in rules] == [
        ("email", ("manager@example.com",)),
        ("slack", ("#dev-alerts",)),
        ("pagerduty", ("pagerduty-service-key@example.com",)),
        ("email", ("dev-team@example.com", "on-call@example.com")),
    ]
    assert rules[1].phases == (Phase.FAILED, Phase.ABORTED)
    assert rules[3].template is not None


@pytest.mark.parametrize("snake_case", [True, False])
@pytest.mark.parametrize("numbers", [True, False])
def test_protobuf_json_is_read_with_any_field_names_and_enum_values(
    tmp_path: Path, snake_case: bool, numbers: bool
) -> None:
    message = LaunchPlan.FromString((samples.LAUNCH_PLANS / "train.daily.launch_plan.pb").read_bytes())
    text = MessageToJson(message, preserving_proto_field_name=snake_case, use_integers_for_enums=numbers)
    (tmp_path / "lp.json").write_text(text)

    assert len(loaded(tmp_path).book.plans[DAILY].rules) == 4


def test_a_launch_plan_in_two_files_is_a_problem_only_if_their_rules_differ(tmp_path: Path) -> None:
    assert (
        loaded(
            samples.LAUNCH_PLANS / "train.daily.launch_plan.json", samples.LAUNCH_PLANS / "train.daily.launch_plan.pb"
        ).problems
        == ()
    )
    (tmp_path / "a.yaml").write_text(PLAN + RULE)
    (tmp_path / "b.yaml").write_text(PLAN + RULE.replace("FAILED", "ABORTED"))

    files = loaded(tmp_path)

    assert problems(files) == ["b.yaml:1: p/d/lp has other rules in another file already; put them together"]


def test_an_execution_in_a_rule_file_is_reported_as_no_launch_plan() -> None:
    files = loaded(samples.LAUNCH_PLANS)
    assert [problem.message for problem in files.problems] == ["an Execution, not a launch plan"] * 2
    assert list(files.book.plans) == [DAILY]


def test_a_file_may_hold_several_plans_in_documents_or_lists(tmp_path: Path) -> None:
    flat = "{project: p, domain: d, name: a, notifications: []}"
    (tmp_path / "one.yaml").write_text(f"{flat}\n---\n{flat.replace('name: a', 'name: b, version: v1')}\n")
    (tmp_path / "two.json").write_text(json.dumps([{"id": {"project": "p", "domain": "d", "name": "c"}}]))

    assert set(loaded(tmp_path).book.plans) == {
        PlanKey("p", "d", "a"),
        PlanKey("p", "d", "b", "v1"),
        PlanKey("p", "d", "c"),
    }


def test_an_invalid_rule_is_refused_with_its_line_and_the_other_rules_apply(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(PLAN.replace("lp", "good") + RULE)
    (tmp_path / "bad.yaml").write_text(
        PLAN
        + RULE
        + "  - phases: [RUNNING]\n    email: {recipients_email: [a@example.com]}\n"
        + "  - phases: []\n    email: {recipients_email: [a@example.com]}\n"
        + "  - phases: [FAILED]\n    email: {recipients_email: []}\n"
        + "  - phases: [FAILED]\n    fax: {recipients_email: [a@example.com]}\n"
        + "  - phases: [EXPLODED]\n    email: {recipients_email: [a@example.com]}\n"
    )

    files = loaded(tmp_path)

    assert {key.name: len(plan.rules) for key, plan in files.book.plans.items()} == {"good": 1, "lp": 1}
    lines = problems(files)
    assert [line.split(": ")[0] for line in lines] == [
        "bad.yaml:5",
        "bad.yaml:7",
        "bad.yaml:9",
        "bad.yaml:11",
        "bad.yaml:13",
    ]
    for words, line in zip(
        ["not a terminal phase", "no phases", "no recipients", "unknown channel 'fax'", "unknown phase"],
        lines,
        strict=True,
    ):
        assert words in line


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", b"a: [", "a.yaml:2: broken YAML"),
        ("a.yaml", b"x: 1\ny: \xff", "a.yaml:2: not UTF-8"),
        ("a.json", b'{"a":\n oops}', "a.json:2: broken JSON"),
        ("a.pb", b"\xff\xff\xff", "not a flyteidl.admin.LaunchPlan"),
        ("a.pb", b"", "lacks project and domain and name"),
        ("a.yaml", b"- 1", "a launch plan is a mapping"),
        (
            "a.yaml",
            b"launch_plan:\n  project: p\n  domain: d\n  name: '*'",
            "a.yaml:4: name: only a version can be '*': write a route instead, with match: {project: p, domain: d, phase: ",
        ),
        ("a.yaml", b"{project: p, domain: '*', name: n}", "a.yaml:1: domain: only a version can be '*'"),
        ("a.yaml", b"{project: p, domain: d, name: n, notifications: 3}", "notifications must be a list"),
        (
            "a.yaml",
            (PLAN + RULE * 101).encode(),
            "a.yaml:1: launch plan p/d/lp has 101 rules",
        ),
        ("a.yaml", b"!!python/object/apply:os.system ['true']", "broken YAML"),
        ("a.yaml", b"[" * 500, "a.yaml:1: broken YAML: nested deeper than 64 levels"),
        ("a.json", b"[" * 5000, "a.json:1: broken JSON"),
        (
            "a.json",
            b'{"id": {"project": "p",\n"project": "q"}}',
            "a.json:2: broken JSON: id: the key 'project' is there",
        ),
        ("a.yaml", f"{PLAN}{RULE}notifications: []\n".encode(), "a.yaml:5: broken YAML: the key 'notifications' is"),
        ("a.yaml", b"- {project: p, domain: d,\n  name: n, version: 1.10}", "a.yaml:2: version: a number where text"),
        ("a.json", b'{"project": "p", "domain": "d", "name": "n", "version": 1.10}', "version: a number where text"),
        ("a.yaml", b"id: {project: p, domain: d, name: 2024}", "name: a number where text is expected: quote it"),
        ("a.yaml", b"id: {project: 010, domain: d, name: n}", "project: some YAML readers take this for text"),
        ("a.yaml", b"id: {project: p, domain: no, name: n}", "domain: true or false where text is expected: quote it"),
        ("a.yaml", b"id: {project: p, domain: d, name: n, version: 2026-11-20}", "version: a date where text"),
        ("a.yaml", b"id: {project: p, domain: d, name: [n]}", "name: text is expected"),
        (
            "a.yaml",
            f"{PLAN}{RULE.replace('a@example.com', '2024')}".encode(),
            "a.yaml:3: rule 1: recipients.0: a number where text is expected: quote it",
        ),
        (
            "a.yaml",
            f"{PLAN}{RULE.replace('}', ', recipients: [b@example.com]}')}".encode(),
            "recipients_email and recipients say the same: keep one of them",
        ),
        (
            "a.yaml",
            f"{PLAN}{RULE}entityMetadata:\n  notifications: []".encode(),
            "a.yaml:6: notifications and entityMetadata.notifications say the same",
        ),
        ("a.yaml", f"{PLAN}{RULE}id: {{name: x}}".encode(), "a.yaml:1: id and launch_plan say the same"),
        ("a.yaml", f"{PLAN}{RULE}---\n{PLAN}".encode(), "a.yaml:6: p/d/lp has other rules in this file already"),
        ("a.yaml", b"#" * (4 * 2**20 + 1), "larger than 4 MiB: split the file"),
    ],
)
def test_an_invalid_file_is_reported_with_name_and_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    (line,) = problems(loaded(tmp_path))
    assert words in line


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    assert problems(loaded(tmp_path / "nowhere")) == ["nowhere:0: no such file or folder"]


def test_folders_that_are_links_are_read_once(tmp_path: Path) -> None:
    """A ConfigMap volume with `items` has links to folders: `flytesnacks` leads to `..data/flytesnacks`."""
    rules, elsewhere = tmp_path / "rules", tmp_path / "elsewhere"
    real = rules / "..2026_11_29" / "flytesnacks" / "production"
    for folder in (real, elsewhere / "team" / "development"):
        folder.mkdir(parents=True)
        (folder / "train.yaml").write_text(f"launch_plan: {{name: train}}\nnotifications:\n{RULE}")
    (rules / "..data").symlink_to("..2026_11_29")
    (rules / "flytesnacks").symlink_to("..data/flytesnacks")
    (rules / "a-team").symlink_to(elsewhere)
    (rules / "z-same-again").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(rules)
    (elsewhere / "team" / "development" / "itself").symlink_to(".")

    files = loaded(rules)

    assert files.problems == ()
    assert [(*key, len(plan.rules)) for key, plan in files.book.plans.items()] == [
        ("team", "development", "train", "*", 1),
        ("flytesnacks", "production", "train", "*", 1),
    ]


def test_a_link_that_leads_nowhere_is_reported_and_the_last_rules_apply(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "plan.yaml").write_text(PLAN + RULE)
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "team").symlink_to("../real")
    (tmp_path / "rules" / "other.yaml").symlink_to("../other.yaml")
    (tmp_path / "rules" / "turning").symlink_to("turning")
    files = loaded(tmp_path / "rules")
    reported = ["turning:0: can't be read: Too many levels of symbolic links"]
    assert sorted(problems(files)) == ["other.yaml:0: no such file or folder", *reported]

    (tmp_path / "real").rename(tmp_path / "away")
    files.load()

    assert sorted(problems(files)) == [
        "other.yaml:0: no such file or folder",
        "team:0: no such file or folder",
        *reported,
    ]
    assert len(files.book.plans[PlanKey("p", "d", "lp")].rules) == 1


@pytest.mark.parametrize("name", ["gr\udcf6\udcdfe.yaml", "\udcff/plan.yaml", "team/\udc80/plan.yaml"])
def test_a_file_whose_name_is_not_utf8_is_read_and_its_name_is_escaped(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(PLAN + RULE)
    files = loaded(tmp_path)
    (rule,) = files.book.plans[PlanKey("p", "d", "lp")].rules
    assert rule.defined_at == f"{str(tmp_path / name).encode(errors='backslashreplace').decode()}:3"
    (tmp_path / name).write_text("[")
    files.load()
    (problem,) = files.problems
    assert "\\udc" in str(problem)


async def test_a_harmful_edit_keeps_the_last_valid_rules_and_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "lp.yaml").write_text(PLAN + RULE)
    files = loaded(tmp_path)
    for text in ("a: " + "[" * 50_000, PLAN + RULE + PLAN, PLAN.replace("lp", "1.10") + RULE):
        (tmp_path / "lp.yaml").write_text(text)
        files.load()
        (problem,) = files.problems
        assert len(files.book.plans[PlanKey("p", "d", "lp")].rules) == 1
        files.load()
        assert files.problems[0] is problem
    (tmp_path / "lp.yaml").write_text(PLAN.replace("lp", "new") + RULE)
    files.load()
    assert (list(files.book.plans), files.problems) == ([PlanKey("p", "d", "new")], ())


async def test_changed_files_are_reloaded_and_a_broken_edit_keeps_the_last_valid_rules(tmp_path: Path) -> None:
    file = tmp_path / "lp.yaml"
    file.write_text(PLAN + RULE)
    files = loaded(tmp_path)
    stop = asyncio.Event()
    watching = asyncio.create_task(files.watch(stop))

    await asyncio.sleep(0.3)
    (tmp_path / "new.yaml").write_text(PLAN.replace("lp", "new") + RULE)
    await until(lambda: len(files.book.plans) == 2)
    file.write_text(PLAN + "  - {")
    await until(lambda: files.problems)
    assert len(files.book.plans[PlanKey("p", "d", "lp")].rules) == 1
    file.write_text(PLAN + RULE + RULE.replace("FAILED", "ABORTED"))
    await until(lambda: not files.problems)
    assert len(files.book.plans[PlanKey("p", "d", "lp")].rules) == 2
    file.unlink()
    await until(lambda: len(files.book.plans) == 1)
    stop.set()
    await watching


async def test_a_configmap_volume_is_reloaded_when_kubernetes_replaces_it(tmp_path: Path) -> None:
    """To update a ConfigMap volume, the kubelet renames a link to a new folder and deletes the old folder."""

    def publish(version: str) -> None:
        folder = tmp_path / f"..{version}" / "launch_plans"
        folder.mkdir(parents=True)
        (folder / "plan.yaml").write_text(PLAN.replace("lp", version) + RULE)
        (tmp_path / "..data_tmp").symlink_to(f"..{version}")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    publish("one")
    (tmp_path / "launch_plans").symlink_to("..data/launch_plans")
    files = loaded(tmp_path / "launch_plans")
    stop = asyncio.Event()
    watching = asyncio.create_task(files.watch(stop))
    for before, version in (("one", "two"), ("two", "three")):  # a second update: watching goes on after the first
        publish(version)
        shutil.rmtree(tmp_path / f"..{before}")
        async with asyncio.timeout(20):
            while PlanKey("p", "d", version) not in files.book.plans:
                await asyncio.sleep(0.05)
        assert len(files.book.plans) == 1
    stop.set()
    await watching


def test_rule_files_can_name_channels_that_flyte_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(
        """
launch_plan: {project: flytesnacks, domain: production, name: train.daily, version: v1.4.2}
notifications:
  - {phases: [FAILED], teams: {recipients: [ml]}}
  - {phases: [FAILED], webhook: {recipients: [ops, "https://hooks.example.com/x"]}}
  - {phases: [FAILED], channel: ntfy, recipients: [ops]}
  - {phases: [FAILED], telegraph: {recipients: [ops]}}
"""
    )
    files = loaded(tmp_path)
    rules = [rule.notification for rule in files.book.plans[DAILY].rules]
    assert [(rule.channel, rule.recipients) for rule in rules] == [
        ("teams", ("ml",)),
        ("webhook", ("ops", "https://hooks.example.com/x")),
        ("ntfy", ("ops",)),
    ]
    (problem,) = problems(files)
    assert (
        "unknown channel 'telegraph'; a notification names one of email, slack, pager_duty, teams, webhook" in problem
    )
