"""docs/architecture.md names functions and files that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
STEP = re.compile(r"^\| \w* ?\w* ?\| `([\w.]+)` \| `([\w/.*]+)` \|", re.MULTILINE)


def functions(file: Path) -> Iterator[str]:
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef):
            for one in node.body:
                if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield from (f"{node.name}.{one.name}", one.name)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def test_the_walk_of_an_event_names_functions_that_exist_and_no_file_twice() -> None:
    steps = STEP.findall(PAGE)
    assert len(steps) == PAGE.partition("The ledger is a transactional outbox")[0].count(".py` |")
    assert len({file for _, file in steps}) == len(steps)
    for function, path in steps:
        for file in ROOT.glob(path):
            assert function in functions(file), (function, file)


def test_every_file_that_the_page_names_exists() -> None:
    to_come = "channels/mattermost/channel.py"
    named = set(re.findall(r"`((?:dispatcher|channels)/[\w/.*]+)`", PAGE)) - {to_come}
    assert len(named) > 30
    assert [path for path in named if not list(ROOT.glob(path))] == []
