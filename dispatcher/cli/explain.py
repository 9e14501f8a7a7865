"""`dispatcher explain`: explains why people were or were not notified about an execution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli._attempts import attempts_text
from dispatcher.cli._input import STDIN, event_in
from dispatcher.cli._open_ledger import open_ledger
from dispatcher.cli._operations import write_actions
from dispatcher.cli._options import AsJson, Config
from dispatcher.cli._output import (
    KEY_DIGITS,
    age_text,
    log_warnings_only,
    state_text,
    styled,
    time_text,
    waits_text,
    write_details,
    write_json,
    write_line,
    write_rule,
    write_table,
)

if TYPE_CHECKING:
    from rich.text import Text

    from dispatcher.config.settings import Settings
    from dispatcher.explain import Explanation
    from dispatcher.model.event import ExecutionId

MAX_DELIVERIES = 10_000
MAX_REJECTED = 50


def explain(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="EXECUTION",
            help="project/domain/name of an execution in the ledger, or a file with an event; - is standard input.",
            show_default=False,
        ),
    ] = None,
    event: Annotated[
        Path | None,
        typer.Option(
            help="Explain the event in this file: a dry run with the current rules, without the ledger.",
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Explain why people were or were not notified. Prints for each rule why the rule matched or did not match, and for
    each delivery how the provider answered.

    Exit status 1 if the ledger has nothing about the execution.
    """
    from dispatcher.config.settings import load

    if (subject is None) == (event is None):
        raise typer.BadParameter("name an execution as project/domain/name, or an event's file")
    settings = load(config)
    log_warnings_only()
    file = event if event is not None else Path(subject or "")
    if event is not None or _is_file(file):
        explanations = [_dry_run(settings, file)]
    else:
        explanations = _recorded(settings, _execution(subject or ""))
    if as_json:
        first, *others = [explanation.as_data() for explanation in explanations]
        write_json({**first, "others": others} if others else first)
        return
    _print(explanations)


def _is_file(path: Path) -> bool:
    try:
        return path == STDIN or (path.exists() and not path.is_dir())  # a pipe too, as the shell's <(…)
    except OSError:  # the text cannot be a file name, for example because it is too long
        return False


def _execution(text: str) -> ExecutionId:
    from pydantic import ValidationError

    from dispatcher.model.event import ExecutionId
    from dispatcher.parsing.validation_errors import first_problem

    try:
        return ExecutionId.parse(text)
    except ValidationError as problem:
        raise typer.BadParameter(first_problem(problem)) from None
    except ValueError as problem:
        raise typer.BadParameter(f"{problem}, or an event's file") from None


# -- an event in a file: a dry run


def _dry_run(settings: Settings, file: Path) -> Explanation:
    """Evaluate the configured rules for the event in a file, and plan its deliveries. Writes and sends nothing.

    Raises FlyteAdminUnavailable if FlyteAdmin is configured and does not answer.
    """
    from dispatcher.cli._dry_run import dry_run

    event = event_in(file)
    return dry_run(settings, lambda run: run.of_event(event))


# -- an execution in the ledger


def _recorded(settings: Settings, execution: ExecutionId) -> list[Explanation]:
    """Explain the execution's recorded events in the order in which they were recorded, then its rejected messages.

    If the ledger has no event and no rejected message, prints what to check and exits with status 1.
    """
    import asyncio

    from dispatcher.clock import SystemClock
    from dispatcher.explain import explanations

    async def read() -> list[Explanation]:
        async with open_ledger(settings) as ledger:
            rejected = await ledger.rejected.find(limit=MAX_REJECTED, execution=execution)
            now = SystemClock().now()
            found = await explanations(ledger, execution, rejected, deliveries_at_most=MAX_DELIVERIES, now=now)
            if not found:
                _print_what_to_check(settings, execution, newest=await ledger.history.newest())
                raise typer.Exit(1)
            return found

    return asyncio.run(read())


def _print_what_to_check(settings: Settings, execution: ExecutionId, *, newest: tuple[str, datetime] | None) -> None:

    last = f"its newest event was recorded at {time_text(newest[1])} (UTC)" if newest else "it has no events at all"
    kafka = f"on {', '.join(settings.kafka.topics)}" if settings.kafka is not None else "over HTTP"
    for line in (
        f"dispatcher: nothing is recorded about {execution}. What to check:",
        "- has it finished? Only SUCCEEDED, FAILED, ABORTED and TIMED_OUT are recorded",
        "- is the id right? Flyte's console shows it as projects/PROJECT/domains/DOMAIN/executions/NAME",
        f"- is this the service's ledger? Here {last}; --config or ledger.url chooses another",
        f"- is its event older than ledger.retention ({settings.ledger.retention.days} days)? Then it was deleted",
        f"- did the event arrive {kafka}? Flyte publishes once, without retry, and only with cloudEvents.enable",
        "- did it finish before the dispatcher's first start? Such events are not read: see kafka.start",
        "- was its message rejected? dispatcher rejected list",
        "To explain an event in a file, without the ledger: dispatcher explain FILE",
    ):
        write_line(line, err=True)


# -- output for people


def _print(explanations: Sequence[Explanation]) -> None:
    from dispatcher.explain import REJECTED

    for number, explanation in enumerate(explanations):
        if number:
            write_line()
            write_rule()
        _print_event(explanation)
        if explanation.rules:
            write_line()
            _print_rules(explanation.rules)
        if explanation.event["verdict"] != REJECTED:
            write_line()
            _print_deliveries(explanation.deliveries, explanation.rules)


def _print_event(explanation: Explanation) -> None:
    from dispatcher.explain import REJECTED
    from dispatcher.rendering.traceback import summarize

    event = explanation.event
    plan = event.get("launch_plan") or {}
    write_details(
        [
            ("execution", _path(event["execution"])),
            ("phase", event.get("phase")),
            ("started", _time(event.get("started_at"))),
            ("occurred", _time(event.get("occurred_at"))),
            (
                "task" if plan.get("resource_type") else "launch plan",
                _path(plan) or ("" if event["verdict"] == REJECTED else "not named"),
            ),
            ("workflow", _path(event.get("workflow"))),
            ("principal", event.get("principal")),
            ("mode", event.get("mode")),
            ("parent", _path(event.get("parent"))),
            ("labels", ", ".join("=".join(label) for label in (event.get("labels") or {}).items())),
            ("error", summarize((event.get("error") or {}).get("message", "")).summary),
            ("cause", " ".join(filter(None, (event.get("cause"), event.get("cause_name"))))),
            ("recorded", _time(event.get("recorded_at"))),
            ("received", _time(event.get("received_at"))),
            ("position", event.get("position")),
            ("rejected as", event.get("rejected_id")),
            ("replayed", _time(event.get("replayed_at"))),
            ("verdict", _verdict(str(event["verdict"]))),
            ("reason", event["reason"]),
            ("disabled by", explanation.disabled_by),
        ]
    )


def _print_rules(rules: Sequence[Mapping[str, Any]]) -> None:
    from dispatcher.model.delivery import RuleRef

    write_table(
        ("RULE", "MATCHED", "CHANNEL", "RECIPIENTS", "PHASES", "REASON", "DEFINED AT"),
        [
            (
                number,
                _yes_or_no(rule["matched"]),
                rule["channel"],
                ", ".join(rule["recipients"]),
                ", ".join(rule["phases"]),
                rule["reason"],
                str(RuleRef(rule["name"], rule["defined_at"])),
            )
            for number, rule in enumerate(rules, start=1)
        ],
        head=4,
    )


def _print_deliveries(deliveries: Sequence[Mapping[str, Any]], rules: Sequence[Mapping[str, Any]]) -> None:
    """Print each delivery with the numbers of the rules that named it."""
    from dispatcher.dry_run import may_hold
    from dispatcher.explain import decided_text, rules_among

    if not deliveries:
        write_line("no notifications")
        return
    rows = []
    for delivery in deliveries:
        waits = waits_text(delivery)
        attempts = delivery.get("attempts", ())
        told = {attempt["reason"] for attempt in attempts}
        reason = decided_text(delivery, digits=KEY_DIGITS)
        answers = (
            attempts_text(attempts),
            reason if reason not in told else "",
            delivery.get("note"),
            waits and f"waits for {waits}",
            may_hold(delivery),
        )
        answer = "\n".join(filter(None, answers))
        recipients = ", ".join(delivery["recipients"])
        naming = ", ".join(map(str, rules_among(delivery, rules)))
        status = state_text(delivery.get("status", delivery["state"]))
        rows.append((naming, status, delivery["channel"], recipients, answer))
    write_table(("RULES", "STATE", "CHANNEL", "TO", "ANSWER"), rows, head=4)
    actions = {(action["at"], action["what"]): action for one in deliveries for action in one.get("actions", ())}
    if actions:
        write_line()
        write_actions(actions[key] for key in sorted(actions))


def _path(entity: Mapping[str, str] | None) -> str:
    if not entity:
        return ""
    version = f"@{entity['version']}" if entity.get("version") else ""
    return f"{entity['project']}/{entity['domain']}/{entity['name']}{version}"


def _time(value: Any) -> str:
    from datetime import UTC, datetime

    from dispatcher.clock import SystemClock

    time = datetime.fromisoformat(value) if isinstance(value, str) else value
    if time is None:
        return ""
    return f"{time_text(time.astimezone(UTC))} (UTC), {age_text(time, now=SystemClock().now())}"


def _verdict(verdict: str) -> Text:
    return styled(verdict.replace("_", " "), "green" if verdict in {"matched", "resolved"} else "yellow")


def _yes_or_no(matched: bool) -> Text:
    return styled("yes", "green") if matched else styled("no", "dim")
