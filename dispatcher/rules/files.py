"""Reads the rules of launch plans from files.

A file contains launch plans in Flyte's YAML or JSON form (for example the output of `flytectl get launchplan`), a
launch plan in protobuf, or an archive from `pyflyte package`.

An invalid rule is reported with its file and line; the other rules of the file still apply. If a file becomes
unreadable while the process runs, for example because it is half saved, its last valid rules stay in effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from dispatcher.model.notification import Notification, excess
from dispatcher.parsing.validation_errors import first_problem
from dispatcher.parsing.yaml import Document, Malformed, Problem, parse, readable
from dispatcher.rules.flytekit_packages import MAX_UNPACKED_BYTES, launch_plan, read_package
from dispatcher.rules.rulebook import ANY, PlanKey, PlanRules, Rule, RuleBook

log = structlog.get_logger(__name__)

PACKAGE = ".tgz"
SUFFIXES = frozenset({".yaml", ".yml", ".json", ".pb", PACKAGE})
RESCAN_MS = 5000
"""Milliseconds between two scans for changed files. Scans are needed where the kernel reports no changes, for example
on network file systems."""
MAX_FILE_BYTES = 16 * 2**20
"""Maximum size of a rule file that is not an archive. A launch plan needs only a few kilobytes, so a larger file
is probably a mistake."""

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


@dataclass(frozen=True, slots=True)
class _LoadedFile:
    """The content of one file when it was last read.

    `stamp` is the file's modification time, size and inode at that time, so that a change is noticed.
    """

    stamp: tuple[int, ...]
    plans: tuple[PlanRules, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(slots=True)
class LaunchPlanFiles:
    """The rules in some files and folders. `load` reads again only those files that have changed."""

    paths: Sequence[Path]
    book: RuleBook = field(default_factory=RuleBook)
    problems: tuple[Problem, ...] = ()
    """The invalid files and rules that the last `load` found, with file and line."""
    _loaded: dict[Path, _LoadedFile] = field(default_factory=dict)

    def load(self) -> None:
        """Read new and changed files, forget deleted files, and replace `book` and `problems`.

        Invalid content of a file raises nothing: it is listed in `problems`.
        """
        unreadable = [Problem(path, 0, reason) for path in self.paths if (reason := _unreadable(path))]
        self._loaded = {path: self._read(path) for path in _rule_files(self.paths)}
        plans: dict[PlanKey, PlanRules] = {}
        clashes = []
        for path, loaded in self._loaded.items():
            for rules in loaded.plans:
                if not _same(plans.setdefault(rules.key, rules), rules):
                    message = f"{rules.key} has other rules in another file already; put them together"
                    clashes.append(Problem(path, 0, message))
        self.book = RuleBook(plans)
        self.problems = (*unreadable, *(p for loaded in self._loaded.values() for p in loaded.problems), *clashes)

    async def watch(self, stop: asyncio.Event) -> None:
        """Call `load` after each change of a rule file, until `stop` is set."""
        folders = {path if path.is_dir() else path.parent for path in self.paths}
        watched = [folder for folder in folders if folder.is_dir()]
        if not watched:
            await stop.wait()
            return
        from watchfiles import awatch  # noqa: PLC0415 - imported here, because only rule files need it

        async for _ in awatch(*watched, stop_event=stop, yield_on_timeout=True, rust_timeout=RESCAN_MS, debounce=200):
            before = (self.book, self.problems)
            await asyncio.to_thread(self.load)
            if before != (self.book, self.problems):
                log.info("launch plan rules reloaded", launch_plans=len(self.book.plans))
                self.log_problems()

    def log_problems(self) -> None:
        """Log each invalid file and rule that the last `load` found."""
        for problem in self.problems:
            log.error("a rule was refused", file=readable(problem.file), line=problem.line, reason=problem.message)

    def _read(self, path: Path) -> _LoadedFile:
        before = self._loaded.get(path)
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if before is not None and before.stamp == stamp:
                return before
            documents, refused = _documents(path, status.st_size, self._place(path))
            return _interpret(path, stamp, documents, refused)
        except Exception as error:  # a bug with one file must not stop the other files
            if isinstance(error, OSError | Malformed):
                message = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            else:
                log.error("a rule file could not be read", file=readable(path), exc_info=error)
                message = f"internal error: {type(error).__name__}; see the log"
            problem = Problem(path, getattr(error, "line", 0), message)
            kept = before.plans if before is not None else ()
            return _LoadedFile((), kept, (problem,))

    def _place(self, path: Path) -> Mapping[str, str]:
        """Return project and domain from the path `FOLDER/…/PROJECT/DOMAIN/file`. Empty if there are fewer folders."""
        for root in self.paths:
            folders = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
            if len(folders) >= 2:
                return {"project": readable(Path(folders[-2])), "domain": readable(Path(folders[-1]))}
        return {}


def _unreadable(path: Path) -> str:
    if not path.exists():
        return "no such file or folder"
    if path.is_file() and path.suffix not in SUFFIXES:
        return f"not a rule file: these end in {', '.join(sorted(SUFFIXES))}"
    return ""


def _same(one: PlanRules, other: PlanRules) -> bool:
    return [rule.notification for rule in one.rules] == [rule.notification for rule in other.rules]


def _rule_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield each rule file once, in a stable order. Hidden files and folders are skipped (a ConfigMap has `..data`)."""
    seen = set()
    for root in paths:
        found = sorted(root.rglob("*")) if root.is_dir() else [root]
        for path in found:
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if path.suffix in SUFFIXES and path.is_file() and not hidden and path not in seen:
                seen.add(path)
                yield path


def _documents(path: Path, size: int, place: Mapping[str, str]) -> tuple[list[_RuleDocument], list[Problem]]:
    """Return the documents in a file, and a problem for each refused file inside an archive.

    Raises Malformed if the file is not a valid rule file, and OSError if it cannot be read.
    """
    largest = MAX_UNPACKED_BYTES if path.suffix == PACKAGE else MAX_FILE_BYTES
    if size > largest:
        raise Malformed(f"larger than {largest // 2**20} MiB: not a rule file", 0)
    if path.suffix == PACKAGE:
        return _packaged_documents(path, place)
    content = path.read_bytes()
    if path.suffix == ".pb":
        return [_RuleDocument(Document(launch_plan(content, path.name, place)))], []
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8", content.count(b"\n", 0, error.start) + 1) from None
    return [_RuleDocument(document) for document in parse(text, json=path.suffix == ".json")], []


def _packaged_documents(path: Path, place: Mapping[str, str]) -> tuple[list[_RuleDocument], list[Problem]]:
    package = read_package(path)
    problems = [Problem(path, 0, f"{name!r}: {reason}") for name, reason in package.refused]
    documents = []
    for name, content in package.messages:
        try:
            documents.append(_RuleDocument(Document(launch_plan(content, name, place)), name))
        except Malformed as error:
            problems.append(Problem(path, 0, f"{name}: {error}"))
    return documents, problems


def _interpret(
    path: Path, stamp: tuple[int, ...], documents: Sequence[_RuleDocument], refused: Sequence[Problem]
) -> _LoadedFile:
    plans: list[PlanRules] = []
    problems = [*refused]
    for document in documents:
        data = document.parsed.data
        if data is None:
            continue
        items = enumerate(data) if isinstance(data, list) else [(None, data)]
        for index, item in items:
            at: _Path = () if index is None else (index,)
            try:
                key = _plan_key(item)
            except ValueError as error:
                problems.append(document.problem(path, document.parsed.line_of(at), str(error)))
                continue
            rules, invalid = _rules(path, document, item, at)
            plans.append(PlanRules(key, tuple(rules)))
            problems.extend(invalid)
            recipients = sum(len(rule.notification.recipients) for rule in rules)
            if too_many := excess(len(rules), recipients, whose=f"launch plan {key}"):
                problems.append(document.problem(path, document.parsed.line_of(at), too_many))
    return _LoadedFile(stamp, tuple(plans), tuple(problems))


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


def _rules(path: Path, document: _RuleDocument, item: Any, at: _Path) -> tuple[list[Rule], list[Problem]]:
    where, notifications = _notifications(item)
    line_of = document.parsed.line_of
    if not isinstance(notifications, list):
        return [], [document.problem(path, line_of((*at, *where)), "notifications must be a list")]
    rules, problems = [], []
    for index, notification in enumerate(notifications):
        position = (*at, *where, index)
        line = line_of(position)
        try:
            defined_at = f"{readable(path)}:{line}" if line else f"{readable(path / document.member)}[{index}]"
            rules.append(Rule(Notification.model_validate(notification), defined_at))
        except ValidationError as error:
            line = line_of((*position, *error.errors()[0]["loc"]))
            problems.append(document.problem(path, line, f"rule {index + 1}: {first_problem(error)}"))
    return rules, problems


def _notifications(item: dict[str, Any]) -> tuple[_Path, Any]:
    """Return the path of the launch plan's notifications in the document, and the notifications (may be empty)."""
    for path in _NOTIFICATION_PATHS:
        value: Any = item
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        if value is not None:
            return path, value
    return ("notifications",), []
