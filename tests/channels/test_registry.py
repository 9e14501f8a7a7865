"""All that the dispatcher knows of a channel is in the channel's folder."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

from channels.registry import BUILT_IN, CHANNEL_TYPES

ROOT = Path(__file__).parents[2]
NAMING = {
    "dispatcher/demo": "the demo shows the built-in channels",
    "dispatcher/model/notification.py": "the fields of Flyte's notifications, and of rule files",
    "dispatcher/web/auth/oidc.py": "`email` is a claim of OpenID Connect",
    "dispatcher/web/config.py": "`email` is a scope of OpenID Connect",
}
"""Files and folders that may name a channel, and why."""
PAGE = ROOT / "docs" / "channels.md"
BEGIN, END = "<!-- outcomes: written by the tests -->\n", "<!-- end -->\n"


def _files() -> Iterator[Path]:
    for file in sorted((ROOT / "dispatcher").rglob("*")):
        naming = any(file.is_relative_to(ROOT / path) for path in NAMING)
        if file.suffix in {".py", ".j2", ".html", ".js"} and not naming:
            yield file


def _strings(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        yield from (str(node.value) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    else:
        yield from (found[1] or found[2] for found in re.finditer(r"\"([^\"\n]*)\"|'([^'\n]*)'", text))


def test_no_code_outside_channels_names_a_channel() -> None:
    names = {(str(file.relative_to(ROOT)), name) for file in _files() for name in _strings(file) if name in BUILT_IN}
    assert names == set(), "ask the ChannelType instead"


def test_the_pages_table_of_outcomes_equals_the_channels() -> None:
    """REWRITE_SNAPSHOTS=1 rewrites the table."""
    rows = "".join(CHANNEL_TYPES[name].outcomes.lstrip() for name in BUILT_IN)
    table = f"| provider | sent | later | never | in doubt |\n|---|---|---|---|---|\n{rows}"
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    written = f"{before}{BEGIN}{table}{END}{rest.partition(END)[2]}"
    if os.environ.get("REWRITE_SNAPSHOTS"):
        PAGE.write_text(written, encoding="utf-8")
    assert written == PAGE.read_text(encoding="utf-8")
