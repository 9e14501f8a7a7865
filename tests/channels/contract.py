"""Tests of the promises in `channels/contract.py`, for any channel.

A channel's test subclasses `ChannelContract` and defines four fixtures: the provider (a server on loopback), the
channel with and without that server, and a function that creates a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Protocol

import pytest

from channels.contract import Channel, ChannelError, InDoubt, Later, Message, Never, Receipt
from tests.support.http import Request, ScriptedHttp, answer

TIME_LIMIT = 8.0
"""Seconds in which a channel with a timeout of one second must finish any call."""


class Reaction(Enum):
    """What the provider does with the next message, once it has received all of it. Later messages are accepted."""

    TRY_LATER = auto()
    """Answers with a temporary failure."""
    REFUSE = auto()
    """Answers with a permanent failure."""
    DISCONNECT = auto()
    """Closes the connection without an answer."""
    NO_ANSWER = auto()
    """Sends no answer and keeps the connection open."""
    PARTIAL_ANSWER = auto()
    """Closes the connection in the middle of its answer."""
    INVALID_ANSWER = auto()
    """Sends bytes that do not follow the provider's protocol."""


class Provider(Protocol):
    """A server on loopback that receives messages while one test runs."""

    def next(self, reaction: Reaction) -> None:
        """Queue the reaction to one message: the first call is for the next message, the second for the one after."""

    @property
    def seen(self) -> Sequence[str]:
        """The key of each message that was received completely, in order, accepted or not."""

    @property
    def open(self) -> int:
        """Number of connections that are open now."""

    @property
    def connections(self) -> int:
        """Number of connections since the start."""

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true; fails after ten seconds."""


class ChannelContract:
    """One test for each promise of the contract. Subclasses define the fixtures and `secrets`."""

    secrets: Sequence[str] = ()
    """Strings that no error, preview, finding or `repr` may contain."""

    @pytest.fixture
    def provider(self) -> AsyncIterator[Provider]:
        """The server; stopped after the test."""
        raise NotImplementedError

    @pytest.fixture
    def new_channel(self, provider: Provider) -> Channel:
        """A channel that sends to `provider` with a timeout of one second. The tests close it."""
        raise NotImplementedError

    @pytest.fixture
    def unreachable_channel(self) -> Channel:
        """The same channel with an address at which no server listens."""
        raise NotImplementedError

    @pytest.fixture
    def message(self) -> Callable[[str], Message]:
        """A function that creates a message with the given key, to a recipient that the channel can reach."""
        raise NotImplementedError

    @pytest.fixture
    async def channel(self, new_channel: Channel) -> AsyncIterator[Channel]:
        yield new_channel
        await new_channel.aclose()

    async def test_a_message_is_sent_once_and_gives_a_receipt(
        self, provider: Provider, channel: Channel, message: Callable[[str], Message]
    ) -> None:
        receipt = await channel.send(message("k1"))
        assert isinstance(receipt, Receipt)
        assert receipt.answer.status
        assert receipt.failures == {}
        assert provider.seen == ["k1"]

    async def test_a_channel_opens_no_connection_before_the_first_send(
        self, provider: Provider, channel: Channel, message: Callable[[str], Message]
    ) -> None:
        first = channel.wire_preview(message("k1"))
        assert channel.wire_preview(message("k1")) == first
        assert first.body
        assert isinstance(channel.destination(message("k1").recipients), str)
        await channel.aclose()
        assert provider.connections == 0

    async def test_a_note_is_sent_beside_the_content(
        self, provider: Provider, channel: Channel, message: Callable[[str], Message]
    ) -> None:
        plain = message("k1")
        noted = replace(plain, note="held 22:00-07:00 & more")
        assert b"held 22:00-07:00" in channel.wire_preview(noted).body
        assert b"held" not in channel.wire_preview(plain).body
        await channel.send(noted)
        assert provider.seen == ["k1"]

    @pytest.mark.parametrize(
        ("reaction", "error_type"),
        [
            (Reaction.TRY_LATER, Later),
            (Reaction.REFUSE, Never),
            (Reaction.DISCONNECT, InDoubt),
            (Reaction.NO_ANSWER, InDoubt),
            (Reaction.PARTIAL_ANSWER, InDoubt),
            (Reaction.INVALID_ANSWER, InDoubt),
        ],
    )
    async def test_each_reaction_raises_its_error_after_one_request_and_the_next_send_succeeds(
        self,
        provider: Provider,
        channel: Channel,
        message: Callable[[str], Message],
        reaction: Reaction,
        error_type: type[ChannelError],
    ) -> None:
        provider.next(reaction)
        async with asyncio.timeout(TIME_LIMIT):
            with pytest.raises(ChannelError) as caught:
                await channel.send(message("k1"))
        error = caught.value
        assert isinstance(error, error_type), error
        assert error.reason[0].isalpha()
        assert "\n" not in error.reason
        assert provider.seen == ["k1"]
        preview = channel.wire_preview(message("k1"))
        shown = f"{error!r} {error} {error.answer} {error.__cause__!r} {preview.body!r} {channel!r}"
        assert not [secret for secret in self.secrets if secret in shown]

        await channel.send(message("k2"))
        assert provider.seen == ["k1", "k2"]

    async def test_an_unreachable_provider_raises_later(
        self, unreachable_channel: Channel, message: Callable[[str], Message]
    ) -> None:
        async with asyncio.timeout(TIME_LIMIT):
            with pytest.raises(ChannelError) as caught:
                await unreachable_channel.send(message("k1"))
            await unreachable_channel.aclose()
        assert isinstance(caught.value, Later)
        assert not [secret for secret in self.secrets if secret in f"{caught.value!r}"]

    async def test_the_send_after_a_cancelled_one_succeeds(
        self, provider: Provider, channel: Channel, message: Callable[[str], Message]
    ) -> None:
        provider.next(Reaction.NO_ANSWER)
        sending = asyncio.ensure_future(channel.send(message("k1")))
        await provider.until(lambda: len(provider.seen) == 1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

        async with asyncio.timeout(TIME_LIMIT):
            await channel.send(message("k2"))
        assert provider.seen == ["k1", "k2"]

    async def test_concurrent_sends_arrive_once_each(
        self, provider: Provider, channel: Channel, message: Callable[[str], Message]
    ) -> None:
        keys = [f"k{number}" for number in range(20)]
        await asyncio.gather(*(channel.send(message(key)) for key in keys))
        assert sorted(provider.seen) == sorted(keys)

    async def test_a_slow_send_does_not_delay_another_send(
        self, provider: Provider, channel: Channel, message: Callable[[str], Message]
    ) -> None:
        provider.next(Reaction.NO_ANSWER)
        slow = asyncio.ensure_future(channel.send(message("slow")))
        await provider.until(lambda: len(provider.seen) == 1)
        await channel.send(message("quick"))
        assert not slow.done()
        with pytest.raises(InDoubt):
            await slow

    async def test_a_shutdown_with_sends_in_flight_is_prompt_and_closes_all_connections(
        self, provider: Provider, new_channel: Channel, message: Callable[[str], Message]
    ) -> None:
        for _ in range(3):
            provider.next(Reaction.NO_ANSWER)
        sending = [asyncio.ensure_future(new_channel.send(message(f"k{number}"))) for number in range(3)]
        await provider.until(lambda: len(provider.seen) == 3)
        for task in sending:
            task.cancel()
        async with asyncio.timeout(TIME_LIMIT):
            results = await asyncio.gather(*sending, return_exceptions=True)
            await new_channel.aclose()
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        await provider.until(lambda: provider.open == 0)

    async def test_a_check_notifies_nobody_and_raises_nothing(
        self, provider: Provider, channel: Channel, unreachable_channel: Channel
    ) -> None:
        async with asyncio.timeout(TIME_LIMIT):
            findings = [*await channel.check(), *await unreachable_channel.check()]
            await unreachable_channel.aclose()
        assert any(not finding.ok for finding in findings)
        shown = " ".join(finding.message for finding in findings)
        assert shown
        assert not [secret for secret in self.secrets if secret in shown]
        assert provider.seen == []


@dataclass(slots=True)
class HttpProvider:
    """A provider with an HTTP API. `answers`: its bytes for TRY_LATER and REFUSE; other reactions are the same for all."""

    server: ScriptedHttp
    key_of: Callable[[Request], str | None]
    """Finds the message's key in a request; None if the request is no message."""
    answers: Mapping[Reaction, bytes]
    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server.check_request = self._record

    def _record(self, request: Request) -> None:
        if (key := self.key_of(request)) is not None:
            self.seen.append(key)

    def next(self, reaction: Reaction) -> None:
        common: dict[Reaction, bytes | None] = {
            Reaction.DISCONNECT: b"",
            Reaction.NO_ANSWER: None,
            Reaction.PARTIAL_ANSWER: answer(200, b"a" * 50)[:-20],
            Reaction.INVALID_ANSWER: b"220 stand-in ESMTP\r\n\r\n",
        }
        whole = self.answers.get(reaction, b"").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
        self.server.steps.append(common.get(reaction, whole))

    @property
    def open(self) -> int:
        return self.server.open

    @property
    def connections(self) -> int:
        return self.server.connections

    async def until(self, condition: Callable[[], bool]) -> None:
        await self.server.until(condition)
