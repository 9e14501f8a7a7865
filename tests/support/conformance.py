"""The conformance table, and the page made from it: `python -m tests.support.conformance` writes docs/conformance.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict

from dispatcher.flyte.encode import Format

ROOT = Path(__file__).parent.parent.parent
TABLE = ROOT / "tests" / "rules" / "conformance.yaml"
PAGE = ROOT / "docs" / "conformance.md"
MAIN_PLAN = "train.daily@v1"


def _rule(value: Any) -> Any:
    """`FAILED|ABORTED email a@example.com, b@example.com` as Flyte's shape; anything else as it is."""
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


class Happening(_Entry):
    """One message that comes in."""

    phase: str | int
    of: str = "main"
    """The execution's name."""
    plan: str | None = MAIN_PLAN
    """Its launch plan, NAME@VERSION; None where the message doesn't say."""
    form: Format = Format.NATIVE
    project: str = "p"
    domain: str = "d"
    options: dict[str, Any] | None = None
    seconds: int = 0
    """When it happened, counted from the case's beginning."""
    error: str | None = None


class Case(_Entry):
    """One row: a situation, what Flyte does, what we do, and why where that differs."""

    case: str
    flyte: str
    we: str = "the same"
    why: str = ""
    plans: dict[str, Annotated[list[NotificationData], BeforeValidator(_list)]] = {}
    """Launch plan entries in files: NAME, NAME@VERSION, `*`, or PROJECT/DOMAIN/NAME."""
    plan: Annotated[list[NotificationData] | None, BeforeValidator(_list)] = None
    """The rules of any version of the main launch plan."""
    later_plan: Annotated[list[NotificationData] | None, BeforeValidator(_list)] = None
    """They are changed to these before the last message."""
    execution: Annotated[list[NotificationData] | None, BeforeValidator(_list)] = None
    """The main execution's own list."""
    disable: bool | None = None
    """The main execution's disable_notifications."""
    events: Annotated[list[Annotated[Happening, BeforeValidator(_event)]], BeforeValidator(_list)]
    together: bool = False
    """All messages in one batch, not one after the other."""
    told: Annotated[list[str], BeforeValidator(_list)] = []
    """`EXECUTION PHASE CHANNEL RECIPIENTS` for each message owed; EXECUTION is left out where it is the main one."""
    undeliverable: Annotated[list[str], BeforeValidator(_list)] = []
    """The same, of deliveries that are dead from the start."""
    verdicts: dict[str, str] = {}
    """By EXECUTION/PHASE: what was decided, as the ledger has it."""
    rejected: Annotated[list[str], BeforeValidator(_list)] = []
    """Words from the reason of each message that was rejected."""
    refused: Annotated[list[str], BeforeValidator(_list)] = []
    """Words from what was refused in the rule files."""
    reads: str = ""
    """What the message says."""


class Section(_Entry):
    section: str
    cases: Sequence[Case]


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
    for section in sections:
        yield from ("", f"## {section.section}", "", "| case | Flyte | dispatcher | why |", "|---|---|---|---|")
        for case in section.cases:
            yield f"| {_cell(case.case)} | {_cell(case.flyte)} | {_cell(case.we)} | {_cell(case.why)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def options_of(case: Case, happening: Happening) -> Mapping[str, Any] | None:
    """The Options that a message carries: its own, or for the main execution the case's."""
    if happening.options is not None or happening.of != "main":
        return happening.options
    given: dict[str, Any] = {}
    if case.execution is not None:
        given["notifications"] = case.execution
    if "disable" in case.model_fields_set:
        given["disable_notifications"] = case.disable
    return given or None


if __name__ == "__main__":
    PAGE.write_text(page(load()))
