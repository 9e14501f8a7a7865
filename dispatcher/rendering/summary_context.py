"""Builds the template variables of a digest or summary: exact counts, and as many groups and executions as fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, timedelta, tzinfo
from typing import NamedTuple
from urllib.parse import quote

from channels.common.text import cut
from dispatcher.model.event import ExecutionId
from dispatcher.model.hold import HoldReason
from dispatcher.model.phase import Phase
from dispatcher.model.summary import Group, Summary
from dispatcher.rendering.context import DONE, Context, Failure, short
from dispatcher.rendering.links import execution_url
from dispatcher.rendering.summary_facts import ExecutionFacts, GroupFacts, SummaryFacts
from dispatcher.rendering.text import one_line
from dispatcher.rendering.times import duration_of, time_of

UNKNOWN_LAUNCH_PLAN = "unknown launch plan"
LONGEST_CAUSE = 200
LONGEST_REASON = 300
_MINUTE = timedelta(minutes=1)
_WORDS = {Phase.FAILED: "failed", Phase.TIMED_OUT: "timed out", Phase.ABORTED: "aborted", Phase.SUCCEEDED: "succeeded"}
"""The phases of members in words, the worst first."""
_TOLD_FIRST = 5
"""The variable `error.summary` tells of this many groups."""


class Extent(NamedTuple):
    """How much of a digest a message lists."""

    groups: int
    executions: int
    """Of each group."""


EXTENTS = (Extent(30, 20), Extent(20, 10), Extent(10, 5), Extent(5, 2), Extent(3, 0))
"""A message has the first of these extents with which it is within the limits of its channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Where executions and members are shown."""

    flyte: str = ""
    """The URL of Flyte's console."""
    dispatcher: str = ""
    """The URL at which browsers reach the dispatcher."""

    def execution(self, path: str) -> str:
        return execution_url(ExecutionId.parse(path), "", self.flyte) or self._page("executions", path)

    def members(self, key: str) -> str:
        return self._page("deliveries", f"?included_in={key}")

    def _page(self, page: str, rest: str) -> str:
        if not self.dispatcher:
            return ""
        part = rest if rest.startswith("?") else f"/{quote(rest)}"
        return f"{self.dispatcher.rstrip('/')}/console/{page}{part}"


def summary_context(
    summary: Summary, extent: Extent, links: Links, *, severity: str = "", zone: tzinfo = UTC
) -> Context:
    """Build the template variables. `severity`: replaces the one that the worst phase gives. `zone`: of `Time.local`."""
    groups = tuple(_group(group, extent, links, zone) for group in summary.groups[: extent.groups])
    listed = sum(group.number for group in groups)
    numbers = Counter[Phase]()
    for group in summary.groups:
        numbers[Phase(group.phase)] += group.number
    worst = next((phase for phase in _WORDS if numbers[phase]), Phase.FAILED)
    _, default_severity, color, symbol = DONE[worst]
    project, domain = _place(summary.groups)
    facts = SummaryFacts(
        kind="digest" if summary.reason is HoldReason.DIGEST else "summary",
        reason=summary.reason.value,
        why=_why(summary),
        since=time_of(summary.since, zone),
        until=time_of(summary.until, zone),
        number=summary.number,
        groups=groups,
        more=summary.number - summary.notices - listed,
        resolved=summary.resolved,
        notices=summary.notices,
    )
    return Context(
        project=project,
        domain=domain,
        name=summary.key,
        what=_counts(summary, numbers),
        phase=worst.lower(),
        done=_when(summary),
        severity=severity or default_severity,
        color=color,
        symbol=symbol,
        labels={},
        url=links.members(summary.key),
        started=facts.since,
        finished=facts.until,
        duration=duration_of(summary.until - summary.since),
        error=Failure(summary="; ".join(map(_told, groups[:_TOLD_FIRST])), message="\n".join(map(_told, groups))),
        summary=facts,
    )


def _group(group: Group, extent: Extent, links: Links, zone: tzinfo) -> GroupFacts:
    phase = Phase(group.phase)
    project, domain, plan = [*group.launch_plan.split("/", 2), "", "", ""][:3]
    if not plan and group.executions:
        project, domain, _ = group.executions[0].split("/", 2)
    shown = group.executions[: extent.executions]
    return GroupFacts(
        number=group.number,
        phase=phase.lower(),
        done=_WORDS[phase],
        symbol=DONE[phase][3],
        launch_plan=short(plan) or UNKNOWN_LAUNCH_PLAN,
        project=one_line(project),
        domain=one_line(domain),
        cause=group.cause,
        cause_name=cut(one_line(group.cause_name), LONGEST_CAUSE),
        first=time_of(group.first_at, zone),
        last=time_of(group.last_at, zone),
        executions=tuple(
            ExecutionFacts(name=one_line(path.rpartition("/")[2]), path=one_line(path), url=links.execution(path))
            for path in shown
        ),
        more=group.number - len(shown),
    )


def _told(group: GroupFacts) -> str:
    """Return a group in one line."""
    cause = f" ({group.cause_name})" if group.cause_name else ""
    return f"{group.launch_plan}: {group.number} {group.done}{cause}"


def _counts(summary: Summary, numbers: Counter[Phase]) -> str:
    """Return the members in words, such as `297 failed, 3 timed out`."""
    counts = [(numbers[phase], word) for phase, word in _WORDS.items()]
    counts += [(summary.more, "others"), (summary.notices, "undelivered")]
    return ", ".join(f"{number} {word}" for number, word in counts if number)


def _when(summary: Summary) -> str:
    """Return during which time the members occurred, in words, such as `in 15 minutes`."""
    match summary.reason:
        case HoldReason.DIGEST:
            minutes = max(-(-(summary.until - summary.since) // _MINUTE), 1)
            return f"in {duration_of(minutes * _MINUTE)}"
        case HoldReason.WINDOW:
            return "during quiet hours"
        case HoldReason.SILENCE:
            return "during a silence"


def _why(summary: Summary) -> str:
    by = cut(one_line(summary.by), LONGEST_REASON)
    match summary.reason:
        case HoldReason.DIGEST:
            return "many messages in a short time"
        case HoldReason.WINDOW:
            return f"quiet hours of {by}"
        case HoldReason.SILENCE:
            return f"silence {by}"


def _place(groups: Sequence[Group]) -> tuple[str, str]:
    """Return the project and the domain of all executions, each `*` if there are several."""
    paths = {
        tuple((group.launch_plan or group.executions[0]).split("/", 2)[:2]) for group in groups if group.executions
    }
    projects, domains = {path[0] for path in paths}, {path[1] for path in paths}
    return tuple(one_line(names.pop()) if len(names) == 1 else "*" for names in (projects, domains))  # type: ignore[return-value]
