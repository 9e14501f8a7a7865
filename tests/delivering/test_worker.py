"""Couriers on a real ledger, over a channel that does what the test says."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

from channels.contract import (
    Answer,
    Finding,
    InDoubt,
    Later,
    Message,
    Never,
    Receipt,
    ThreadBy,
    UnknownRecipient,
    WirePreview,
)
from dispatcher.clock import SystemClock
from dispatcher.config.settings import Settings
from dispatcher.delivering.worker import SLOW, DeliveryWorker
from dispatcher.errors import LedgerUnavailable
from dispatcher.ledger import Claim, DeliveryFilter, DirectDispatch, Ledger, RecordedEvent, Settlement, StoredDelivery
from dispatcher.model.delivery import State
from dispatcher.model.rate_limit import Rate, RateLimit
from dispatcher.model.retry import RetryPolicy
from dispatcher.planning.planner import Planner
from dispatcher.runtime.service import Service
from tests.support.builders import a_delivery, an_event

RECEIPT = Receipt(answer=Answer("ok"), reference={"ts": "1"})
Answers = Callable[[Message], Any]


class Scripted:
    """A channel that answers as it is told; an exception is raised, a coroutine awaited."""

    def __init__(self, answer: Answers) -> None:
        self.sent: list[Message] = []
        self._answer = answer

    def address(self, recipient: str) -> str:
        return recipient

    def destination(self, recipients: tuple[str, ...]) -> str:
        return recipients[0]

    def thread_by(self, address: str) -> ThreadBy | None:
        del address
        return None

    def wire_preview(self, message: Message) -> WirePreview:
        return WirePreview("text/plain", message.key.encode())

    async def send(self, message: Message) -> Receipt:
        self.sent.append(message)
        answer = self._answer(message)
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        receipt: Receipt = answer
        return receipt

    async def check(self) -> Sequence[Finding]:
        return ()

    async def aclose(self) -> None:
        pass


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as opened:
        yield opened


def a_courier(ledger: Ledger, channel: Scripted, **changes: Any) -> DeliveryWorker:
    facts: dict[str, Any] = {
        "name": "slack",
        "channel": channel,
        "ledger": ledger,
        "planner": Planner(
            addresses={"email": str.lower}, fallbacks={"slack": "email"}, render=lambda *_, **__: {"text": "hi"}
        ),
        "policy": RetryPolicy(initial=timedelta(milliseconds=10)),
        "clock": SystemClock(),
        "rng": Random(7),
        "worker": "test",
        "hands": 5,
        **changes,
    }
    return DeliveryWorker(**facts)


def endless(going: asyncio.Event) -> Answers:
    """An answer that doesn't come, and tells that somebody waits for it."""

    async def answer(_: Message) -> Receipt:
        going.set()
        await asyncio.sleep(60)
        return RECEIPT

    return answer


@asynccontextmanager
async def working(courier: DeliveryWorker) -> AsyncIterator[None]:
    task = asyncio.create_task(courier.run())
    try:
        yield
    finally:
        courier.stop()
        async with asyncio.timeout(20):
            await task


async def owe(ledger: Ledger, *people: str, name: str = "f1", offer: DirectDispatch | None = None) -> None:
    event = an_event(name=name)
    now = SystemClock().now()
    deliveries = [a_delivery(event, channel="slack", to=who, created_at=now, due_at=now) for who in people]
    entry = RecordedEvent(event=event, position="p", verdict="matched", reason="", considered=[], deliveries=deliveries)
    await ledger.record([entry], [], now=now, offers={"slack": offer} if offer is not None else {})


async def hands_of(courier: DeliveryWorker) -> DirectDispatch:
    """Its offer, as soon as it has nothing better to do."""
    async with asyncio.timeout(20):
        while (offer := courier.offer()) is None:
            await asyncio.sleep(0.01)
    return offer


async def settled(ledger: Ledger, count: int = 1, channel: str = "slack") -> list[StoredDelivery]:
    """Wait until so many of the channel's deliveries are settled."""
    wanted = DeliveryFilter(states=frozenset({State.SENT, State.DEAD}), channel=channel)
    async with asyncio.timeout(20):
        while len(found := await ledger.find(wanted, limit=100)) < count:
            await asyncio.sleep(0.02)
    return found


async def test_what_is_owed_is_sent_and_settled_with_its_reference(ledger: Ledger) -> None:
    channel = Scripted(lambda _: RECEIPT)
    await owe(ledger, "#a")
    async with working(a_courier(ledger, channel)):
        (filed,) = await settled(ledger)

    assert (filed.delivery.state, filed.reference) == (State.SENT, {"ts": "1"})
    (message,) = channel.sent
    assert (message.recipients, message.in_doubt) == (("#a",), False)


async def test_a_failure_is_retried_and_each_attempt_is_kept(ledger: Ledger) -> None:
    answers = [Later("busy", answer=Answer("429")), InDoubt("no answer"), RECEIPT]
    channel = Scripted(lambda _: answers.pop(0))
    await owe(ledger, "#a")
    async with working(a_courier(ledger, channel)):
        (filed,) = await settled(ledger)

    assert [message.in_doubt for message in channel.sent] == [False, False, True]
    history = await ledger.history(filed.delivery.key)
    assert [(attempt.number, attempt.outcome, attempt.reason) for attempt in history] == [
        (1, "retry", "busy"),
        (2, "in_doubt", "no answer"),
        (3, "sent", ""),
    ]


async def test_a_final_refusal_is_not_repeated(ledger: Ledger) -> None:
    channel = Scripted(lambda _: Never("channel_not_found"))
    await owe(ledger, "#a")
    async with working(a_courier(ledger, channel)):
        (filed,) = await settled(ledger)

    assert (filed.delivery.state, filed.delivery.reason) == (State.DEAD, "channel_not_found")
    assert len(channel.sent) == 1


async def test_whom_the_channel_does_not_know_gets_a_mail(ledger: Ledger) -> None:
    await owe(ledger, "Who@x.com")
    async with working(a_courier(ledger, Scripted(lambda _: UnknownRecipient("nobody")))):
        await settled(ledger)

    (mail,) = await ledger.find(DeliveryFilter(channel="email"), limit=5)
    assert (mail.delivery.addresses, mail.delivery.state) == (("who@x.com",), State.WAITING)


async def test_a_channel_that_breaks_its_contract_costs_one_delivery_and_not_the_courier(ledger: Ledger) -> None:
    failures = [RuntimeError("token=secret")]
    channel = Scripted(lambda _: failures.pop() if failures else RECEIPT)
    await owe(ledger, "#a", "#b")
    async with working(a_courier(ledger, channel, hands=1)):
        found = await settled(ledger, 2)

    assert {filed.delivery.state for filed in found} == {State.SENT}
    reasons = [attempt.reason for filed in found for attempt in await ledger.history(filed.delivery.key)]
    assert not any("secret" in reason for reason in reasons)


async def test_no_more_are_on_their_way_than_there_are_hands(ledger: Ledger) -> None:
    at_once = most = 0

    async def slow(_: Message) -> Receipt:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.05)
        at_once -= 1
        return RECEIPT

    await owe(ledger, *(f"#{number}" for number in range(20)))
    async with working(a_courier(ledger, Scripted(slow), hands=4)):
        await settled(ledger, 20)

    assert most == 4


async def test_a_hand_takes_the_next_while_the_last_is_written_down(ledger: Ledger) -> None:
    settle, both_sent = ledger.settle, asyncio.Event()

    def answer(_: Message) -> Receipt:
        if len(channel.sent) == 2:
            both_sent.set()
        return RECEIPT

    channel = Scripted(answer)

    async def after_both(ending: Settlement) -> bool:
        await both_sent.wait()
        return await settle(ending)

    ledger.settle = after_both  # type: ignore[method-assign,assignment]  # passes on, later
    await owe(ledger, "#a", "#b")
    async with working(a_courier(ledger, channel, hands=1)):
        await settled(ledger, 2)


async def test_a_backlog_is_claimed_many_at_a_time(ledger: Ledger) -> None:
    claim, claims = ledger.claim, 0

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal claims
        claims += 1
        return await claim(*arguments, **options)

    ledger.claim = counted  # type: ignore[method-assign]  # passes on, and counts
    await owe(ledger, *(f"#{number}" for number in range(100)))
    async with working(a_courier(ledger, Scripted(lambda _: asyncio.sleep(0.001, RECEIPT)), hands=20)):
        await settled(ledger, 100)

    assert claims <= 100 / 10 + 3  # half of what may wait for hands at least; and a few that find nothing


async def test_where_destinations_have_a_pace_nothing_waits_for_a_hand(ledger: Ledger) -> None:
    going = asyncio.Event()

    await owe(ledger, *(f"#{number}" for number in range(20)))
    courier = a_courier(ledger, Scripted(endless(going)), hands=4, pace=RateLimit(rate=Rate(100, "s")))
    async with working(courier):
        await going.wait()
        assert courier.in_hand == 4
        courier.abandon()


async def test_what_waits_for_a_hand_goes_back_untried_when_the_provider_goes_away(ledger: Ledger) -> None:
    release, released = ledger.release, asyncio.Event()

    async def noted(*arguments: Any, **options: Any) -> None:
        await release(*arguments, **options)
        released.set()

    ledger.release = noted  # type: ignore[method-assign]  # passes on, and tells
    channel = Scripted(lambda _: Later("can't be reached", everyone=True, retry_after=timedelta(minutes=5)))
    await owe(ledger, "#a", "#b")
    async with working(a_courier(ledger, channel, hands=1)):
        await released.wait()

    assert len(channel.sent) == 1
    attempts = {filed.delivery.key: filed.delivery.attempt for filed in await ledger.find(DeliveryFilter(), limit=5)}
    assert attempts.pop(channel.sent[0].key) == 1
    assert [*attempts.values()] == [0]


async def test_a_stop_lets_what_is_in_hand_finish(ledger: Ledger) -> None:
    going = asyncio.Event()

    async def slow(_: Message) -> Receipt:
        going.set()
        await asyncio.sleep(0.3)
        return RECEIPT

    await owe(ledger, "#a")
    async with working(a_courier(ledger, Scripted(slow))):
        await going.wait()

    assert (await settled(ledger))[0].delivery.state is State.SENT


async def test_what_is_abandoned_is_released_uncounted_and_in_doubt(ledger: Ledger) -> None:
    going = asyncio.Event()

    await owe(ledger, "#a")
    courier = a_courier(ledger, Scripted(endless(going)))
    async with working(courier):
        await going.wait()
        courier.stop()
        courier.abandon()

    (filed,) = await ledger.find(DeliveryFilter(), limit=5)
    assert (filed.delivery.state, filed.delivery.attempt, filed.delivery.in_doubt) == (State.WAITING, 0, True)
    assert filed.delivery.lease is None


async def test_what_was_claimed_and_not_yet_sent_when_all_is_abandoned_is_released_at_once(ledger: Ledger) -> None:
    claim, claimed = ledger.claim, asyncio.Event()

    async def abandoned(*arguments: Any, **options: Any) -> Any:
        taken = await claim(*arguments, **options)
        claimed.set()
        asyncio.get_running_loop().call_soon(courier.abandon)  # after the sends are made, before they begin
        return taken

    ledger.claim = abandoned  # type: ignore[method-assign]  # passes on, and abandons
    channel = Scripted(lambda _: RECEIPT)
    await owe(ledger, "#a", "#b")
    courier = a_courier(ledger, channel)
    async with working(courier):
        await claimed.wait()

    assert channel.sent == []
    owed = [filed.delivery for filed in await ledger.find(DeliveryFilter(), limit=5)]
    assert [(delivery.lease, delivery.attempt, delivery.in_doubt) for delivery in owed] == [(None, 0, False)] * 2


async def test_abandoning_twice_does_not_cut_a_release_short(ledger: Ledger) -> None:
    going, releasing = asyncio.Event(), asyncio.Event()
    release = ledger.release

    async def slow(*arguments: Any, **options: Any) -> None:
        releasing.set()
        await asyncio.sleep(0.1)
        await release(*arguments, **options)

    ledger.release = slow  # type: ignore[method-assign]  # passes on, a little later
    await owe(ledger, "#a")
    courier = a_courier(ledger, Scripted(endless(going)))
    async with working(courier):
        await going.wait()
        courier.abandon()
        await releasing.wait()
        courier.abandon()

    (filed,) = await ledger.find(DeliveryFilter(), limit=5)
    assert (filed.delivery.lease, filed.delivery.attempt, filed.delivery.in_doubt) == (None, 0, True)


async def test_a_claim_that_comes_back_when_its_lease_is_over_is_not_acted_on(ledger: Ledger) -> None:
    claim, claimed, returned = ledger.claim, asyncio.Event(), asyncio.Event()

    async def late_at_first(*arguments: Any, **options: Any) -> Any:
        answer = await claim(*arguments, **options)
        if not claimed.is_set():
            claimed.set()
            await asyncio.sleep(3)
            returned.set()
        return answer

    ledger.claim = late_at_first  # type: ignore[method-assign]  # a database that stalls over its answer
    channel = Scripted(lambda _: RECEIPT)
    lease = timedelta(seconds=2)
    await owe(ledger, "#a")
    async with working(a_courier(ledger, channel, worker="late", lease=lease)):
        await claimed.wait()
        async with working(a_courier(ledger, channel, worker="quick", lease=lease)):
            await settled(ledger)
            await returned.wait()

    assert len(channel.sent) == 1


async def test_a_slow_recipient_does_not_delay_the_others(ledger: Ledger) -> None:
    async def one_is_slow(message: Message) -> Receipt:
        await asyncio.sleep(3 if message.recipients == ("#slow",) else 0)
        return RECEIPT

    await owe(ledger, "#slow", *(f"#{number}" for number in range(10)))
    began = asyncio.get_running_loop().time()
    async with working(a_courier(ledger, Scripted(one_is_slow))):
        await settled(ledger, 10)
        assert asyncio.get_running_loop().time() - began < 2.5


async def test_an_idle_courier_does_not_spin(ledger: Ledger) -> None:
    claims = 0
    claim = ledger.claim

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal claims
        claims += 1
        return await claim(*arguments, **options)

    ledger.claim = counted  # type: ignore[method-assign]  # counts, and passes on
    async with working(a_courier(ledger, Scripted(lambda _: RECEIPT))):
        await asyncio.sleep(2.5)

    assert claims <= 5


async def test_who_asks_for_peace_gets_it_from_all_deliveries_and_nobody_else_waits(ledger: Ledger) -> None:
    asked: list[float] = []

    def answer(message: Message) -> Any:
        if message.recipients == ("#busy",) and not asked:
            asked.append(time.monotonic())
            return Later("slow down", retry_after=timedelta(seconds=1.5))
        return RECEIPT

    channel = Scripted(answer)
    event = an_event()
    now = SystemClock().now()
    busy = [
        a_delivery(event, channel="slack", to="#busy", key=f"busy{number}", created_at=now, due_at=now)
        for number in range(4)
    ]
    calm = [a_delivery(event, channel="slack", to=f"#{number}", created_at=now, due_at=now) for number in range(4)]
    entry = RecordedEvent(
        event=event, position="p", verdict="matched", reason="", considered=[], deliveries=[*busy, *calm]
    )
    await ledger.record([entry], [], now=now)
    async with working(a_courier(ledger, channel, hands=1)):
        await settled(ledger, 4)
        first_four = [message.recipients for message in channel.sent]
        await settled(ledger, 8)

    assert first_four.count(("#busy",)) <= 1  # what is due at the same time goes in any order
    assert time.monotonic() - asked[0] >= 1.5
    history = [attempt for delivery in busy for attempt in await ledger.history(delivery.key)]
    assert sorted(attempt.outcome for attempt in history) == ["retry", "sent", "sent", "sent", "sent"]


async def test_a_provider_that_is_away_is_not_hammered_and_its_return_is_found_by_one(ledger: Ledger) -> None:
    back = time.monotonic() + 2.5
    knocks: list[float] = []

    def answer(_: Message) -> Any:
        if time.monotonic() < back:
            knocks.append(time.monotonic())
            return Later("can't be reached", everyone=True)
        return RECEIPT

    await owe(ledger, *(f"#{number}" for number in range(40)))
    async with working(a_courier(ledger, Scripted(answer), hands=5)):
        await settled(ledger, 40)

    assert len(knocks) <= 5 + 6


async def test_a_destination_that_hangs_leaves_hands_for_the_others(ledger: Ledger) -> None:
    async def hangs(message: Message) -> Receipt:
        if message.recipients == ("#slow",):
            await asyncio.sleep(60)
        return RECEIPT

    event = an_event()
    now = SystemClock().now()
    slow = [a_delivery(event, channel="slack", to="#slow", key=f"s{n}", created_at=now, due_at=now) for n in range(50)]
    calm = [a_delivery(event, channel="slack", to=f"#{n}", created_at=now, due_at=now) for n in range(50)]
    entry = RecordedEvent(
        event=event, position="p", verdict="matched", reason="", considered=[], deliveries=[*slow, *calm]
    )
    await ledger.record([entry], [], now=now)
    courier = a_courier(ledger, Scripted(hangs), hands=4, pace=RateLimit(at_once=2))
    async with working(courier):
        await settled(ledger, 50)
        courier.abandon()


async def test_messages_to_one_destination_keep_its_pace(ledger: Ledger) -> None:
    sent: list[float] = []

    def answer(_: Message) -> Receipt:
        sent.append(time.monotonic())
        return RECEIPT

    event = an_event()
    now = SystemClock().now()
    owed = [a_delivery(event, channel="slack", to="#a", key=f"a{n:02}", created_at=now, due_at=now) for n in range(8)]
    entry = RecordedEvent(event=event, position="p", verdict="matched", reason="", considered=[], deliveries=owed)
    await ledger.record([entry], [], now=now)
    channel = Scripted(answer)
    async with working(a_courier(ledger, channel, pace=RateLimit(rate=Rate(5, "s"), burst=3))):
        await settled(ledger, 8)

    assert [message.key for message in channel.sent] == [delivery.key for delivery in owed]
    assert sent[-1] - sent[0] >= 5 / 5 * 0.95
    assert sent[-1] - sent[0] < 3
    assert {len(await ledger.history(delivery.key)) for delivery in owed} == {1}


async def test_the_fallback_recipients_hear_of_a_delivery_that_died(ledger: Ledger) -> None:
    def render(*_: Any, undelivered: str = "", **__: Any) -> dict[str, str]:
        return {"subject": undelivered}

    planner = Planner(
        addresses={"email": str.lower, "slack": str},
        fallbacks={},
        render=render,
        last_resorts={"slack": {"email": ["oncall@x.com"]}, "email": {"email": ["oncall@x.com"]}},
    )
    await owe(ledger, "#a", "#b")
    async with working(a_courier(ledger, Scripted(lambda _: Never("is_archived")), planner=planner)):
        await settled(ledger, 2)

    (notice,) = await ledger.find(DeliveryFilter(channel="email"), limit=9)
    assert notice.delivery.fallback_for in {delivery.delivery.key for delivery in await settled(ledger, 2)}
    async with working(a_courier(ledger, Scripted(lambda _: Never("550")), name="email", planner=planner)):
        (dead,) = await settled(ledger, channel="email")
    assert dead.delivery.state is State.DEAD
    assert len(await ledger.find(DeliveryFilter(), limit=9)) == 3


async def test_refused_recipients_of_a_mail_are_dead_deliveries_too(ledger: Ledger) -> None:
    planner = Planner(
        addresses={"email": str.lower},
        fallbacks={},
        render=lambda *_, **__: {"subject": "not delivered"},
        last_resorts={"email": {"email": ["oncall@x.com"]}},
    )
    event, now = an_event(), SystemClock().now()
    mail = a_delivery(
        event, created_at=now, due_at=now, recipients=("a@x.com", "b@x.com"), addresses=("a@x.com", "b@x.com")
    )
    entry = RecordedEvent(event=event, position="p", verdict="matched", reason="", considered=[], deliveries=[mail])
    await ledger.record([entry], [], now=now)
    refused = {"b@x.com": Never("550 no such user")}

    def answer(message: Message) -> Receipt:
        return Receipt(answer=Answer("250"), failures=refused if "b@x.com" in message.recipients else {})

    async with working(a_courier(ledger, Scripted(answer), name="email", planner=planner)):
        found = await settled(ledger, 3, channel="email")
    assert {(filed.delivery.addresses[-1], filed.delivery.state) for filed in found} == {
        ("b@x.com", State.SENT),
        ("b@x.com", State.DEAD),
        ("oncall@x.com", State.SENT),
    }


async def test_without_a_rate_a_backlog_to_one_destination_goes_as_fast_as_its_hands(ledger: Ledger) -> None:
    event, now = an_event(), SystemClock().now()
    owed = [a_delivery(event, channel="slack", to="#a", key=f"a{n:03}", created_at=now, due_at=now) for n in range(200)]
    entry = RecordedEvent(event=event, position="p", verdict="matched", reason="", considered=[], deliveries=owed)
    await ledger.record([entry], [], now=now)
    began = time.monotonic()
    async with working(a_courier(ledger, Scripted(lambda _: RECEIPT), hands=4, pace=RateLimit(at_once=1))):
        wanted = DeliveryFilter(states=frozenset({State.SENT}))
        async with asyncio.timeout(60):
            while len(await ledger.find(wanted, limit=300)) < 200:
                await asyncio.sleep(0.1)
    assert time.monotonic() - began < 40  # a second for each would be 200


async def test_a_channel_gets_what_was_said_before_in_a_deliverys_conversation(ledger: Ledger) -> None:
    channel = Scripted(lambda message: Receipt(answer=Answer("ok"), reference={"ts": message.key}))
    now = SystemClock().now()
    for number in range(2):
        event = an_event(name=f"run{number}")
        told = a_delivery(
            event,
            channel="slack",
            to="#a",
            key=f"k{number}",
            created_at=now,
            due_at=now,
            thread="talk",
            occurred_at=now + number * timedelta(seconds=1),
        )
        entry = RecordedEvent(event=event, position="p", verdict="matched", reason="", considered=[], deliveries=[told])
        await ledger.record([entry], [], now=now)
    async with working(a_courier(ledger, channel)):
        await settled(ledger, 2)

    first, second = [message.thread for message in channel.sent]
    assert first is not None
    assert second is not None
    assert (first.key, first.earlier) == ("talk", ())
    assert [one.reference for one in second.earlier] == [{"ts": "k0"}]


async def test_a_delivery_whose_conversation_cannot_be_read_is_given_back_uncounted(ledger: Ledger) -> None:
    channel = Scripted(lambda _: RECEIPT)
    read, away = ledger.thread, [LedgerUnavailable("away")]

    async def unreadable(delivery: Any) -> Any:
        if away:
            raise away.pop()
        return await read(delivery)

    ledger.thread = unreadable  # type: ignore[method-assign]  # away once, then itself
    await owe(ledger, "#a")
    async with working(a_courier(ledger, channel)):
        (filed,) = await settled(ledger)

    assert (filed.delivery.attempt, len(channel.sent)) == (1, 1)


async def test_for_a_lone_delivery_the_ledger_is_asked_once(ledger: Ledger) -> None:
    claims = 0
    claim = ledger.claim

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal claims
        claims += 1
        return await claim(*arguments, **options)

    ledger.claim = counted  # type: ignore[method-assign]  # counts, and passes on
    began = asyncio.get_running_loop().time()
    await owe(ledger, "#a")
    async with working(a_courier(ledger, Scripted(lambda _: RECEIPT))):
        await settled(ledger)
        glances = int(asyncio.get_running_loop().time() - began)
        assert claims <= 1 + glances


async def test_what_is_said_next_in_a_conversation_waits_for_no_glance(ledger: Ledger) -> None:
    now = SystemClock().now()

    async def say(number: int) -> None:
        event = an_event(name=f"run{number}")
        happened = now + number * timedelta(seconds=1)
        facts = {"key": f"k{number}", "thread": "talk", "occurred_at": happened}
        told = a_delivery(event, channel="slack", to="#a", created_at=now, due_at=now, **facts)
        entry = RecordedEvent(event=event, position="p", verdict="matched", reason="", considered=[], deliveries=[told])
        await ledger.record([entry], [], now=now)

    async def answer(message: Message) -> Receipt:
        if message.key == "k4":  # the rest is recorded while this one is on its way
            for number in range(5, 10):
                await say(number)
            courier.ring(["talk"])
        return RECEIPT

    for number in range(5):
        await say(number)
    courier = a_courier(ledger, Scripted(answer))
    async with working(courier), asyncio.timeout(8):  # of ten glances, each takes a second
        assert len(await settled(ledger, 10)) == 10


async def test_what_takes_an_offered_hand_is_sent_without_a_claim(ledger: Ledger) -> None:
    channel = Scripted(lambda _: RECEIPT)
    courier = a_courier(ledger, channel)
    async with working(courier):
        await owe(ledger, "#a", "#b", offer=await hands_of(courier))
        assert courier.in_hand == 2
        found = await settled(ledger, 2)
        assert courier.claimed_at is not None

    assert [(filed.delivery.state, filed.delivery.attempt) for filed in found] == [(State.SENT, 1)] * 2
    assert sorted(message.recipients[0] for message in channel.sent) == ["#a", "#b"]


async def test_hands_are_offered_once_and_nothing_is_claimed_until_the_answer(ledger: Ledger) -> None:
    courier = a_courier(ledger, Scripted(lambda _: RECEIPT))
    async with working(courier):
        offer = await hands_of(courier)
        assert offer.limit == 10  # five hands, and as many that wait for one
        assert courier.offer() is None
        await owe(ledger, "#a")
        courier.ring()
        await asyncio.sleep(0.1)
        assert courier.in_hand == 0

        offer.take([])

        await settled(ledger, 1)


async def test_hands_that_are_needed_for_what_is_due_are_not_offered(ledger: Ledger) -> None:
    going = asyncio.Event()
    courier = a_courier(ledger, Scripted(endless(going)), hands=2)
    assert courier.offer() is None  # it hasn't looked yet
    await owe(ledger, *(f"#{number}" for number in range(9)))
    async with working(courier):
        await going.wait()
        assert courier.offer() is None
        courier.abandon()
    assert courier.offer() is None


class Gated:
    """A ledger whose claims wait for a gate."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.asked = asyncio.Event()
        self.open = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def claim(self, *facts: Any, **more: Any) -> Claim:
        self.asked.set()
        async with asyncio.timeout(20):
            await self.open.wait()
        return await self._ledger.claim(*facts, **more)


async def test_what_is_recorded_next_can_wait_for_a_courier_that_just_looks(ledger: Ledger) -> None:
    """Else each record would leave what it owes to a claim, and the claim would miss the next record."""
    gated = Gated(ledger)
    courier = a_courier(cast("Ledger", gated), Scripted(lambda _: RECEIPT))
    async with working(courier):
        await gated.asked.wait()
        assert courier.offer() is None
        looked = asyncio.create_task(courier.looked())
        await asyncio.sleep(0)
        assert not looked.done()
        gated.open.set()
        async with asyncio.timeout(20):
            await looked
        offer = courier.offer()
        assert offer is not None
        await owe(ledger, "#a", offer=offer)
        assert courier.in_hand == 1
        await settled(ledger)


@pytest.mark.parametrize("takes", [0.0, 2 * SLOW])
async def test_with_a_provider_that_takes_its_time_hands_begin_a_few_at_a_time(ledger: Ledger, takes: float) -> None:
    began: list[int] = []
    turn = 0

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def answer(_: Message) -> Receipt:
        began.append(turn)
        await asyncio.sleep(takes)
        return RECEIPT

    for name in ("f1", "f2", "f3", "f4"):
        await owe(ledger, *(f"#{number}" for number in range(100)), name=name)
    turns = asyncio.create_task(count_turns())
    courier = a_courier(ledger, Scripted(answer), hands=32)
    try:
        async with working(courier), asyncio.timeout(20):
            while len(began) < 400:
                await asyncio.sleep(0.01)
    finally:
        turns.cancel()

    most = max(Counter(began[-200:]).values())
    assert most <= 2 if takes else most > 2


async def test_nobody_waits_for_a_courier_that_knows_of_more_than_it_looks_for(ledger: Ledger) -> None:
    gated = Gated(ledger)
    gated.open.set()
    await owe(ledger, *(f"#{number}" for number in range(9)))
    done = asyncio.Event()

    async def answer(_: Message) -> Receipt:
        if not done.is_set():  # what is claimed next waits, and there is more
            gated.open.clear()
            gated.asked.clear()
        await done.wait()
        return RECEIPT

    courier = a_courier(cast("Ledger", gated), Scripted(answer), hands=2)
    async with working(courier):
        async with asyncio.timeout(20):
            while courier.in_hand < 4:
                await asyncio.sleep(0.01)
            done.set()
            await gated.asked.wait()
            await courier.looked()
        gated.open.set()
        await settled(ledger, 9)


async def test_a_look_that_takes_long_holds_no_record_up(ledger: Ledger) -> None:
    gated = Gated(ledger)
    slow = a_courier(cast("Ledger", gated), Scripted(lambda _: RECEIPT))
    idle = a_courier(ledger, Scripted(lambda _: RECEIPT), name="idle")
    service = Service(Settings(), _couriers=[slow, idle])
    async with working(slow), working(idle):
        await gated.asked.wait()
        async with asyncio.timeout(20):
            while not (offers := await service._offers()):
                pass
        assert list(offers) == ["idle"]
        offers["idle"].take([])
        gated.open.set()
        async with asyncio.timeout(20):
            while "slack" not in offers:
                offers = await service._offers()
                for offer in offers.values():
                    offer.take([])


async def test_a_provider_that_rests_is_offered_nothing(ledger: Ledger) -> None:
    channel = Scripted(lambda _: Later("can't be reached", everyone=True, retry_after=timedelta(minutes=5)))
    courier = a_courier(ledger, channel)
    await owe(ledger, "#a")
    async with working(courier):
        async with asyncio.timeout(20):
            while not courier.resting:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert courier.offer() is None


async def test_what_takes_an_offered_hand_after_a_stop_is_still_sent(ledger: Ledger) -> None:
    channel = Scripted(lambda _: RECEIPT)
    courier = a_courier(ledger, channel)
    async with working(courier):
        offer = await hands_of(courier)
        courier.stop()
        await asyncio.sleep(0.05)
        await owe(ledger, "#a", offer=offer)

    assert [filed.delivery.state for filed in await settled(ledger, 1)] == [State.SENT]


async def test_what_takes_an_offered_hand_when_all_is_abandoned_goes_back_untried(ledger: Ledger) -> None:
    channel = Scripted(lambda _: RECEIPT)
    courier = a_courier(ledger, channel)
    async with working(courier):
        offer = await hands_of(courier)
        courier.abandon()
        await owe(ledger, "#a", offer=offer)

    (filed,) = await ledger.find(DeliveryFilter(), limit=5)
    assert (filed.delivery.attempt, filed.delivery.lease, channel.sent) == (0, None, [])
