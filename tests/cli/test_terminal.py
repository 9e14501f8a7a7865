"""What commands print on a terminal of 80 columns."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from channels.contract import Answer
from dispatcher.cli._layout import details, stacked
from dispatcher.cli._output import KEY_DIGITS, age_text
from dispatcher.ledger import Filter
from dispatcher.model.delivery import Retry
from tests.support import terminal
from tests.support.builders import NOW, SECOND
from tests.support.console import DEAD, serve_console

WORDS = st.text("abc/-", min_size=1, max_size=90)
CELLS = st.lists(WORDS, max_size=6).map(" ".join)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=4), st.integers(30, 119))
def test_no_word_is_broken_or_lost_at_any_width(rows: list[tuple[str, str, str]], width: int) -> None:
    cells = [[Text(cell) for cell in row] for row in rows]
    lines = [line.plain for line in stacked(("A", "B", "C"), cells, head=2, width=width)]
    expected = [
        word for row in rows for word in [*row[0].split(), *row[1].split(), *(f"c {row[2]}".split() if row[2] else [])]
    ]
    assert [word for line in lines for word in line.split()] == expected
    for line in lines:
        assert len(line) <= width or max(map(len, line.split())) > width - 30, line
    named = [
        line.plain for line in details([(f"n{at}", Text(row[0] or "-")) for at, row in enumerate(rows)], width=width)
    ]
    assert [word for line in named for word in line.split()] == [
        word for at, row in enumerate(rows) for word in (f"n{at}", *(row[0].split() or ["-"]))
    ]


@pytest.mark.parametrize(
    ("age", "shown"),
    [
        (timedelta(), "0 s ago"),
        (timedelta(seconds=119), "119 s ago"),
        (timedelta(minutes=5), "5 min ago"),
        (timedelta(hours=47), "47 h ago"),
        (timedelta(days=3), "3 d ago"),
        (-timedelta(minutes=2), "in 2 min"),
    ],
)
def test_a_time_is_shown_relative_to_now(age: timedelta, shown: str) -> None:
    assert age_text(NOW - age, now=NOW) == shown


async def test_a_failed_execution_with_three_channels_is_explained_in_few_lines_of_80_columns(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    async with serve_console(url) as console:
        event = await console.finish("akx7b9q2vjt5fm4c8h2d", channels=["slack", "email", "pagerduty"])
        for _ in range(5):
            busy = Retry(console.clock.now() + 60 * SECOND, "busy", Answer("503", "Service Unavailable"))
            await console.deliver("slack", busy)
            console.clock.advance(60 * SECOND)
        for channel, outcome in (("slack", None), ("email", DEAD), ("pagerduty", None)):
            await console.deliver(channel, outcome)
        keys = [one.delivery.key for one in await console.ledger.history.find(Filter(), limit=9)]
    config = tmp_path / "dispatcher.yaml"
    config.write_text(yaml.safe_dump({"http": {}, "ledger": {"url": url}}))
    commands = [["explain", str(event.execution)], ["deliveries", "list"], ["executions", "list"]]
    written = await terminal.run([[*one, "--config", str(config)] for one in commands], {"COLUMNS": "80"})
    explained, deliveries, executions = (re.sub(r"\x1b\[[\d;]*m|\r", "", one.terminal) for one in written)

    assert len(explained.splitlines()) < 45
    assert "retry 5 × 503 Service Unavailable: busy, last " in explained  # noqa: RUF001
    for output in (explained, executions):
        assert str(event.execution) in output.split()
    assert deliveries.count(event.key) == 3
    for key in keys:
        assert key[:KEY_DIGITS] in deliveries.split()
    for output in (explained, deliveries, executions):
        assert max(map(len, output.splitlines())) <= 80
        assert " ago" in output
    for output in (written[1].pipe, written[2].pipe):  # one line for each record, for programs
        assert len(output.splitlines()) == 1 + output.count(str(event.execution))


async def test_every_command_has_the_short_option_for_help() -> None:
    for command in ([], ["deliveries"], ["deliveries", "list"], ["rules", "who"]):
        assert await terminal.invoke(*command, "-h") == await terminal.invoke(*command, "--help")
