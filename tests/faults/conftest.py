"""Fixtures of the fault tests: the random seed, and a line of results."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

_FIGURES = "figures"


@pytest.fixture
def seed() -> int:
    """FAULT_SEED, or a new random seed, which a failure's output shows."""
    number = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(10**6))
    print(f"FAULT_SEED={number}")
    return number


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.fixture
def figures(seed: int, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A function that takes one line of results; the line is printed at the end of the run, also if the test fails."""
    name = request.node.path.stem.removeprefix("test_")

    def report(line: str) -> None:
        request.node.user_properties.append((_FIGURES, f"{name}: {line}; seed {seed}"))

    return report


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for key, value in report.user_properties if report.when == "call" else ():
                if key == _FIGURES:
                    terminalreporter.write_line(f"FIGURES {outcome} {value}")
