"""The mail channel: which addresses it serves, what it writes, and which relay gets it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from channels.contract import Finding, Later, Message, Receipt, ThreadBy, UnknownRecipient, WirePreview
from channels.email.addresses import mail_address
from channels.email.config import EmailConfig
from channels.email.mime import Letter, Stationery

if TYPE_CHECKING:
    from channels.email.relay import Relay

PASSED_OVER = 30.0
"""Seconds for which a relay that took nothing from anybody is tried after the others."""


class EmailChannel:
    """Mail through a relay, or the first of several that takes it.

    Content: `{"subject": str, "text": str, "html": str}`, and optionally `"about": {"project": str, "domain": str,
    "launch_plan": str}`, which gives the mail its List-Id and its thread.
    """

    def __init__(self, config: EmailConfig) -> None:
        self._config = config
        self._stationery = Stationery(config)
        self._relays: list[Relay] = []
        self._failed_at: dict[Relay, float] = {}

    def address(self, recipient: str) -> str:
        try:
            return mail_address(recipient)
        except ValueError as error:
            raise UnknownRecipient(str(error)) from None

    def destination(self, recipients: tuple[str, ...]) -> str:
        del recipients
        return ""

    def thread_by(self, address: str) -> ThreadBy | None:
        del address
        return None  # its mails find together by their headers

    def wire_preview(self, message: Message) -> WirePreview:
        return WirePreview("message/rfc822", self._stationery.write(message))

    async def send(self, message: Message) -> Receipt:
        letter = await self._letter(message)
        refusals: list[Later] = []
        for relay in self._in_turn():
            try:
                receipt = await relay.take(letter)
            except Later as refusal:  # nothing was taken: another relay may
                refusals.append(refusal)
                if refusal.everyone:
                    self._failed_at[relay] = asyncio.get_running_loop().time()
            else:
                self._failed_at.pop(relay, None)
                return receipt
        raise _together(refusals)

    async def check(self) -> Sequence[Finding]:
        """Connects to each relay, encrypts and logs in; says nothing of any mail."""
        return [await relay.check() for relay in self._in_turn()]

    async def aclose(self) -> None:
        for relay in self._relays:
            await relay.aclose()

    async def _letter(self, message: Message) -> Letter:
        if self._config.dkim is None:
            return self._stationery.letter(message)
        return await asyncio.to_thread(self._stationery.letter, message)  # a signature takes a while

    def _in_turn(self) -> list[Relay]:
        """The relays as the settings name them, those that failed lately last."""
        if not self._relays:
            from channels.email.relay import Relay  # noqa: PLC0415 - aiosmtplib is kept out of the command line's start

            self._relays = [Relay(route) for route in self._config.routes]
        if not self._failed_at:
            return self._relays
        now = asyncio.get_running_loop().time()
        turns = sorted(
            self._relays, key=lambda relay: self._failed_at.get(relay, now - PASSED_OVER) > now - PASSED_OVER
        )
        if turns[0] in self._failed_at:  # this mail finds out whether it is back, and the others don't wait for that
            self._failed_at[turns[0]] = now
        return turns


def _together(refusals: list[Later]) -> Later:
    """No relay took it: each says why. It is everyone's trouble only where it is at each of them."""
    if len(refusals) == 1:
        return refusals[0]
    reasons = dict.fromkeys(refusal.reason for refusal in refusals)
    everyone = all(refusal.everyone for refusal in refusals)
    return Later("; ".join(reasons), answer=refusals[-1].answer, everyone=everyone)
