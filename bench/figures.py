"""What a benchmark finds: figures beside a baseline of the same run, and the table that they make.

A benchmark is a module with `figures(rounds, *, smoke) -> Iterable[Figure]`; `smoke` makes it as short as it can be and still run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


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


def interleaved(rounds: int, contenders: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """What each contender measures, all of them once a round: whatever disturbs the machine disturbs all."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            found[name].append(measure())
    return found


def as_markdown(figures: Iterable[Figure]) -> str:
    """The table, for docs/performance.md."""
    lines = [
        "| path | work | baseline | ours | baseline's | ratio (lowest to highest) | goal | |",
        "|---|---|---|---:|---:|---:|---|---|",
    ]
    for one in figures:
        ours, theirs = (f"{_short(statistics.median(values))}{one.unit}" for values in (one.ours, one.theirs))
        spread = f"{one.ratio:.2f} ({min(one.ratios):.2f} to {max(one.ratios):.2f})"
        goal = ""
        if one.goal is not None:
            goal = f"{one.goal.bound} {one.goal.value:g}{one.unit if one.goal.of == 'value' else ''}"
        verdict = {True: "met", False: "missed", None: ""}[one.met]
        lines.append(
            f"| {one.path} | {one.work} | {one.baseline} | {ours} | {theirs} | {spread} | {goal} | {verdict} |"
        )
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
