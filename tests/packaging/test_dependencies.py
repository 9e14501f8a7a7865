"""Every package that the code imports is declared in pyproject.toml, not only installed by another package."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWN = ("dispatcher", "channels")


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = chain(project["dependencies"], *project["optional-dependencies"].values())
    return {normal(requirement) for requirement in requirements}


def normal(requirement: str) -> str:
    """The name in a requirement, written as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def imported() -> Iterator[str]:
    """The name of each top-level module that is imported."""
    for file in chain.from_iterable((ROOT / folder).rglob("*.py") for folder in OWN):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (name.name.partition(".")[0] for name in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                yield node.module.partition(".")[0]


def test_every_imported_package_is_declared() -> None:
    owners, known = packages_distributions(), declared()
    foreign = set(imported()) - sys.stdlib_module_names - {*OWN}
    assert "slack_sdk" in foreign
    assert {name for name in foreign if not known & {normal(owner) for owner in owners.get(name, ())}} == set()
