"""`dispatcher explain`: why somebody was told of an execution's end, or was not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli._options import AsJson, Config

if TYPE_CHECKING:
    from rich.text import Text

    from dispatcher.config.settings import Settings
    from dispatcher.explain import Explanation
    from dispatcher.model.delivery import Delivery
    from dispatcher.model.event import Event, ExecutionId
    from dispatcher.rules import AdminExecution, UnknownExecution

DELIVERIES_AT_MOST = 10_000
REJECTED_AT_MOST = 50
PLANNED = "planned"
"""The state of a delivery that is in no ledger: what would be owed."""
GOES_ON = "goes on"
"""The verdict on a phase that ends nothing."""


def explain(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="EXECUTION", help="project/domain/name, from the ledger; or an event's file.", show_default=False
        ),
    ] = None,
    event: Annotated[
        Path | None,
        typer.Option(
            help="An event in a file, judged by the rules of now; the ledger is not asked.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Explain who is told of an execution's end, and who is not. Each rule and why, each delivery and its answer.

    Exit status 1 where nothing is recorded of the execution.
    """
    from dispatcher.cli._output import write_json
    from dispatcher.config.settings import load
    from dispatcher.observability import logs

    if (what is None) == (event is None):
        raise typer.BadParameter("name an execution as project/domain/name, or an event's file")
    settings = load(config)
    logs.configure("console", level=logging.WARNING)
    file = event if event is not None else Path(what or "")
    if event is not None or _is_file(file):
        explanations = [_foretold(settings, file)]
    else:
        explanations = _recorded(settings, _execution(what or ""))
    if as_json:
        first, *others = [account.as_data() for account in explanations]
        write_json({**first, "others": others} if others else first)
        return
    _tell(explanations)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for one
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


# -- an event in a file: what would be


def _foretold(settings: Settings, file: Path) -> Explanation:
    """What would become of the event in a file, by the configured rule sources as they stand. Writes nothing.

    Raises FlyteAdminUnavailable where it is configured and can't be asked.
    """
    import asyncio

    from dispatcher.clock import SystemClock
    from dispatcher.errors import Unreadable
    from dispatcher.explain import Explanation, with_deduplicated_recipients
    from dispatcher.flyte.event_files import read_event_file
    from dispatcher.rules import decide
    from dispatcher.rules.files import LaunchPlanFiles
    from dispatcher.runtime.service import make_planner, open_channels

    try:
        event = read_event_file(file)
    except (OSError, Unreadable) as problem:
        raise typer.BadParameter(f"{file}: {getattr(problem, 'strerror', None) or problem}") from None
    rules = LaunchPlanFiles(settings.rules.launch_plans)
    rules.load()
    for refused in rules.problems:
        typer.echo(str(refused), err=True)
    event, answer = asyncio.run(_asked(settings, event))
    decision = decide(event, rules.book, answer)
    verdict, reason = (decision.verdict, decision.reason) if event.phase.terminal else (GOES_ON, "only an end is told")
    owed = make_planner(settings, open_channels(settings)).plan(event, decision.matched, now=SystemClock().now())
    facts = event.model_dump(mode="json", exclude_defaults=True)
    return Explanation(
        event={"key": event.key, **facts, "verdict": verdict, "reason": reason},
        rules=with_deduplicated_recipients([look.as_data() for look in decision.considered], owed),
        deliveries=[_planned(delivery) for delivery in owed],
        disabled_by=decision.disabled_by,
    )


async def _asked(settings: Settings, event: Event) -> tuple[Event, AdminExecution | UnknownExecution | None]:
    """The event with what FlyteAdmin adds, and its answer; None where it isn't asked."""
    from dispatcher.clock import SystemClock
    from dispatcher.rules import AdminExecution, decides_itself
    from dispatcher.runtime.service import configured_flyte_admin

    async with configured_flyte_admin(settings, SystemClock()) as admin:
        if admin is None or decides_itself(event):
            return event, None
        answer = await admin.look_up(event.execution)
    return (answer.complete(event) if isinstance(answer, AdminExecution) else event), answer


def _planned(delivery: Delivery) -> dict[str, Any]:
    from dispatcher.model.delivery import State

    return {
        "channel": delivery.channel,
        "recipients": delivery.recipients,
        "state": PLANNED if delivery.state is State.WAITING else delivery.state,
        "reason": delivery.reason,
        "rule": delivery.rule,
        "addresses": delivery.addresses,
    }


# -- an execution in the ledger: what was


def _recorded(settings: Settings, execution: ExecutionId) -> list[Explanation]:
    """What the ledger has of an execution: events in the order of their record, then rejected messages.

    Exits with status 1 and a list of what to check where it has nothing.
    """
    import asyncio

    from dispatcher.explain import explanations
    from dispatcher.ledger import Ledger

    async def ask() -> list[Explanation]:
        async with Ledger(settings.ledger.url, password_file=settings.ledger.password_file) as ledger:
            refused = await ledger.find_rejected(limit=REJECTED_AT_MOST, execution=execution)
            found = await explanations(ledger, execution, refused, deliveries_at_most=DELIVERIES_AT_MOST)
            if not found:
                _say_what_to_check(settings, execution, newest=await ledger.newest())
                raise typer.Exit(1)
            return found

    return asyncio.run(ask())


def _say_what_to_check(settings: Settings, execution: ExecutionId, *, newest: tuple[str, datetime] | None) -> None:
    from dispatcher.cli._output import time_text

    heard = (
        f"its newest event was recorded at {time_text(newest[1])} (UTC)"
        if newest
        else "it has recorded no event at all"
    )
    kafka = f"on {', '.join(settings.kafka.topics)}" if settings.kafka is not None else "over HTTP"
    for line in (
        f"dispatcher: nothing is recorded of {execution}. What to check:",
        "- has it ended? Only SUCCEEDED, FAILED, ABORTED and TIMED_OUT are recorded",
        "- is the id right? Flyte's console shows it as projects/PROJECT/domains/DOMAIN/executions/NAME",
        f"- is this the service's ledger? Here {heard}; --config or ledger.url chooses another",
        f"- is its event older than ledger.retention ({settings.ledger.retention.days} days)? Then it is forgotten",
        f"- did the event arrive {kafka}? Flyte publishes once, without retry, and only with cloudEvents.enable",
        "- was its message beyond understanding? dispatcher rejected list",
        "An event in a file is explained without the ledger: dispatcher explain FILE",
    ):
        typer.echo(line, err=True)


# -- for people


def _tell(explanations: Sequence[Explanation]) -> None:
    from dispatcher.cli._output import console
    from dispatcher.explain import REJECTED

    for number, account in enumerate(explanations):
        if number:
            console.print()
            console.rule(style="dim")
        _tell_event(account)
        if account.rules:
            console.print()
            _tell_rules(account.rules)
        if account.event["verdict"] != REJECTED:
            console.print()
            _tell_deliveries(account.deliveries, [rule["defined_at"] for rule in account.rules])


def _tell_event(account: Explanation) -> None:
    from dispatcher.cli._output import write_facts
    from dispatcher.explain import REJECTED
    from dispatcher.rendering.traceback import summarize

    event = account.event
    write_facts(
        [
            ("execution", _path(event["execution"])),
            ("phase", event.get("phase")),
            ("occurred", _moment(event.get("occurred_at"))),
            ("launch plan", _path(event.get("launch_plan")) or ("" if event["verdict"] == REJECTED else "not named")),
            ("workflow", _path(event.get("workflow"))),
            ("principal", event.get("principal")),
            ("error", summarize((event.get("error") or {}).get("message", "")).summary),
            ("recorded", _moment(event.get("recorded_at"))),
            ("received", _moment(event.get("received_at"))),
            ("position", event.get("position")),
            ("rejected as", event.get("rejected_id")),
            ("replayed", _moment(event.get("replayed_at"))),
            ("verdict", _verdict(str(event["verdict"]))),
            ("because", event["reason"]),
            ("silenced by", account.disabled_by),
        ]
    )


def _tell_rules(rules: Sequence[Mapping[str, Any]]) -> None:
    from dispatcher.cli._output import write_table

    write_table(
        ("RULE", "MATCHED", "CHANNEL", "RECIPIENTS", "PHASES", "WHY", "SOURCE"),
        [
            (
                number,
                _mark(rule["matched"]),
                rule["channel"],
                ", ".join(rule["recipients"]),
                ", ".join(rule["phases"]),
                rule["reason"],
                rule["defined_at"],
            )
            for number, rule in enumerate(rules, start=1)
        ],
    )


def _tell_deliveries(deliveries: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> None:
    from dispatcher.cli._output import console, state_text, write_table

    if not deliveries:
        console.print("nobody is told")
        return
    rows: list[tuple[Any, ...]] = []
    for delivery in deliveries:
        owed_by = delivery["rule"]
        rule = sources.index(owed_by) + 1 if owed_by in sources else owed_by
        who = (rule, state_text(delivery["state"]), delivery["channel"], ", ".join(delivery["recipients"]))
        attempts = delivery.get("attempts") or [None]
        for at, attempt in enumerate(attempts):
            last = at == len(attempts) - 1
            rows.append(
                (
                    *(who if at == 0 else ("", "", "", "")),
                    *(_attempt_cells(attempt) if attempt is not None else ("", "", "")),
                    _words(attempt, delivery["reason"] if last else ""),
                )
            )
    write_table(("RULE", "STATE", "CHANNEL", "TO", "TRY", "ENDED (UTC)", "OUTCOME", "ANSWER"), rows)


def _attempt_cells(attempt: Mapping[str, Any]) -> tuple[Any, ...]:
    from dispatcher.cli._output import state_text, time_text

    return attempt["number"], time_text(attempt["ended_at"]), state_text(attempt["outcome"])


def _words(attempt: Mapping[str, Any] | None, reason: str) -> str:
    """The provider's answer, and why it came to nothing where it did; nothing is said twice."""
    said = f"{attempt['status']} {attempt['answer']}".strip() if attempt is not None else ""
    reasons = dict.fromkeys((attempt["reason"] if attempt is not None else "", reason))
    return ": ".join(words for words in (said, *reasons) if words)


def _path(entity: Mapping[str, str] | None) -> str:
    if not entity:
        return ""
    version = f"@{entity['version']}" if entity.get("version") else ""
    return f"{entity['project']}/{entity['domain']}/{entity['name']}{version}"


def _moment(time: Any) -> str:
    from datetime import UTC, datetime

    from dispatcher.cli._output import time_text

    moment = datetime.fromisoformat(time) if isinstance(time, str) else time
    return f"{time_text(moment.astimezone(UTC))} (UTC)" if moment is not None else ""


def _verdict(verdict: str) -> Text:
    from rich.text import Text

    return Text(verdict, style="green" if verdict == "matched" else "yellow")


def _mark(matched: bool) -> Text:
    from rich.text import Text

    return Text("yes", style="green") if matched else Text("no", style="dim")
