"""The list of channel types: the built-in types, and types from other packages, which are found by an entry point.

No other module imports a concrete channel.
"""

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
ENTRY_POINT_GROUP = "flyte_notification_dispatcher.channels"
"""The entry point group in which other packages register channels. An entry's name is the name of the channel; the
entry refers to a `ChannelType`."""

BUILT_IN: Mapping[str, ChannelType] = {
    "email": ChannelType(config=EmailConfig, open=EmailChannel),
    # Slack allows one message per second and Slack channel, with short bursts (Slack, "Rate limits").
    "slack": ChannelType(config=SlackConfig, open=SlackChannel, rate="1/s", burst=3),
    # PagerDuty allows 120 events per minute and routing key (PagerDuty, "Events API v2 rate limits").
    "pagerduty": ChannelType(config=PagerDutyConfig, open=PagerDutyChannel, rate="120/min", burst=10, pages=True),
    # Microsoft documents no limit for Power Automate workflows, only that clients must respect status 429. So this
    # limit is our choice.
    "teams": ChannelType(config=TeamsConfig, open=TeamsChannel, rate="2/s", burst=2),
    "webhook": ChannelType(config=WebhookConfig, open=WebhookChannel),
}


def _load_plugins() -> tuple[dict[str, ChannelType], list[str]]:
    """Load the channel types of other packages.

    Return a mapping from name to channel type, and a sentence for each channel type that can't be used.
    """
    channel_types: dict[str, ChannelType] = {}
    problems = []
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda one: one.name):
        origin = f"channel {point.name!r} of {point.dist.name if point.dist is not None else point.value}"
        try:
            channel_type = point.load()
        except Exception as error:  # noqa: BLE001 - another package's code may raise any exception
            problems.append(f"{origin} can't be loaded: {type(error).__name__}: {error}")
            continue
        if point.name in BUILT_IN or point.name in channel_types:
            problems.append(f"{origin}: there is another channel of that name")
        elif not _NAME.fullmatch(point.name):
            problems.append(f"{origin}: a channel's name is made of a-z, 0-9 and _")
        elif not isinstance(channel_type, ChannelType):
            problems.append(f"{origin}: {point.value} is no channels.contract.ChannelType")
        else:
            channel_types[point.name] = channel_type
    return channel_types, problems


_plugins, PLUGIN_PROBLEMS = _load_plugins()
CHANNEL_TYPES: Mapping[str, ChannelType] = {**BUILT_IN, **_plugins}
"""Mapping from a channel's name to its type. Settings, rules and the ledger use the same names."""
TEMPLATES: Mapping[str, Path | None] = {name: channel_type.template for name, channel_type in _plugins.items()}
"""Mapping from the name of each channel that another package provides to its template file; None if it has no template.
"""
