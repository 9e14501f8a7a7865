"""`dispatcher demo`: runs the real service through a simulated day. A local inbox receives the messages."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli._output import console


def demo(
    once: Annotated[
        bool,
        typer.Option("--once", help="Exit at the end: status 0 if exactly the expected messages arrived, otherwise 1."),
    ] = False,
    port: Annotated[int, typer.Option(help="Port of the inbox's web page.", show_default="a free one")] = 0,
) -> None:
    """Run a simulated day of a team. Prints each event, the decision about the event, and each message that arrives in
    the local inbox.
    """
    from dispatcher.errors import DispatcherError
    from dispatcher.observability import logs
    from dispatcher.runtime import event_loop

    try:
        from dispatcher.demo.show import Show
    except ModuleNotFoundError as error:
        command = "pip install 'flyte-notification-dispatcher[demo]'"
        raise DispatcherError(f"the demo needs {error.name}, which production does not: {command}") from None
    logs.configure("auto", level=40)
    if not event_loop.run(Show(console(), port=port).run(once=once)):
        raise typer.Exit(1)
