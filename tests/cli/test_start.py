"""Help and completion at once: what a question about the command line must not wait for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

HEAVY = {
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
"""What each takes longer to import than the answer takes to write."""
COMMANDS = [
    ["serve"],
    ["check"],
    ["publish"],
    ["preview"],
    ["send-test"],
    ["explain"],
    ["demo"],
    ["reconcile"],
    ["import"],
    ["deliveries"],
    ["deliveries", "list"],
    ["rejected", "replay"],
    ["templates", "lint"],
]


def ask(*arguments: str, environment: Mapping[str, str] | None = None) -> tuple[str, set[str]]:
    """What the command writes, and the modules that it imported for it."""
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


def test_help_imports_nothing_heavy() -> None:
    text, imported = ask("--help")
    assert "deliveries" in text
    assert "dispatcher.cli.deliveries" in imported
    assert not imported & (HEAVY | {"pydantic"})


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_commands_help_imports_nothing_heavy(command: list[str]) -> None:
    """Typer reads a command's parameters by pydantic: that much it takes."""
    text, imported = ask(*command, "--help")
    assert "Usage:" in text
    assert not imported & HEAVY


@pytest.mark.parametrize(
    ("shell", "typed"),
    [
        ("bash", {"COMP_WORDS": "dispatcher del", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "dispatcher del"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "dispatcher del", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_a_shell_completes_commands_and_imports_nothing_heavy(shell: str, typed: Mapping[str, str]) -> None:
    """Typer takes markup out of what zsh and fish show, by Rich: that much it takes."""
    text, imported = ask(environment={**typed, "_DISPATCHER_COMPLETE": f"complete_{shell}"})
    assert "deliveries" in text
    assert "demo" not in text
    assert not imported & (HEAVY - {"rich"})
