"""What a benchmark finds: figures beside a baseline of the same run, and the table that they make.

A benchmark is a module with `figures(rounds, *, smoke) -> Iterable[Figure | Missing]`, which yields each as soon as it is
measured; `smoke` makes it as short as it can be and still run. What a whole benchmark can't do without, it asks for by
raising Unavailable; what only one line needs (Debian's Alertmanager, say) is a Missing in its place.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Found = TypeVar("Found")


class Unavailable(Exception):
    """The benchmark can't run here; the message says what it lacks."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What is aimed at: of the ratio to the baseline, or of our own value where `of` says so."""

    bound: Literal["at least", "at most"]
    value: float
    of: Literal["ratio", "value"] = "ratio"

    def met(self, found: float) -> bool:
        return found >= self.value if self.bound == "at least" else found <= self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table: what we did and what the baseline did, round by round, in the same unit."""

    path: str
    """The row of the table it belongs to: intake, record, mail, …"""
    work: str
    baseline: str
    ours: Sequence[float]
    theirs: Sequence[float]
    unit: str = "/s"
    goal: Goal | None = None

    @property
    def ratios(self) -> list[float]:
        """Ours to the baseline's, of the rounds that ran side by side."""
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
        """One line, for whoever waits for the run."""
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
    """A line of the table that could not be measured here, and why."""

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
    """What each contender measures, all of them once a round: whatever disturbs the machine disturbs all."""
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
