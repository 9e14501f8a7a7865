"""The options that choose an event for a command, and the event that they name."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli._open_ledger import open_ledger

if TYPE_CHECKING:
    from dispatcher.config.settings import Settings
    from dispatcher.model.event import Event, ExecutionId

EventFile = Annotated[
    Path | None,
    typer.Option(
        "--event", help="Use the event in this file, not a sample.", exists=True, dir_okay=False, show_default=False
    ),
]
OfExecution = Annotated[
    str,
    typer.Option(
        "--execution",
        help="Use this finished execution (project/domain/name): from FlyteAdmin if rules.flyte_admin is set, else from "
        "the ledger.",
    ),
]
SamplePhase = Annotated[
    str, typer.Option("--phase", help="The sample execution's phase: SUCCEEDED, FAILED, ABORTED or TIMED_OUT.")
]
_NOT_TERMINAL = "{} is not a terminal phase: use SUCCEEDED, FAILED, ABORTED or TIMED_OUT"


def chosen_event(
    settings: Settings, file: Path | None, execution: str, phase: str, *, finished: datetime | None = None
) -> Event:
    """Return the event of a finished execution, the event in a file, or else the sample event of a phase.

    `finished`: when the sample execution finished; None for a fixed time.

    Raises typer.BadParameter if there is no such event, or if its phase is not terminal.
    """
    from dispatcher.flyte.event_files import read_event_file
    from dispatcher.model.event import ExecutionId
    from dispatcher.model.phase import Phase
    from dispatcher.rendering.samples import sample_event

    if execution and file is not None:
        raise typer.BadParameter("give --event or --execution, not both")
    try:
        wanted = Phase.parse(phase)
        identity = ExecutionId.parse(execution) if execution else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if identity is not None:
        return require_terminal(_of_execution(settings, identity))
    if file is not None:
        return require_terminal(read_event_file(file))
    if not wanted.terminal:
        raise typer.BadParameter(_NOT_TERMINAL.format(wanted))
    return sample_event(wanted, finished=finished)


def require_terminal(event: Event) -> Event:
    """Return the event. Raises BadParameter if its phase is not terminal."""
    if not event.phase.terminal:
        raise typer.BadParameter(_NOT_TERMINAL.format(event.phase))
    return event


def _of_execution(settings: Settings, identity: ExecutionId) -> Event:
    import asyncio

    from dispatcher.clock import SystemClock
    from dispatcher.runtime.wiring import configured_flyte_admin

    async def ask() -> Event:
        async with configured_flyte_admin(settings, SystemClock()) as admin:
            return await admin.event(identity) if admin is not None else await _recorded(settings, identity)

    return asyncio.run(ask())


async def _recorded(settings: Settings, identity: ExecutionId) -> Event:
    """Return the execution's last event in the ledger."""
    from dispatcher.errors import DispatcherError

    try:
        async with open_ledger(settings.ledger) as ledger:
            recorded = await ledger.history.events(identity)
    except DispatcherError as error:
        raise DispatcherError(f"without rules.flyte_admin, --execution reads the ledger: {error}") from None
    if not recorded:
        raise typer.BadParameter(f"the ledger has no event of {identity}, and rules.flyte_admin is not set")
    return recorded[-1].event
