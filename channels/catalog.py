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


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of channel: its options, and how one is made. Making one opens nothing."""

    config: type[BaseModel]
    open: Callable[[Any], Channel]


KINDS: Mapping[str, Kind] = {
    "email": Kind(EmailConfig, EmailChannel),
    "slack": Kind(SlackConfig, SlackChannel),
    "pagerduty": Kind(PagerDutyConfig, PagerDutyChannel),
}
"""By the name that settings, rules and the ledger use."""
