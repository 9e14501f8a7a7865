"""`dispatcher rules`: lists the rules in files, who would be notified of a launch plan, and owners who are not known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli._choices import PHASES
from dispatcher.cli._dry_run import dry_run, rules_in_files
from dispatcher.cli._filters import Filters, with_filters
from dispatcher.cli._open_ledger import with_ledger
from dispatcher.cli._options import AsJson, Config, Limit
from dispatcher.cli._output import log_warnings_only, when_text, write_json, write_line, write_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dispatcher.dry_run import LaunchPlanForecast
    from dispatcher.ledger import Filter
    from dispatcher.rules import PlanKey, Rule, RuleBook

rules = typer.Typer(help="List rules, or say who would be notified.", no_args_is_help=True)


@rules.command("list")
@with_filters(without=frozenset({"state", "verdict", "execution", "since", "until"}))
def list_(filters: Filters, config: Config = None, as_json: AsJson = False) -> None:
    """List the rules in launch plan files. Rules in FlyteAdmin go before them: `rules who` asks FlyteAdmin. `routes list`
    lists the routes.
    """
    from dispatcher.config.settings import load

    wanted, settings = filters.wanted(), load(config)
    book = rules_in_files(settings)
    found = list(_matching(book, wanted))
    if as_json:
        write_json([_data(key, rule) for key, rule in found])
        return
    write_table(
        ("LAUNCH PLAN", "PHASES", "CHANNEL", "RECIPIENTS", "DEFINED AT"),
        [
            (
                str(key),
                ", ".join(rule.notification.phases),
                rule.notification.channel,
                ", ".join(rule.notification.recipients),
                rule.defined_at,
            )
            for key, rule in found
        ],
    )
    if settings.rules.flyte_admin is not None:
        write_line("FlyteAdmin is asked first: rules who shows a launch plan's rules there", err=True)
    if book.routes:
        write_line("routes apply too: routes list shows them", err=True)


def _matching(book: RuleBook, wanted: Filter) -> Iterator[tuple[PlanKey, Rule]]:
    """Yield the rules that meet all conditions, in the order of their launch plans."""
    for key in sorted(book.plans):
        if any(given not in (None, name) for given, name in zip(_plan_of(wanted), key, strict=False)):
            continue
        for rule in book.plans[key].rules:
            one = rule.notification
            recipients = [recipient.lower() for recipient in one.recipients]
            if (
                wanted.channel in (None, one.channel)
                and (wanted.phase is None or wanted.phase in one.phases)
                and (wanted.recipient is None or wanted.recipient.lower() in recipients)
            ):
                yield key, rule


def _plan_of(wanted: Filter) -> tuple[str | None, str | None, str | None]:
    return wanted.project, wanted.domain, wanted.launch_plan


def _data(key: PlanKey, rule: Rule) -> dict[str, Any]:
    notification = rule.notification
    return {
        "launch_plan": key._asdict(),
        "phases": notification.phases,
        "channel": notification.channel,
        "recipients": notification.recipients,
        "defined_at": rule.defined_at,
    }


@rules.command()
def who(
    launch_plan: Annotated[
        str, typer.Argument(metavar="LAUNCH_PLAN", help="project/domain/name, or project/domain/name@version.")
    ],
    phase: Annotated[str | None, typer.Option(help="Only this phase.", metavar=PHASES, show_default=False)] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Say who would be notified of a launch plan's executions. Says why, without an event. FlyteAdmin is asked first, if
    it is configured: about the active version, or else the newest one.

    A route that depends on more than the launch plan and the phase is listed with what it depends on. Exit status 1 if
    neither FlyteAdmin nor a file knows the launch plan, and no route may apply to it.
    """
    from pydantic import ValidationError

    from dispatcher.config.settings import load
    from dispatcher.filters import LaunchPlanQuestion
    from dispatcher.parsing.validation_errors import first_problem

    try:
        question = LaunchPlanQuestion.model_validate({"launch_plan": launch_plan, "phase": phase})
        plan = question.plan
    except ValidationError as error:
        raise typer.BadParameter(first_problem(error)) from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    log_warnings_only()
    forecast = dry_run(load(config), lambda run: run.of_launch_plan(plan, question.phases))
    if as_json:
        write_json(forecast.as_data())
    elif forecast.known or forecast.notified:
        _print(forecast)
    if not forecast.known:
        hint = forecast.hint and f"; {forecast.hint}"
        but = ", but routes apply to it" if forecast.notified else ""
        write_line(f"dispatcher: there are no rules for launch plan {forecast.plan}{but}{hint}", err=True)
        if not forecast.notified:
            raise typer.Exit(1)


@rules.command()
def owners(config: Config = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List whose executions have no known owner, or an owner with an address that no provider knows, newest first. Each
    principal and label value is listed once, with the newest execution.
    """
    from dispatcher.clock import SystemClock
    from dispatcher.safe_text import visible

    now = SystemClock().now()
    found = with_ledger(config, lambda ledger: ledger.owners.unresolved(limit=limit))
    if as_json:
        write_json([one._asdict() for one in found])
        return
    write_table(
        ("PRINCIPAL", "LABEL", "EVENTS", "LAST", "NOTIFIED", "REASON", "EXECUTION"),
        [
            (
                visible(one.principal) or "none",
                visible(one.label) or "none",
                one.events,
                when_text(one.last_at, now=now),
                one.instead or "nobody",
                visible(one.reason),
                one.event.rpartition("/")[0],
            )
            for one in found
        ],
        head=2,
    )


def _print(forecast: LaunchPlanForecast) -> None:
    from dispatcher.dry_run import why

    rows: list[tuple[Any, ...]] = []
    for phase, found in forecast.phases.items():
        explanation = found.explanation
        rows += [_row(phase, one, why(explanation, one)) for one in explanation.deliveries]
        rows += [_row(phase, one, route["condition"]) for route in found.possible for one in route["deliveries"]]
        if found.left_out:
            rows.append((phase, "", f"{found.left_out} more routes", "only some executions", ""))
        if not found.notified:
            rows.append((phase, "", "nobody", explanation.event["reason"], ""))
    write_line(f"launch plan {forecast.plan}")
    write_table(("PHASE", "CHANNEL", "TO", "WHY", "DEFINED AT"), rows)
    write_line("An execution's own Options can replace or disable these rules.")
    write_line("A success also notifies those who were notified of the failures that it ends.")


def _row(phase: str, delivery: Mapping[str, Any], reason: str) -> tuple[Any, ...]:
    from dispatcher.dry_run import may_hold
    from dispatcher.explain import rules_text

    reason = "\n".join(filter(None, (reason, may_hold(delivery))))
    return phase, delivery["channel"], ", ".join(delivery["recipients"]), reason, rules_text(delivery)
