"""Reads the rules of launch plans from files.

A file contains launch plans in Flyte's YAML or JSON form (for example the output of `flytectl get launchplan`), a
launch plan in protobuf, or an archive from `pyflyte package`.

An invalid rule is reported with its file and line; the other rules of the file still apply. If a file becomes
unreadable while the process runs, for example because it is half saved, its last valid rules stay in effect. So do the
last rules of a launch plan that is refused.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from dispatcher.model.notification import Notification, excess
from dispatcher.parsing.scalars import why_not_text
from dispatcher.parsing.validation_errors import first_problem
from dispatcher.parsing.yaml import MAX_BYTES, Document, Malformed, Problem, parse, read_text, readable
from dispatcher.rules.flytekit_packages import MAX_UNPACKED_BYTES, launch_plan, read_package
from dispatcher.rules.rulebook import ANY, PlanKey, PlanRules, Rule, RuleBook

log = structlog.get_logger(__name__)

PACKAGE = ".tgz"
SUFFIXES = frozenset({".yaml", ".yml", ".json", ".pb", PACKAGE})
RESCAN_MS = 5000
"""Milliseconds between two scans for changed files. Scans are needed where the kernel reports no changes, for example
on network file systems."""
MAX_ENTRIES = 100_000
"""Maximum number of files and folders in all, because a link may lead to a whole file system."""

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
    plans: tuple[tuple[PlanRules, int], ...] = ()
    """The launch plans, each with the number of its line."""
    problems: tuple[Problem, ...] = ()
    complete: bool = True
    """False if a launch plan was refused, so that it is not known which launch plans the file means."""


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
        found = _find(self.paths)
        kept = {path: file for path, file in self._loaded.items() if any(map(path.is_relative_to, found.unreadable))}
        self._loaded = {**kept, **{path: self._read(path) for path in found.files}}
        plans: dict[PlanKey, PlanRules] = {}
        first_in: dict[PlanKey, Path] = {}
        clashes = []
        for path, loaded in self._loaded.items():
            for rules, line in loaded.plans:
                if not _same(plans.setdefault(rules.key, rules), rules):
                    place = "this file" if first_in[rules.key] == path else "another file"
                    message = f"{rules.key} has other rules in {place} already; put them together"
                    clashes.append(Problem(path, line, message))
                first_in.setdefault(rules.key, path)
        self.book = RuleBook(plans)
        self.problems = (*found.problems, *(p for loaded in self._loaded.values() for p in loaded.problems), *clashes)

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
        kept = before.plans if before is not None else ()
        stamp: tuple[int, ...] = ()
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if before is not None and before.stamp == stamp:
                return before
            place = self._place(path)
            documents, refused = _documents(path, status, place)
            loaded = _interpret(path, stamp, documents, refused, place)
            if loaded.complete:
                return loaded
            named = {rules.key for rules, _ in loaded.plans}
            missing = tuple((rules, line) for rules, line in kept if rules.key not in named)
            return replace(loaded, plans=(*loaded.plans, *missing))
        except OSError as error:  # without a stamp, the file is read again at the next load
            return _LoadedFile((), kept, (Problem(path, 0, _reason(error)),))
        except Malformed as error:
            return _LoadedFile(stamp, kept, (Problem(path, error.line, str(error)),))
        except Exception as error:  # a bug with one file must not stop the other files
            log.error("a rule file could not be read", file=readable(path), exc_info=error)
            return _LoadedFile(stamp, kept, (Problem(path, 0, f"internal error: {type(error).__name__}; see the log"),))

    def _place(self, path: Path) -> Mapping[str, str]:
        """Return project and domain from the path `FOLDER/…/PROJECT/DOMAIN/file`. Empty if there are fewer folders."""
        for root in self.paths:
            folders = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
            if len(folders) >= 2:
                return {"project": readable(Path(folders[-2])), "domain": readable(Path(folders[-1]))}
        return {}


@dataclass(slots=True)
class _Found:
    """The rule files in some files and folders, in a stable order."""

    files: dict[Path, None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    """The folders that can't be read at the moment. Their files' last rules stay in effect."""
    entries: int = 0
    folders: set[tuple[int, int]] = field(default_factory=set)
    """Device and inode of each folder that was entered. A folder is entered once, however many links lead to it."""


def _find(roots: Sequence[Path]) -> _Found:
    """Find the rule files. Hidden files and folders are skipped (a ConfigMap volume has `..data`), links are followed.

    In each folder, linked folders come last, so that a file is found under its own path first.
    """
    found = _Found()
    queue = list(reversed(roots))
    while queue:
        path = queue.pop()
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                queue += reversed(_entries(path, found))
            elif path.suffix in SUFFIXES:
                found.files[path] = None
            elif path in roots:
                found.problems.append(Problem(path, 0, f"not a rule file: these end in {', '.join(sorted(SUFFIXES))}"))
        except OSError as error:
            if isinstance(error, FileNotFoundError) and path not in roots and not path.is_symlink():
                continue  # it was deleted a moment ago
            if path.suffix in SUFFIXES:
                found.files[path] = None  # reading it reports the error
            else:
                found.problems.append(Problem(path, 0, _reason(error)))
                found.unreadable.append(path)
        except Malformed as error:
            found.problems.append(Problem(path, 0, str(error)))
            found.unreadable += roots
            break
    return found


def _entries(folder: Path, found: _Found) -> list[Path]:
    """Return what is in a folder, linked folders last; nothing if the folder was entered before. Raises OSError, and
    Malformed if there is too much.
    """
    status = folder.stat()
    if (status.st_dev, status.st_ino) in found.folders:
        return []
    found.folders.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as scanned:
        entries = [(entry.is_symlink(), folder / entry.name) for entry in scanned if not entry.name.startswith(".")]
    found.entries += len(entries)
    if found.entries > MAX_ENTRIES:
        raise Malformed(f"more than {MAX_ENTRIES:,} files and folders: name only folders with rules", 0)
    return [path for _, path in sorted(entries)]


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file or folder"
    return f"can't be read: {error.strerror or error}"


def _same(one: PlanRules, other: PlanRules) -> bool:
    return [rule.notification for rule in one.rules] == [rule.notification for rule in other.rules]


def _documents(
    path: Path, status: os.stat_result, place: Mapping[str, str]
) -> tuple[list[_RuleDocument], list[Problem]]:
    """Return the documents in a file, and a problem for each refused file inside an archive.

    Raises Malformed if the file is not a valid rule file, and OSError if it cannot be read.
    """
    if not stat.S_ISREG(status.st_mode):
        raise Malformed("not a regular file: remove it", 0)
    largest = MAX_UNPACKED_BYTES if path.suffix == PACKAGE else MAX_BYTES
    if status.st_size > largest:
        raise Malformed(f"larger than {largest // 2**20} MiB: split the file", 0)
    if path.suffix == PACKAGE:
        return _packaged_documents(path, place)
    if path.suffix == ".pb":
        return [_RuleDocument(Document(launch_plan(path.read_bytes(), path.name, place)))], []
    return [_RuleDocument(document) for document in parse(read_text(path), json=path.suffix == ".json")], []


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
    path: Path,
    stamp: tuple[int, ...],
    documents: Sequence[_RuleDocument],
    refused: Sequence[Problem],
    place: Mapping[str, str],
) -> _LoadedFile:
    plans: list[tuple[PlanRules, int]] = []
    problems = [*refused]
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
    return _LoadedFile(stamp, tuple(plans), tuple(problems), complete)


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
    if ANY in {values["project"], values["domain"]}:
        raise _Refused(f"{ANY!r} can stand for a version or a launch plan's name, not for a project or domain", at)
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
