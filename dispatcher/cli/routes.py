"""`dispatcher routes`: lists the routes in effect, and finds what is wrong with them. `routes_trial` tries them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli._dry_run import rules_in_files
from dispatcher.cli._options import AsJson, Config
from dispatcher.cli._output import number_text, write_json, write_line, write_table

if TYPE_CHECKING:
    from dispatcher.rules import Route

routes = typer.Typer(help="List, check or try routes.", no_args_is_help=True)


@routes.command("list")
def list_(
    recipient: Annotated[
        str | None, typer.Option(help="Only routes to this contact or recipient.", show_default=False)
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List the routes in effect, in the order in which they apply, with the file and line of each."""
    from dispatcher.config.settings import load
    from dispatcher.filters import of_recipient
    from dispatcher.rules.matcher_words import in_words
    from dispatcher.runtime.wiring import make_contacts

    settings = load(config)
    found = [*of_recipient(rules_in_files(settings).routes.routes, recipient, make_contacts(settings))]
    if as_json:
        write_json([route.as_data() for route in found])
        return
    write_table(
        ("ROUTE", "MATCHES", "NOTIFIES", "OPTIONS", "DEFINED AT"),
        [(one.name, in_words(one.match), _notified(one), _options(one), one.defined_at) for one in found],
        head=1,
    )


def _notified(route: Route) -> str:
    notifications = [rule.notification for rule in route.rules]
    return ", ".join(f"{one.channel}: {to}" if one.channel else to for one in notifications for to in one.recipients)


def _options(route: Route) -> str:
    waits = f"waits for {route.awaited}" if route.streak else ""
    quiet = f"quiet hours {route.quiet}" if route.quiet is not None else ""
    rest = ("stops" if route.stop else "", "replaces Flyte's rules" if route.replaces else "", quiet)
    given = (route.severity, waits, *rest)
    return ", ".join(filter(None, given))


@routes.command()
def lint(config: Config = None, as_json: AsJson = False) -> None:
    """Find what is wrong with routes and contacts: routes that can't match or are never reached, recipients that no
    channel can reach, contacts that nobody uses, and quiet hours and digests without effect.

    Prints each problem with file and line. Exit status 1 if there is a problem. A contact that something outside the
    files may name, such as a rule in FlyteAdmin, and quiet hours whose dates are over, are only warnings.
    """
    from dispatcher.clock import SystemClock
    from dispatcher.config.settings import load
    from dispatcher.runtime.lint import lint as findings_of

    findings = [*findings_of(load(config), SystemClock().now().date())]
    problems = [one for one in findings if not one.warning]
    if as_json:
        results = [("warning" if one.warning else "problem", one.message) for one in findings]
        write_json({"findings": [{"result": result, "message": message} for result, message in results]})
    else:
        for one in findings:
            write_line(f"{one.message}{' (warning)' if one.warning else ''}", err=True)
    if problems:
        write_line(f"{number_text(len(problems), 'problem')} found", err=True)
        raise typer.Exit(1)
    if not as_json:
        write_line("routes  ok")
