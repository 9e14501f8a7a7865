"""The sides of a race: each in a process of its own, on the same core, one after the other, and nothing lost on the way."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from bench.figures import Figure, Goal
from bench.providers import Provider, cores
from bench.storm import Ran, spent

Item = TypeVar("Item")


def apart(work: Callable[..., Ran], *arguments: Any) -> Ran:
    """Do it in a new process on the core of whoever is measured."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_settle_in) as process:
        return process.submit(work, *arguments).result()


def _settle_in() -> None:
    os.sched_setaffinity(0, {cores()[0]})
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # the log is written, and goes where nobody waits for it


def checked(provider: Provider, count: int, run: Callable[[], Ran]) -> Ran:
    """Run it, and see to it that every message arrived once, and none was refused."""
    provider.begin()
    ran = run()
    came = provider.arrivals()
    if not came.messages == came.different == count or came.refused:
        raise RuntimeError(f"{count} messages became {came}: this measurement is void")
    return ran


async def by_hands(hands: int, items: Sequence[Item], send: Callable[[Item], Awaitable[object]]) -> Ran:
    """Send them all, so many at once."""
    waiting = list(items)

    async def work() -> None:
        while waiting:
            await send(waiting.pop())

    cpu, began = spent(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(hands):
            group.create_task(work())
    return Ran(len(items), time.perf_counter() - began, spent() - cpu)


def compared(
    path: str, work: str, baseline: str, ours: Sequence[Ran], theirs: Sequence[Ran], goal: Goal | None = None
) -> Iterator[Figure]:
    """The rates, which the goal is of; and the CPU that a message cost, which depends less on what else the machine does."""
    yield Figure(
        path=path,
        work=work,
        baseline=baseline,
        ours=[ran.rate for ran in ours],
        theirs=[ran.rate for ran in theirs],
        goal=goal,
    )
    yield Figure(
        path=path,
        work=f"{work}: CPU a message",
        baseline=baseline,
        ours=[ran.cpu_each * 1e6 for ran in ours],
        theirs=[ran.cpu_each * 1e6 for ran in theirs],
        unit=" us",
    )
