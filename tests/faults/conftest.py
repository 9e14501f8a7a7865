"""What every proof uses: its dice, and a place for its figures."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

_FIGURES = "figures"


@pytest.fixture
def seed() -> int:
    """FAULT_SEED, or another one each time; a failure shows it."""
    drawn = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(10**6))
    print(f"FAULT_SEED={drawn}")
    return drawn


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.fixture
def figures(seed: int, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say what was measured, on one line; it is shown at the end of the run, whether the proof holds or not."""
    name = request.node.path.stem.removeprefix("test_")

    def tell(line: str) -> None:
        request.node.user_properties.append((_FIGURES, f"{name}: {line}; seed {seed}"))

    return tell


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for key, value in report.user_properties if report.when == "call" else ():
                if key == _FIGURES:
                    terminalreporter.write_line(f"FIGURES {outcome} {value}")
