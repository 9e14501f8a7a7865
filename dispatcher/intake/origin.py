"""Finds the execution at which a chain of recoveries and relaunches began."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from dispatcher.ledger import Ledger
from dispatcher.model.event import ExecutionId
from dispatcher.rules import AdminExecution, UnknownExecution

LookUp = Callable[[ExecutionId], Awaitable[AdminExecution | UnknownExecution]]
"""A function that returns FlyteAdmin's data about an execution. Raises FlyteAdminUnavailable."""
MAX_STEPS = 10
"""A chain is followed for this many executions. A longer chain counts as beginning there."""


async def find_origin(
    reference: ExecutionId,
    batch: Mapping[ExecutionId, ExecutionId | None],
    ledger: Ledger,
    look_up: LookUp | None,
) -> ExecutionId:
    """Return the execution that `reference`, the execution of a recovery or relaunch, goes back to.

    Each execution's own reference is read from the batch of events that is being handled (`batch`: mapping from an
    execution to its reference), from its recorded event, or from FlyteAdmin. Where none of them knows the execution,
    the chain ends there. Raises Unavailable.
    """
    for _ in range(MAX_STEPS):
        if reference in batch:
            following = batch[reference]
        elif recorded := await ledger.history.events(reference):
            if recorded[-1].event.origin is not None:
                return recorded[-1].event.origin
            following = recorded[-1].event.reference_execution
        elif look_up is not None:
            answer = await look_up(reference)
            following = answer.reference_execution if isinstance(answer, AdminExecution) else None
        else:
            following = None
        if following is None:
            return reference
        reference = following
    return reference
