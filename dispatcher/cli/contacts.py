"""`dispatcher contacts`: lists the contacts in the settings."""

from __future__ import annotations

import typer

from dispatcher.cli._options import AsJson, Config
from dispatcher.cli._output import write_json, write_line, write_table

contacts = typer.Typer(help="List contacts.", no_args_is_help=True)


@contacts.callback()
def _group() -> None:
    """Keep `list` a subcommand of its own, although it is the only one."""


@contacts.command("list")
def list_(config: Config = None, as_json: AsJson = False) -> None:
    """List the contacts: who each one is, with the contacts that it includes, and where the settings have it."""
    from dispatcher.config.settings import load
    from dispatcher.runtime.wiring import make_contacts

    settings = load(config)
    found = make_contacts(settings)
    for problem in found.problems:
        write_line(settings.located(problem), err=True)
    if as_json:
        write_json(found.as_data())
        return
    write_table(
        ("CONTACT", "RECIPIENTS", "INCLUDES", "OPTIONS", "DEFINED AT"),
        [
            (
                one["name"],
                ", ".join(f"{to['channel']}: {to['recipient']}" for to in one["everybody"]),
                ", ".join(one["include"]),
                ", ".join(one["options"]),
                one["defined_at"],
            )
            for one in found.as_data()
        ],
    )
