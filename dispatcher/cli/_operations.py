"""What commands share that change the ledger: who runs them and why, and the table of such actions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli._output import time_text, write_table

if TYPE_CHECKING:
    from dispatcher.intake.pipeline import Intake
    from dispatcher.ledger import Ledger
    from dispatcher.operations import Operations, Operator

As = Annotated[
    str | None,
    typer.Option(
        "--as",
        help="Your name, which the ledger keeps with the action; without it, the name of the operating system's user.",
        show_default=False,
    ),
]
Reason = Annotated[
    str, typer.Option("--reason", help="Why you do this; the ledger keeps it with the action.", show_default=False)
]


def operations(ledger: Ledger, intake: Intake | None = None) -> Operations:
    """Return the operations on an open ledger."""
    from dispatcher.clock import SystemClock
    from dispatcher.operations import Operations

    return Operations(ledger, intake, SystemClock())


def operator(name: str | None, reason: str) -> Operator:
    """Return who runs the command: `name`, or else who logged in to the terminal, or else the process's user."""
    import os
    import pwd

    from dispatcher.operations import MAX_REASON, Operator

    if len(reason) > MAX_REASON:
        raise typer.BadParameter(f"--reason may have {MAX_REASON} characters")
    if name is None:
        try:
            name = os.getlogin()
        except OSError:  # there is no terminal, for example in a container
            try:
                name = pwd.getpwuid(os.getuid()).pw_name
            except KeyError:
                name = f"user {os.getuid()}"
    return Operator(f"{name} (command line)", reason)


def write_actions(actions: Iterable[Mapping[str, Any]]) -> None:
    """Print a table of actions, in the form of `explain.delivery_with_history`."""
    write_table(
        ("ACTION", "AT (UTC)", "BY", "ABOUT", "REASON"),
        [(one["what"], time_text(one["at"]), one["who"], one["scope"], one["why"]) for one in actions],
    )
