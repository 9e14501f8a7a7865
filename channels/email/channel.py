"""EmailChannel: validates addresses, builds each mail, and sends it through the first relay that accepts it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from channels.contract import (
    Channel,
    ChannelError,
    ChannelType,
    Finding,
    Later,
    Message,
    Misconfigured,
    Never,
    Receipt,
    UnknownRecipient,
    WirePreview,
)
from channels.email.addresses import mail_address
from channels.email.answers import OUTCOMES
from channels.email.config import EmailConfig
from channels.email.limits import FORM
from channels.email.mime import MailMessage, MessageBuilder

if TYPE_CHECKING:
    from channels.email.relay import Relay

FAILED_RELAY_LAST = 30.0
"""For this many seconds after a relay has failed, the other relays are tried before it."""


class EmailChannel(Channel):
    """Sends mail through one relay, or through the first of several relays that accepts the mail.

    Content: `{"subject": str, "text": str, "html": str}`, and optionally `"about": {"project": str, "domain": str,
    "launch_plan": str}`, from which the List-Id and thread headers are derived. So mail needs no `Thread`.
    """

    def __init__(self, config: EmailConfig) -> None:
        self._config = config
        self._builder = MessageBuilder(config)
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

    def wire_preview(self, message: Message) -> WirePreview:
        return WirePreview("message/rfc822", self._builder.render(message))

    async def send(self, message: Message) -> Receipt:
        receipts: list[Receipt] = []
        refusals: list[Never] = []
        failures: dict[str, ChannelError] = {}
        for mail in await self._build(message):
            try:
                receipts.append(await self._send_mail(mail))
            except ChannelError as error:
                if isinstance(error, Never):
                    refusals.append(error)
                elif not receipts:  # nothing was sent, so the whole message is sent again
                    raise
                failures |= dict.fromkeys(mail.recipients, error)
            else:
                failures |= receipts[-1].failures
        if not receipts:
            raise refusals[0] if len(refusals) == 1 else Never("; ".join(error.reason for error in refusals))
        in_order = {name: failures[name] for name in message.recipients if name in failures}
        return replace(receipts[0], failures=in_order)

    async def _send_mail(self, mail: MailMessage) -> Receipt:
        """Send the mail through the first relay that accepts it. Raises `Later`, `Never` or `InDoubt`."""
        refusals: list[Later] = []
        for relay in self._relays_in_order():
            try:
                receipt = await relay.send(mail)
            except Later as refusal:  # this relay did not accept the mail, so try the next relay
                refusals.append(refusal)
                if refusal.provider_wide:
                    self._failed_at[relay] = asyncio.get_running_loop().time()
            else:
                self._failed_at.pop(relay, None)
                return receipt
        raise _combined(refusals)

    async def check(self) -> Sequence[Finding]:
        """Connect to each relay, start TLS and log in, without sending a mail."""
        return [await relay.check() for relay in self._relays_in_order()]

    async def aclose(self) -> None:
        for relay in self._relays:
            await relay.aclose()

    async def _build(self, message: Message) -> list[MailMessage]:
        if self._config.dkim is None:
            return self._builder.build(message)
        # The DKIM signature takes milliseconds of CPU time, so it is computed outside the event loop.
        return await asyncio.to_thread(self._builder.build, message)

    def _relays_in_order(self) -> list[Relay]:
        """Return the relays in the order of the settings, but relays that failed recently come last."""
        if not self._relays:
            # Imported late: at the top of the file, aiosmtplib would slow down every command.
            from channels.email.relay import Relay  # noqa: PLC0415

            self._relays = [Relay(route) for route in self._config.routes]
        if not self._failed_at:
            return self._relays
        now = asyncio.get_running_loop().time()
        ordered = sorted(
            self._relays,
            key=lambda relay: self._failed_at.get(relay, now - FAILED_RELAY_LAST) > now - FAILED_RELAY_LAST,
        )
        # If the first relay has failed before, this mail tests whether it works again. Other mails use other relays.
        if ordered[0] in self._failed_at:
            self._failed_at[ordered[0]] = now
        return ordered


def _combined(refusals: list[Later]) -> Later:
    """Return one error with the reasons of all relays. It is `Misconfigured`, or `provider_wide`, only if every relay's
    error is.
    """
    if len(refusals) == 1:
        return refusals[0]
    reasons = "; ".join(dict.fromkeys(refusal.reason for refusal in refusals))
    answer = refusals[-1].answer
    if all(isinstance(refusal, Misconfigured) for refusal in refusals):
        return Misconfigured(reasons, answer=answer)
    return Later(reasons, answer=answer, provider_wide=all(refusal.provider_wide for refusal in refusals))


CHANNEL_TYPE = ChannelType(
    config=EmailConfig,
    open=EmailChannel,
    title="Email",
    groups_recipients=True,
    form=FORM,
    headline=("subject",),
    example={"host": "localhost", "security": "none", "from": "Flyte <flyte@example.com>"},
    example_recipient="you@example.com",
    outcomes=OUTCOMES,
)
