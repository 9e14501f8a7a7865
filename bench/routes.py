"""Deciding about events among 10,000 routes, compared with deciding without routes.

    python -m bench.routes [--rounds 5]

Half of the routes name one of 50 projects, half one of 200 launch plans, all for failures, and one in ten has a
pattern or a regular expression besides. An event that misses is in none of these projects, and its launch plan
is not named. An event that hits has a project or a launch plan that is. Measured in CPU time, in one process.

The last line reloads the files of all routes, and measures for how long the event loop's thread is kept at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.figures import Figure, Goal, as_markdown, interleaved
from dispatcher.clock import SystemClock
from dispatcher.model.event import EntityId, Event, ExecutionError, ExecutionId
from dispatcher.model.notification import Notification
from dispatcher.model.phase import Phase
from dispatcher.rules import PlanKey, PlanRules, Rule, RuleBook, decide
from dispatcher.rules.files import RuleFiles
from dispatcher.rules.route_files import Names
from dispatcher.runtime import event_loop

ROUTES = 10_000
FILES = 10
PROJECTS, PLANS = 50, 200
DECISIONS = 2000
MISS, HIT = Goal("at most", 1.5), Goal("at most", 5)
PAUSE = Goal("at most", 50, of="value")
TICK = 0.001
NAMES = Names({"ml-team": 3}, frozenset({"email"}))
BESIDES = (", domain: 'prod*'", ", error: {message: 'OutOfMemory|no space left'}")
"""One route in ten has one of these besides."""


def write_files(folder: Path, generation: int) -> None:
    """Write the routes. `generation`: a number that makes every route another one than before."""
    rng = random.Random(7)
    lines = [["routes:\n"] for _ in range(FILES)]
    for number in range(ROUTES - 1):
        named = rng.choice((f"project: team-{rng.randrange(PROJECTS)}", f"launch_plan: train.{rng.randrange(PLANS)}"))
        besides = rng.choice(BESIDES) if rng.randrange(10) == 0 else ""
        lines[number % FILES].append(
            f"  - {{name: r{number}, match: {{{named}, phase: [FAILED, TIMED_OUT]{besides}}}, "
            f"notify: [ml-team, {{email: [p{number}-{generation}@example.com]}}]}}\n"
        )
    for file, content in enumerate(lines):
        (folder / f"{file}.yaml").write_text("".join(content))
    alone = "routes:\n  - {name: alone, match: {launch_plan: train.alone, phase: FAILED}, notify: [ml-team]}\n"
    (folder / "alone.yaml").write_text(alone)


def book(folder: Path | None) -> RuleBook:
    """The rules of ten launch plans, and the routes in the folder."""
    notification = Notification(phases=(Phase.FAILED,), channel="email", recipients=("dev-team@example.com",))
    keys = [PlanKey("flytesnacks", "production", f"train.{number}") for number in range(10)]
    plans = {key: PlanRules(key, (Rule(notification, f"plans.yaml:{at}"),)) for at, key in enumerate(keys)}
    if folder is None:
        return RuleBook(plans)
    files = RuleFiles((), [folder], NAMES)
    files.load()
    if len(files.book.routes) != ROUTES:
        raise RuntimeError(f"{files.problems[:3]}: this measurement is void")
    return RuleBook(plans, files.book.routes)


def events(project: str, plan: str) -> list[Event]:
    """Failures of launch plans with rules of Flyte's own, in `project`, with the beginning `plan` of the plan's name."""
    return [
        Event(
            execution=ExecutionId(project=project.format(number % PROJECTS), domain="production", name=f"e{number}"),
            phase=Phase.FAILED,
            occurred_at=SystemClock().now(),
            launch_plan=EntityId(
                project="flytesnacks", domain="production", name=plan.format(number % PLANS), version="v1"
            ),
            error=ExecutionError(code="USER:ValueError", message="ValueError: no features for 2026-11-20", kind="USER"),
        )
        for number in range(DECISIONS)
    ]


def microseconds(rules: RuleBook, given: Sequence[Event]) -> float:
    """CPU time of a decision."""
    began = time.process_time()
    for event in given:
        decide(event, rules)
    return (time.process_time() - began) / len(given) * 1e6


async def longest_pause(files: RuleFiles, change: Callable[[], None] | None) -> float:
    """Milliseconds for which the event loop's thread is kept at most, while `change` changes all files and they are
    loaded; None: nothing is changed, for as long as that took the last time.
    """
    stop, longest = asyncio.Event(), 0.0
    watching = asyncio.create_task(files.watch(stop))
    await asyncio.sleep(0.3)
    version = files.book.version
    if change is not None:
        await asyncio.to_thread(change)
    deadline, before = time.monotonic() + 3, time.monotonic()
    while files.book.version == version if change is not None else time.monotonic() < deadline:
        await asyncio.sleep(TICK)
        now = time.monotonic()
        before, longest = now, max(longest, now - before - TICK)
    stop.set()
    await watching
    return longest * 1000


def deciding(rounds: int, folder: Path) -> Iterator[Figure]:
    without, among = book(None), book(folder)
    for work, goal, project, plan in (
        ("a miss", MISS, "nobody", "others.{}"),
        ("a hit of one route", HIT, "nobody", "train.alone"),
        ("a hit of launch plans", HIT, "nobody", "train.{}"),
        ("a hit of projects", HIT, "team-{}", "others.{}"),
        ("a hit of both", HIT, "team-{}", "train.{}"),
    ):
        given = events(project, plan)
        found = interleaved(
            rounds, {"without": partial(microseconds, without, given), "among": partial(microseconds, among, given)}
        )
        matched = sum(len(among.routes.decide(event).matched) for event in given) / len(given)
        yield Figure(
            path="routes",
            work=f"decide, {work}, among {ROUTES:,} routes ({matched:.3g} of which match)",
            baseline="without routes",
            ours=found["among"],
            theirs=found["without"],
            unit=" us",
            goal=goal,
        )


def reloading(rounds: int, folder: Path) -> Figure:
    files = RuleFiles((), [folder], NAMES)
    files.load()
    generations = iter(range(1, 10**6))

    def change() -> None:
        write_files(folder, next(generations))

    found = interleaved(
        rounds,
        {
            "reload": lambda: event_loop.run(longest_pause(files, change)),
            "rest": lambda: event_loop.run(longest_pause(files, None)),
        },
    )
    return Figure(
        path="routes",
        work=f"longest pause of the event loop while {ROUTES:,} routes are reloaded",
        baseline="while nothing changes",
        ours=found["reload"],
        theirs=found["rest"],
        unit=" ms",
        goal=PAUSE,
    )


def figures(rounds: int, *, smoke: bool) -> Iterator[Figure]:
    del smoke  # the whole takes half a minute
    event_loop.freeze_garbage_collector()  # as the service does
    with TemporaryDirectory() as name:
        write_files(Path(name), 0)
        yield from deciding(rounds, Path(name))
        yield reloading(rounds, Path(name))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    print(as_markdown(figures(options.parse_args().rounds, smoke=False)))


if __name__ == "__main__":
    main()
