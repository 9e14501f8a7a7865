"""The options that choose an event for a command, and the event that they name."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli._choices import PHASES
from dispatcher.cli._input import event_in
from dispatcher.cli._open_ledger import open_ledger

if TYPE_CHECKING:
    from dispatcher.config.settings import Settings
    from dispatcher.model.event import Event, ExecutionId
    from dispatcher.model.phase import Phase

EventFile = Annotated[
    Path | None,
    typer.Option(
        "--event",
        help="Use the event in this file, not a sample; - is standard input.",
        dir_okay=False,
        show_default=False,
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
    str | None,
    typer.Option(
        "--phase",
        help="The sample execution's phase.",
        metavar=PHASES,
        show_default="FAILED; SUCCEEDED with --resolved",
    ),
]
Resolved = Annotated[
    bool,
    typer.Option("--resolved", help="Make the resolved notice that a success sends, as if after three failures."),
]


def chosen_event(
    settings: Settings,
    file: Path | None,
    execution: str,
    phase: str | None,
    *,
    resolved: bool,
    finished: datetime | None = None,
) -> Event:
    """Return the event of a finished execution, the event in a file, or else the sample event of a phase.

    `resolved`: the event must be a success, because the message is a resolved notice. `finished`: when the sample
    execution finished; None for a fixed time.

    Raises typer.BadParameter if there is no such event, or if its phase is not terminal.
    """
    from dispatcher.model.event import ExecutionId
    from dispatcher.model.phase import Phase
    from dispatcher.rendering.samples import sample_event

    if execution and file is not None:
        raise typer.BadParameter("give --event or --execution, not both")
    try:
        wanted = Phase.parse(phase or (Phase.SUCCEEDED if resolved else Phase.FAILED))
        identity = ExecutionId.parse(execution) if execution else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if identity is not None:
        event = _of_execution(settings, identity)
    elif file is not None:
        event = event_in(file)
    else:
        require_phase(wanted, resolved=resolved)
        return sample_event(wanted, finished=finished)
    require_phase(event.phase, resolved=resolved)
    return event


def require_phase(phase: Phase, *, resolved: bool) -> None:
    """Raise BadParameter if the phase is not terminal, or if a resolved notice is wanted and it is no success."""
    from dispatcher.model.phase import Phase

    if not phase.terminal:
        raise typer.BadParameter(f"{phase} is not a terminal phase: choose one of {PHASES}")
    if resolved and phase is not Phase.SUCCEEDED:
        raise typer.BadParameter(f"--resolved needs a success, and this phase is {phase}")


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
        async with open_ledger(settings) as ledger:
            recorded = await ledger.history.events(identity)
    except DispatcherError as error:
        raise DispatcherError(f"without rules.flyte_admin, --execution reads the ledger: {error}") from None
    if not recorded:
        raise typer.BadParameter(f"the ledger has no event of {identity}, and rules.flyte_admin is not set")
    return recorded[-1].event
