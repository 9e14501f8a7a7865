"""Finds the channel and the address of a recipient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from channels.contract import UnknownRecipient

Address = Callable[[str], str]
"""The method `Channel.address`: returns the address of a rule's recipient. Raises UnknownRecipient."""


class Target(NamedTuple):
    channel: str
    recipient: str
    address: str


FindTarget = Callable[[str, str], Target]
"""Returns the target of a channel's recipient. Raises UnknownRecipient if no channel knows it."""


def as_written(channel: str, recipient: str) -> Target:
    return Target(channel, recipient, recipient)


def find_target(addresses: Mapping[str, Address], fallbacks: Mapping[str, str], channel: str, recipient: str) -> Target:
    """Return the channel and address for a recipient. Raises UnknownRecipient if no channel knows it.

    `addresses`: mapping from each configured channel to the function that returns a recipient's address. `fallbacks`:
    mapping from a channel to its fallback channel.
    """

    def address(channel: str, recipient: str) -> str:
        if channel not in addresses:
            raise UnknownRecipient(f"no such channel is configured: add channels.{channel} to the settings")
        return addresses[channel](recipient)

    if not channel:
        raise UnknownRecipient("there is no such contact any more: add it to contacts")
    try:
        return Target(channel, recipient, address(channel, recipient))
    except UnknownRecipient as unknown_recipient:
        if unknown_recipient.reachable_by is not None and unknown_recipient.reachable_by[0] in addresses:
            channel, alias = unknown_recipient.reachable_by
            return Target(channel, recipient, address(channel, alias))
        fallback = fallbacks.get(channel)
        if fallback is None:
            raise
        try:
            return Target(fallback, recipient, address(fallback, recipient))
        except UnknownRecipient as neither:
            raise UnknownRecipient(f"{unknown_recipient.reason}; nor does {fallback}: {neither.reason}") from None
