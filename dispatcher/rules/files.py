"""Loads the rules in files, and loads them again when a file changes.

An invalid rule is reported with its file and line; the other rules of the file still apply. If a file becomes
unreadable while the process runs, for example because it is half saved, its last valid rules stay in effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import structlog

from dispatcher.parsing.yaml import Problem, readable
from dispatcher.rules.file_set import FileSet
from dispatcher.rules.launch_plan_files import LAUNCH_PLANS, by_key
from dispatcher.rules.rulebook import RuleBook

log = structlog.get_logger(__name__)

RESCAN_MS = 5000
"""Milliseconds between two scans for changed files. Scans are needed where the kernel reports no changes, for example
on network file systems."""
MAX_LOGGED = 100
"""The log names at most this many invalid files and rules at a time."""


class RuleFiles:
    """The rules in some files and folders.

    `launch_plans`: files and folders with the rules of launch plans.
    """

    def __init__(self, launch_plans: Sequence[Path]) -> None:
        self.book = RuleBook()
        self.problems: tuple[Problem, ...] = ()
        """The invalid files and rules that the last `load` found, with file and line."""
        self._launch_plans = FileSet(launch_plans, LAUNCH_PLANS)

    def load(self) -> bool:
        """Read new and changed files, forget deleted files, and replace `book` and `problems`.

        Returns True if anything is different now. Invalid content of a file raises nothing: it is listed in `problems`.
        """
        if not self._launch_plans.load():
            return False
        plans, clashes = by_key(self._launch_plans.loaded)
        self.problems = (*self._launch_plans.problems, *clashes)
        self.book = RuleBook(plans)
        return True

    async def watch(self, stop: asyncio.Event) -> None:
        """Call `load` after each change of a rule file, until `stop` is set."""
        folders = {path if path.is_dir() else path.parent for path in self._launch_plans.roots}
        watched = [folder for folder in folders if folder.is_dir()]
        if not watched:
            await stop.wait()
            return
        from watchfiles import awatch  # noqa: PLC0415 - imported here, because only rule files need it

        async for _ in awatch(*watched, stop_event=stop, yield_on_timeout=True, rust_timeout=RESCAN_MS, debounce=200):
            if await asyncio.to_thread(self.load):
                log.info("rule files reloaded", launch_plans=len(self.book.plans))
                self.log_problems()

    def log_problems(self) -> None:
        """Log each invalid file and rule that the last `load` found, or the first of very many."""
        for problem in self.problems[:MAX_LOGGED]:
            log.error("a rule was refused", file=readable(problem.file), line=problem.line, reason=problem.message)
        if len(self.problems) > MAX_LOGGED:
            log.error("more rules were refused: dispatcher check names them all", number=len(self.problems))
