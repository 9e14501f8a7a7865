"""Compares two revisions: the CPU a message of HEAD beside that of another revision.

Each revision gets a git worktree, and runs its own benchmarks with its own code, a round at a time. Both use the packages
that are installed here.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson

from bench.figures import Figure, Goal, Missing, interleaved

ROOT = Path(__file__).parents[1]
GOAL = Goal("at most", 1.05)


@dataclass(frozen=True, slots=True)
class Revisions:
    """The worktrees of two revisions."""

    ours: Path
    theirs: Path
    name: str
    """The other revision, as git names it in short."""

    def figures(self, benchmark: str, rounds: int, *, smoke: bool) -> Iterator[Figure | Missing]:
        """Yield a figure for each CPU a message that both revisions measure. Raises RuntimeError if a run fails."""
        measure = partial(_cpu_per_message, benchmark=benchmark, smoke=smoke)
        found = interleaved(rounds, {"theirs": partial(measure, self.theirs), "ours": partial(measure, self.ours)})
        works = [work for work in found["ours"][0] if all(work in one for side in found.values() for one in side)]
        if not works:
            yield Missing(path=benchmark, why="measures no CPU a message")
        for work in works:
            yield Figure(
                path=benchmark,
                work=work,
                baseline=f"revision {self.name}",
                ours=[one[work] for one in found["ours"]],
                theirs=[one[work] for one in found["theirs"]],
                unit=" us",
                goal=GOAL,
            )


@contextmanager
def checked_out(revision: str) -> Iterator[Revisions]:
    """Check out HEAD and `revision` in a temporary folder. Exits if git knows no such revision."""
    try:
        name = _git("rev-parse", "--short", "--verify", "--quiet", f"{revision}^{{commit}}")
    except subprocess.CalledProcessError:
        sys.exit(f"bench: git knows no revision {revision}")
    with TemporaryDirectory(prefix="bench-") as folder:
        ours, theirs = Path(folder, "ours"), Path(folder, "theirs")
        try:
            for path, commit in ((ours, "HEAD"), (theirs, name)):
                _git("worktree", "add", "--detach", str(path), commit)
                (ROOT / ".cache").mkdir(exist_ok=True)
                (path / ".cache").symlink_to(ROOT / ".cache")  # Apache Kafka is there
            yield Revisions(ours, theirs, name)
        finally:
            for path in (ours, theirs):
                if path.exists():
                    _git("worktree", "remove", "--force", str(path))


def uncommitted() -> bool:
    """True if the repository has changes that no revision has."""
    return bool(_git("status", "--porcelain", "--untracked-files=no"))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _cpu_per_message(worktree: Path, *, benchmark: str, smoke: bool) -> Mapping[str, float]:
    """Run one round of a benchmark in a worktree. Returns microseconds by the description of the work."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench", "--only", benchmark, "--rounds", "1", "--out", folder]
        command += ["--smoke"] if smoke else []
        with subprocess.Popen(
            command,
            cwd=worktree,
            env=os.environ | {"PYTHONPATH": str(worktree)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                output, _ = process.communicate()
            except BaseException:
                process.terminate()  # it stops its brokers and databases
                raise
        if process.returncode:
            raise RuntimeError(f"{benchmark} failed in the worktree {worktree.name}: {output[-2000:]}")
        figures = orjson.loads(Path(folder, "figures.json").read_bytes())["figures"]
    found = {one["work"]: statistics.median(one["ours"]) for one in figures if "CPU a message" in one.get("work", "")}
    print(f"{benchmark}, {worktree.name}: {', '.join(f'{value:.3g} us' for value in found.values())}", file=sys.stderr)
    return found
