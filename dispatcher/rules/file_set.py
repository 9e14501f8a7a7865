"""Finds the rule files in some folders, reads those that have changed, and keeps the last valid content of each.

What a file means is the business of its `FileFormat`: launch plans (`launch_plan_files`) or routes (`route_files`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from dispatcher.parsing.yaml import Malformed, Problem, readable

log = structlog.get_logger(__name__)

MAX_ENTRIES = 100_000
"""Maximum number of files and folders in all, because a link may lead to a whole file system."""

Entry = TypeVar("Entry")
"""What a file has several of: a launch plan or a route."""


@dataclass(frozen=True, slots=True)
class RuleFile:
    """A file that is about to be read."""

    path: Path
    folders: tuple[str, ...]
    """The names of the folders between the folder in the settings and the file."""
    content: bytes


@dataclass(frozen=True, slots=True)
class Content(Generic[Entry]):
    """What a file means: its valid entries, and the problems with the others."""

    entries: tuple[Entry, ...] = ()
    problems: tuple[Problem, ...] = ()
    keeps: bool = False
    """True if some entries come from the file's last content, because the new ones are invalid."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """How much the file has of each thing that `FileFormat.limits` limits."""


@dataclass(frozen=True, slots=True)
class FileFormat(Generic[Entry]):
    """A kind of rule files."""

    largest: Mapping[str, int]
    """Mapping from the ending of a file's name, such as `.yaml`, to the maximum number of its bytes. Files with other
    endings are skipped."""
    read: Callable[[RuleFile, tuple[Entry, ...]], Content[Entry]]
    """Returns what a file means. The second argument are the file's last valid entries. Raises Malformed for a file that
    means nothing."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Mapping from a thing, such as `routes`, to how many of it all files together may have."""


@dataclass(frozen=True, slots=True)
class LoadedFile(Generic[Entry]):
    """The content of one file when it was last read.

    `stamp` is the file's modification time, size and inode at that time, so that a change is noticed.
    """

    stamp: tuple[int, ...]
    content: Content[Entry]
    digest: bytes
    """A hash of the bytes that the entries come from; empty if the file never had valid content."""
    refused_at: Mapping[str, int] | None = field(default=None, compare=False)
    """How much all files had when there was no room for this file; else None. It is read again once that changes."""


@dataclass(slots=True)
class FileSet(Generic[Entry]):
    """Some files and folders of one format. `load` reads again only those files that have changed."""

    roots: Sequence[Path]
    format: FileFormat[Entry]
    problems: tuple[Problem, ...] = ()
    """The files and folders that the last `load` could not read, and what is invalid in the others."""
    loaded: Mapping[Path, LoadedFile[Entry]] = field(default_factory=dict)
    """The files, in the order of their paths below each root."""

    def load(self) -> bool:
        """Read new and changed files, and forget deleted files. Returns True if anything is different now.

        Invalid content of a file raises nothing: it is listed in `problems`.
        """
        before = (self.loaded, self.problems)
        found = _find(self.roots, self.format.largest)
        kept = {path: file for path, file in self.loaded.items() if any(map(path.is_relative_to, found.unreadable))}
        paths = sorted({**kept, **found.files}, key=lambda path: (self._root(path), path))
        sizes: Counter[str] = Counter()
        for path in paths:
            if path in self.loaded:
                sizes.update(self.loaded[path].content.sizes)
        loaded = {path: self._read(path, sizes) if path in found.files else kept[path] for path in paths}
        problems = (*found.problems, *(problem for file in loaded.values() for problem in file.content.problems))
        if before == (loaded, problems):
            return False
        self.loaded, self.problems = loaded, problems
        return True

    def _read(self, path: Path, sizes: Counter[str]) -> LoadedFile[Entry]:
        """Return the file's content, or its last valid one. `sizes`: how much all files have, which is kept up to date."""
        before = self.loaded.get(path)
        last: Content[Entry] = before.content if before is not None else Content()
        digest = before.digest if before is not None else b""
        stamp: tuple[int, ...] = ()
        refused_at = None
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if before is not None and before.stamp == stamp and before.refused_at in (None, sizes):
                return before
            file = RuleFile(path, self._folders(path), _bytes(path, status, self.format.largest[path.suffix]))
            content = self.format.read(file, last.entries)
            others = {thing: sizes[thing] - last.sizes.get(thing, 0) for thing in self.format.limits}
            if not (excess := self._excess(others, content)):
                sizes.update({thing: others[thing] + content.sizes[thing] - sizes[thing] for thing in others})
                return LoadedFile(stamp, content, _digest(file, digest if content.keeps else b""))
            refused_at, problem = dict(sizes), Problem(path, 1, excess)
        except OSError as error:  # without a stamp, the file is read again at the next load
            stamp, problem = (), Problem(path, 0, _reason(error))
        except Malformed as error:
            problem = Problem(path, error.line, str(error))
        except Exception as error:  # a bug with one file must not stop the other files
            log.error("a rule file could not be read", file=readable(path), exc_info=error)
            problem = Problem(path, 0, f"internal error: {type(error).__name__}; see the log")
        return LoadedFile(stamp, replace(last, problems=(problem,), keeps=True), digest, refused_at)

    def _excess(self, others: Mapping[str, int], content: Content[Entry]) -> str:
        """Return why there is no room for a file's content; an empty text if there is. `others`: what other files have."""
        for thing, limit in self.format.limits.items():
            if others[thing] + content.sizes[thing] > limit:
                return f"with this file, all files would have more than {limit:,} {thing}, so it is left out"
        return ""

    def _folders(self, path: Path) -> tuple[str, ...]:
        folders = path.relative_to(self.roots[self._root(path)]).parts[:-1]
        return tuple(readable(Path(folder)) for folder in folders)

    def _root(self, path: Path) -> int:
        """Return the index of the first root that is the file, or has it."""
        return next(index for index, root in enumerate(self.roots) if path.is_relative_to(root))


def _bytes(path: Path, status: os.stat_result, largest: int) -> bytes:
    """Return the file's content. Raises Malformed if it is too large or no file, and OSError if it can't be read."""
    if not stat.S_ISREG(status.st_mode):
        raise Malformed("not a regular file: remove it", 0)
    with path.open("rb") as opened:
        content = opened.read(largest + 1)
    if len(content) > largest:
        raise Malformed(f"larger than {largest // 2**20} MiB: split the file", 0)
    return content


def _digest(file: RuleFile, kept: bytes) -> bytes:
    """Return a hash of all that the meaning of a file depends on. `kept`: the digest of its last content, if entries of
    that content stay in effect.
    """
    place = "/".join([*file.folders, readable(Path(file.path.name))])
    return hashlib.sha256(b"\0".join([place.encode(), kept.hex().encode(), file.content])).digest()


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


def _find(roots: Sequence[Path], suffixes: Mapping[str, int]) -> _Found:
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
            elif path.suffix in suffixes:
                found.files[path] = None
            elif path in roots:
                found.problems.append(Problem(path, 0, f"not a rule file: these end in {', '.join(sorted(suffixes))}"))
        except OSError as error:
            if isinstance(error, FileNotFoundError) and path not in roots and not path.is_symlink():
                continue  # it was deleted a moment ago
            if path.suffix in suffixes:
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
