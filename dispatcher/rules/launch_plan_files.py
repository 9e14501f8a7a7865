"""Reads the rules of launch plans from files.

A file contains launch plans in Flyte's YAML or JSON form (for example the output of `flytectl get launchplan`), a
launch plan in protobuf, or an archive from `pyflyte package`.

An invalid rule is reported with its file and line; the other rules of the file still apply. The last rules of a launch
plan that is refused stay in effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dispatcher.model.notification import Notification, excess
from dispatcher.parsing.scalars import why_not_text
from dispatcher.parsing.validation_errors import first_problem
from dispatcher.parsing.yaml import MAX_BYTES, Document, Malformed, Problem, decoded, parse, readable
from dispatcher.rules.file_set import Content, FileFormat, LoadedFile, RuleFile
from dispatcher.rules.flytekit_packages import MAX_UNPACKED_BYTES, launch_plan, read_package
from dispatcher.rules.rule import Rule
from dispatcher.rules.rulebook import ANY, PlanKey, PlanRules

PACKAGE = ".tgz"

_Path = tuple[str | int, ...]
_ID_FIELDS = ("id", "launch_plan", "launchPlan")
_LAUNCH_PLAN_KINDS = (None, "", "LAUNCH_PLAN", "UNSPECIFIED", 3, 0)
"""Values of the field `resourceType` that are accepted for a launch plan. None: the field may be missing."""
_NOTIFICATION_PATHS: tuple[_Path, ...] = (
    ("notifications",),
    ("spec", "entityMetadata", "notifications"),
    ("spec", "entity_metadata", "notifications"),
    ("entityMetadata", "notifications"),
    ("entity_metadata", "notifications"),
)


@dataclass(frozen=True, slots=True)
class _RuleDocument:
    """One document in a rule file, or one protobuf message in an archive."""

    parsed: Document
    member: str = ""
    """Path of the protobuf message inside its archive. Empty if the file is not an archive."""

    def problem(self, path: Path, line: int, message: str) -> Problem:
        return Problem(path, line, f"{self.member}: {message}" if self.member else message)


LoadedPlan = tuple[PlanRules, int]
"""The rules of a launch plan, and the number of its line."""


def _read(file: RuleFile, before: tuple[LoadedPlan, ...]) -> Content[LoadedPlan]:
    """Return the launch plans in a file. `before`: those that it had before.

    Raises Malformed if the file is no valid rule file.
    """
    place = dict(zip(("project", "domain"), file.folders[-2:], strict=False)) if len(file.folders) >= 2 else {}
    documents, refused = _documents(file, place)
    plans, problems, complete = _interpret(file.path, documents, place)
    missing: list[LoadedPlan] = []
    if not complete:
        named = {rules.key for rules, _ in plans}
        missing = [(rules, line) for rules, line in before if rules.key not in named]
    return Content((*plans, *missing), (*refused, *problems), keeps=bool(missing))


LAUNCH_PLANS = FileFormat(
    {".yaml": MAX_BYTES, ".yml": MAX_BYTES, ".json": MAX_BYTES, ".pb": MAX_BYTES, PACKAGE: MAX_UNPACKED_BYTES}, _read
)
"""The format of files with launch plans. The folders `PROJECT/DOMAIN` of a file are used for launch plans that don't
name theirs."""


def by_key(files: Mapping[Path, LoadedFile[LoadedPlan]]) -> tuple[dict[PlanKey, PlanRules], list[Problem]]:
    """Return the launch plans of all files, and a problem for each that has other rules in another place."""
    plans: dict[PlanKey, PlanRules] = {}
    first_in: dict[PlanKey, Path] = {}
    clashes = []
    for path, loaded in files.items():
        for rules, line in loaded.content.entries:
            if not _same(plans.setdefault(rules.key, rules), rules):
                place = "this file" if first_in[rules.key] == path else "another file"
                message = f"{rules.key} has other rules in {place} already; put them together"
                clashes.append(Problem(path, line, message))
            first_in.setdefault(rules.key, path)
    return plans, clashes


def _same(one: PlanRules, other: PlanRules) -> bool:
    return [rule.notification for rule in one.rules] == [rule.notification for rule in other.rules]


def _documents(file: RuleFile, place: Mapping[str, str]) -> tuple[list[_RuleDocument], list[Problem]]:
    """Return the documents in a file, and a problem for each refused file inside an archive.

    Raises Malformed if the file is not a valid rule file.
    """
    suffix = file.path.suffix
    if suffix == PACKAGE:
        return _packaged_documents(file, place)
    if suffix == ".pb":
        return [_RuleDocument(Document(launch_plan(file.content, file.path.name, place)))], []
    return [_RuleDocument(document) for document in parse(decoded(file.content), json=suffix == ".json")], []


def _packaged_documents(file: RuleFile, place: Mapping[str, str]) -> tuple[list[_RuleDocument], list[Problem]]:
    package = read_package(file.content)
    problems = [Problem(file.path, 0, f"{name!r}: {reason}") for name, reason in package.refused]
    documents = []
    for name, content in package.messages:
        try:
            documents.append(_RuleDocument(Document(launch_plan(content, name, place)), name))
        except Malformed as error:
            problems.append(Problem(file.path, 0, f"{name}: {error}"))
    return documents, problems


def _interpret(
    path: Path, documents: Iterable[_RuleDocument], place: Mapping[str, str]
) -> tuple[list[LoadedPlan], list[Problem], bool]:
    """Return the launch plans, the problems, and False if a launch plan was refused, so that it is not known which
    launch plans the file means.
    """
    plans: list[LoadedPlan] = []
    problems: list[Problem] = []
    complete = True
    for document in documents:
        data = document.parsed.data
        if data is None:
            continue
        items = enumerate(data) if isinstance(data, list) else [(None, data)]
        for index, item in items:
            at: _Path = () if index is None else (index,)
            line_of = document.parsed.line_of
            try:
                key = _plan_key(item, place)
                where, notifications = _notifications(item)
            except _Refused as error:
                problems.append(document.problem(path, line_of((*at, *error.at)), str(error)))
                complete = False
                continue
            rules, invalid = _rules(path, document, notifications, (*at, *where))
            plans.append((PlanRules(key, tuple(rules)), line_of(at)))
            problems.extend(invalid)
            recipients = sum(len(rule.notification.recipients) for rule in rules)
            if too_many := excess(len(rules), recipients, whose=f"launch plan {key}"):
                problems.append(document.problem(path, line_of(at), too_many))
    return plans, problems, complete


class _Refused(Exception):
    """A launch plan is invalid. `at`: where in the launch plan."""

    def __init__(self, message: str, at: _Path = ()) -> None:
        super().__init__(message)
        self.at = at


def _plan_key(item: Any, place: Mapping[str, str]) -> PlanKey:
    """Return the key of a launch plan. Raises _Refused if `item` is not a launch plan.

    `place`: the project and domain to use if the launch plan does not name them.
    """
    if not isinstance(item, dict):
        raise _Refused("a launch plan is a mapping: launch_plan and notifications")
    if isinstance(item.get("spec"), dict) and {"launchPlan", "launch_plan"} & item["spec"].keys():
        raise _Refused("an Execution, not a launch plan")
    at = _only([(name,) for name in _ID_FIELDS if isinstance(item.get(name), dict)]) or ()
    identity = item[at[0]] if at else item
    kind = identity.get("resourceType", identity.get("resource_type"))
    if kind not in _LAUNCH_PLAN_KINDS:
        named = str(kind)[:60].lower() if isinstance(kind, str | int) else "resource of another type"
        raise _Refused(f"a {named}, not a launch plan", at)
    given = {name: identity.get(name) for name in ("project", "domain", "name", "version")}
    values = {**place, **{name: value for name, value in given.items() if value not in (None, "")}}
    for name, value in values.items():
        if (reason := why_not_text(value)) is not None:
            raise _Refused(f"{name}: {reason}", (*at, name))
        if not isinstance(value, str):
            raise _Refused(f"{name}: text is expected", (*at, name))
    missing = [name for name in ("project", "domain", "name") if name not in values]
    if missing:
        raise _Refused(f"the launch plan lacks {' and '.join(missing)}", at)
    for name in ("project", "domain", "name"):
        if values[name] == ANY:
            where = [f"{key}: {values[key]}, " for key in ("project", "domain") if values[key] != ANY]
            match = f"match: {{{''.join(where)}phase: FAILED}}"
            raise _Refused(f"{name}: only a version can be {ANY!r}: write a route instead, with {match}", (*at, name))
    return PlanKey(**values)


def _only(paths: Sequence[_Path]) -> _Path | None:
    """Return the only path; None if there is no path. Raises _Refused if there are several."""
    if len(paths) > 1:
        first, second = (".".join(map(str, path)) for path in paths[:2])
        raise _Refused(f"{first} and {second} say the same: keep one of them", paths[1])
    return paths[0] if paths else None


def _rules(path: Path, document: _RuleDocument, notifications: Any, at: _Path) -> tuple[list[Rule], list[Problem]]:
    line_of = document.parsed.line_of
    if not isinstance(notifications, list):
        return [], [document.problem(path, line_of(at), "notifications must be a list")]
    rules, problems = [], []
    for index, notification in enumerate(notifications):
        position = (*at, index)
        line = line_of(position)
        try:
            defined_at = f"{readable(path)}:{line}" if line else f"{readable(path / document.member)}[{index}]"
            rules.append(Rule(Notification.model_validate(notification), defined_at))
        except ValidationError as error:
            line = line_of((*position, *error.errors()[0]["loc"]))
            problems.append(document.problem(path, line, f"rule {index + 1}: {first_problem(error)}"))
    return rules, problems


def _notifications(item: dict[str, Any]) -> tuple[_Path, Any]:
    """Return the path of the launch plan's notifications in the document, and the notifications (may be empty).

    Raises _Refused if there are several lists, because Flyte would use only one of them.
    """
    found = {path: value for path in _NOTIFICATION_PATHS if (value := _value(item, path)) is not None}
    where = _only(list(found))
    return (where, found[where]) if where is not None else (("notifications",), [])


def _value(item: Any, path: _Path) -> Any:
    for step in path:
        item = item.get(step) if isinstance(item, dict) else None
    return item
