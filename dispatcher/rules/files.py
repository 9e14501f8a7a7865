"""Launch plan rules from files: YAML or JSON in Flyte's shape, as `flytectl get launchplan` prints it too, and
Flyte's own messages, alone or as `pyflyte package` packs them.

A rule that can't hold is refused with file and line, and the rest still serves. A file that turns
unreadable while we run keeps the rules it last had: a half-saved edit must not silence a team.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from dispatcher.model.notification import Notification
from dispatcher.parsing.validation_errors import first_problem
from dispatcher.parsing.yaml import Document, Malformed, Problem, parse
from dispatcher.rules.flytekit_packages import MOST_UNPACKED, launch_plan, read_package
from dispatcher.rules.rulebook import ANY, PlanKey, PlanRules, Rule, RuleBook

log = structlog.get_logger(__name__)

PACKAGE = ".tgz"
SUFFIXES = frozenset({".yaml", ".yml", ".json", ".pb", PACKAGE})
LOOK_MS = 5000
LARGEST = 16 * 2**20
"""Bytes. A launch plan is kilobytes; a larger file is a mistake."""

_Path = tuple[str | int, ...]
_ID_FIELDS = ("id", "launch_plan", "launchPlan")
_LAUNCH_PLAN_KINDS = (None, "", "LAUNCH_PLAN", "UNSPECIFIED", 3, 0)
"""`core.ResourceType`: a launch plan's identity need not say that it is one."""
_NOTIFICATION_PATHS: tuple[_Path, ...] = (
    ("notifications",),
    ("spec", "entityMetadata", "notifications"),
    ("spec", "entity_metadata", "notifications"),
    ("entityMetadata", "notifications"),
    ("entity_metadata", "notifications"),
)


@dataclass(frozen=True, slots=True)
class _Page:
    """One document of a file."""

    document: Document
    member: str = ""
    """The file in an archive that it is."""

    def problem(self, path: Path, line: int, message: str) -> Problem:
        return Problem(path, line, f"{self.member}: {message}" if self.member else message)


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
        unread = [Problem(path, 0, why) for path in self.paths if (why := _why_unread(path))]
        self._readings = {path: self._read(path) for path in _rule_files(self.paths)}
        plans: dict[PlanKey, PlanRules] = {}
        clashes = []
        for path, reading in self._readings.items():
            for rules in reading.plans:
                if not _same(plans.setdefault(rules.key, rules), rules):
                    message = f"{rules.key} has other rules in another file already; put them together"
                    clashes.append(Problem(path, 0, message))
        self.book = RuleBook(plans)
        self.problems = (*unread, *(p for reading in self._readings.values() for p in reading.problems), *clashes)

    async def watch(self, stop: asyncio.Event) -> None:
        """Load again whenever something changes, until `stop` is set.

        The kernel's notices are quick; a look every few seconds finds what they miss, as on network file systems.
        """
        folders = {path if path.is_dir() else path.parent for path in self.paths}
        watched = [folder for folder in folders if folder.is_dir()]
        if not watched:
            await stop.wait()
            return
        from watchfiles import awatch  # noqa: PLC0415 - most services have no such files

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
            pages, refused = _pages(path, status.st_size, self._home(path))
            return _interpret(path, stamp, pages, refused)
        except (OSError, Malformed) as error:
            message = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            problem = Problem(path, getattr(error, "line", 0), message)
            kept = before.plans if before is not None else ()
            return _Reading((), kept, (problem,))

    def _home(self, path: Path) -> Mapping[str, str]:
        """The project and domain by whose names a file's folders go: `FOLDER/…/PROJECT/DOMAIN/file`; or nothing."""
        for root in self.paths:
            folders = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
            if len(folders) >= 2:
                return {"project": folders[-2], "domain": folders[-1]}
        return {}


def _why_unread(path: Path) -> str:
    if not path.exists():
        return "no such file or folder"
    if path.is_file() and path.suffix not in SUFFIXES:
        return f"not a rule file: these end in {', '.join(sorted(SUFFIXES))}"
    return ""


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


def _pages(path: Path, size: int, home: Mapping[str, str]) -> tuple[list[_Page], list[Problem]]:
    """What a file holds, and what of an archive was refused. Raises Malformed or OSError where none can be read."""
    largest = MOST_UNPACKED if path.suffix == PACKAGE else LARGEST
    if size > largest:
        raise Malformed(f"larger than {largest // 2**20} MiB: not a rule file", 0)
    if path.suffix == PACKAGE:
        return _packed_pages(path, home)
    content = path.read_bytes()
    if path.suffix == ".pb":
        return [_Page(Document(launch_plan(content, path.name, home)))], []
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8", content.count(b"\n", 0, error.start) + 1) from None
    return [_Page(document) for document in parse(text, json=path.suffix == ".json")], []


def _packed_pages(path: Path, home: Mapping[str, str]) -> tuple[list[_Page], list[Problem]]:
    package = read_package(path)
    problems = [Problem(path, 0, f"{name!r}: {reason}") for name, reason in package.refused]
    pages = []
    for name, content in package.messages:
        try:
            pages.append(_Page(Document(launch_plan(content, name, home)), name))
        except Malformed as error:
            problems.append(Problem(path, 0, f"{name}: {error}"))
    return pages, problems


def _interpret(path: Path, stamp: tuple[int, ...], pages: Sequence[_Page], refused: Sequence[Problem]) -> _Reading:
    plans: list[PlanRules] = []
    problems = [*refused]
    for page in pages:
        data = page.document.data
        if data is None:
            continue
        items = enumerate(data) if isinstance(data, list) else [(None, data)]
        for index, item in items:
            at: _Path = () if index is None else (index,)
            try:
                key = _plan_key(item)
            except ValueError as error:
                problems.append(page.problem(path, page.document.line_of(at), str(error)))
                continue
            rules, wrong = _rules(path, page, item, at)
            plans.append(PlanRules(key, tuple(rules)))
            problems.extend(wrong)
    return _Reading(stamp, tuple(plans), tuple(problems))


def _plan_key(item: Any) -> PlanKey:
    if not isinstance(item, dict):
        raise ValueError("a launch plan is a mapping: launch_plan and notifications")  # noqa: TRY004
    if isinstance(item.get("spec"), dict) and {"launchPlan", "launch_plan"} & item["spec"].keys():
        raise ValueError("an Execution, not a launch plan")
    identity = next((item[name] for name in _ID_FIELDS if isinstance(item.get(name), dict)), item)
    kind = identity.get("resourceType", identity.get("resource_type"))
    if kind not in _LAUNCH_PLAN_KINDS:
        raise ValueError(f"a {str(kind)[:60].lower()}, not a launch plan")
    named = {name: identity.get(name) for name in ("project", "domain", "name")}
    values = {name: value for name, value in named.items() if isinstance(value, str) and value}
    missing = [name for name in named if name not in values]
    if missing:
        raise ValueError(f"the launch plan lacks {' and '.join(missing)}")
    if ANY in {values["project"], values["domain"]}:
        raise ValueError(f"{ANY!r} can stand for a version or a launch plan's name, not for a project or domain")
    version = identity.get("version")
    return PlanKey(values["project"], values["domain"], values["name"], ANY if version in (None, "") else str(version))


def _rules(path: Path, page: _Page, item: Any, at: _Path) -> tuple[list[Rule], list[Problem]]:
    where, notifications = _notifications(item)
    line_of = page.document.line_of
    if not isinstance(notifications, list):
        return [], [page.problem(path, line_of((*at, *where)), "notifications must be a list")]
    rules, problems = [], []
    for index, notification in enumerate(notifications):
        position = (*at, *where, index)
        line = line_of(position)
        try:
            source = f"{path}:{line}" if line else f"{path / page.member}[{index}]"
            rules.append(Rule(Notification.model_validate(notification), source))
        except ValidationError as error:
            line = line_of((*position, *error.errors()[0]["loc"]))
            problems.append(page.problem(path, line, f"rule {index + 1}: {first_problem(error)}"))
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
