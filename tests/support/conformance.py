"""The conformance table, and its page: `python -m tests.support.conformance` writes docs/conformance.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from dispatcher.flyte.encode import Format

ROOT = Path(__file__).parent.parent.parent
TABLE = ROOT / "tests" / "rules" / "conformance.yaml"
PAGE = ROOT / "docs" / "conformance.md"
MAIN_PLAN = "train.daily@v1"


def _rule(value: Any) -> Any:
    """`FAILED|ABORTED email a@example.com, b@example.com` as Flyte's JSON; other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    phases, channel, recipients = value.split(maxsplit=2)
    wanted = [] if phases == "-" else phases.split("|")
    return {"phases": wanted, channel: {"recipients_email": recipients.split(", ")}}


def _event(value: Any) -> Any:
    return {"phase": value} if isinstance(value, str) else value


def _list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


NotificationData = Annotated[dict[str, Any], BeforeValidator(_rule)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class IncomingEvent(_Entry):
    """One incoming message."""

    phase: str | int
    name: str = "main"
    """The execution's name."""
    plan: str | None = MAIN_PLAN
    """The execution's launch plan, NAME@VERSION; None if the message does not name it."""
    form: Format = Format.NATIVE
    project: str = "p"
    domain: str = "d"
    options: dict[str, Any] | None = None
    seconds: int = 0
    """The event's own time, in seconds from the start of the case."""
    error: str | None = None
    facts: dict[str, Any] = {}
    """Other fields of the event, such as labels."""


class Case(_Entry):
    """One row: a situation, Flyte's behaviour, the dispatcher's behaviour, and the reason for a difference."""

    case: str
    flyte: str
    dispatcher: str = "the same"
    why: str = ""
    plans: dict[str, Annotated[list[NotificationData], BeforeValidator(_list)]] = {}
    """Launch plan entries in files, by NAME, NAME@VERSION, or PROJECT/DOMAIN/NAME."""
    plan: Annotated[list[NotificationData] | None, BeforeValidator(_list)] = None
    """The rules for any version of the main launch plan."""
    later_plan: Annotated[list[NotificationData] | None, BeforeValidator(_list)] = None
    """The rules that replace `plan` before the last message."""
    routes: list[dict[str, Any]] = []
    """The routes in a file."""
    later_routes: list[dict[str, Any]] | None = None
    """The routes that replace `routes` before the last message."""
    contacts: dict[str, Any] = {}
    """The settings' section `contacts`."""
    owners: dict[str, Any] | None = None
    """The settings' section `owners`."""
    execution: Annotated[list[NotificationData] | None, BeforeValidator(_list)] = None
    """The main execution's own list."""
    disable: bool | None = None
    """The main execution's `disable_notifications`."""
    events: Annotated[list[Annotated[IncomingEvent, BeforeValidator(_event)]], BeforeValidator(_list)]
    one_batch: bool = False
    """Send all messages in one batch; otherwise each message is one batch."""
    notified: Annotated[list[str], BeforeValidator(_list)] = []
    """Expected deliveries, as `EXECUTION PHASE CHANNEL RECIPIENTS`; without EXECUTION for the main one."""
    undeliverable: Annotated[list[str], BeforeValidator(_list)] = []
    """Expected deliveries that are dead from the start, in the same form."""
    verdicts: dict[str, str] = {}
    """Expected verdicts in the ledger, by EXECUTION/PHASE."""
    rejected: Annotated[list[str], BeforeValidator(_list)] = []
    """For each rejected message, words from its reason."""
    refused: Annotated[list[str], BeforeValidator(_list)] = []
    """For each problem in the rule files, words from its message."""
    content: str = ""
    """Words that each delivery's content must have."""
    routes_named: list[str] | None = None
    """The names of the routes that each delivery names; an empty name for Flyte's rules."""
    severity: str | None = None
    """The severity of each delivery."""


class Section(_Entry):
    section: str
    flyte: str = ""
    """Flyte's behaviour in the cases that don't say it."""
    why: str = ""
    """The reason for a difference in the cases that don't give one."""
    cases: Sequence[Case]

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, data: dict[str, Any]) -> dict[str, Any]:
        defaults = {key: data[key] for key in ("flyte", "why") if key in data}
        return {**data, "cases": [{**defaults, **case} for case in data["cases"]]}


def load() -> list[Section]:
    return [Section.model_validate(section) for section in yaml.safe_load(TABLE.read_text())]


def page(sections: Sequence[Section]) -> str:
    """docs/conformance.md."""
    return "\n".join(_lines(sections)) + "\n"


def _lines(sections: Sequence[Section]) -> Iterator[str]:
    cases = [case for section in sections for case in section.cases]
    differing = sum(bool(case.why) for case in cases)
    yield "# Who is notified: Flyte and the dispatcher, case by case"
    yield ""
    yield "<!-- Made from tests/rules/conformance.yaml by `python -m tests.support.conformance`. -->"
    yield ""
    yield from textwrap.wrap(
        f"Each of these {len(cases)} cases is a test: intake records its messages in a real ledger, and the test compares "
        "the deliveries in the ledger with the expected ones. Cases that can occur with FlyteAdmin run a second time, as "
        f"bare v1 events whose rules FlyteAdmin has resolved. In {differing} cases the dispatcher differs from Flyte on "
        "purpose, and the last column says why. "
        "Flyte's behaviour was read from the source of flyteadmin and flyteidl 1.16.8 and flytekit 1.16. Flyte itself sends "
        "only mail: to the addresses in a rule, through one relay, whichever channel the rule names.",
        width=120,
    )
    yield ""
    yield from textwrap.wrap(
        "In cases about an execution's own list or `disable_notifications`, the dispatcher knows them from FlyteAdmin or "
        "from an event in its own format, because Flyte's events contain neither. With rules from files alone, Flyte's "
        "events notify by the launch plan's rules in all these cases, also where notifications were disabled.",
        width=120,
    )
    for section in sections:
        yield from ("", f"## {section.section}", "", "| case | Flyte | dispatcher | why |", "|---|---|---|---|")
        for case in section.cases:
            yield f"| {_cell(case.case)} | {_cell(case.flyte)} | {_cell(case.dispatcher)} | {_cell(case.why)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def options_of(case: Case, event: IncomingEvent) -> Mapping[str, Any] | None:
    """The Options in a message: its own, or else the case's if it is about the main execution."""
    if event.options is not None or event.name != "main":
        return event.options
    given: dict[str, Any] = {}
    if case.execution is not None:
        given["notifications"] = case.execution
    if "disable" in case.model_fields_set:
        given["disable_notifications"] = case.disable
    return given or None


if __name__ == "__main__":
    PAGE.write_text(page(load()))
