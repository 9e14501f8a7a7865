"""The `dispatcher` command. Each subcommand has its own module, which imports slow modules only when it runs."""

from __future__ import annotations

import io
import sys
from typing import Any, cast

import typer

from dispatcher.cli._output import prepare_streams, write_line, write_text
from dispatcher.cli.check import check
from dispatcher.cli.contacts import contacts
from dispatcher.cli.deliveries import deliveries
from dispatcher.cli.deliveries_change import add_commands
from dispatcher.cli.demo import demo
from dispatcher.cli.executions import executions
from dispatcher.cli.explain import explain
from dispatcher.cli.import_flyteadmin import import_flyteadmin
from dispatcher.cli.ledger import ledger
from dispatcher.cli.preview import preview
from dispatcher.cli.publish import publish
from dispatcher.cli.reconcile import reconcile
from dispatcher.cli.rejected import rejected
from dispatcher.cli.routes import routes
from dispatcher.cli.routes_trial import try_routes
from dispatcher.cli.rules import rules
from dispatcher.cli.send_test import send_test
from dispatcher.cli.serve import serve
from dispatcher.cli.silences import silences
from dispatcher.cli.templates import templates
from dispatcher.errors import DispatcherError, InvalidSettings
from dispatcher.version import __version__

app = typer.Typer(
    name="dispatcher",
    help="Delivers Flyte's notifications by mail, Slack, PagerDuty, Teams and webhooks, and records what became of each one.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # subcommands inherit it
    rich_markup_mode=None,  # the default imports Rich, which would take most of the time of --help
)


def _show_version(wanted: bool) -> None:
    if wanted:
        write_line(f"dispatcher {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    del version


app.command()(serve)
app.command()(check)
app.command()(publish)
app.command()(preview)
app.command("send-test")(send_test)
app.command()(explain)
app.command()(demo)
app.add_typer(executions, name="executions")
add_commands(deliveries)
app.add_typer(deliveries, name="deliveries")
app.add_typer(rejected, name="rejected")
app.add_typer(silences, name="silences")
app.add_typer(rules, name="rules")
routes.command("test")(try_routes)
app.add_typer(routes, name="routes")
app.add_typer(contacts, name="contacts")
app.add_typer(templates, name="templates")
app.add_typer(ledger, name="ledger")
app.command()(reconcile)
app.command("import-flyteadmin")(import_flyteadmin)


def main() -> None:
    """Run the command line. For a `DispatcherError`, print its message on standard error and exit with status 1.

    The message begins with `dispatcher: `. Problems of the settings begin with their file and line instead, as problems
    of rule files do.
    """
    prepare_streams()
    try:
        sys.exit(app(prog_name="dispatcher", standalone_mode=False))
    except typer.TyperException as error:
        shown = io.StringIO()
        cast("Any", error).show(shown)  # an error in the arguments; Typer shows it with the command's usage
        write_text(shown.getvalue(), err=True)
        sys.exit(error.exit_code)
    except typer.Abort:
        write_line("Aborted!", err=True)
        sys.exit(1)
    except InvalidSettings as error:  # each line begins with its place
        write_text(f"{error}\n", err=True)
        sys.exit(1)
    except DispatcherError as error:
        write_text(f"dispatcher: {error}\n", err=True)
        sys.exit(1)
    except ExceptionGroup as group:
        problems = group.split(DispatcherError)
        if problems[1] is not None or problems[0] is None:
            raise
        for problem in _leaves(problems[0]):
            write_text(f"dispatcher: {problem}\n", err=True)
        sys.exit(1)


def _leaves(group: BaseException) -> list[BaseException]:
    return (
        [leaf for part in group.exceptions for leaf in _leaves(part)] if isinstance(group, ExceptionGroup) else [group]
    )
