"""DeliveryWorker with a real ledger and a scripted channel."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from channels.contract import (
    Answer,
    Content,
    InDoubt,
    Later,
    Message,
    Misconfigured,
    Never,
    Receipt,
    UnknownRecipient,
)
from dispatcher.clock import SystemClock
from dispatcher.errors import LedgerUnavailable
from dispatcher.ledger import Deed, Filter, Ledger, RecordedEvent, Settlement, StoredDelivery
from dispatcher.model.delivery import Delivery, Dropped, DropReason, Kind, Sent, State, Success
from dispatcher.model.event import Event
from dispatcher.model.phase import Phase
from dispatcher.model.rate_limit import Rate, RateLimit
from dispatcher.model.retry import RetryPolicy
from dispatcher.model.summary import Summary
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from tests.support.builders import NOW, SECOND, a_delivery, a_digest, an_event, members_of, some_contacts
from tests.support.clock import ManualClock
from tests.support.ledger_steps import an_action, record_digest, recorded
from tests.support.waiting import until
from tests.support.workers import RECEIPT, Answers, ScriptedChannel, a_worker, deliver_due, running


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as opened:
        yield opened


def unanswered(sending: asyncio.Event) -> Answers:
    """A provider that takes 60 seconds to answer. `sending` is set when the first message is there."""

    async def answer(_: Message) -> Receipt:
        sending.set()
        await asyncio.sleep(60)
        return RECEIPT

    return answer


async def record(ledger: Ledger, *recipients: str, name: str = "f1") -> None:
    event = an_event(name=name)
    now = SystemClock().now()
    deliveries = [
        a_delivery(event, channel="slack", to=recipient, created_at=now, due_at=now) for recipient in recipients
    ]
    entry = RecordedEvent(event=event, position="p", verdict="matched", reason="", considered=[], deliveries=deliveries)
    await ledger.record([entry], [], now=now)


async def wait_settled(ledger: Ledger, count: int = 1, channel: str = "slack") -> list[StoredDelivery]:
    """Wait until `count` of the channel's deliveries are settled, and return them."""
    wanted = Filter(states=frozenset({State.SENT, State.DEAD}), channel=channel)

    async def settled() -> list[StoredDelivery]:
        found = await ledger.history.find(wanted, limit=100)
        return found if len(found) >= count else []

    return await until(settled)


async def test_a_recorded_delivery_is_sent_and_settled_with_its_reference(ledger: Ledger) -> None:
    channel = ScriptedChannel(lambda _: RECEIPT)
    await record(ledger, "#a")
    async with running(a_worker(ledger, channel)):
        (stored,) = await wait_settled(ledger)

    assert (stored.delivery.state, stored.reference) == (State.SENT, {"ts": "1"})
    (message,) = channel.sent
    assert (message.recipients, message.in_doubt) == (("#a",), False)


async def test_a_failure_is_retried_and_each_attempt_is_recorded(ledger: Ledger) -> None:
    answers = [Later("busy", answer=Answer("429")), InDoubt("no answer"), RECEIPT]
    channel = ScriptedChannel(lambda _: answers.pop(0))
    await record(ledger, "#a")
    async with running(a_worker(ledger, channel)):
        (stored,) = await wait_settled(ledger)

    assert [message.in_doubt for message in channel.sent] == [False, False, True]
    history = await ledger.history.attempts(stored.delivery.key)
    assert [(attempt.number, attempt.outcome, attempt.reason) for attempt in history] == [
        (1, "retry", "busy"),
        (2, "in_doubt", "no answer"),
        (3, "sent", ""),
    ]


async def test_a_permanent_error_is_not_retried(ledger: Ledger) -> None:
    channel = ScriptedChannel(lambda _: Never("channel_not_found"))
    await record(ledger, "#a")
    async with running(a_worker(ledger, channel)):
        (stored,) = await wait_settled(ledger)

    assert (stored.delivery.state, stored.delivery.reason) == (State.DEAD, "channel_not_found")
    assert len(channel.sent) == 1


async def test_a_recipient_that_the_channel_does_not_know_gets_a_mail(ledger: Ledger) -> None:
    await record(ledger, "Who@x.com")
    async with running(a_worker(ledger, ScriptedChannel(lambda _: UnknownRecipient("nobody")))):
        await wait_settled(ledger)

    (mail,) = await ledger.history.find(Filter(channel="email"), limit=5)
    assert (mail.delivery.addresses, mail.delivery.state) == (("who@x.com",), State.WAITING)


async def test_an_unexpected_exception_of_the_channel_is_retried_and_the_worker_goes_on(ledger: Ledger) -> None:
    failures = [RuntimeError("token=secret")]
    channel = ScriptedChannel(lambda _: failures.pop() if failures else RECEIPT)
    await record(ledger, "#a", "#b")
    async with running(a_worker(ledger, channel, concurrency=1)):
        found = await wait_settled(ledger, 2)

    assert {stored.delivery.state for stored in found} == {State.SENT}
    reasons = [attempt.reason for stored in found for attempt in await ledger.history.attempts(stored.delivery.key)]
    assert not any("secret" in reason for reason in reasons)


async def test_no_more_messages_are_sent_at_once_than_the_concurrency_allows(ledger: Ledger) -> None:
    at_once = most = 0

    async def slow(_: Message) -> Receipt:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.05)
        at_once -= 1
        return RECEIPT

    await record(ledger, *(f"#{number}" for number in range(20)))
    async with running(a_worker(ledger, ScriptedChannel(slow), concurrency=4)):
        await wait_settled(ledger, 20)

    assert most == 4


async def test_a_slot_sends_the_next_message_while_the_last_one_is_settled(ledger: Ledger) -> None:
    settle, both_sent = ledger.settle, asyncio.Event()

    def answer(_: Message) -> Receipt:
        if len(channel.sent) == 2:
            both_sent.set()
        return RECEIPT

    channel = ScriptedChannel(answer)

    async def after_both(ending: Settlement) -> bool:
        await both_sent.wait()
        return await settle(ending)

    ledger.settle = after_both  # type: ignore[method-assign,assignment]  # settles later
    await record(ledger, "#a", "#b")
    async with running(a_worker(ledger, channel, concurrency=1)):
        await wait_settled(ledger, 2)


async def test_a_backlog_is_claimed_many_deliveries_at_a_time(ledger: Ledger) -> None:
    claim, claims = ledger.claim, 0

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal claims
        claims += 1
        return await claim(*arguments, **options)

    ledger.claim = counted  # type: ignore[method-assign]  # counts the claims
    await record(ledger, *(f"#{number}" for number in range(100)))
    channel = ScriptedChannel(lambda _: asyncio.sleep(0.001, RECEIPT))
    async with running(a_worker(ledger, channel, concurrency=20, claim_ahead=20)):
        await wait_settled(ledger, 100)

    assert claims <= 100 / 10 + 3  # each claim takes at least half of what may wait for a slot; a few find nothing


@pytest.mark.parametrize("claim_ahead", [0, 3])
async def test_no_more_deliveries_are_claimed_without_a_free_slot_than_claim_ahead_allows(
    ledger: Ledger, claim_ahead: int
) -> None:
    sending = asyncio.Event()

    await record(ledger, *(f"#{number}" for number in range(20)))
    worker = a_worker(ledger, ScriptedChannel(unanswered(sending)), concurrency=4, claim_ahead=claim_ahead)
    async with running(worker):
        await sending.wait()
        assert worker.in_flight == 4 + claim_ahead
        worker.abandon()


async def test_deliveries_that_wait_for_a_slot_are_released_unattempted_when_the_breaker_opens(ledger: Ledger) -> None:
    release, released = ledger.release, asyncio.Event()

    async def noted(*arguments: Any, **options: Any) -> None:
        await release(*arguments, **options)
        released.set()

    ledger.release = noted  # type: ignore[method-assign]  # sets an event
    channel = ScriptedChannel(lambda _: Later("can't be reached", provider_wide=True, retry_after=timedelta(minutes=5)))
    await record(ledger, "#a", "#b")
    async with running(a_worker(ledger, channel, concurrency=1, claim_ahead=1)):
        await released.wait()

    assert len(channel.sent) == 1
    attempts = {stored.delivery.key: stored.delivery.attempt for stored in await ledger.history.find(Filter(), limit=5)}
    assert attempts.pop(channel.sent[0].key) == 1
    assert [*attempts.values()] == [0]


async def test_after_a_stop_deliveries_in_flight_are_finished(ledger: Ledger) -> None:
    sending = asyncio.Event()

    async def slow(_: Message) -> Receipt:
        sending.set()
        await asyncio.sleep(0.3)
        return RECEIPT

    await record(ledger, "#a")
    async with running(a_worker(ledger, ScriptedChannel(slow))):
        await sending.wait()

    assert (await wait_settled(ledger))[0].delivery.state is State.SENT


async def test_an_abandoned_delivery_is_released_uncounted_and_in_doubt(ledger: Ledger) -> None:
    sending = asyncio.Event()

    await record(ledger, "#a")
    worker = a_worker(ledger, ScriptedChannel(unanswered(sending)))
    async with running(worker):
        await sending.wait()
        worker.stop()
        worker.abandon()

    (stored,) = await ledger.history.find(Filter(), limit=5)
    assert (stored.delivery.state, stored.delivery.attempt, stored.delivery.in_doubt) == (State.WAITING, 0, True)
    assert stored.delivery.lease is None


async def test_claimed_deliveries_that_are_not_sent_yet_are_released_when_the_worker_is_abandoned(
    ledger: Ledger,
) -> None:
    claim, claimed = ledger.claim, asyncio.Event()

    async def abandoned(*arguments: Any, **options: Any) -> Any:
        taken = await claim(*arguments, **options)
        claimed.set()
        asyncio.get_running_loop().call_soon(worker.abandon)  # after the tasks are created, before they run
        return taken

    ledger.claim = abandoned  # type: ignore[method-assign]  # abandons after the claim
    channel = ScriptedChannel(lambda _: RECEIPT)
    await record(ledger, "#a", "#b")
    worker = a_worker(ledger, channel)
    async with running(worker):
        await claimed.wait()

    assert channel.sent == []
    deliveries = [stored.delivery for stored in await ledger.history.find(Filter(), limit=5)]
    assert [(delivery.lease, delivery.attempt, delivery.in_doubt) for delivery in deliveries] == [(None, 0, False)] * 2


async def test_abandoning_twice_does_not_cancel_a_release(ledger: Ledger) -> None:
    sending, releasing = asyncio.Event(), asyncio.Event()
    release = ledger.release

    async def slow(*arguments: Any, **options: Any) -> None:
        releasing.set()
        await asyncio.sleep(0.1)
        await release(*arguments, **options)

    ledger.release = slow  # type: ignore[method-assign]  # releases later
    await record(ledger, "#a")
    worker = a_worker(ledger, ScriptedChannel(unanswered(sending)))
    async with running(worker):
        await sending.wait()
        worker.abandon()
        await releasing.wait()
        worker.abandon()

    (stored,) = await ledger.history.find(Filter(), limit=5)
    assert (stored.delivery.lease, stored.delivery.attempt, stored.delivery.in_doubt) == (None, 0, True)


async def test_a_claim_that_returns_after_its_lease_is_not_sent(ledger: Ledger) -> None:
    claim, claimed, returned = ledger.claim, asyncio.Event(), asyncio.Event()

    async def late_at_first(*arguments: Any, **options: Any) -> Any:
        answer = await claim(*arguments, **options)
        if not claimed.is_set():
            claimed.set()
            await asyncio.sleep(3)
            returned.set()
        return answer

    ledger.claim = late_at_first  # type: ignore[method-assign]  # a database that answers late
    channel = ScriptedChannel(lambda _: RECEIPT)
    lease = timedelta(seconds=2)
    await record(ledger, "#a")
    async with running(a_worker(ledger, channel, worker_id="late", lease=lease)):
        await claimed.wait()
        async with running(a_worker(ledger, channel, worker_id="quick", lease=lease)):
            await wait_settled(ledger)
            await returned.wait()

    assert len(channel.sent) == 1


async def test_a_slow_recipient_does_not_delay_the_others(ledger: Ledger) -> None:
    async def one_is_slow(message: Message) -> Receipt:
        await asyncio.sleep(3 if message.recipients == ("#slow",) else 0)
        return RECEIPT

    await record(ledger, "#slow", *(f"#{number}" for number in range(10)))
    began = asyncio.get_running_loop().time()
    async with running(a_worker(ledger, ScriptedChannel(one_is_slow))):
        await wait_settled(ledger, 10)
        assert asyncio.get_running_loop().time() - began < 2.5


async def test_an_idle_worker_polls_once_a_second(ledger: Ledger) -> None:
    claims = 0
    claim = ledger.claim

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal claims
        claims += 1
        return await claim(*arguments, **options)

    ledger.claim = counted  # type: ignore[method-assign]  # counts the claims
    async with running(a_worker(ledger, ScriptedChannel(lambda _: RECEIPT))):
        await asyncio.sleep(2.5)

    assert claims <= 5


async def test_retry_after_pauses_all_deliveries_to_its_destination_and_no_others(ledger: Ledger) -> None:
    asked: list[float] = []

    def answer(message: Message) -> Any:
        if message.recipients == ("#busy",) and not asked:
            asked.append(time.monotonic())
            return Later("slow down", retry_after=timedelta(seconds=1.5))
        return RECEIPT

    channel = ScriptedChannel(answer)
    event = an_event()
    now = SystemClock().now()
    busy = [
        a_delivery(event, channel="slack", to="#busy", key=f"busy{number}", created_at=now, due_at=now)
        for number in range(4)
    ]
    others = [a_delivery(event, channel="slack", to=f"#{number}", created_at=now, due_at=now) for number in range(4)]
    entry = RecordedEvent(
        event=event, position="p", verdict="matched", reason="", considered=[], deliveries=[*busy, *others]
    )
    await ledger.record([entry], [], now=now)
    async with running(a_worker(ledger, channel, concurrency=1)):
        await wait_settled(ledger, 4)
        first_four = [message.recipients for message in channel.sent]
        await wait_settled(ledger, 8)

    assert first_four.count(("#busy",)) <= 1  # deliveries due at the same time are sent in any order
    assert time.monotonic() - asked[0] >= 1.5
    history = [attempt for delivery in busy for attempt in await ledger.history.attempts(delivery.key)]
    assert sorted(attempt.outcome for attempt in history) == ["retry", "sent", "sent", "sent", "sent"]


async def test_an_open_breaker_lets_single_probes_through_until_the_provider_is_back(ledger: Ledger) -> None:
    back = time.monotonic() + 2.5
    probes: list[float] = []

    def answer(_: Message) -> Any:
        if time.monotonic() < back:
            probes.append(time.monotonic())
            return Later("can't be reached", provider_wide=True)
        return RECEIPT

    await record(ledger, *(f"#{number}" for number in range(40)))
    async with running(a_worker(ledger, ScriptedChannel(answer), concurrency=5)):
        await wait_settled(ledger, 40)

    assert len(probes) <= 5 + 6


async def test_a_destination_that_hangs_leaves_slots_for_the_others(ledger: Ledger) -> None:
    async def hangs(message: Message) -> Receipt:
        if message.recipients == ("#slow",):
            await asyncio.sleep(60)
        return RECEIPT

    event = an_event()
    now = SystemClock().now()
    slow = [a_delivery(event, channel="slack", to="#slow", key=f"s{n}", created_at=now, due_at=now) for n in range(50)]
    others = [a_delivery(event, channel="slack", to=f"#{n}", created_at=now, due_at=now) for n in range(50)]
    entry = RecordedEvent(
        event=event, position="p", verdict="matched", reason="", considered=[], deliveries=[*slow, *others]
    )
    await ledger.record([entry], [], now=now)
    worker = a_worker(ledger, ScriptedChannel(hangs), concurrency=4, rate_limit=RateLimit(max_in_flight=2))
    async with running(worker):
        await wait_settled(ledger, 50)
        worker.abandon()


async def test_messages_to_one_destination_keep_its_rate_limit(ledger: Ledger) -> None:
    sent: list[float] = []

    def answer(_: Message) -> Receipt:
        sent.append(time.monotonic())
        return RECEIPT

    event = an_event()
    now = SystemClock().now()
    deliveries = [
        a_delivery(event, channel="slack", to="#a", key=f"a{n:02}", created_at=now, due_at=now) for n in range(8)
    ]
    entry = RecordedEvent(event=event, position="p", verdict="matched", reason="", considered=[], deliveries=deliveries)
    await ledger.record([entry], [], now=now)
    channel = ScriptedChannel(answer)
    async with running(a_worker(ledger, channel, rate_limit=RateLimit(rate=Rate(5, "s"), burst=3))):
        await wait_settled(ledger, 8)

    assert [message.key for message in channel.sent] == [delivery.key for delivery in deliveries]
    assert sent[-1] - sent[0] >= 5 / 5 * 0.95
    assert sent[-1] - sent[0] < 3
    assert {len(await ledger.history.attempts(delivery.key)) for delivery in deliveries} == {1}


ON_CALL = some_contacts(oncall={"email": ["oncall@x.com"]})


async def test_the_fallback_recipients_are_notified_of_a_dead_delivery(ledger: Ledger) -> None:
    planner = Planner(
        addresses={"email": str.lower, "slack": str},
        fallbacks={},
        contacts=ON_CALL,
        fallback_recipients={"slack": ["oncall"], "email": ["oncall"]},
    )
    await record(ledger, "#a", "#b")
    async with running(a_worker(ledger, ScriptedChannel(lambda _: Never("is_archived")), planner=planner)):
        await wait_settled(ledger, 2)

    (notice,) = await ledger.history.find(Filter(channel="email"), limit=9)
    assert notice.delivery.fallback_for in {delivery.delivery.key for delivery in await wait_settled(ledger, 2)}
    async with running(a_worker(ledger, ScriptedChannel(lambda _: Never("550")), name="email", planner=planner)):
        (dead,) = await wait_settled(ledger, channel="email")
    assert dead.delivery.state is State.DEAD
    assert len(await ledger.history.find(Filter(), limit=9)) == 3


async def test_what_follows_from_a_digests_outcome_is_planned_without_an_event(ledger: Ledger) -> None:
    planner = Planner(
        addresses={"email": str.lower, "slack": str},
        fallbacks={"slack": "email"},
        contacts=ON_CALL,
        fallback_recipients={"slack": ["oncall"], "email": ["oncall"]},
    )
    now = SystemClock().now()
    digest = a_digest(to="Jane@example.com", content={"text": "digest"}, created_at=now, due_at=now)
    digest = digest._replace(note="held\x1b[31m 22:00\r\n-07:00\x00", held_since=now - timedelta(hours=9))
    await record_digest(ledger, digest, *members_of(digest, 1), now=now)
    channel = ScriptedChannel(lambda _: UnknownRecipient("no such user"))
    await deliver_due(a_worker(ledger, channel, planner=planner))
    assert [(one.note, one.released_at) for one in channel.sent] == [
        ("held 22:00 -07:00\ufffd", digest.retry_window_start)
    ]
    (instead,) = await ledger.history.find(Filter(channel="email"), limit=9)
    assert (instead.delivery.kind, instead.delivery.addresses) == (Kind.DIGEST, ("jane@example.com",))
    assert (instead.delivery.event, instead.delivery.tells_of) == ("", digest.key)

    again = a_digest(key="0" * 32, content={"text": "digest"}, created_at=now, due_at=now)
    await record_digest(ledger, again, *members_of(again, 1, first=1), now=now)
    for _ in range(2):  # after a redrive too, one notice to each recipient
        await deliver_due(a_worker(ledger, ScriptedChannel(lambda _: Never("is_archived")), planner=planner))
        await ledger.change(Filter(keys=[again.key]), an_action(at=now))
    (notice,) = [
        one.delivery
        for one in await ledger.history.find(Filter(channel="email"), limit=9)
        if one.delivery.kind is Kind.FALLBACK_NOTICE
    ]
    assert (notice.event, notice.tells_of, notice.recipients) == ("", again.key, ("oncall@x.com",))
    assert notice.reason == "#dev-alerts could not be notified through slack: is_archived"


async def test_a_digest_and_a_notice_about_it_are_rendered_from_its_members(ledger: Ledger) -> None:
    def render_summary(channel: str, summary: Summary, *, undelivered: str = "", **_: Any) -> Content:
        (group,) = summary.groups
        return {"text": f"{channel}: {summary.number} of {group.launch_plan} {undelivered}"}

    contents = Contents(lambda *_, **__: {"text": "an event"}, render_summary=render_summary)
    planner = Planner(
        addresses={"email": str.lower, "slack": str},
        fallbacks={},
        contacts=ON_CALL,
        fallback_recipients={"slack": ["oncall"]},
    )
    now = SystemClock().now()
    digest = a_digest(created_at=now, due_at=now)
    await record_digest(ledger, digest, *members_of(digest, 3), now=now)
    slack, email = ScriptedChannel(lambda _: Never("is_archived")), ScriptedChannel(lambda _: RECEIPT)
    await deliver_due(a_worker(ledger, slack, planner=planner, contents=contents))
    await deliver_due(a_worker(ledger, email, name="email", planner=planner, contents=contents))
    told = "3 of flytesnacks/production/train.daily"
    assert [one.content["text"] for one in slack.sent] == [f"slack: {told} "]
    why = "#dev-alerts could not be notified through slack: is_archived"
    assert [one.content["text"] for one in email.sent] == [f"email: {told} {why}"]
    stored = await ledger.history.delivery(digest.key)
    assert stored is not None
    assert stored.delivery.content == slack.sent[0].content


async def record_success(ledger: Ledger, name: str, started_at: datetime) -> None:
    """Record a success of the launch plan `p`, which no rule matches."""
    event, now = an_event(Phase.SUCCEEDED, name=name), SystemClock().now()
    success = Success(
        event=event.key,
        occurred_at=now,
        started_at=started_at,
        subjects=("p",),
        channels=frozenset({"slack"}),
        recorded_at=now,
    )
    entry = RecordedEvent(
        event=event, position="p", verdict="matched", reason="", considered=[], deliveries=(), success=success
    )
    await ledger.record([entry], [], now=now)


async def record_failure(ledger: Ledger, name: str, at: datetime) -> Delivery:
    event, now = an_event(name=name), SystemClock().now()
    delivery = a_delivery(
        event, channel="slack", to="#a", occurred_at=at, created_at=now, due_at=now, thread="t", subject="p"
    )
    entry = RecordedEvent(event=event, position="p", verdict="matched", reason="", considered=[], deliveries=[delivery])
    await ledger.record([entry], [], now=now)
    return delivery


async def test_a_superseded_failure_is_dropped_before_the_channel_is_called_where_it_would_page(
    ledger: Ledger,
) -> None:
    now = SystemClock().now()
    await record_success(ledger, "well", now)
    planner = Planner(
        addresses={"email": str.lower, "slack": str},
        fallbacks={},
        contacts=ON_CALL,
        fallback_recipients={"slack": ["oncall"]},
    )
    settled: list[tuple[Settlement, bool]] = []
    for pages, sent, state in ((True, 0, State.DROPPED), (False, 1, State.SENT)):
        late = await record_failure(ledger, f"late-{pages}", now - SECOND)
        channel = ScriptedChannel(lambda _: RECEIPT)
        on_settled = partial(_note, settled)
        async with running(a_worker(ledger, channel, pages=pages, planner=planner, on_settled=on_settled)):
            async with asyncio.timeout(20):
                while (
                    stored := await ledger.history.delivery(late.key)
                ) is None or stored.delivery.state is State.WAITING:
                    await asyncio.sleep(0.02)
        assert (len(channel.sent), stored.delivery.state) == (sent, state)
    assert await ledger.history.find(Filter(channel="email"), limit=9) == []
    assert [type(settlement.outcome) for settlement, _ in settled] == [Dropped, Sent]


@pytest.mark.parametrize(("in_doubt", "sent"), [(False, 0), (True, 1)])
async def test_a_thread_of_which_nothing_was_sent_is_never_resolved(ledger: Ledger, in_doubt: bool, sent: int) -> None:
    """The failure is cancelled before it was sent, when the success's resolved notice already waits behind it."""
    failed = await record_failure(ledger, "failed", NOW)
    well = an_event(Phase.SUCCEEDED, name="well")
    notice = failed._replace(key="notice", event=well.key, kind=Kind.RESOLVED_NOTICE, thread_at=NOW + SECOND)
    await ledger.record([recorded(notice, event=well)], [], now=NOW)
    now = SystemClock().now()
    if in_doubt:
        channel = ScriptedChannel(lambda _: InDoubt("no answer"))
        await deliver_due(a_worker(ledger, channel))
    assert await ledger.change(Filter(keys=[failed.key]), an_action(Deed.CANCEL, at=now)) == 1

    channel = ScriptedChannel(lambda _: RECEIPT)
    await deliver_due(a_worker(ledger, channel))
    stored = await ledger.history.delivery("notice")
    assert stored is not None
    assert len(channel.sent) == sent
    assert stored.delivery.drop_reason == (None if sent else DropReason.NOTHING_SENT)


async def test_a_resolved_notice_waits_for_the_message_that_tells_of_the_failure(ledger: Ledger) -> None:
    again = NOW + timedelta(hours=1)
    summary = a_digest(kind=Kind.SUMMARY, content={"text": "1 failed"}, due_at=again)  # it is retried
    (told,) = members_of(summary, 1, thread="t", thread_at=NOW, subject="plan")
    await record_digest(ledger, summary, told)
    well = an_event(Phase.SUCCEEDED, name="well")
    notice = told._replace(key="notice", event=well.key, kind=Kind.RESOLVED_NOTICE, thread_at=NOW + SECOND)
    unheld: dict[str, Any] = {
        "state": State.WAITING,
        "drop_reason": None,
        "hold": None,
        "included_in": "",
        "held_since": None,
    }
    await ledger.record([recorded(notice._replace(**unheld), event=well)], [], now=NOW)

    channel = ScriptedChannel(lambda _: RECEIPT)
    await deliver_due(a_worker(ledger, channel, clock=ManualClock(NOW + SECOND)))
    stored = await ledger.history.delivery("notice")
    assert stored is not None
    assert (channel.sent, stored.delivery.due_at, stored.delivery.attempt) == ([], again, 0)
    both = await a_worker(ledger, channel, clock=ManualClock(again))._claim()  # noqa: SLF001
    assert {one.key for one in both} == {summary.key, "notice"}
    thread = await ledger.thread(next(one for one in both if one.key == "notice"))
    assert thread is not None
    assert thread.told_at == NOW  # the summary is being sent
    await deliver_due(a_worker(ledger, channel))
    assert [one.key for one in channel.sent] == [summary.key, "notice"]


def _note(settled: list[tuple[Settlement, bool]], settlement: Settlement, held: bool) -> None:
    settled.append((settlement, held))


async def test_a_resolved_notice_is_rendered_at_its_first_claim_and_each_attempt_sends_the_same(
    ledger: Ledger, tmp_path: Path
) -> None:
    rendered: list[str] = []

    def render(channel: str, event: Event, **_: Any) -> Content:
        rendered.append(event.phase)
        with closing(sqlite3.connect(tmp_path / "ledger.db", timeout=0)) as other:
            other.execute("BEGIN IMMEDIATE")  # raises while a write transaction is open
        return {"text": f"{channel} {len(rendered)}"}

    answers = iter([RECEIPT, Later("busy"), Later("busy"), RECEIPT])
    channel = ScriptedChannel(lambda _: next(answers))
    async with running(a_worker(ledger, channel, contents=Contents(render), pages=True)):
        await record_failure(ledger, "bad", SystemClock().now() - SECOND)
        await wait_settled(ledger)
        await record_success(ledger, "well", SystemClock().now())
        await wait_settled(ledger, 2)

    assert rendered == ["SUCCEEDED"]
    assert [message.content for message in channel.sent[1:]] == [{"text": "slack 1"}] * 3


async def test_a_refusal_of_the_dispatcher_gives_one_notice_after_15_minutes_and_one_when_it_ends(
    ledger: Ledger,
) -> None:
    planner = Planner(
        addresses={"email": str.lower, "slack": str},
        fallbacks={},
        contacts=ON_CALL,
        fallback_recipients={"slack": ["oncall"]},
    )
    clock = ManualClock(SystemClock().now())
    await record(ledger, "#a", "#b")
    answers: dict[str, Any] = {"now": Misconfigured("missing_scope: add chat:write")}
    channel = ScriptedChannel(lambda _: answers["now"])

    async def attempt(times: int, replicas: int = 1) -> list[str]:
        for _ in range(times):
            clock.advance(timedelta(minutes=5))
            for _replica in range(replicas):
                worker = a_worker(ledger, channel, clock=clock, planner=planner, policy=RetryPolicy(initial=SECOND))
                await deliver_due(worker)
        notices = await ledger.history.find(Filter(channel="email"), limit=9)
        return sorted(notice.delivery.kind for notice in notices)

    assert await attempt(3) == []  # 10 minutes since the first refusal
    assert await attempt(1, replicas=2) == ["refused_notice"]
    assert await attempt(3, replicas=2) == ["refused_notice"]
    answers["now"] = RECEIPT
    assert await attempt(2, replicas=2) == ["accepted_notice", "refused_notice"]
    async with running(a_worker(ledger, ScriptedChannel(lambda _: RECEIPT), name="email", clock=clock)):
        notices = await wait_settled(ledger, 2, channel="email")
    assert {(notice.delivery.content or {})["subject"] for notice in notices} == {
        "slack refuses all messages, which wait until this is corrected: missing_scope: add chat:write",
        "slack accepts messages again; those that waited are being sent",
    }
    answers["now"] = Misconfigured("token_revoked")
    clock.advance(timedelta(hours=2))
    await record(ledger, "#a", name="later")
    assert await attempt(2) == ["accepted_notice", "refused_notice"]  # a new refusal, for 5 minutes


async def test_a_worker_renders_in_another_thread_if_rendering_waits_for_a_process(ledger: Ledger) -> None:
    threads: list[int] = []

    def render(channel: str, event: Event, **_: Any) -> Content:
        del channel, event
        threads.append(threading.get_ident())
        return {"text": "hi"}

    channel = ScriptedChannel(lambda _: RECEIPT)
    async with running(a_worker(ledger, channel, contents=Contents(render, waits=True))):
        await record_failure(ledger, "bad", SystemClock().now() - SECOND)
        await wait_settled(ledger)
        await record_success(ledger, "well", SystemClock().now())
        await wait_settled(ledger, 2)

    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_refused_recipients_of_a_mail_become_dead_deliveries(ledger: Ledger) -> None:
    planner = Planner(
        addresses={"email": str.lower},
        fallbacks={},
        contacts=ON_CALL,
        fallback_recipients={"email": ["oncall"]},
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

    async with running(a_worker(ledger, ScriptedChannel(answer), name="email", planner=planner)):
        found = await wait_settled(ledger, 3, channel="email")
    assert {(stored.delivery.addresses[-1], stored.delivery.state) for stored in found} == {
        ("b@x.com", State.SENT),
        ("b@x.com", State.DEAD),
        ("oncall@x.com", State.SENT),
    }


async def test_without_a_rate_limit_a_backlog_to_one_destination_is_limited_by_its_slots_only(ledger: Ledger) -> None:
    event, now = an_event(), SystemClock().now()
    deliveries = [
        a_delivery(event, channel="slack", to="#a", key=f"a{n:03}", created_at=now, due_at=now) for n in range(200)
    ]
    entry = RecordedEvent(event=event, position="p", verdict="matched", reason="", considered=[], deliveries=deliveries)
    await ledger.record([entry], [], now=now)
    began = time.monotonic()
    async with running(
        a_worker(ledger, ScriptedChannel(lambda _: RECEIPT), concurrency=4, rate_limit=RateLimit(max_in_flight=1))
    ):
        wanted = Filter(states=frozenset({State.SENT}))
        async with asyncio.timeout(60):
            while len(await ledger.history.find(wanted, limit=300)) < 200:
                await asyncio.sleep(0.1)
    assert time.monotonic() - began < 40  # a second for each would be 200


async def test_a_channel_gets_the_earlier_messages_of_a_deliverys_thread(ledger: Ledger) -> None:
    channel = ScriptedChannel(lambda message: Receipt(answer=Answer("ok"), reference={"ts": message.key}))
    now = SystemClock().now()
    for number in range(2):
        event = an_event(name=f"run{number}")
        delivery = a_delivery(
            event,
            channel="slack",
            to="#a",
            key=f"k{number}",
            created_at=now,
            due_at=now,
            thread="thread",
            occurred_at=now + number * timedelta(seconds=1),
        )
        entry = RecordedEvent(
            event=event, position="p", verdict="matched", reason="", considered=[], deliveries=[delivery]
        )
        await ledger.record([entry], [], now=now)
    async with running(a_worker(ledger, channel)):
        await wait_settled(ledger, 2)

    first, second = [message.thread for message in channel.sent]
    assert first is not None
    assert second is not None
    assert (first.key, first.earlier) == ("thread", ())
    assert [one.reference for one in second.earlier] == [{"ts": "k0"}]


async def test_a_delivery_whose_thread_cannot_be_read_is_released_uncounted(ledger: Ledger) -> None:
    channel = ScriptedChannel(lambda _: RECEIPT)
    read, failures = ledger.thread, [LedgerUnavailable("away")]

    async def unreadable(delivery: Any) -> Any:
        if failures:
            raise failures.pop()
        return await read(delivery)

    ledger.thread = unreadable  # type: ignore[method-assign]  # fails once
    await record(ledger, "#a")
    async with running(a_worker(ledger, channel)):
        (stored,) = await wait_settled(ledger)

    assert (stored.delivery.attempt, len(channel.sent)) == (1, 1)


async def test_a_single_delivery_needs_one_claim(ledger: Ledger) -> None:
    claims = 0
    claim = ledger.claim

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal claims
        claims += 1
        return await claim(*arguments, **options)

    ledger.claim = counted  # type: ignore[method-assign]  # counts the claims
    began = asyncio.get_running_loop().time()
    await record(ledger, "#a")
    async with running(a_worker(ledger, ScriptedChannel(lambda _: RECEIPT))):
        await wait_settled(ledger)
        polls = int(asyncio.get_running_loop().time() - began)
        assert claims <= 1 + polls


async def test_the_next_delivery_of_a_thread_does_not_wait_for_a_poll(ledger: Ledger) -> None:
    now = SystemClock().now()

    async def record_run(number: int) -> None:
        event = an_event(name=f"run{number}")
        occurred_at = now + number * timedelta(seconds=1)
        fields = {"key": f"k{number}", "thread": "thread", "occurred_at": occurred_at}
        delivery = a_delivery(event, channel="slack", to="#a", created_at=now, due_at=now, **fields)
        entry = RecordedEvent(
            event=event, position="p", verdict="matched", reason="", considered=[], deliveries=[delivery]
        )
        await ledger.record([entry], [], now=now)

    async def answer(message: Message) -> Receipt:
        if message.key == "k4":  # the rest is recorded while this one is in flight
            for number in range(5, 10):
                await record_run(number)
            worker.notify(["thread"])
        return RECEIPT

    for number in range(5):
        await record_run(number)
    worker = a_worker(ledger, ScriptedChannel(answer))
    async with running(worker), asyncio.timeout(8):  # ten polls would take ten seconds
        assert len(await wait_settled(ledger, 10)) == 10
