"""Launch plan rules from files: YAML or JSON in Flyte's shape, and Flyte's own LaunchPlan messages.

A rule that can't hold is refused with file and line, and the rest still serves. A file that turns
unreadable while we run keeps the rules it last had: a half-saved edit must not silence a team.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from dispatcher.located import Document, Malformed, Problem, parse
from dispatcher.notification import Notification
from dispatcher.rules.rulebook import ANY, PlanKey, PlanRules, Rule, RuleBook
from dispatcher.wording import first_problem

log = structlog.get_logger(__name__)

SUFFIXES = frozenset({".yaml", ".yml", ".json", ".pb"})
LOOK_MS = 5000
LARGEST = 16 * 2**20
"""A launch plan is kilobytes; a larger file is a mistake."""

_Path = tuple[str | int, ...]
_ID_FIELDS = ("id", "launch_plan", "launchPlan")
_NOTIFICATION_PATHS: tuple[_Path, ...] = (
    ("notifications",),
    ("spec", "entityMetadata", "notifications"),
    ("spec", "entity_metadata", "notifications"),
    ("entityMetadata", "notifications"),
    ("entity_metadata", "notifications"),
)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What one file held when it was last read."""

    stamp: tuple[int, ...]
    plans: tuple[PlanRules, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(slots=True)
class LaunchPlanFiles:
    """The rule files under some folders, read again where they changed."""

    paths: Sequence[Path]
    book: RuleBook = field(default_factory=RuleBook)
    problems: tuple[Problem, ...] = ()
    """What was refused at the last load, with file and line."""
    _readings: dict[Path, _Reading] = field(default_factory=dict)

    def load(self) -> None:
        """Read new and changed files, forget deleted ones, and put the result in force at once.

        Never raises for what is in the files: that becomes `problems`.
        """
        missing = [Problem(path, 0, "no such file or folder") for path in self.paths if not path.exists()]
        self._readings = {path: self._read(path) for path in _rule_files(self.paths)}
        plans: dict[PlanKey, PlanRules] = {}
        clashes = []
        for path, reading in self._readings.items():
            for rules in reading.plans:
                if not _same(plans.setdefault(rules.key, rules), rules):
                    message = f"{rules.key} has other rules in another file already; put them together"
                    clashes.append(Problem(path, 0, message))
        self.book = RuleBook(plans)
        self.problems = (*missing, *(p for reading in self._readings.values() for p in reading.problems), *clashes)

    async def watch(self, stop: asyncio.Event) -> None:
        """Load again whenever something changes, until `stop` is set.

        The kernel's notices are quick; a look every few seconds finds what they miss, as on network file systems.
        """
        from watchfiles import awatch  # noqa: PLC0415 - only a service that runs on needs it

        folders = {path if path.is_dir() else path.parent for path in self.paths}
        watched = [folder for folder in folders if folder.is_dir()]
        if not watched:
            await stop.wait()
            return
        async for _ in awatch(*watched, stop_event=stop, yield_on_timeout=True, rust_timeout=LOOK_MS, debounce=200):
            before = (self.book, self.problems)
            await asyncio.to_thread(self.load)
            if before != (self.book, self.problems):
                log.info("launch plan rules read again", launch_plans=len(self.book.plans))
                self.tell_problems()

    def tell_problems(self) -> None:
        """Log what was refused."""
        for problem in self.problems:
            log.error("a rule was refused", file=str(problem.file), line=problem.line, reason=problem.message)

    def _read(self, path: Path) -> _Reading:
        before = self._readings.get(path)
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if before is not None and before.stamp == stamp:
                return before
            return _interpret(path, stamp, _documents(path, status.st_size))
        except (OSError, Malformed) as error:
            message = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            problem = Problem(path, getattr(error, "line", 0), message)
            kept = before.plans if before is not None else ()
            return _Reading((), kept, (problem,))


def _same(one: PlanRules, other: PlanRules) -> bool:
    return [rule.notification for rule in one.rules] == [rule.notification for rule in other.rules]


def _rule_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Each rule file once, in a stable order; hidden files and folders (a ConfigMap's `..data`) are passed over."""
    seen = set()
    for root in paths:
        found = sorted(root.rglob("*")) if root.is_dir() else [root]
        for path in found:
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if path.suffix in SUFFIXES and path.is_file() and not hidden and path not in seen:
                seen.add(path)
                yield path


def _documents(path: Path, size: int) -> list[Document]:
    if size > LARGEST:
        raise Malformed(f"larger than {LARGEST // 2**20} MiB: not a rule file", 0)
    content = path.read_bytes()
    if path.suffix == ".pb":
        return [Document(_launch_plan_message(content))]
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8", content.count(b"\n", 0, error.start) + 1) from None
    return parse(text, json=path.suffix == ".json")


def _launch_plan_message(content: bytes) -> Any:
    from flyteidl.admin.launch_plan_pb2 import LaunchPlan  # noqa: PLC0415 - only where such files exist
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415
    from google.protobuf.message import DecodeError  # noqa: PLC0415

    try:
        return MessageToDict(LaunchPlan.FromString(content))
    except DecodeError:
        raise Malformed("not a flyteidl.admin.LaunchPlan in protobuf", 0) from None


def _interpret(path: Path, stamp: tuple[int, ...], documents: Sequence[Document]) -> _Reading:
    plans: list[PlanRules] = []
    problems: list[Problem] = []
    for document in documents:
        if document.data is None:
            continue
        items = enumerate(document.data) if isinstance(document.data, list) else [(None, document.data)]
        for index, item in items:
            at: _Path = () if index is None else (index,)
            try:
                key = _plan_key(item)
            except ValueError as error:
                problems.append(Problem(path, document.line_of(at), str(error)))
                continue
            rules, refused = _rules(path, document, item, at)
            plans.append(PlanRules(key, tuple(rules)))
            problems.extend(refused)
    return _Reading(stamp, tuple(plans), tuple(problems))


def _plan_key(item: Any) -> PlanKey:
    if not isinstance(item, dict):
        raise ValueError("a launch plan is a mapping: launch_plan and notifications")  # noqa: TRY004
    if isinstance(item.get("spec"), dict) and {"launchPlan", "launch_plan"} & item["spec"].keys():
        raise ValueError("an Execution, not a launch plan")
    identity = next((item[name] for name in _ID_FIELDS if isinstance(item.get(name), dict)), item)
    named = {name: identity.get(name) for name in ("project", "domain", "name")}
    values = {name: value for name, value in named.items() if isinstance(value, str) and value}
    missing = [name for name in named if name not in values]
    if missing:
        raise ValueError(f"the launch plan lacks {' and '.join(missing)}")
    if ANY in {values["project"], values["domain"]}:
        raise ValueError(f"{ANY!r} can stand for a version or a launch plan's name, not for a project or domain")
    version = identity.get("version")
    return PlanKey(values["project"], values["domain"], values["name"], ANY if version in (None, "") else str(version))


def _rules(path: Path, document: Document, item: Any, at: _Path) -> tuple[list[Rule], list[Problem]]:
    where, notifications = _notifications(item)
    if not isinstance(notifications, list):
        return [], [Problem(path, document.line_of((*at, *where)), "notifications must be a list")]
    rules, problems = [], []
    for index, notification in enumerate(notifications):
        position = (*at, *where, index)
        line = document.line_of(position)
        try:
            source = f"{path}:{line}" if line else f"{path}[{index}]"
            rules.append(Rule(Notification.model_validate(notification), source))
        except ValidationError as error:
            line = document.line_of((*position, *error.errors()[0]["loc"]))
            problems.append(Problem(path, line, f"rule {index + 1}: {first_problem(error)}"))
    return rules, problems


def _notifications(item: dict[str, Any]) -> tuple[_Path, Any]:
    """Where the launch plan's notifications stand, and what is there; an empty list where nothing is."""
    for path in _NOTIFICATION_PATHS:
        value: Any = item
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        if value is not None:
            return path, value
    return ("notifications",), []
