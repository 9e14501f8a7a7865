"""The table of a benchmark run: its lines, and benchmarks that fail or cannot run."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import subprocess
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench import revisions
from bench.__main__ import BEGIN, END, Run, around_table, measure
from bench.figures import Figure, Goal, Missing, Unavailable, as_markdown
from bench.growth import fill_sqlite
from bench.providers import Api, ProviderOptions, running_provider
from bench.record import migrated


def a_figure(*, ours: list[float], theirs: list[float], goal: Goal | None = None) -> Figure:
    return Figure(path="mail", work="one mail", baseline="bare", ours=ours, theirs=theirs, goal=goal)


def a_run() -> Run:
    return Run(rounds=3, smoke=False, machine={})


def test_the_ratio_is_the_median_of_each_rounds_ratio() -> None:
    """In the second round both ran at half speed."""
    figure = a_figure(ours=[90, 40, 80], theirs=[100, 50, 100])
    assert figure.ratio == 0.8
    assert "| 80/s | 100/s | 0.8 (0.8 to 0.9) |" in figure.as_row()


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal("at least", 0.8), True),
        (Goal("at least", 0.9), False),
        (Goal("at most", 80, of="value"), True),
        (Goal("at most", 79, of="value"), False),
    ],
)
def test_a_goal_applies_to_the_ratio_or_to_the_dispatchers_value(goal: Goal, met: bool) -> None:
    figure = a_figure(ours=[80], theirs=[100], goal=goal)
    assert figure.met is met
    assert figure.as_row().endswith("| met |" if met else "| missed |")


def test_a_failed_or_unavailable_benchmark_is_a_line_and_the_others_run(capsys: pytest.CaptureFixture[str]) -> None:
    good = a_figure(ours=[1], theirs=[1])

    def lacks(_rounds: int, *, smoke: bool) -> Iterable[Figure | Missing]:
        yield good
        raise Unavailable("no Alertmanager here")

    def breaks(_rounds: int, *, smoke: bool) -> Iterable[Figure | Missing]:
        raise RuntimeError("the relay hung up")

    def works(_rounds: int, *, smoke: bool) -> Iterable[Figure | Missing]:
        return [good]

    run = a_run()
    for name, benchmark in {"mail": lacks, "scale": breaks, "start": works}.items():
        measure(name, benchmark, run)
    assert run.broken == ["scale"]
    assert run.found == [
        good,
        Missing(path="mail", why="no Alertmanager here"),
        Missing(path="scale", why="broke: RuntimeError: the relay hung up"),
        good,
    ]
    assert "the relay hung up" in as_markdown(run.found)
    assert "Traceback" in capsys.readouterr().err


def test_write_replaces_only_the_table_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "performance.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert "new".join(around_table(file)) == f"before\n{BEGIN}new{END}\nafter\n"


def test_a_file_without_table_markers_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "performance.md"
    file.write_text(f"{END} {BEGIN}")
    with pytest.raises(ValueError, match="has no table"):
        around_table(file)


ITS_OWN_BENCHMARKS = """
import json, pathlib, sys
from product import CPU
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
figures = [
    {"path": "mail", "work": "0 ms", "ours": [1]},
    {"path": "mail", "work": "0 ms: CPU a message", "ours": [CPU]},
    {"path": "mail", "why": "no Alertmanager here", "work": ""},
]
(out / "figures.json").write_text(json.dumps({"figures": figures}))
"""


def test_two_revisions_are_measured_with_their_own_code_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=tests", "-c", "user.email=tests@example.com")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "--quiet")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").touch()
    (tmp_path / "bench" / "__main__.py").write_text(ITS_OWN_BENCHMARKS)
    for cpu in (200, 150):
        (tmp_path / "product.py").write_text(f"CPU = {cpu}")
        git("add", "bench", "product.py")
        git("commit", "--quiet", "--message", "another revision")
    monkeypatch.setattr(revisions, "ROOT", tmp_path)

    with revisions.checked_out("HEAD~1") as both:
        (figure,) = both.figures("mail", 2, smoke=False)
    assert isinstance(figure, Figure)
    assert (figure.work, figure.ours, figure.theirs, figure.met) == (
        "0 ms: CPU a message",
        [150, 150],
        [200, 200],
        True,
    )
    assert len(git("worktree", "list").splitlines()) == 1
    with pytest.raises(SystemExit, match="no revision nonsense"), revisions.checked_out("nonsense"):
        pass


class DiesAtStart(ProviderOptions):
    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


class DiesAtConnection(Api):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        os._exit(1)


def test_a_dead_provider_raises_an_error_at_once() -> None:
    with pytest.raises(RuntimeError, match="died"), running_provider(Api, DiesAtStart()):
        pass
    with running_provider(DiesAtConnection, ProviderOptions()) as provider:
        socket.create_connection(("127.0.0.1", provider.port)).close()
        with pytest.raises(RuntimeError, match="died"):
            provider.wait_for(1, seconds=10)


async def test_the_growth_benchmarks_ledger_has_100_launch_plans(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    await migrated(f"sqlite+aiosqlite:///{file}")
    fill_sqlite(file, 250)
    with closing(sqlite3.connect(file)) as connection:
        for column in ("launch_plan", "(SELECT subject FROM deliveries WHERE event = events.key)"):
            assert connection.execute(f"SELECT count(DISTINCT {column}) FROM events").fetchone() == (100,)
