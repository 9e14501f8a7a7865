"""The results of benchmarks, and the table made of them.

A benchmark is a module with `figures(rounds, *, smoke) -> Iterable[Figure | Missing]`, which yields each result as soon as
it is measured. `smoke` asks for the shortest possible run. If the machine lacks a requirement of the whole benchmark, it
raises Unavailable; if only one line needs it (such as Debian's Alertmanager), it yields Missing for that line.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Found = TypeVar("Found")


class Unavailable(Exception):
    """The benchmark cannot run on this machine; the message names the missing requirement."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal for the ratio to the baseline or, if `of` is `value`, for the dispatcher's own value."""

    bound: Literal["at least", "at most"]
    value: float
    of: Literal["ratio", "value"] = "ratio"

    def met(self, found: float) -> bool:
        return found >= self.value if self.bound == "at least" else found <= self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table: the dispatcher's and the baseline's values, one per round, in the same unit."""

    path: str
    """The benchmark's name in the table: intake, record, mail, …"""
    work: str
    baseline: str
    ours: Sequence[float]
    theirs: Sequence[float]
    unit: str = "/s"
    goal: Goal | None = None

    @property
    def ratios(self) -> list[float]:
        """The dispatcher's value divided by the baseline's, for each round."""
        return [one / other for one, other in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.goal.met(self.ratio if self.goal.of == "ratio" else statistics.median(self.ours))

    @property
    def summary(self) -> str:
        """One line for the progress output."""
        verdict = {True: ", goal met", False: ", goal missed", None: ""}[self.met]
        return f"{self.work}, beside {self.baseline}: {_short(statistics.median(self.ours))}{self.unit}, {self._spread}{verdict}"

    @property
    def _spread(self) -> str:
        return f"{self.ratio:.3g} ({min(self.ratios):.3g} to {max(self.ratios):.3g})"

    def as_row(self) -> str:
        ours, theirs = (f"{_short(statistics.median(values))}{self.unit}" for values in (self.ours, self.theirs))
        goal = ""
        if self.goal is not None:
            goal = f"{self.goal.bound} {self.goal.value:g}{self.unit if self.goal.of == 'value' else ''}"
        verdict = {True: "met", False: "missed", None: ""}[self.met]
        return (
            f"| {self.path} | {self.work} | {self.baseline} | {ours} | {theirs} | {self._spread} | {goal} | {verdict} |"
        )

    def as_data(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "work": self.work,
            "baseline": self.baseline,
            "unit": self.unit,
            "ours": list(self.ours),
            "theirs": list(self.theirs),
            "ratio": {"median": self.ratio, "lowest": min(self.ratios), "highest": max(self.ratios)},
            "goal": self.goal and {"bound": self.goal.bound, "value": self.goal.value, "of": self.goal.of},
            "met": self.met,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A line of the table that could not be measured, with the reason."""

    path: str
    why: str
    work: str = ""
    baseline: str = ""

    @property
    def summary(self) -> str:
        return f"{self.work or self.path}: {self.why}"

    def as_row(self) -> str:
        return f"| {self.path} | {self.work} | {self.baseline} | | | {self.why} | | |"

    def as_data(self) -> dict[str, Any]:
        return {"path": self.path, "work": self.work, "baseline": self.baseline, "missing": self.why}


def interleaved(rounds: int, contenders: Mapping[str, Callable[[], Found]]) -> dict[str, list[Found]]:
    """Measure each contender once per round, so that a disturbance of the machine affects all of them."""
    found: dict[str, list[Found]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            found[name].append(measure())
    return found


def as_markdown(figures: Iterable[Figure | Missing]) -> str:
    """The table, for docs/performance.md."""
    lines = [
        "| path | work | baseline | ours | baseline's | ratio (lowest to highest) | goal | |",
        "|---|---|---|---:|---:|---:|---|---|",
        *(one.as_row() for one in figures),
    ]
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
