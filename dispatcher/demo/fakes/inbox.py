"""The inbox: local fakes of a mail relay, Slack, PagerDuty, Teams and a webhook receiver, and a page with all messages.

Each fake checks the messages and answers like the real service. The tests use the fakes too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from starlette.applications import Starlette
from starlette.routing import Mount

from dispatcher.demo.fakes.mail import Mail, MailReceiver
from dispatcher.demo.fakes.page import InboxPage
from dispatcher.demo.fakes.pagerduty import Incident, PagerDutyReceiver
from dispatcher.demo.fakes.slack import Conversation, SlackMessage, SlackReceiver
from dispatcher.demo.fakes.webhooks import Call, Card, TeamsReceiver, WebhookReceiver
from dispatcher.web.server import serving

__all__ = [
    "Conversation",
    "Inbox",
    "MailReceiver",
    "PagerDutyReceiver",
    "SlackReceiver",
    "TeamsReceiver",
    "WebhookReceiver",
]

Arrival = Mail | SlackMessage | Incident | Card | Call


@dataclass(slots=True)
class Inbox:
    """The fake receivers and the web page. `async with` starts and stops them."""

    mail: MailReceiver = field(default_factory=MailReceiver)
    slack: SlackReceiver = field(default_factory=SlackReceiver)
    pagerduty: PagerDutyReceiver = field(default_factory=PagerDutyReceiver)
    teams: TeamsReceiver = field(default_factory=TeamsReceiver)
    webhook: WebhookReceiver = field(default_factory=WebhookReceiver)
    port: int = 0
    """The port of the web page and the HTTP receivers. 0 chooses a free port."""
    on_arrival: Callable[[Arrival], None] = lambda _: None
    """A function that is called with each message that arrives."""
    arrivals: list[Arrival] = field(default_factory=list)
    """All messages that have arrived, in order. A PagerDuty incident appears once for each of its events."""
    url: str = ""
    console_url: str = ""
    """The dispatcher's console, to which the page links."""
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def slack_url(self) -> str:
        return f"{self.url}/slack/api/"

    @property
    def pagerduty_url(self) -> str:
        return f"{self.url}/pagerduty"

    async def __aenter__(self) -> Self:
        for receiver in (self.mail, self.slack, self.pagerduty, self.teams, self.webhook):
            receiver.arrived = self._add
        app = Starlette(
            routes=[
                Mount("/slack", routes=self.slack.routes()),
                Mount("/pagerduty", routes=self.pagerduty.routes()),
                Mount("/teams", routes=self.teams.routes()),
                Mount("/hooks", routes=self.webhook.routes()),
                *InboxPage(self.arrivals, lambda: self.console_url).routes(),
            ]
        )
        self.url = await self._stack.enter_async_context(serving(app, "127.0.0.1", self.port, setting="--port"))
        await self._stack.enter_async_context(self.mail)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def until(self, enough: Callable[[Self], bool], *, seconds: float) -> bool:
        """Wait until `enough` returns True, then return True. Returns False if that takes longer than `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while not enough(self):
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def _add(self, arrival: Arrival) -> None:
        self.arrivals.append(arrival)
        self.on_arrival(arrival)
        self._arrived.set()
