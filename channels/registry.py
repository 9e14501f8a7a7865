"""The list of channel types: the built-in types, and types from other packages, which are found by an entry point.

No other module imports a concrete channel.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from channels.contract import ChannelType, ContentForm

_NAME = re.compile(r"[a-z][a-z0-9_]*")
ENTRY_POINT_GROUP = "flyte_notification_dispatcher.channels"
"""The entry point group in which other packages register channels. An entry's name is the name of the channel; the
entry refers to a `ChannelType`."""
BUILT_IN: Mapping[str, str] = {
    "email": "channels.email.channel:CHANNEL_TYPE",
    "slack": "channels.slack.channel:CHANNEL_TYPE",
    "pagerduty": "channels.pagerduty.channel:CHANNEL_TYPE",
    "teams": "channels.teams.channel:CHANNEL_TYPE",
    "webhook": "channels.webhook.channel:CHANNEL_TYPE",
}
"""The built-in channels, written as entry points. They are listed here, because a checkout that is not installed has no
entry points."""


def _load() -> tuple[dict[str, ChannelType], list[str]]:
    """Load all channel types. Return a mapping from name to channel type, and a sentence for each channel type that
    can't be used.
    """
    channel_types: dict[str, ChannelType] = {}
    problems = []
    built_in = [EntryPoint(name, value, ENTRY_POINT_GROUP) for name, value in BUILT_IN.items()]
    for point in [*built_in, *sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda one: one.name)]:
        origin = f"channel {point.name!r} of {point.dist.name if point.dist is not None else point.value}"
        try:
            channel_type = point.load()
        except Exception as error:  # noqa: BLE001 - another package's code may raise any exception
            problems.append(f"{origin} can't be loaded: {type(error).__name__}: {error}")
            continue
        if point.name in channel_types:
            problems.append(f"{origin}: there is another channel of that name")
        elif not _NAME.fullmatch(point.name):
            problems.append(f"{origin}: a channel's name is made of a-z, 0-9 and _")
        elif not isinstance(channel_type, ChannelType):
            problems.append(f"{origin}: {point.value} is no channels.contract.ChannelType")
        elif not _is_picklable(channel_type.form):
            problems.append(f"{origin}: the functions of its form must stand at the top level of a module")
        else:
            channel_types[point.name] = channel_type
    return channel_types, problems


def _is_picklable(form: ContentForm) -> bool:
    """True if the form can be sent to the process that renders operators' templates."""
    try:
        pickle.dumps(form)
    except Exception:  # noqa: BLE001 - another package's code may raise any exception
        return False
    return True


CHANNEL_TYPES: Mapping[str, ChannelType]
"""Mapping from a channel's name to its type. Settings, rules and the ledger use the same names."""
CHANNEL_TYPES, PLUGIN_PROBLEMS = _load()
