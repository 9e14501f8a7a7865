"""The phases of an execution, as Flyte names and numbers them."""

from __future__ import annotations

import reprlib
from enum import StrEnum


class Phase(StrEnum):
    """`flyteidl.core.WorkflowExecution.Phase`; the declaration order is the protobuf numbering."""

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
        """Whether the execution has ended: only then is anyone told."""
        return self in TERMINAL

    @classmethod
    def parse(cls, value: object) -> Phase:
        """Read a phase as protobuf JSON writes it: by name (any case) or by number.

        Raises ValueError, naming the phases there are, for anything else.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and (named := _NAMED.get(value.upper())) is not None:
            return named
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(_NUMBERED):
            return _NUMBERED[value]
        known = ", ".join(cls)
        raise ValueError(f"unknown phase {_shown(value)}; the phases are {known}")


TERMINAL = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.ABORTED, Phase.TIMED_OUT})
_NUMBERED = tuple(Phase)
_NAMED = {phase.name: phase for phase in Phase}


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else reprlib.repr(value)  # what is nested deeply has no repr
    return text if len(text) <= 60 else f"{text[:57]}..."
