"""The list of channels: the only module that names a concrete one, and the one that finds those of other packages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

from channels.contract import ChannelType
from channels.email import EmailChannel, EmailConfig
from channels.pagerduty.channel import PagerDutyChannel, PagerDutyConfig
from channels.slack.channel import SlackChannel, SlackConfig
from channels.teams.channel import TeamsChannel, TeamsConfig
from channels.webhook.channel import WebhookChannel, WebhookConfig

_NAME = re.compile(r"[a-z][a-z0-9_]*")
GROUP = "flyte_notification_dispatcher.channels"
"""The entry points by which other packages provide channels: a name, and the place of a Kind."""

BUILT_IN: Mapping[str, ChannelType] = {
    "email": ChannelType(config=EmailConfig, open=EmailChannel),
    # Slack, "Rate limits": one message a second and channel, short bursts are allowed
    "slack": ChannelType(config=SlackConfig, open=SlackChannel, rate="1/s", burst=3),
    # PagerDuty, "Events API v2 rate limits": 120 a minute and integration key
    "pagerduty": ChannelType(config=PagerDutyConfig, open=PagerDutyChannel, rate="120/min", burst=10),
    # our own choice: for workflows Microsoft names no figure, and says to heed 429
    "teams": ChannelType(config=TeamsConfig, open=TeamsChannel, rate="2/s", burst=2),
    "webhook": ChannelType(config=WebhookConfig, open=WebhookChannel),
}


def _provided() -> tuple[dict[str, ChannelType], list[str]]:
    """The channels of other packages, and what is wrong with those that can't be used, a sentence each."""
    kinds: dict[str, ChannelType] = {}
    problems = []
    for point in sorted(entry_points(group=GROUP), key=lambda one: one.name):
        whose = f"channel {point.name!r} of {point.dist.name if point.dist is not None else point.value}"
        try:
            kind = point.load()
        except Exception as error:  # noqa: BLE001 - another package's code may raise anything
            problems.append(f"{whose} can't be loaded: {type(error).__name__}: {error}")
            continue
        if point.name in BUILT_IN or point.name in kinds:
            problems.append(f"{whose}: there is another channel of that name")
        elif not _NAME.fullmatch(point.name):
            problems.append(f"{whose}: a channel's name is made of a-z, 0-9 and _")
        elif not isinstance(kind, ChannelType):
            problems.append(f"{whose}: {point.value} is no channels.contract.Kind")
        else:
            kinds[point.name] = kind
    return kinds, problems


_provided_types, PROBLEMS = _provided()
CHANNEL_TYPES: Mapping[str, ChannelType] = {**BUILT_IN, **_provided_types}
"""By the name that settings, rules and the ledger use. What is wrong with other packages' is in `PROBLEMS`."""
TEMPLATES: Mapping[str, Path | None] = {name: kind.template for name, kind in _provided_types.items()}
"""The document templates of other packages' channels."""
