"""The variables of templates about a digest or summary. They are empty in a message about an event."""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.rendering.times import NO_TIME, Time


@dataclass(frozen=True, slots=True)
class ExecutionFacts:
    """One execution that a message tells of."""

    name: str = ""
    """The execution's name."""
    path: str = ""
    """The execution as `project/domain/name`."""
    url: str = ""
    """The address of the execution's page in Flyte's console, or else in the dispatcher's. Empty if neither is known."""


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """Members of the message that have the launch plan, the phase and the cause in common."""

    number: int = 0
    """How many members."""
    phase: str = ""
    """`succeeded`, `failed`, `aborted` or `timed_out`."""
    done: str = ""
    """The phase in words: `succeeded`, `failed`, `aborted`, `timed out`."""
    symbol: str = ""
    """The phase as one emoji."""
    launch_plan: str = ""
    """The launch plan's name; `unknown launch plan` if the events don't give it."""
    project: str = ""
    """The project of the executions."""
    domain: str = ""
    """The domain of the executions."""
    cause: str = ""
    """The fingerprint of the error; empty if there is no error."""
    cause_name: str = ""
    """A short name of the cause; empty if there is no error."""
    first: Time = NO_TIME
    """When the first of the executions finished."""
    last: Time = NO_TIME
    """When the last of the executions finished."""
    executions: tuple[ExecutionFacts, ...] = ()
    """The newest of the executions, as many as fit."""
    more: int = 0
    """How many further executions the group has."""


@dataclass(frozen=True, slots=True)
class SummaryFacts:
    """What a digest or summary tells."""

    kind: str = ""
    """`digest` or `summary`; empty in a message about an event."""
    reason: str = ""
    """What held the members back: `digest`, `silence` or `window`, which stands for quiet hours."""
    why: str = ""
    """The same in words, such as `quiet hours of contact ml-team`."""
    since: Time = NO_TIME
    """When the first member was held back."""
    until: Time = NO_TIME
    """Until when members were held back."""
    number: int = 0
    """How many members there are."""
    groups: tuple[GroupFacts, ...] = ()
    """The largest groups of members, as many as fit."""
    more: int = 0
    """How many members are in no group of `groups`, besides `notices`."""
    resolved: int = 0
    """How many further failures were held back, and were resolved before this message."""
    notices: int = 0
    """How many members are notices that another message could not be delivered."""
