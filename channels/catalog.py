"""The list of channels: the only module that names a concrete one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from channels.contract import Channel
from channels.email import EmailChannel, EmailConfig
from channels.pagerduty import PagerDutyChannel, PagerDutyConfig
from channels.slack import SlackChannel, SlackConfig
from channels.teams import TeamsChannel, TeamsConfig
from channels.webhook import WebhookChannel, WebhookConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of channel: its options, and how one is made. Making one opens nothing."""

    config: type[BaseModel]
    open: Callable[[Any], Channel]
    rate: str = "none"
    """What the provider takes for one destination, where the settings don't say (`1/s`, `120/min`)."""
    burst: int = 1
    """So many may go at once after a quiet while."""


KINDS: Mapping[str, Kind] = {
    "email": Kind(config=EmailConfig, open=EmailChannel),
    # Slack, "Rate limits": one message a second and channel, short bursts are allowed
    "slack": Kind(config=SlackConfig, open=SlackChannel, rate="1/s", burst=3),
    # PagerDuty, "Events API v2 rate limits": 120 a minute and integration key
    "pagerduty": Kind(config=PagerDutyConfig, open=PagerDutyChannel, rate="120/min", burst=10),
    # Microsoft, "Rate limiting for connectors": 60 in 30 seconds, 4 in one
    "teams": Kind(config=TeamsConfig, open=TeamsChannel, rate="2/s", burst=2),
    "webhook": Kind(config=WebhookConfig, open=WebhookChannel),
}
"""By the name that settings, rules and the ledger use."""
