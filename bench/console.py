"""How long the console's pages take with a large ledger: with 300,000 deliveries in SQLite, 3,000,000 in PostgreSQL.

The baseline is the same page with a small ledger of the same kind, measured in the same rounds. A round requests each page
once; the table has the slowest page. The pages run in this process, over HTTP.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from tempfile import TemporaryDirectory

import aiohttp

from bench.figures import Figure, Goal
from bench.record import empty_database, migrated, postgres
from dispatcher.observability import logs
from dispatcher.runtime import event_loop
from tests.support.clock import ManualClock
from tests.support.console import serve_console
from tests.support.large_ledger import end_of, fill_ledger

SMALL = 3_000
LARGE = {"SQLite": 300_000, "PostgreSQL": 3_000_000}
SMOKE = 30_000
GOALS = {"SQLite": Goal("at most", 400, of="value"), "PostgreSQL": Goal("at most", 1000, of="value")}
PAGES = (
    "/",
    "/?range=7d",
    "/deliveries",
    "/deliveries?state=waiting",
    "/deliveries?state=dead&channel=teams",
    "/deliveries?recipient=team-7",
    "/deliveries?recipient=rare",
    "/deliveries?launch_plan=plan-7",
    "/deliveries?launch_plan=plan-7&state=dead&channel=teams",
    f"/deliveries/{3:032x}",
    "/executions",
    "/executions?launch_plan=plan-7",
    "/executions?phase=FAILED&verdict=disabled",
    "/executions/p/d/e7",
    "/rejected",
    "/redrive",
    "/redrive?recipient=team-7",
    "/redrive?launch_plan=plan-7",
    "/deliveries?recipient=team-7&state=dead",
    "/search?q=e7",
    "/health",
    "/rules?launch_plan=flytesnacks/production/train.daily",
)
Times = Mapping[str, list[float]]
"""Milliseconds of each page, one value per round."""


async def measured(urls: Mapping[int, str], rounds: int) -> Mapping[int, Times]:
    """Fill a ledger of each size, and request each page of each console in turn. The first round is not counted."""
    times: dict[int, dict[str, list[float]]] = {size: {page: [] for page in PAGES} for size in urls}
    async with AsyncExitStack() as stack:
        consoles = {}
        for size, url in urls.items():
            await migrated(url)
            await fill_ledger(url, size)
            consoles[size] = await stack.enter_async_context(serve_console(url, ManualClock(end_of(size))))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        for number in range(1 + rounds):
            for page in PAGES:
                for size, console in consoles.items():
                    began = time.perf_counter()
                    async with session.get(f"{console.url}/console{page}") as answer:
                        await answer.read()
                    if answer.status != 200:
                        raise RuntimeError(f"{page} answered {answer.status}: this measurement is void")
                    if number:
                        times[size][page].append(1000 * (time.perf_counter() - began))
    return times


def figure(kind: str, times: Mapping[int, Times]) -> Figure:
    small, large = sorted(times)
    slowest = max(PAGES, key=lambda page: statistics.median(times[large][page]))
    return Figure(
        path="console",
        work=f"{kind}, {large:,} deliveries: {slowest}, the slowest of {len(PAGES)} pages",
        baseline=f"{small:,}",
        ours=times[large][slowest],
        theirs=times[small][slowest],
        unit=" ms",
        goal=GOALS[kind],
    )


async def on_sqlite(rounds: int, size: int) -> Figure:
    with TemporaryDirectory() as folder:
        urls = {size: f"sqlite+aiosqlite:///{folder}/{size}.db" for size in (SMALL, size)}
        return figure("SQLite", await measured(urls, rounds))


async def on_postgres(rounds: int, size: int) -> Figure:
    with postgres() as server:
        urls = {size: await empty_database(server, f"console_{size}") for size in (SMALL, size)}
        return figure("PostgreSQL", await measured(urls, rounds))


def figures(rounds: int, *, smoke: bool) -> Iterator[Figure]:
    logs.configure("json", level=40)
    for kind, run in (("SQLite", on_sqlite), ("PostgreSQL", on_postgres)):
        yield event_loop.run(run(rounds, SMOKE if smoke else LARGE[kind]))
