"""The options of commands that search the ledger: one option for each filter of `dispatcher.filters`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli._choices import CHANNELS, PHASES, STATES, VERDICTS
from dispatcher.cli._output import write_line

if TYPE_CHECKING:
    from dispatcher.ledger import Filter, Ledger
    from dispatcher.ledger.records import Page

_TIME = "a duration before now (24h, 7d) or a time (2026-11-20T09:00Z)"


def _option(name: str, help_text: str, choices: str | None = None) -> Any:
    return typer.Option(f"--{name}", help=help_text, metavar=choices, show_default=False)


OPTIONS: Mapping[str, Any] = {
    "state": Annotated[list[str] | None, _option("state", "Only this state. Can be repeated.", STATES)],
    "channel": Annotated[str | None, _option("channel", "Only this channel.", CHANNELS)],
    "recipient": Annotated[str | None, _option("recipient", "Only this whole recipient or address.")],
    "launch_plan": Annotated[str | None, _option("launch-plan", "Only executions of the launch plan of this name.")],
    "project": Annotated[str | None, _option("project", "Only executions of this project.")],
    "domain": Annotated[str | None, _option("domain", "Only executions of this domain.")],
    "phase": Annotated[str | None, _option("phase", "Only executions that ended in this phase.", PHASES)],
    "verdict": Annotated[str | None, _option("verdict", "Only this decision about the event.", VERDICTS)],
    "cause": Annotated[
        str | None, _option("cause", "Only executions that failed for this cause: its fingerprint, such as v1:5f0c….")
    ],
    "execution": Annotated[
        str | None, _option("execution", "Only this execution: project/domain/name, or only the name.")
    ],
    "included_in": Annotated[
        str | None,
        _option("included-in", "Only what the digest or summary of this key tells of; the first digits are enough."),
    ],
    "held": Annotated[
        bool | None,
        typer.Option(
            "--held/--not-held",
            help="Only what a silence, quiet hours or a digest hold, or only the rest.",
            show_default=False,
        ),
    ],
    "held_by": Annotated[
        str | None, _option("held-by", "Only what this holds, or held: a silence's id, or 'contact ml-team'.")
    ],
    "since": Annotated[str | None, _option("since", f"Only entries since this time: {_TIME}.")],
    "until": Annotated[str | None, _option("until", f"Only entries before this time: {_TIME}.")],
}
"""The options. A test compares their names with `filters.Search`."""


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters that the user has given, as text."""

    given: Mapping[str, Any]

    def wanted(self) -> Filter:
        """Return the filter for the ledger. Raises BadParameter for a value that is not valid."""
        from pydantic import ValidationError

        from dispatcher.clock import SystemClock
        from dispatcher.filters import Search
        from dispatcher.parsing.validation_errors import message_of

        try:
            return Search.model_validate(self.given).wanted(now=SystemClock().now())
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            option = f"--{str(problem['loc'][0]).replace('_', '-')}"
            raise typer.BadParameter(f"{option}: {message_of(problem)}") from None
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None


def with_filters(*, without: frozenset[str] = frozenset()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's parameter `filters` by one option for each filter, except those in `without`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = [name for name in OPTIONS if name not in without]

        def with_options(**given: Any) -> None:
            values = {name: value for name in names if (value := given.pop(name)) not in (None, [])}
            command(filters=Filters(values), **given)

        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=OPTIONS[name])
            for name in names
        ]
        others = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for one in inspect.signature(command, eval_str=True).parameters.values()
            if one.name != "filters"
        ]
        with_options.__signature__ = inspect.Signature([*others, *options])  # type: ignore[attr-defined]  # Typer reads it
        with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
        return with_options

    return decorate


async def refuse_unknown_names(ledger: Ledger, wanted: Filter) -> None:
    """Raise BadParameter if the ledger does not know a name in the filter. For a search that found nothing."""
    from channels.registry import CHANNEL_TYPES
    from dispatcher.filters import unknown_names

    if sentences := await unknown_names(ledger, wanted, CHANNEL_TYPES):
        raise typer.BadParameter("; ".join(sentences))


def write_rest(page: Page[Any], limit: int) -> None:
    """Say on standard error if there are, or may be, entries that the list does not show."""
    if page.after is None:
        return
    older = f"--until {page.after.at:%Y-%m-%dT%H:%M:%SZ}"
    if page.cut:
        write_line(
            f"only entries since {page.after.at:%Y-%m-%d %H:%M:%S} UTC were searched; go on with {older}", err=True
        )
    else:
        write_line(f"only the newest {limit} are shown; --limit shows more, {older} older ones", err=True)
