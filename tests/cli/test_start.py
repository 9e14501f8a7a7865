"""Help and shell completion must be fast: they import none of the slow modules."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

SLOW = {
    "aiohttp",
    "aiokafka",
    "aiosmtplib",
    "alembic",
    "asyncio",
    "flyteidl",
    "google.protobuf",
    "grpc",
    "jinja2",
    "orjson",
    "pdpyras",
    "rich",
    "slack_sdk",
    "sqlalchemy",
    "starlette",
    "structlog",
    "uvicorn",
    "yaml",
}
"""Each of them takes longer to import than printing the help takes."""
COMMANDS = [
    ["serve"],
    ["check"],
    ["publish"],
    ["preview"],
    ["send-test"],
    ["explain"],
    ["demo"],
    ["reconcile"],
    ["import-flyteadmin"],
    ["deliveries"],
    ["deliveries", "list"],
    ["rejected", "replay"],
    ["templates", "lint"],
]


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> tuple[str, set[str]]:
    """The command's output, and the modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dispatcher", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, **(environment or {})},
    )
    lines = done.stderr.splitlines()
    return done.stdout, {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


def test_help_imports_no_slow_module() -> None:
    text, imported = run("--help")
    assert "deliveries" in text
    assert "dispatcher.cli.deliveries" in imported
    assert not imported & (SLOW | {"pydantic"})


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_commands_help_imports_no_slow_module(command: list[str]) -> None:
    """Pydantic is allowed: Typer reads a command's parameters with it."""
    text, imported = run(*command, "--help")
    assert "Usage:" in text
    assert not imported & SLOW


def test_a_preview_imports_neither_kafka_nor_the_database(tmp_path: Path) -> None:
    _, imported = run("preview", "--channel", "slack", "--output", str(tmp_path / "slack.json"))
    assert "dispatcher.rendering.renderer" in imported
    assert not imported & {"aiokafka", "sqlalchemy"}


@pytest.mark.parametrize(
    ("shell", "typed"),
    [
        ("bash", {"COMP_WORDS": "dispatcher del", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "dispatcher del"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "dispatcher del", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_shell_completion_imports_no_slow_module(shell: str, typed: Mapping[str, str]) -> None:
    """Rich is allowed: Typer removes markup with it for zsh and fish."""
    text, imported = run(environment={**typed, "_DISPATCHER_COMPLETE": f"complete_{shell}"})
    assert "deliveries" in text
    assert "demo" not in text
    assert not imported & (SLOW - {"rich"})
