"""Test messages for callers of the console and the API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog
from pydantic import BaseModel, ConfigDict, Field

from channels.contract import UnknownRecipient
from dispatcher.ledger import Filter, Ledger
from dispatcher.model.delivery import Kind
from dispatcher.model.event import Event, ExecutionId
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.rendering.samples import sample_event
from dispatcher.rules import RuleBook
from dispatcher.send_test import SendTest, SendTestResult

log = structlog.get_logger(__name__)

_DELIVERIES_SEARCHED = 100
"""How many of a recipient's newest deliveries are read to find one that a rule asked for."""


class SendTestRefused(Exception):
    """The test message is not sent. `status`: the HTTP status. The text says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class SendTestRequest(BaseModel):
    """A test message to send."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channel: str = Field(min_length=1, max_length=64, description="The channel's name in the settings.")
    recipient: str = Field(min_length=1, max_length=320, description="The recipient, written as in a rule.")
    phase: Phase = Field(Phase.FAILED, description="The phase of the sample execution that the message is about.")
    execution: str = Field(
        "", max_length=1000, description="`project/domain/name`: the message is about this recorded execution instead."
    )


@dataclass(frozen=True, slots=True)
class SendTestForCallers:
    """Sends test messages: for callers with the scope `operate` to anybody, for others to recipients of rules only."""

    send_test: SendTest
    rules: Callable[[], RuleBook]
    """Returns the rules of the files, as they were last loaded."""
    ledger: Ledger

    async def send(self, wanted: SendTestRequest, *, caller: str, operates: bool) -> SendTestResult:
        """Send the message. Raises SendTestRefused, and LedgerUnavailable while the ledger can't be read.

        `operates`: true if the caller has the scope `operate`.
        """
        if not operates and not await self._is_named(wanted.channel, wanted.recipient):
            reason = (
                f"no rule names {wanted.recipient} on {wanted.channel}: only the scope operate can send tests there"
            )
            raise SendTestRefused(403, reason)
        event = await self._event(wanted)
        result = await self.send_test.send(wanted.channel, wanted.recipient, event)
        log.info("a test message was sent", by=caller, channel=result.channel, accepted=result.accepted)
        return result

    async def _event(self, wanted: SendTestRequest) -> Event:
        if not wanted.execution:
            if wanted.phase not in TERMINAL:
                raise SendTestRefused(400, f"{wanted.phase} is not a terminal phase: use {', '.join(sorted(TERMINAL))}")
            return sample_event(wanted.phase, finished=self.send_test.clock.now())
        try:
            execution = ExecutionId.parse(wanted.execution)
        except ValueError as error:
            raise SendTestRefused(400, str(error)) from None
        recorded = await self.ledger.history.events(execution)
        if not recorded:
            raise SendTestRefused(404, f"nothing is recorded of {execution}")
        return recorded[-1].event

    async def _is_named(self, channel: str, recipient: str) -> bool:
        """True if a rule names the recipient: a rule in a file, or one that asked for a recorded delivery."""
        if any((channel, recipient) in self.send_test.planner.recipients(rule) for rule in self.rules().rules()):
            return True
        try:
            target = self.send_test.planner.target(channel, recipient)
        except UnknownRecipient:
            return False
        by_recipient = Filter(channel=target.channel, recipient=recipient)
        page = await self.ledger.queries.deliveries(by_recipient, limit=_DELIVERIES_SEARCHED)
        found = [one.delivery for one in page.entries]
        return any(one.kind is Kind.NOTIFICATION and recipient in one.recipients for one in found)
