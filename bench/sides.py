"""Runs the dispatcher and its baselines one after the other, each in a new process on the same core, and compares them."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from bench.burst import RunResult, cpu_seconds_used
from bench.figures import Figure, Goal
from bench.providers import Provider, cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_new_process(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run `work` in a new process, on the core for measured programs."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_pin_to_core) as process:
        return process.submit(work, *arguments).result()


def _pin_to_core() -> None:
    os.sched_setaffinity(0, {cores()[0]})
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # log lines are written, but to /dev/null, which never blocks


def without_loss(provider: Provider, count: int, run: Callable[[], RunResult]) -> RunResult:
    """Run it. Raises RuntimeError unless every message arrived exactly once and no connection was refused."""
    provider.begin()
    result = run()
    arrived = provider.arrivals()
    if not arrived.messages == arrived.different == count or arrived.refused:
        raise RuntimeError(f"{count} messages became {arrived}: this measurement is void")
    return result


async def run_concurrently(
    concurrency: int, items: Sequence[Item], send: Callable[[Item], Awaitable[object]]
) -> RunResult:
    """Send all items, with `concurrency` tasks."""
    waiting = list(items)

    async def work() -> None:
        while waiting:
            await send(waiting.pop())

    cpu, began = cpu_seconds_used(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    return RunResult(len(items), time.perf_counter() - began, cpu_seconds_used() - cpu)


def comparison(
    path: str,
    work: str,
    baseline: str,
    ours: Sequence[RunResult],
    theirs: Sequence[RunResult],
    goal: Goal | None = None,
) -> Iterator[Figure]:
    """Two figures: the rate, which the goal applies to, and the CPU per message, which other load on the machine affects
    less.
    """
    yield Figure(
        path=path,
        work=work,
        baseline=baseline,
        ours=[result.rate for result in ours],
        theirs=[result.rate for result in theirs],
        goal=goal,
    )
    yield Figure(
        path=path,
        work=f"{work}: CPU a message",
        baseline=baseline,
        ours=[result.cpu_per_message * 1e6 for result in ours],
        theirs=[result.cpu_per_message * 1e6 for result in theirs],
        unit=" us",
    )
