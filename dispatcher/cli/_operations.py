"""What commands share that change the ledger: who runs them and why, and the table of such actions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli._output import time_text, write_table, write_text

if TYPE_CHECKING:
    from dispatcher.intake.pipeline import Intake
    from dispatcher.ledger import Ledger
    from dispatcher.operations import Operations, Operator

By = Annotated[
    str | None,
    typer.Option("--by", help="Your name, which the ledger keeps with the action.", show_default="USER@HOST"),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, as in a script.")]
Reason = Annotated[
    str, typer.Option("--reason", help="Why you do this; the ledger keeps it with the action.", show_default=False)
]


def operations(ledger: Ledger, intake: Intake | None = None) -> Operations:
    """Return the operations on an open ledger."""
    from dispatcher.clock import SystemClock
    from dispatcher.operations import Operations

    return Operations(ledger, intake, SystemClock())


def operator(name: str | None, reason: str) -> Operator:
    """Return who runs the command: `name`, or else the user of the terminal or the process, and the host."""
    from dispatcher.operations import MAX_REASON, Operator

    if len(reason) > MAX_REASON:
        raise typer.BadParameter(f"--reason may have {MAX_REASON} characters")
    return Operator(name or _user_at_host(), reason)


def _user_at_host() -> str:
    import os
    import pwd
    import socket

    try:
        user = os.getlogin()
    except OSError:  # there is no terminal, for example in a container
        try:
            user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def asks(*, yes: bool) -> bool:
    """True if a command asks before it changes something: on a terminal, without `--yes`."""
    import sys

    return not yes and sys.stdin.isatty()


def confirm(question: str) -> None:
    """Ask a question, and end the command with status 1 unless the answer is yes."""
    import sys

    write_text(f"{question} [y/N] ", err=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise typer.Abort


def write_actions(actions: Iterable[Mapping[str, Any]]) -> None:
    """Print a table of actions, in the form of `explain.delivery_with_history`."""
    write_table(
        ("ACTION", "AT (UTC)", "BY", "ABOUT", "REASON"),
        [(one["what"], time_text(one["at"]), one["who"], one["scope"], one["why"]) for one in actions],
    )
