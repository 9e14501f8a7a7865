"""The table of a benchmark run: what its lines say, and what becomes of a benchmark that can't be run."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import BEGIN, END, Run, around_table, measure
from bench.figures import Figure, Goal, Missing, Unavailable, as_markdown
from bench.providers import Api, Manner, providing


def a_figure(*, ours: list[float], theirs: list[float], goal: Goal | None = None) -> Figure:
    return Figure(path="mail", work="one mail", baseline="bare", ours=ours, theirs=theirs, goal=goal)


def a_run() -> Run:
    return Run(rounds=3, smoke=False, machine={})


def test_a_ratio_is_the_median_of_rounds_that_ran_side_by_side() -> None:
    """The machine was at half its speed in the second round, for both."""
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
def test_a_goal_is_of_the_ratio_or_of_our_own_value(goal: Goal, met: bool) -> None:
    figure = a_figure(ours=[80], theirs=[100], goal=goal)
    assert figure.met is met
    assert figure.as_row().endswith("| met |" if met else "| missed |")


def test_what_breaks_or_lacks_something_is_a_line_and_stops_no_other(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_only_the_table_of_a_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "performance.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert "new".join(around_table(file)) == f"before\n{BEGIN}new{END}\nafter\n"


def test_a_file_without_a_place_for_the_table_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "performance.md"
    file.write_text(f"{END} {BEGIN}")
    with pytest.raises(ValueError, match="has no table"):
        around_table(file)


class DiesAtBirth(Manner):
    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


class DiesOfCompany(Api):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        os._exit(1)


def test_nobody_waits_for_a_provider_that_is_dead() -> None:
    with pytest.raises(RuntimeError, match="died"), providing(Api, DiesAtBirth()):
        pass
    with providing(DiesOfCompany, Manner()) as provider:
        socket.create_connection(("127.0.0.1", provider.port)).close()
        with pytest.raises(RuntimeError, match="died"):
            provider.wait_for(1, seconds=10)
