"""What every channel must keep of `channels/contract.py`, whatever its provider does.

A channel's test subclasses `ChannelContract`, and says with four fixtures which provider it talks to, and how it is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from enum import Enum, auto
from typing import Protocol

import pytest

from channels.contract import Channel, ChannelError, InDoubt, Later, Message, Never, Receipt

PATIENCE = 8.0
"""Seconds in which a channel with a time-out of one second must be done with anything."""


class Mood(Enum):
    """What the provider does with the next message, once it has it in whole. Then it behaves again."""

    LATER = auto()
    """Says: not now."""
    REFUSE = auto()
    """Says: never."""
    DROP = auto()
    """Hangs up without a word."""
    HOLD = auto()
    """Says nothing, and doesn't hang up."""
    HALF = auto()
    """Hangs up in the middle of its answer."""
    GARBAGE = auto()
    """Says what is no answer at all."""


class Provider(Protocol):
    """A server that takes messages, on loopback. Open while the fixture's test lasts."""

    def next(self, mood: Mood) -> None:
        """Treat one message so; called again, the one after it too."""

    @property
    def seen(self) -> Sequence[str]:
        """The key of each message that came in whole, in order, taken or not."""

    @property
    def open(self) -> int:
        """Connections now."""

    @property
    def connections(self) -> int:
        """Connections ever."""

    async def until(self, what: Callable[[], bool]) -> None:
        """Wait until something is so; fails after ten seconds."""


class ChannelContract:
    """The contract, a test for each promise. Subclasses give the fixtures and `secrets`."""

    secrets: Sequence[str] = ()
    """What must never show."""

    @pytest.fixture
    def provider(self) -> AsyncIterator[Provider]:
        """Open while one test lasts."""
        raise NotImplementedError

    @pytest.fixture
    def opened(self, provider: Provider) -> Channel:
        """The channel, with a time-out of one second."""
        raise NotImplementedError

    @pytest.fixture
    def deserted(self) -> Channel:
        """The channel, where no provider listens."""
        raise NotImplementedError

    @pytest.fixture
    def message(self) -> Callable[[str], Message]:
        """A message with that key, for somebody whom the channel serves."""
        raise NotImplementedError

    @pytest.fixture
    async def channel(self, opened: Channel) -> AsyncIterator[Channel]:
        yield opened
        await opened.aclose()

    async def test_a_message_is_sent_once_and_gives_a_receipt(
        self, provider: Provider, channel: Channel, message: Callable[[str], Message]
    ) -> None:
        receipt = await channel.send(message("k1"))
        assert isinstance(receipt, Receipt)
        assert receipt.answer.status
        assert receipt.failures == {}
        assert provider.seen == ["k1"]

    async def test_nothing_is_opened_before_something_is_sent(
        self, provider: Provider, channel: Channel, message: Callable[[str], Message]
    ) -> None:
        first = channel.wire_preview(message("k1"))
        assert channel.wire_preview(message("k1")) == first
        assert first.body
        assert isinstance(channel.destination(message("k1").recipients), str)
        await channel.aclose()
        assert provider.connections == 0

    @pytest.mark.parametrize(
        ("mood", "kind"),
        [
            (Mood.LATER, Later),
            (Mood.REFUSE, Never),
            (Mood.DROP, InDoubt),
            (Mood.HOLD, InDoubt),
            (Mood.HALF, InDoubt),
            (Mood.GARBAGE, InDoubt),
        ],
    )
    async def test_each_answer_has_its_meaning_at_one_try_and_spoils_no_other(
        self,
        provider: Provider,
        channel: Channel,
        message: Callable[[str], Message],
        mood: Mood,
        kind: type[ChannelError],
    ) -> None:
        provider.next(mood)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(ChannelError) as caught:
                await channel.send(message("k1"))
        error = caught.value
        assert isinstance(error, kind), error
        assert error.reason[0].isalpha()
        assert "\n" not in error.reason
        assert provider.seen == ["k1"]
        shown = f"{error!r} {error} {error.answer} {error.__cause__!r} {channel.wire_preview(message('k1')).body!r} {channel!r}"
        assert not [secret for secret in self.secrets if secret in shown]

        await channel.send(message("k2"))
        assert provider.seen == ["k1", "k2"]

    async def test_a_provider_that_is_not_there_means_later(
        self, deserted: Channel, message: Callable[[str], Message]
    ) -> None:
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(ChannelError) as caught:
                await deserted.send(message("k1"))
            await deserted.aclose()
        assert isinstance(caught.value, Later)
        assert not [secret for secret in self.secrets if secret in f"{caught.value!r}"]

    async def test_a_send_that_is_cancelled_midway_spoils_no_other(
        self, provider: Provider, channel: Channel, message: Callable[[str], Message]
    ) -> None:
        provider.next(Mood.HOLD)
        sending = asyncio.ensure_future(channel.send(message("k1")))
        await provider.until(lambda: len(provider.seen) == 1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

        async with asyncio.timeout(PATIENCE):
            await channel.send(message("k2"))
        assert provider.seen == ["k1", "k2"]

    async def test_many_at_once_arrive_once_each(
        self, provider: Provider, channel: Channel, message: Callable[[str], Message]
    ) -> None:
        keys = [f"k{number}" for number in range(20)]
        await asyncio.gather(*(channel.send(message(key)) for key in keys))
        assert sorted(provider.seen) == sorted(keys)

    async def test_a_slow_one_does_not_hold_up_the_others(
        self, provider: Provider, channel: Channel, message: Callable[[str], Message]
    ) -> None:
        provider.next(Mood.HOLD)
        slow = asyncio.ensure_future(channel.send(message("slow")))
        await provider.until(lambda: len(provider.seen) == 1)
        await channel.send(message("quick"))
        assert not slow.done()
        with pytest.raises(InDoubt):
            await slow

    async def test_a_shutdown_with_sends_in_flight_is_prompt_and_leaves_nothing_open(
        self, provider: Provider, opened: Channel, message: Callable[[str], Message]
    ) -> None:
        for _ in range(3):
            provider.next(Mood.HOLD)
        sending = [asyncio.ensure_future(opened.send(message(f"k{number}"))) for number in range(3)]
        await provider.until(lambda: len(provider.seen) == 3)
        for task in sending:
            task.cancel()
        async with asyncio.timeout(PATIENCE):
            ended = await asyncio.gather(*sending, return_exceptions=True)
            await opened.aclose()
        assert all(isinstance(one, asyncio.CancelledError) for one in ended)
        await provider.until(lambda: provider.open == 0)

    async def test_a_check_tells_nobody_and_raises_nothing(
        self, provider: Provider, channel: Channel, deserted: Channel, message: Callable[[str], Message]
    ) -> None:
        async with asyncio.timeout(PATIENCE):
            found = [*await channel.check(), *await deserted.check()]
            await deserted.aclose()
        assert any(not finding.ok for finding in found)
        shown = " ".join(finding.says for finding in found)
        assert shown
        assert not [secret for secret in self.secrets if secret in shown]
        assert provider.seen == []
