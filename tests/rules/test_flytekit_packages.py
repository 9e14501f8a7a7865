"""Launch plans from flytekit and flytectl: packages, single messages, printed lists; and malicious archives."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
import yaml
from flyteidl.admin.common_pb2 import EmailNotification, Notification, SlackNotification
from flyteidl.admin.launch_plan_pb2 import LaunchPlan, LaunchPlanMetadata, LaunchPlanSpec
from flyteidl.admin.task_pb2 import TaskSpec
from flyteidl.admin.workflow_pb2 import WorkflowSpec
from flyteidl.core.execution_pb2 import WorkflowExecution
from flyteidl.core.identifier_pb2 import LAUNCH_PLAN, TASK, WORKFLOW, Identifier
from flyteidl.core.tasks_pb2 import TaskTemplate
from flyteidl.core.workflow_pb2 import WorkflowTemplate
from google.protobuf.json_format import MessageToDict

from dispatcher.rules import PlanKey
from dispatcher.rules.files import RuleFiles
from dispatcher.rules.flytekit_packages import MAX_MEMBERS, MAX_UNPACKED_BYTES
from tests.support import samples

FAILED = WorkflowExecution.FAILED
MAIL = Notification(phases=[FAILED], email=EmailNotification(recipients_email=["a@example.com"]))
SLACK = Notification(phases=[FAILED, WorkflowExecution.ABORTED], slack=SlackNotification(recipients_email=["#alerts"]))
PLACEHOLDERS = {part: f"{{{{ registration.{part} }}}}" for part in ("project", "domain", "version")}
IDENTITY = {"project": "p", "domain": "d", "version": "v1"}


def identity(kind: int, name: str, **parts: str) -> Identifier:
    return Identifier(resource_type=kind, name=name, **(parts or IDENTITY))


def a_spec(*rules: Notification, workflow: str = "train.wf", **parts: str) -> LaunchPlanSpec:
    metadata = LaunchPlanMetadata(notifications=rules)
    return LaunchPlanSpec(workflow_id=identity(WORKFLOW, workflow, **parts), entity_metadata=metadata)


def a_plan(*rules: Notification, name: str = "train.daily", **parts: str) -> bytes:
    plan = LaunchPlan(id=identity(LAUNCH_PLAN, name, **parts), spec=a_spec(*rules, **parts))
    content: bytes = plan.SerializeToString()
    return content


def a_package(**parts: str) -> dict[str, bytes]:
    """The content of an archive from `pyflyte package`: each entity, numbered in the order of registration."""
    task = TaskSpec(template=TaskTemplate(id=identity(TASK, "train.fit", **parts), type="python-task"))
    workflow = WorkflowSpec(template=WorkflowTemplate(id=identity(WORKFLOW, "train.wf", **parts)))
    return {
        "0_train.fit_1.pb": task.SerializeToString(),
        "1_train.wf_2.pb": workflow.SerializeToString(),
        "2_train.wf_3.pb": a_plan(name="train.wf", **parts),
        "3_train.daily_3.pb": a_plan(MAIL, SLACK, **parts),
        "fast0a1b2c.tar.gz": b"source code, packed",
    }


def pack(path: Path, members: Mapping[str, bytes] | Iterable[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """Write a real archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def a_member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def loaded(*paths: Path) -> RuleFiles:
    files = RuleFiles(paths)
    files.load()
    return files


def problems(files: RuleFiles) -> list[str]:
    return [f"{problem.file.name}: {problem.message}" for problem in files.problems]


DAILY = PlanKey("p", "d", "train.daily", "v1")


def test_a_package_gives_exactly_its_launch_plans(tmp_path: Path) -> None:
    files = loaded(pack(tmp_path / "flyte-package.tgz", a_package()))

    assert problems(files) == []
    assert set(files.book.plans) == {DAILY, PlanKey("p", "d", "train.wf", "v1")}
    rules = files.book.plans[DAILY].rules
    assert [
        (rule.notification.channel, rule.notification.recipients, list(rule.notification.phases)) for rule in rules
    ] == [
        ("email", ("a@example.com",), ["FAILED"]),
        ("slack", ("#alerts",), ["FAILED", "ABORTED"]),
    ]
    assert rules[1].defined_at == f"{tmp_path}/flyte-package.tgz/3_train.daily_3.pb[1]"


def test_the_sample_launch_plan_has_the_same_rules_in_an_archive_and_as_a_file(tmp_path: Path) -> None:
    alone = samples.LAUNCH_PLANS / "train.daily.launch_plan.pb"
    packed = pack(tmp_path / "a.tgz", {"train.pb": alone.read_bytes()})
    files = loaded(alone, packed)
    assert problems(files) == []
    assert [len(plan.rules) for plan in files.book.plans.values()] == [4]


@pytest.mark.parametrize("parts", [PLACEHOLDERS, {"project": ""}], ids=["placeholders", "empty"])
def test_a_package_without_project_and_domain_takes_them_from_its_folders(
    tmp_path: Path, parts: dict[str, str]
) -> None:
    pack(tmp_path / "flytesnacks" / "production" / "flyte-package.tgz", a_package(**parts))
    files = loaded(tmp_path)
    assert problems(files) == []
    assert len(files.book.plans[PlanKey("flytesnacks", "production", "train.daily")].rules) == 2

    misplaced = loaded(pack(tmp_path / "else" / "flyte-package.tgz", a_package(**parts)))
    assert misplaced.book.plans == {}
    assert (
        "3_train.daily_3.pb: launch plan train.daily leaves its project and domain to registration"
        in problems(misplaced)[1]
    )
    assert "PROJECT/DOMAIN" in problems(misplaced)[1]


def test_a_package_with_project_and_domain_ignores_its_folders(tmp_path: Path) -> None:
    pack(tmp_path / "flytesnacks" / "production" / "a.tgz", a_package())
    assert DAILY in loaded(tmp_path).book.plans


def test_packages_with_and_without_a_version_are_separate_entries(tmp_path: Path) -> None:
    pack(tmp_path / "any.tgz", {"any.pb": a_plan(MAIL, project="p", domain="d")})
    pack(tmp_path / "v1.tgz", {"v1.pb": a_plan(SLACK, **IDENTITY)})
    plans = loaded(tmp_path).book.plans
    assert {key.version: plan.rules[0].notification.channel for key, plan in plans.items()} == {
        "*": "email",
        "v1": "slack",
    }


def test_a_launch_plan_spec_takes_its_name_from_the_file_and_the_rest_from_its_workflow(tmp_path: Path) -> None:
    (tmp_path / "train.nightly.pb").write_bytes(a_spec(MAIL).SerializeToString())
    pack(tmp_path / "a.tgz", {"12_train.weekly_3.pb": a_spec(SLACK).SerializeToString()})
    files = loaded(tmp_path)
    assert problems(files) == []
    assert {key: len(plan.rules) for key, plan in files.book.plans.items()} == {
        PlanKey("p", "d", "train.nightly", "v1"): 1,
        PlanKey("p", "d", "train.weekly", "v1"): 1,
    }


def test_a_broken_message_in_a_package_is_reported_and_the_others_are_used(tmp_path: Path) -> None:
    whole = a_plan(MAIL)
    members = {"broken.pb": whole[:-3], "noise.pb": b"\xff\xff\xff", **a_package()}
    files = loaded(pack(tmp_path / "a.tgz", members))
    assert problems(files) == [
        "a.tgz: broken.pb: not a flyteidl.admin.LaunchPlan in protobuf",
        "a.tgz: noise.pb: not a flyteidl.admin.LaunchPlan in protobuf",
    ]
    assert len(files.book.plans[DAILY].rules) == 2


def test_an_invalid_rule_in_a_package_is_reported_with_its_message(tmp_path: Path) -> None:
    never = Notification(email=EmailNotification(recipients_email=["a@example.com"]))
    files = loaded(pack(tmp_path / "a.tgz", {"lp.pb": a_plan(never, MAIL)}))
    (problem,) = problems(files)
    assert problem.startswith("a.tgz: lp.pb: rule 1: phases: no phases")
    assert len(files.book.plans[DAILY].rules) == 1


SPARSE_SIZE = 2**40


def a_sparse_member() -> tuple[tarfile.TarInfo, bytes]:
    """A member of 1 TiB that uses almost no space: GNU's sparse format, in PAX headers."""
    info = tarfile.TarInfo("huge.pb")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(SPARSE_SIZE),
                        "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,1"}  # fmt: skip
    return info, b"x"


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (
            (a_member("../../etc/cron.d/evil.pb"), a_plan(MAIL, name="evil")),
            "'../../etc/cron.d/evil.pb': its path leaves",
        ),
        ((a_member("/etc/evil.pb"), a_plan(MAIL, name="evil")), "'/etc/evil.pb': its path leaves"),
        ((a_member("link.pb", tarfile.SYMTYPE, "/etc/passwd"), b""), "'link.pb': a link; links are not followed"),
        ((a_member("hard.pb", tarfile.LNKTYPE, "3_train.daily_3.pb"), b""), "'hard.pb': a link"),
        ((a_member("pipe.pb", tarfile.FIFOTYPE), b""), "'pipe.pb': not a file"),
        ((a_member("a\nb.pb"), a_plan(MAIL, name="evil")), "'a\\nb.pb': its name holds what can't be printed"),
        ((a_member("\udcff.pb"), a_plan(MAIL, name="evil")), "its name holds what can't be printed"),
        (a_sparse_member(), "'huge.pb': larger than 16 MiB"),
    ],
    ids=["traversal", "absolute", "symlink", "hard link", "pipe", "control character", "no text", "sparse"],
)
def test_a_malicious_member_is_refused_and_the_others_are_used(
    tmp_path: Path, member: tuple[tarfile.TarInfo, bytes], words: str
) -> None:
    honest = [(tarfile.TarInfo(name), content) for name, content in a_package().items()]
    folder = tmp_path / "plans"
    pack(folder / "a.tgz", [member, *honest])

    files = loaded(folder)

    (problem,) = problems(files)
    assert problem.startswith("a.tgz: ")
    assert words in problem
    assert set(files.book.plans) == {DAILY, PlanKey("p", "d", "train.wf", "v1")}
    assert [path.name for path in tmp_path.rglob("*")] == ["plans", "a.tgz"]


def a_bomb(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=9) as packed:
        for _ in range(MAX_UNPACKED_BYTES // 2**20 + 1):
            packed.write(bytes(2**20))


def too_many_members(path: Path) -> None:
    pack(path, [(tarfile.TarInfo(f"{number}.txt"), b"") for number in range(MAX_MEMBERS + 1)])


def cut_short(path: Path) -> None:
    whole = pack(path, a_package()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def broken_in_the_middle(path: Path) -> None:
    content = bytearray(gzip.decompress(pack(path, a_package()).read_bytes()))
    content[1024:1100] = b"\xff" * 76  # the second header: each member has one block for its header, one for its bytes
    path.write_bytes(gzip.compress(content))


def too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_UNPACKED_BYTES + 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (a_bomb, "unpacks to more than 64 MiB"),
        (too_many_members, "more than 10000 files"),
        (cut_short, "no gzip file that can be read"),
        (broken_in_the_middle, "the archive is broken after 1 files"),
        (lambda path: path.write_bytes(b"no archive"), "no gzip file that can be read"),
        (lambda path: path.write_bytes(b""), "no tar archive that can be read"),
        (lambda path: path.write_bytes(gzip.compress(b"x" * 2000)), "no tar archive that can be read"),
        (too_large, "larger than 64 MiB"),
    ],
    ids=["bomb", "members", "cut short", "broken inside", "no gzip", "empty", "no tar", "large"],
)
def test_a_broken_archive_is_one_problem_and_other_files_are_used(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / "bad.tgz")
    pack(tmp_path / "good.tgz", a_package())

    files = loaded(tmp_path)

    (problem,) = problems(files)
    assert problem.startswith("bad.tgz: ")
    assert words in problem
    assert DAILY in files.book.plans


def test_an_archive_that_breaks_while_the_process_runs_keeps_its_last_rules(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tgz", a_package())
    files = loaded(path)
    path.write_bytes(path.read_bytes()[:100])

    files.load()

    assert len(problems(files)) == 1
    assert len(files.book.plans[DAILY].rules) == 2


def printed(*versions: str) -> list[dict[str, object]]:
    """Launch plans as `flytectl get launchplan` prints them: protobuf JSON, with a closure."""
    plans = []
    for version in versions:
        plan = LaunchPlan.FromString(a_plan(MAIL, SLACK, project="p", domain="d", version=version))
        plan.closure.state = 1
        plan.closure.created_at.FromJsonString("2026-11-20T09:00:00Z")
        plans.append(MessageToDict(plan))
    return plans


@pytest.mark.parametrize("form", ["json", "yaml"])
@pytest.mark.parametrize("versions", [("v1",), ("v1", "v2")], ids=["one", "a list"])
def test_the_output_of_flytectl_is_read(tmp_path: Path, form: str, versions: tuple[str, ...]) -> None:
    plans = printed(*versions)
    data = plans if len(plans) > 1 else plans[0]
    text = json.dumps(data, indent="\t") if form == "json" else yaml.safe_dump(data)
    (tmp_path / f"plans.{form}").write_text(text)

    files = loaded(tmp_path)

    assert problems(files) == []
    assert {key.version: len(plan.rules) for key, plan in files.book.plans.items()} == dict.fromkeys(versions, 2)


def test_a_workflow_printed_by_flytectl_is_reported_as_no_launch_plan(tmp_path: Path) -> None:
    workflow = {"id": {"resourceType": "WORKFLOW", "project": "p", "domain": "d", "name": "train.wf", "version": "v1"}}
    (tmp_path / "workflow.json").write_text(json.dumps(workflow))
    files = loaded(tmp_path)
    assert (problems(files), files.book.plans) == (["workflow.json: a workflow, not a launch plan"], {})


def test_a_file_with_another_suffix_that_the_settings_name_is_reported(tmp_path: Path) -> None:
    (tmp_path / "plans.toml").write_text("")
    (problem,) = problems(loaded(tmp_path / "plans.toml"))
    assert problem == "plans.toml: not a rule file: these end in .json, .pb, .tgz, .yaml, .yml"
