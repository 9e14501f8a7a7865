"""Loads the rules in files, and loads them again when a file changes.

An invalid rule is reported with its file and line; the other rules of the file still apply. If a file becomes
unreadable while the process runs, for example because it is half saved, its last valid rules stay in effect.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
from collections.abc import Sequence
from pathlib import Path

import structlog

from dispatcher.parsing.yaml import Problem, readable
from dispatcher.rules.file_set import FileSet
from dispatcher.rules.launch_plan_files import LAUNCH_PLANS, by_key
from dispatcher.rules.route_files import NO_NAMES, Names, in_order, route_format
from dispatcher.rules.rulebook import RuleBook

log = structlog.get_logger(__name__)

VERSION_LENGTH = 16
"""Number of characters of `RuleBook.version`."""
RESCAN_MS = 5000
"""Milliseconds between two scans for changed files. Scans are needed where the kernel reports no changes, for example
on network file systems."""
MAX_LOGGED = 100
"""The log names at most this many invalid files and rules at a time."""


class RuleFiles:
    """The rules in some files and folders.

    `launch_plans`: files and folders with the rules of launch plans. `routes`: those with routes, which can refer to
    `names`.
    """

    def __init__(self, launch_plans: Sequence[Path], routes: Sequence[Path] = (), names: Names = NO_NAMES) -> None:
        self.book = RuleBook(contacts=names.contacts)
        self.problems: tuple[Problem, ...] = ()
        """The invalid files and rules that the last `load` found, with file and line."""
        self._launch_plans = FileSet(launch_plans, LAUNCH_PLANS)
        self._routes = FileSet(routes, route_format(names))
        self._names = names

    def load(self) -> bool:
        """Read new and changed files, forget deleted files, and replace `book` and `problems`.

        Returns True if anything is different now. Invalid content of a file raises nothing: it is listed in `problems`.
        """
        if not any([self._launch_plans.load(), self._routes.load()]):
            return False
        plans, clashing_plans = by_key(self._launch_plans.loaded)
        routes, clashing_routes = in_order(self._routes.loaded, self._names.owners)
        self.problems = (*self._launch_plans.problems, *clashing_plans, *self._routes.problems, *clashing_routes)
        self.book = RuleBook(plans, routes, self._version(), self._names.contacts)
        return True

    def _version(self) -> str:
        digests = [[file.digest for file in files.loaded.values()] for files in (self._launch_plans, self._routes)]
        if not any(map(any, digests)):
            return ""
        return hashlib.sha256(b"/".join(b"".join(of_format) for of_format in digests)).hexdigest()[:VERSION_LENGTH]

    async def watch(self, stop: asyncio.Event) -> None:
        """Call `load` after each change of a rule file, until `stop` is set."""
        folders = {path if path.is_dir() else path.parent for path in (*self._launch_plans.roots, *self._routes.roots)}
        watched = [folder for folder in folders if folder.is_dir()]
        if not watched:
            await stop.wait()
            return
        from watchfiles import awatch  # noqa: PLC0415 - imported here, because only rule files need it

        async for _ in awatch(*watched, stop_event=stop, yield_on_timeout=True, rust_timeout=RESCAN_MS, debounce=200):
            if await asyncio.to_thread(self._reload):
                book = self.book
                log.info(
                    "rule files reloaded", launch_plans=len(book.plans), routes=len(book.routes), version=book.version
                )
                self.log_problems()

    def _reload(self) -> bool:
        """Call `load` without the garbage collector, which would stop all threads for tenths of a second to look at ten
        thousand new routes. Routes are in no reference cycle, so they are freed nevertheless when they are replaced.
        """
        gc.disable()
        try:
            if changed := self.load():
                gc.freeze()
            return changed
        finally:
            gc.enable()

    def log_problems(self) -> None:
        """Log each invalid file and rule that the last `load` found, or the first of very many."""
        for problem in self.problems[:MAX_LOGGED]:
            log.error("a rule was refused", file=readable(problem.file), line=problem.line, reason=problem.message)
        if len(self.problems) > MAX_LOGGED:
            log.error("more rules were refused: dispatcher check names them all", number=len(self.problems))
