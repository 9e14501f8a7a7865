"""`dispatcher demo`: the main job on embedded defaults, with an inbox to look into."""

from __future__ import annotations

from typing import Annotated

import typer


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="End by itself: status 0 when all that was owed arrived, and nothing else.")
    ] = False,
    port: Annotated[int, typer.Option(help="Of the inbox's page.", show_default="a free one")] = 0,
) -> None:
    """Show a day in the life of a team. Each event, the decision, and each delivery in a local inbox."""
    from dispatcher.cli._output import console
    from dispatcher.errors import DispatcherError
    from dispatcher.observability import logs
    from dispatcher.runtime import event_loop

    try:
        from dispatcher.demo.show import Show
    except ModuleNotFoundError as error:
        wanted = "pip install 'flyte-notification-dispatcher[demo]'"
        raise DispatcherError(f"the demo needs {error.name}, which production does not: {wanted}") from None
    logs.configure("auto", level=40)
    if not event_loop.run(Show(console, port=port).run(once=once)):
        raise typer.Exit(1)
