"""The phases of an execution, with Flyte's names and numbers."""

from __future__ import annotations

import reprlib
from enum import StrEnum


class Phase(StrEnum):
    """`flyteidl.core.WorkflowExecution.Phase`. The members are declared in the order of their protobuf numbers."""

    UNDEFINED = "UNDEFINED"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDING = "SUCCEEDING"
    SUCCEEDED = "SUCCEEDED"
    FAILING = "FAILING"
    FAILED = "FAILED"
    ABORTED = "ABORTED"
    TIMED_OUT = "TIMED_OUT"
    ABORTING = "ABORTING"

    @property
    def terminal(self) -> bool:
        """True if the execution has finished. Only terminal phases cause notifications."""
        return self in TERMINAL

    @classmethod
    def parse(cls, value: object) -> Phase:
        """Read a phase as protobuf JSON writes it: by name (any case) or by number.

        Raises ValueError, listing the phases, for anything else.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and (named := _NAMED.get(value.upper())) is not None:
            return named
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(_NUMBERED):
            return _NUMBERED[value]
        phases = ", ".join(cls)
        raise ValueError(f"unknown phase {_shown(value)}; the phases are {phases}")


TERMINAL = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.ABORTED, Phase.TIMED_OUT})
_NUMBERED = tuple(Phase)
_NAMED = {phase.name: phase for phase in Phase}


def _shown(value: object) -> str:
    text = (
        repr(value) if isinstance(value, str) else reprlib.repr(value)
    )  # repr of a deeply nested value fails; reprlib limits the depth
    return text if len(text) <= 60 else f"{text[:57]}..."
