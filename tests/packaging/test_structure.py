"""Rules about the repository's own modules that import-linter can't express."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_no_test_module_imports_another() -> None:
    """What two test modules need is in tests/support/, or in a module beside them that has no tests."""
    for file in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                last = node.module.rpartition(".")[2]
                assert not (node.module.startswith("tests.") and last.startswith("test_")), (file, node.module)
