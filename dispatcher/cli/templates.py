"""`dispatcher templates`: lists the template variables, and checks templates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dispatcher.cli._options import AsJson, Config
from dispatcher.cli._output import write_json, write_line, write_table

templates = typer.Typer(
    name="templates", help="List template variables, or check your own templates.", no_args_is_help=True
)


@templates.command()
def variables(as_json: AsJson = False) -> None:
    """List template variables. Prints the type, the meaning and an example of each variable."""
    from dataclasses import asdict

    from dispatcher.model.phase import Phase
    from dispatcher.rendering.context import context_of
    from dispatcher.rendering.samples import sample_event
    from dispatcher.rendering.variables import variables as every

    found = list(every(context_of(sample_event(Phase.FAILED), "")))
    if as_json:
        write_json([asdict(variable) for variable in found])
    else:
        rows = [(one.name, one.type, one.meaning, one.example) for one in found]
        write_table(("VARIABLE", "TYPE", "MEANING", "EXAMPLE"), rows)


@templates.command()
def lint(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Template folders to check; if none is given, those in the settings.", show_default=False),
    ] = None,
    config: Config = None,
) -> None:
    """Find problems in templates. Checks the syntax, the variables and the channels' limits. Reports missing parts, and
    HTML and CSS that mail programs don't support.

    Prints each problem with file and line. Exit status 1 if there is a problem.
    """
    from channels.registry import CHANNEL_TYPES
    from dispatcher.config.settings import load
    from dispatcher.rendering.renderer import Renderer
    from dispatcher.runtime.wiring import make_renderer

    renderer = Renderer(CHANNEL_TYPES, folders) if folders else make_renderer(load(config))
    problems = [*renderer.check(), *renderer.mail_client_problems()]
    for problem in problems:
        write_line(str(problem), err=True)
    if problems:
        write_line("1 problem found" if len(problems) == 1 else f"{len(problems)} problems found", err=True)
        raise typer.Exit(1)
    write_line("templates  ok")
