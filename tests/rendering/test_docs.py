"""docs/templates.md has the code's variables and limits. REWRITE_SNAPSHOTS=1 rewrites its table of variables."""

from __future__ import annotations

import os
from pathlib import Path

from dispatcher.model.phase import Phase
from dispatcher.rendering import template_process
from dispatcher.rendering.context import context_of
from dispatcher.rendering.documents import MAX_VALUES
from dispatcher.rendering.samples import sample_event
from dispatcher.rendering.variables import variables

PAGE = Path(__file__).parents[2] / "docs" / "templates.md"
BEGIN, END = "<!-- variables: written by the tests -->\n", "<!-- end -->\n"


def test_the_pages_table_of_variables_equals_the_codes() -> None:
    example = context_of(sample_event(Phase.FAILED), "")
    rows = [f"| `{variable.name}` | {variable.type} | {variable.meaning} |" for variable in variables(example)]
    table = "\n".join(["| variable | type | meaning |", "|---|---|---|", *rows, ""])
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    written = f"{before}{BEGIN}{table}{END}{after}"
    if os.environ.get("REWRITE_SNAPSHOTS"):
        PAGE.write_text(written, encoding="utf-8")
    assert written == PAGE.read_text(encoding="utf-8")


def test_the_pages_limits_equal_the_codes() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for limit in (
        f"| time | {template_process.CPU_LIMIT:g} s of processor time; {template_process.TIME_LIMIT:g} s in all,",
        f"| memory | {template_process.MEMORY_LIMIT // 2**20} MiB ",
        f"| a message as JSON | {template_process.MAX_REPLY // 2**20} MiB |",
        f"| values in a YAML document | {MAX_VALUES:,},",
    ):
        assert limit in text
