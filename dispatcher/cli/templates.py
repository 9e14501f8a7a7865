"""`dispatcher templates`: copies the built-in templates, lists the template variables, and checks templates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dispatcher.cli._choices import CHANNELS
from dispatcher.cli._options import AsJson, Config
from dispatcher.cli._output import number_text, write_json, write_line, write_table

templates = typer.Typer(
    name="templates",
    help="Copy or check templates, or list their variables.",
    no_args_is_help=True,
)


@templates.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder for your templates.", show_default=False)],
    channels: Annotated[
        list[str] | None,
        typer.Option(
            "--channel",
            help="Copy this channel's templates only. Can be repeated.",
            metavar=CHANNELS,
            show_default="all channels",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy the built-in templates to a folder of your own.

    Replaces no file: if one of the files exists, nothing is copied, and the exit status is 1. Delete the copies that you
    don't change: the built-in templates then apply, and improve with each version.
    """
    import shutil

    from channels.registry import CHANNEL_TYPES
    from dispatcher.errors import DispatcherError
    from dispatcher.parsing.nearest import no_such
    from dispatcher.rendering.folders import Templates, built_in_files

    files: dict[Path, Path] = {}
    for channel in channels or CHANNEL_TYPES:
        if channel not in CHANNEL_TYPES:
            raise typer.BadParameter(no_such("channel", channel, CHANNEL_TYPES))
        copies = built_in_files(Templates.of(channel, CHANNEL_TYPES[channel]))
        files |= {folder / name: source for name, source in copies.items()}
    if existing := [str(file) for file in files if file.exists()]:
        raise DispatcherError(f"nothing was copied, because there is already {', '.join(existing)}")
    try:
        for file, source in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, file)
    except OSError as error:
        raise DispatcherError(f"{error.filename} can't be written: {error.strerror}") from None
    if as_json:
        write_json({"files": [*map(str, files)]})
        return
    for file in files:
        write_line(str(file))
    write_line(f"add them to the settings: templates: {{path: [{folder}]}}")
    write_line("edit them beside a preview: dispatcher preview --serve")


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
        typer.Argument(
            metavar="DIR",
            help="Template folders to check; if none is given, those in the settings.",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Find problems in templates. Checks the syntax, the variables and the channels' limits. Reports missing parts, and
    HTML and CSS that mail programs don't support.

    Prints each problem with file and line. Exit status 1 if there is a problem.
    """
    from dataclasses import asdict

    from channels.registry import CHANNEL_TYPES
    from dispatcher.config.settings import load
    from dispatcher.parsing.yaml import readable
    from dispatcher.rendering.renderer import Renderer
    from dispatcher.runtime.wiring import make_renderer

    renderer = Renderer(CHANNEL_TYPES, folders) if folders else make_renderer(load(config))
    problems = [*renderer.check(), *renderer.mail_client_problems()]
    if as_json:
        write_json({"problems": [{**asdict(one), "file": readable(one.file)} for one in problems]})
    else:
        for problem in problems:
            write_line(str(problem), err=True)
    if problems:
        write_line(f"{number_text(len(problems), 'problem')} found", err=True)
        raise typer.Exit(1)
    if not as_json:
        write_line("templates  ok")
