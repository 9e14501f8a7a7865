"""The ledger: records events and deliveries, claims deliveries and settles them. Each method is one transaction."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    LargeBinary,
    Table,
    Update,
    and_,
    bindparam,
    delete,
    func,
    or_,
    select,
    type_coerce,
    update,
)

from channels.contract import Content, EarlierMessage, Thread
from dispatcher.errors import LedgerFailed, LedgerUnavailable
from dispatcher.ledger import claim
from dispatcher.ledger.canned import admission, canned, settlement
from dispatcher.ledger.destination_state import DestinationStates
from dispatcher.ledger.engine import TIMEOUT, Database, RollBack, Schema
from dispatcher.ledger.queries import Queries
from dispatcher.ledger.records import (
    Attempt,
    Backlog,
    Claim,
    ClaimedThread,
    DeliveryFilter,
    RecordedEvent,
    RecordResult,
    Rejected,
    Settlement,
    StoredDelivery,
    StoredEvent,
)
from dispatcher.ledger.rows import (
    attempt_row,
    delivery_row,
    event_row,
    read_attempt,
    read_event,
    read_rejected,
    read_stored_delivery,
    rejected_row,
)
from dispatcher.ledger.schema import (
    EncodedJson,
    attempts,
    checkpoints,
    contents,
    deliveries,
    destinations,
    events,
    from_compressed_json,
    launch_plan_versions,
    refusals,
    rejected,
    subjects,
    to_json,
)
from dispatcher.ledger.search import INSERT_RECIPIENTS, conditions, of_execution
from dispatcher.ledger.statements import Rows, among, prepare_insert, prepare_select, prepare_update, run
from dispatcher.ledger.subjects import MAY_HAVE_ARRIVED, Subjects
from dispatcher.model.delivery import STUMBLED, Dead, Delivery, Dropped, Kind, Retry, Sent, State, time_prefixed
from dispatcher.model.event import Event, ExecutionId
from dispatcher.model.phase import TERMINAL
from dispatcher.model.rate_limit import FAILURES_TO_OPEN, AdmissionControl, Feedback

if TYPE_CHECKING:  # at run time this import would load SQLAlchemy's ORM, which takes 8 MiB
    from sqlalchemy.ext.asyncio import AsyncConnection

HEAD_START = timedelta(minutes=5)
"""The first start is stored this much earlier, so that an event from just before it is sent, and an event from a
machine whose clock is slow."""
REFUSAL_ENDS = timedelta(hours=1)
"""A refusal that no replica has seen for this long is over."""
DUE_COUNTED = 10_000
"""`Ledger.backlog` counts at most this many due deliveries of each channel."""
LARGE_FACTS = 4096
"""Number of stored bytes from which on an event is decoded in another thread. Most events are far smaller."""
_COMPLETE_SINCE, _RECONCILED, _PINGED = "complete_since", "reconciled", "pinged"
_CHECKPOINT = select(checkpoints.c.at).where(checkpoints.c.name == bindparam("name"))
_OLDEST = select(func.min(events.c.recorded_at))
_PendingSettlement = tuple[Settlement, asyncio.Future[bool]]
"""A settlement that is not written yet, and the future that its caller waits for. The future's result is True if the
lease was still held when the settlement was written."""


class Ledger:
    """Events, deliveries and their outcomes, in SQLite or PostgreSQL: a transactional outbox.

    Every method raises LedgerUnavailable while the database can't be used. In this case the method wrote nothing, and
    the caller may call it again.
    """

    def __init__(
        self,
        url: str,
        timeout: timedelta = TIMEOUT,
        password_file: Path | None = None,
        settle_wait: timedelta = timedelta(),
    ) -> None:
        """Check the URL, but open no connection yet. Raises SettingsError if the URL can't be used.

        `timeout`: maximum time for one statement on PostgreSQL. `password_file`: the file that contains PostgreSQL's
        password. `settle_wait`: on SQLite, settlements wait up to this time to share the transaction of other writes.
        """
        self._database = Database(url, timeout, password_file)
        self._settle_wait = settle_wait.total_seconds()
        self.queries = Queries(self._database)
        self._dialect = import_module(f"sqlalchemy.dialects.{self._database.dialect.name}")
        self._pending: deque[_PendingSettlement] = deque()
        self._settle_task: asyncio.Task[None] | None = None

    async def open(self) -> Self:
        """Create or upgrade the tables. Raises LedgerIncompatible for a ledger that this version can't work with."""
        await self.migrate()
        return self

    async def migrate(self) -> Schema:
        """Create or upgrade the tables, like `open`, and return the schema as it was before the migration."""
        return await self._database.migrate()

    async def clock_offset(self, now: Callable[[], datetime]) -> timedelta:
        """Return how far `now` is ahead of the database's clock, at least; negative if it is behind, 0 on SQLite."""
        return await self._database.clock_offset(now)

    async def schema(self) -> Schema:
        """Read the version of the tables. Raises LedgerIncompatible if an unreleased version created them."""
        return await self._database.schema()

    async def aclose(self) -> None:
        if self._settle_task is not None:
            await asyncio.wait([self._settle_task])
        await self._database.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- intake

    async def record(
        self, entries: Sequence[RecordedEvent], rejections: Sequence[Rejected], *, now: datetime
    ) -> RecordResult:
        """Write a batch in one transaction: events with their deliveries, and rejected messages.

        An event that any replica has recorded before stays unchanged, and its deliveries are not written again. A
        success also adds a resolved notice for each open thread that it ends. If the success has another delivery to
        the same addresses, only the resolved notice is written. Resolved notices and change events are written without
        content: nothing is planned or rendered in the transaction.
        """
        if not entries and not rejections:
            return RecordResult()
        return await self._database.write(partial(self._record, entries, rejections, now))

    def _record(
        self,
        entries: Sequence[RecordedEvent],
        rejections: Sequence[Rejected],
        now: datetime,
        connection: Connection,
    ) -> RecordResult:
        by_key = {entry.event.key: entry for entry in reversed(entries)}
        new = prepare_insert(events, connection.dialect).insert_new(
            connection, [event_row(entry, now) for entry in by_key.values()]
        )
        added = self._add_deliveries(connection, [by_key[key] for key in new])
        self._insert(connection, rejected, [rejected_row(entry) for entry in rejections])
        return RecordResult(frozenset(new), [one for one in added if one.state is State.WAITING])

    def _add_deliveries(self, connection: Connection, entries: Sequence[RecordedEvent]) -> Sequence[Delivery]:
        """Insert the deliveries of new events, and return these deliveries."""
        planned = [delivery for entry in entries for delivery in entry.deliveries]
        failures = [delivery for delivery in planned if delivery.thread]
        successes = sorted((entry.success for entry in entries if entry.success), key=lambda one: one.started_at)
        known = Subjects(connection, self._dialect)
        runs = {
            (entry.version.launch_plan, entry.version.version): entry.version
            for entry in reversed(entries)
            if entry.version
        }
        known.load(
            [one.subject for one in failures]
            + [subject for one in successes for subject in one.subjects]
            + [one.launch_plan for one in runs.values()]
        )
        # If the batch has a success, failures are inserted first, so that `record_success` finds the failures' threads.
        first = failures if successes else []
        traces = {entry.event.key: entry.span.trace for entry in entries}
        self._insert_deliveries(connection, first, traces)
        for delivery in failures:
            known.record_failure(delivery)
        resolved_notices = []
        for success in successes:
            ended = known.record_success(success)
            self._insert_deliveries(connection, ended, traces)  # so that the next success sees the threads as ended
            resolved_notices += ended
        known.save()
        notified = {(notice.event, notice.channel, notice.addresses) for notice in resolved_notices}
        others = [
            one
            for one in planned
            if (not first if one.thread else (one.event, one.channel, one.addresses) not in notified)
        ]
        changes = [one for run in runs.values() if known.record_version(run) for one in run.change_events]
        rest = [*others, *changes]
        self._insert_deliveries(connection, rest, traces)
        return [*first, *resolved_notices, *rest]

    async def rehearse(self, channels: Sequence[str], *, now: datetime) -> None:
        """Test the ledger: record a canned event, claim and settle its deliveries, and roll everything back.

        The event has all optional facts and a delivery for each of the channels. Raises LedgerFailed if the
        tables, or this version of the dispatcher, are wrong.
        """
        with suppress(RollBack):
            await self._database.write(partial(self._rehearse, channels, now))

    def _rehearse(self, channels: Sequence[str], now: datetime, connection: Connection) -> None:
        entries, rejection = canned(channels, now)
        self._record(entries, [rejection], now, connection)
        for channel in channels:
            claimed = claim.claim(
                connection, channel, 1, lease="canned", until=now + timedelta(minutes=1), admission=admission(now)
            )
            (delivery,) = claimed.deliveries
            self._settle([settlement(delivery, now)], connection)
        raise RollBack

    async def rejected_events(self, executions: Iterable[ExecutionId]) -> list[Rejected]:
        """Return the events of these executions that were rejected and are not replayed yet.

        Rejected messages that could not be decoded are left out, because they name no execution.
        """
        keys = [f"{execution}/{phase}" for execution in executions for phase in sorted(TERMINAL)]
        entries = []
        async with self._database.reading() as connection:
            for chunk in _in_chunks(keys):
                rows = await connection.execute(
                    select(rejected).where(rejected.c.event.in_(chunk), rejected.c.replayed_at.is_(None))
                )
                entries += [read_rejected(row) for row in rows]
        return entries

    # -- reconciliation

    async def seen_events(self, events_: Iterable[str]) -> frozenset[str]:
        """Return the keys for which the ledger has a recorded or a rejected event."""
        found: set[str] = set()
        async with self._database.reading() as connection:
            for chunk in _in_chunks(sorted(set(events_))):
                found |= set(await connection.scalars(select(events.c.key).where(events.c.key.in_(chunk))))
                found |= set(await connection.scalars(select(rejected.c.event).where(rejected.c.event.in_(chunk))))
        return frozenset(found)

    async def record_first_start(self, *, now: datetime) -> None:
        """At the first start, store since when the ledger has all events: `HEAD_START` before `now`, or the time of an
        older event.

        Later calls change nothing.
        """
        since = now - HEAD_START
        async with self._database.writing() as connection:
            oldest = await connection.scalar(_OLDEST)
            await connection.run_sync(
                self._insert, checkpoints, [{"name": _COMPLETE_SINCE, "at": min(oldest or since, since)}]
            )

    async def complete_since(self, *, now: datetime) -> datetime:
        """Return the time since which the ledger has all events: the first start, or the newest event that was purged.

        Returns `now` for a new ledger.
        """
        async with self._database.reading() as connection:
            since: datetime | None = await connection.scalar(_CHECKPOINT, {"name": _COMPLETE_SINCE})
            since = since or await connection.scalar(_OLDEST)
        return since or now

    async def reconciled_until(self) -> datetime | None:
        """Return the end of the time range that was reconciled last; None if nothing was reconciled yet."""
        async with self._database.reading() as connection:
            until: datetime | None = await connection.scalar(_CHECKPOINT, {"name": _RECONCILED})
        return until

    async def set_reconciled_until(self, until: datetime) -> None:
        """Store the end of the time range that was reconciled. If the stored time is later, it stays unchanged."""
        async with self._database.writing() as connection:
            await connection.run_sync(self._insert, checkpoints, [{"name": _RECONCILED, "at": until}])
            await _advance_checkpoint(connection, _RECONCILED, until)

    # -- delivery workers

    async def claim(
        self,
        channel: str,
        limit: int,
        *,
        lease: str,
        until: datetime,
        admission: AdmissionControl,
        keys: Sequence[str] | None = None,
    ) -> Claim:
        """Claim up to `limit` due deliveries that `admission` allows, oldest first. The lease ends at `until`.

        A delivery that may be sent only later is not claimed, but becomes due at that later time. From each thread,
        only the earliest waiting delivery is claimed. If a delivery's lease ended without a settlement, the delivery is
        due again and in doubt, because the message may have arrived.

        `keys`: claim only these deliveries; None if any may be claimed. Raises LedgerFailed if one of the deliveries
        can't be read or written. Nothing is claimed then.
        """
        return await self._database.write(
            lambda connection: claim.claim(
                connection, channel, limit, lease=lease, until=until, admission=admission, keys=keys
            )
        )

    async def due(self, channel: str, *, now: datetime, limit: int) -> list[str]:
        """Return the keys of up to `limit` deliveries that `claim` would read."""
        async with self._database.reading() as connection:
            return list(await connection.scalars(claim.DUE_KEYS, {"channel": channel, "now": now, "size": limit}))

    async def claim_bare(self, key: str, *, lease: str, now: datetime, until: datetime) -> Delivery | None:
        """Claim a due delivery that `claim` can't read, to settle it. Returns None if it is not due any more.

        The delivery has no addresses, no content and no thread.
        """
        return await self._database.write(
            lambda connection: claim.claim_bare(connection, key, lease=lease, now=now, until=until)
        )

    async def stumbles(self, delivery: Delivery) -> int:
        """Return how often the dispatcher itself has failed with this delivery since it was created or redriven."""
        query = select(func.count()).where(
            attempts.c.delivery == delivery.key,
            attempts.c.status == STUMBLED,
            attempts.c.started_at >= delivery.retry_window_start,
        )
        async with self._database.reading() as connection:
            return await connection.scalar(query) or 0

    async def settle(self, settlement: Settlement) -> bool:
        """Store an attempt's outcome, and insert the deliveries that follow from it, if the lease is still held.

        Returns False if the lease is lost. The delivery then stays unchanged, because another worker may have claimed
        it. The attempt's own row is written in both cases, unless the delivery is dropped. Settlements that arrive during a write share the next
        transaction.
        """
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pending.append((settlement, done))
        if self._settle_task is None or self._settle_task.done():
            self._settle_task = asyncio.create_task(self._settle_pending())  # noqa: TID251 - allowed here, because `aclose` waits for this task
        return await done

    async def _settle_pending(self) -> None:
        """Write the pending settlements in groups. Runs in its own task, so that a cancelled caller can't stop it."""
        while self._pending:
            group: list[_PendingSettlement] = []
            try:
                held = await self._database.write(partial(self._settle_all, group), patience=self._settle_wait)
            except LedgerFailed as error:
                await self._settle_in_halves(group, error)
            except Exception as error:  # noqa: BLE001 - every error is passed on to the callers that wait
                _fail(group or self._take_pending(), error)
            else:
                _finish(group, held)

    async def _settle_in_halves(self, group: Sequence[_PendingSettlement], error: LedgerFailed) -> None:
        """Write a group whose write has failed, in halves, so that only the settlement at fault fails."""
        if len(group) == 1:
            _fail(group, error)
            return
        middle = len(group) // 2
        for half in (group[:middle], group[middle:]):
            try:
                held = await self._database.write(partial(self._settle, [settlement for settlement, _ in half]))
            except LedgerFailed as again:
                await self._settle_in_halves(half, again)
            except LedgerUnavailable as unavailable:
                _fail(half, unavailable)
            else:
                _finish(half, held)

    def _settle_all(self, group: list[_PendingSettlement], connection: Connection) -> frozenset[str]:
        """Move the pending settlements to `group` and write them. Returns the keys of deliveries with a held lease."""
        group += self._take_pending()
        return self._settle([settlement for settlement, _ in group], connection)

    def _take_pending(self) -> Iterator[_PendingSettlement]:
        """Remove and return the pending settlements. May be called from any thread."""
        with suppress(IndexError):
            while True:
                yield self._pending.popleft()

    def _settle(self, settlements: Sequence[Settlement], connection: Connection) -> frozenset[str]:
        held = _held_leases(connection, settlements)
        valid = [entry for entry in settlements if entry.delivery.key in held]
        for statement, rows in _outcome_updates(valid).items():
            prepare_update(statement, connection.dialect).update(connection, rows)
        attempted = [entry for entry in settlements if not isinstance(entry.outcome, Dropped)]
        self._insert(
            connection, attempts, [attempt_row(entry, lease_held=entry.delivery.key in held) for entry in attempted]
        )
        traces = {entry.delivery.event: entry.delivery.trace for entry in valid}
        self._insert_deliveries(connection, [follow_up for entry in valid for follow_up in entry.follow_ups], traces)
        by_channel: dict[str, list[Feedback]] = {}
        for entry in settlements:
            if entry.feedback is not None:
                by_channel.setdefault(entry.delivery.channel, []).append(entry.feedback)
        for channel, feedback in sorted(by_channel.items()):
            DestinationStates(connection, channel).apply(feedback)
        return held

    async def record_refusal(self, channel: str, *, now: datetime) -> datetime:
        """Store that a provider refuses the dispatcher itself. Returns since when it does.

        If the last refusal was stored more than `REFUSAL_ENDS` ago, a new one begins.
        """
        row = refusals.c.channel == channel
        insert = self._dialect.insert(refusals).values(channel=channel, since=now, last_at=now)
        ended = update(refusals).where(row, refusals.c.last_at < now - REFUSAL_ENDS).values(since=now)
        async with self._database.writing() as connection:
            await connection.execute(insert.on_conflict_do_nothing())
            await connection.execute(ended)
            await connection.execute(update(refusals).where(row, refusals.c.last_at < now).values(last_at=now))
            since: datetime = (await connection.execute(select(refusals.c.since).where(row))).scalar_one()
        return since

    async def refused_since(self, channel: str) -> datetime | None:
        """Return since when a provider refuses the dispatcher itself; None if the ledger has no refusal."""
        query = select(refusals.c.since).where(refusals.c.channel == channel)
        async with self._database.reading() as connection:
            since: datetime | None = await connection.scalar(query)
        return since

    async def end_refusal(self, channel: str) -> None:
        """Remove the channel's refusal, because the provider has accepted a message."""
        async with self._database.writing() as connection:
            await connection.execute(delete(refusals).where(refusals.c.channel == channel))

    async def release(self, delivery: Delivery, *, due_at: datetime) -> None:
        """Give a claimed delivery back without counting the attempt. The delivery is due again at `due_at`."""
        values = {"due_at": due_at, "in_doubt": delivery.in_doubt}
        release = update(deliveries).where(*_lease_held(delivery))
        release = release.values(lease=None, attempt=deliveries.c.attempt - 1, **values)
        await self._database.write(lambda connection: connection.execute(release))

    async def thread(self, delivery: Delivery) -> ClaimedThread | None:
        """Return a claimed delivery's thread, with its earlier messages; None if the delivery has no thread."""
        if not delivery.thread:
            return None
        resolves = delivery.kind is Kind.RESOLVED_NOTICE
        if delivery.opens_thread:
            return ClaimedThread(Thread(key=delivery.thread, resolves=resolves), superseded=False)
        others = (deliveries.c.thread == delivery.thread, deliveries.c.key != delivery.key)
        before = (*others, deliveries.c.thread_at <= delivery.thread_at)
        last_resolved = select(func.max(deliveries.c.thread_at)).where(
            *before, deliveries.c.kind == Kind.RESOLVED_NOTICE, deliveries.c.state == State.SENT
        )
        failed_since = select(deliveries.c.key).where(
            *others,
            deliveries.c.thread_at >= delivery.thread_at,
            deliveries.c.kind != Kind.RESOLVED_NOTICE,
            MAY_HAVE_ARRIVED,
        )
        well_since = select(subjects.c.name).where(
            subjects.c.name == delivery.subject, subjects.c.well_since > delivery.thread_at
        )
        async with self._database.reading() as connection:
            since = await connection.scalar(last_resolved)
            superseded = await connection.scalar((failed_since if resolves else well_since).limit(1)) is not None
            earlier = await _earlier_messages(
                connection, *before, *([deliveries.c.thread_at >= since] if since is not None else [])
            )
        return ClaimedThread(Thread(key=delivery.thread, earlier=earlier, resolves=resolves), superseded=superseded)

    async def store_content(self, delivery: Delivery, content: Content) -> bool:
        """Store the content of a claimed delivery that has none. Returns False if the lease is lost."""
        body = to_json(content)
        content_hash = time_prefixed(hashlib.sha256(body).hexdigest(), delivery.occurred_at)
        held = update(deliveries).where(*_lease_held(delivery)).values(content=content_hash)

        def write(connection: Connection) -> bool:
            self._insert(connection, contents, [{"content_hash": content_hash, "body": EncodedJson(body)}])
            return connection.execute(held).rowcount == 1

        return await self._database.write(write)

    async def event(self, key: str) -> Event | None:
        """Return the recorded event with this key; None if the ledger has no such event.

        A large event is decoded in another thread, so that the event loop does not wait.
        """
        async with self._database.reading() as connection:
            facts = await connection.scalar(select(type_coerce(events.c.facts, LargeBinary)).where(events.c.key == key))
        if facts is None:
            return None
        return _event(facts) if len(facts) < LARGE_FACTS else await asyncio.to_thread(_event, facts)

    async def newest(self) -> tuple[str, datetime] | None:
        """Return the key and time of the event that was recorded last; None if the ledger has no events."""
        query = select(events.c.key, events.c.recorded_at).order_by(events.c.recorded_at.desc()).limit(1)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else (row.key, row.recorded_at)

    async def notified(self, event: str) -> frozenset[tuple[str, str]]:
        """Return the (channel, address) pairs to which the event has deliveries."""
        query = select(deliveries.c.channel, deliveries.c.addresses).where(deliveries.c.event == event)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return frozenset((row.channel, address) for row in rows for address in row.addresses)

    # -- operators

    async def find(self, wanted: DeliveryFilter, *, limit: int) -> list[StoredDelivery]:
        """The newest deliveries that match the filter, newest first."""
        query = select(deliveries).where(*conditions(wanted)).order_by(deliveries.c.created_at.desc(), deliveries.c.key)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query.limit(limit))).all()
            bodies = await _bodies(connection, {row.content for row in rows})
        return [read_stored_delivery(row, bodies) for row in rows]

    async def delivery(self, key: str) -> StoredDelivery | None:
        """Return the delivery with this key; None if the ledger has no such delivery."""
        async with self._database.reading() as connection:
            row = (await connection.execute(select(deliveries).where(deliveries.c.key == key))).first()
            return read_stored_delivery(row, await _bodies(connection, {row.content})) if row is not None else None

    async def history(self, delivery: str) -> list[Attempt]:
        """Return the delivery's attempts, in order. An attempt during which the worker crashed is missing."""
        query = select(attempts).where(attempts.c.delivery == delivery).order_by(attempts.c.number, attempts.c.id)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [read_attempt(row) for row in rows]

    async def stored_events(self, execution: ExecutionId) -> list[StoredEvent]:
        """Return the terminal events of an execution, in the order of recording.

        Flyte sends one terminal event for each execution, because its database rejects a second one. Other workflow
        engines may send several.
        """
        query = (
            select(events)
            .where(*of_execution(str(execution)))
            .order_by(events.c.recorded_at, events.c.occurred_at, events.c.key)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [read_event(row) for row in rows]

    async def find_rejected(
        self,
        *,
        limit: int,
        since: datetime | None = None,
        id_starts: str = "",
        execution: ExecutionId | None = None,
    ) -> list[Rejected]:
        """Return the newest rejected messages, newest first.

        `execution`: selects only messages whose event key or stored bytes contain this execution. Such a search reads
        every rejected message, so it is slow.
        """
        query = select(rejected).order_by(rejected.c.received_at.desc(), rejected.c.id).limit(limit)
        if since is not None:
            query = query.where(rejected.c.received_at >= since)
        if id_starts:
            query = query.where(rejected.c.id.startswith(id_starts, autoescape=True))
        if execution is not None:
            query = query.where(self._names_execution(execution))
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [read_rejected(row) for row in rows]

    async def redrive(self, wanted: DeliveryFilter, *, now: datetime) -> int:
        """Make the dead deliveries that match the filter due again, with a new retry budget. Returns their number.

        A delivery in doubt stays in doubt.
        """
        revive = update(deliveries).where(*conditions(replace(wanted, states=frozenset({State.DEAD}))))
        values = {"state": State.WAITING, "due_at": now, "retry_window_start": now, "attempt": 0, "settled_at": None}
        async with self._database.writing() as connection:
            return (await connection.execute(revive.values(values))).rowcount

    async def mark_replayed(self, identity: str, *, now: datetime) -> None:
        """Store that a rejected message was replayed successfully."""
        async with self._database.writing() as connection:
            await connection.execute(update(rejected).where(rejected.c.id == identity).values(replayed_at=now))

    async def purge(self, before: datetime, *, limit: int) -> int:
        """Delete up to `limit` events that were recorded before this time and have no waiting delivery.

        Also deletes: their deliveries and attempts; contents that no other delivery uses; up to `limit` rejected
        messages that were received before this time; subjects of threads that have no deliveries and no later success,
        and their versions; outdated states of destinations. Moves `complete_since` forward to the newest event or
        rejected message before this time. Returns how many events and rejected messages were deleted. A small limit
        keeps the transaction short, so that workers do not wait for it.
        """
        waiting = select(deliveries.c.event).where(deliveries.c.state == State.WAITING)
        old = select(events.c.key).where(events.c.recorded_at < before, events.c.key.not_in(waiting)).limit(limit)
        async with self._database.writing() as connection:
            for at in (events.c.recorded_at, rejected.c.received_at):
                newest = await connection.scalar(select(func.max(at)).where(at < before))
                if newest is not None:
                    await _advance_checkpoint(connection, _COMPLETE_SINCE, newest)
            keys = list(await connection.scalars(old))
            delivery_keys = select(deliveries.c.key).where(deliveries.c.event.in_(keys))
            hashes = set(await connection.scalars(select(deliveries.c.content).where(deliveries.c.event.in_(keys))))
            await connection.execute(delete(attempts).where(attempts.c.delivery.in_(delivery_keys)))
            await connection.execute(delete(deliveries).where(deliveries.c.event.in_(keys)))
            await connection.execute(delete(events).where(events.c.key.in_(keys)))
            still_used = select(deliveries.c.content).where(deliveries.c.content.in_(hashes))
            await connection.execute(
                delete(contents).where(contents.c.content_hash.in_(hashes), contents.c.content_hash.not_in(still_used))
            )
            has_deliveries = select(deliveries.c.key).where(deliveries.c.subject == subjects.c.name).exists()
            unchanged = or_(subjects.c.well_since.is_(None), subjects.c.well_since < before)
            await connection.execute(delete(subjects).where(unchanged, ~has_deliveries))
            orphaned = launch_plan_versions.c.launch_plan.not_in(select(subjects.c.name))
            await connection.execute(delete(launch_plan_versions).where(orphaned))
            idle = (
                destinations.c.theoretical_arrival_at < before,
                func.coalesce(destinations.c.blocked_until, before) <= before,
            )
            await connection.execute(delete(destinations).where(*idle))
            old_rejected = select(rejected.c.id).where(rejected.c.received_at < before).limit(limit)
            deleted = await connection.execute(delete(rejected).where(rejected.c.id.in_(old_rejected)))
        return len(keys) + deleted.rowcount

    async def counts(self) -> Mapping[tuple[str, State], int]:
        """Number of deliveries by channel and state."""
        query = select(deliveries.c.channel, deliveries.c.state, func.count().label("number")).group_by(
            deliveries.c.channel, deliveries.c.state
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return {(row.channel, State(row.state)): row.number for row in rows}

    async def backlog(self, *, now: datetime) -> Mapping[str, Backlog]:
        """Return the backlog of each channel. Cheap, because it reads only indexes of waiting and dead deliveries."""
        channel, number = deliveries.c.channel, func.count()
        waiting = deliveries.c.state == State.WAITING
        queries = (
            select(channel, func.min(deliveries.c.created_at), number).where(waiting).group_by(channel),
            select(channel, number).where(deliveries.c.state == State.DEAD).group_by(channel),
            select(destinations.c.channel, number)
            .where(destinations.c.failures >= FAILURES_TO_OPEN)
            .group_by(destinations.c.channel),
        )
        due: dict[str, int] = {}
        async with self._database.reading() as connection:
            waiting_by_channel, dead, open_breakers = [
                {row[0]: row[1:] for row in await connection.execute(one)} for one in queries
            ]
            for name in waiting_by_channel:
                due_rows = select(channel).where(channel == name, waiting, deliveries.c.due_at <= now)
                counted = due_rows.limit(DUE_COUNTED).subquery()
                due[name] = await connection.scalar(select(number).select_from(counted)) or 0
        return {
            name: Backlog(
                oldest=waiting_by_channel[name][0] if name in waiting_by_channel else None,
                waiting=waiting_by_channel[name][1] if name in waiting_by_channel else 0,
                due=due.get(name, 0),
                dead=dead[name][0] if name in dead else 0,
                open_breakers=open_breakers[name][0] if name in open_breakers else 0,
            )
            for name in waiting_by_channel.keys() | dead.keys() | open_breakers.keys()
        }

    async def elect(self, name: str, at: datetime) -> bool:
        """Elect one of the replicas that call this with equal name and time. Returns True only to the first caller."""
        first = self._dialect.insert(checkpoints).on_conflict_do_nothing().returning(checkpoints.c.name)
        later = update(checkpoints).where(checkpoints.c.name == name, checkpoints.c.at < at).values(at=at)
        async with self._database.writing() as connection:
            if await connection.scalar(first, {"name": name, "at": at}) is not None:
                return True
            return (await connection.execute(later)).rowcount == 1

    async def overdue(self, channel: str, *, before: datetime) -> bool:
        """True if a delivery was due at `before`, is not in flight, and waits for no other delivery of its thread."""
        async with self._database.reading() as connection:
            found = await connection.execute(claim.DUE, {"channel": channel, "now": before, "size": 1})
            return found.first() is not None

    async def ping(self, *, now: datetime) -> None:
        """Write one row to check the ledger, because a read would succeed even on a full disk.

        Raises LedgerUnavailable if the row can't be written.
        """

        def write(connection: Connection) -> None:
            self._insert(connection, checkpoints, [{"name": _PINGED, "at": now}])
            connection.execute(update(checkpoints).where(checkpoints.c.name == _PINGED).values(at=now))

        await self._database.write(write)

    # -- rows

    def _names_execution(self, execution: ExecutionId) -> ColumnElement[bool]:
        """SQL condition: a rejected message's event key, or its bytes if it has no key, contains the execution."""
        search = func.instr if self._database.sqlite else func.pg_catalog.position
        parts = (search(rejected.c.body, orjson.dumps(part)) > 0 for part in execution.model_dump().values())
        return or_(
            rejected.c.event.startswith(f"{execution}/", autoescape=True), and_(rejected.c.event.is_(None), *parts)
        )

    def _insert_deliveries(self, connection: Connection, added: Sequence[Delivery], traces: Mapping[str, str]) -> None:
        """Insert the deliveries and their contents. `traces`: mapping from an event's key to its trace."""
        bodies = {}
        rows = []
        encoded: dict[tuple[int, datetime], tuple[str, bytes]] = {}
        """The hash and the JSON of contents, by the object's id: an event's deliveries share their content's object."""
        for delivery in added:
            trace, content, content_hash = traces.get(delivery.event, ""), delivery.content, None
            if content is not None:
                same = (id(content), delivery.occurred_at)
                if same not in encoded:
                    body = to_json(content)
                    encoded[same] = (time_prefixed(hashlib.sha256(body).hexdigest(), delivery.occurred_at), body)
                content_hash, body = encoded[same]
                bodies[content_hash] = EncodedJson(body)
            rows.append(delivery_row(delivery, content_hash, trace))
        self._insert(connection, contents, [{"content_hash": key, "body": body} for key, body in bodies.items()])
        self._insert(connection, deliveries, rows)
        if rows and self._database.sqlite:
            keys = orjson.dumps([row["key"] for row in rows]).decode()
            run(connection, INSERT_RECIPIENTS, (keys, keys))

    def _insert(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Insert the rows whose keys do not exist yet."""
        prepare_insert(table, connection.dialect).insert(connection, rows)


def _fail(group: Iterable[_PendingSettlement], error: Exception) -> None:
    """Raise the error in the callers that wait for these settlements."""
    for _, done in group:
        if not done.cancelled():
            done.set_exception(error)


def _finish(group: Iterable[_PendingSettlement], held: frozenset[str]) -> None:
    """Give the callers their results. `held`: the keys of the deliveries whose lease was still held."""
    for settled, done in group:
        if not done.cancelled():
            done.set_result(settled.delivery.key in held)


async def _advance_checkpoint(connection: AsyncConnection, name: str, at: datetime) -> None:
    """Set an existing checkpoint to this time, unless it is later already."""
    await connection.execute(update(checkpoints).where(checkpoints.c.name == name, checkpoints.c.at < at).values(at=at))


def _event(facts: bytes) -> Event:
    return Event.model_validate(from_compressed_json(facts))


def _in_chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield chunks of 500 keys, because databases limit the number of parameters in a statement."""
    for begin in range(0, len(keys), 500):
        yield keys[begin : begin + 500]


async def _earlier_messages(
    connection: AsyncConnection, *conditions: ColumnElement[bool]
) -> tuple[EarlierMessage, ...]:
    """Return the first and the last of the matching failure messages that arrived or may have arrived."""
    query = select(deliveries).where(
        *conditions,
        deliveries.c.kind != Kind.RESOLVED_NOTICE,
        deliveries.c.content.is_not(None),
        MAY_HAVE_ARRIVED,
    )
    first = (await connection.execute(query.order_by(deliveries.c.thread_at, deliveries.c.key).limit(1))).first()
    if first is None:
        return ()
    backwards = query.order_by(deliveries.c.thread_at.desc(), deliveries.c.key.desc())
    last = (await connection.execute(backwards.limit(1))).one()
    bodies = await _bodies(connection, {first.content, last.content})
    rows = [first] if first.key == last.key else [first, last]
    return tuple(EarlierMessage(reference=row.reference or {}, content=bodies[row.content]) for row in rows)


async def _bodies(connection: AsyncConnection, hashes: Iterable[str | None]) -> dict[str | None, Any]:
    """Return the contents by hash; None, the hash of content that is not rendered yet, has the content None."""
    rows = await connection.execute(select(contents).where(contents.c.content_hash.in_(set(hashes) - {None})))
    return {None: None, **{row.content_hash: row.body for row in rows}}


def _lease_held(delivery: Delivery) -> tuple[Any, ...]:
    return (
        deliveries.c.key == delivery.key,
        deliveries.c.lease == delivery.lease,
        deliveries.c.attempt == delivery.attempt,
    )


def _held_leases(connection: Connection, settlements: Sequence[Settlement]) -> frozenset[str]:
    """Return the keys of deliveries whose lease is still held. Locks the deliveries until the transaction ends."""
    claimed = {entry.delivery.key: (entry.delivery.lease, entry.delivery.attempt) for entry in settlements}
    rows = prepare_select(_LEASES, connection.dialect).rows(connection, keys=list(claimed))
    return frozenset(row.key for row in rows if (row.lease, row.attempt) == claimed[row.key])


_LEASES = (
    select(deliveries.c.key, deliveries.c.lease, deliveries.c.attempt)
    .where(among(deliveries.c.key, "keys"))
    .with_for_update()
)
_SETTLE = update(deliveries).where(deliveries.c.key == bindparam("settled"))
_SET_SENT = _SETTLE.values(
    state=State.SENT,
    lease=None,
    reason="",
    in_doubt=False,
    settled_at=bindparam("at"),
    reference=bindparam("receipt"),
)
_SET_RETRY = _SETTLE.values(lease=None, reason=bindparam("why"), in_doubt=bindparam("doubt"), due_at=bindparam("at"))
_SET_DEAD = _SETTLE.values(
    state=State.DEAD,
    lease=None,
    reason=bindparam("why"),
    in_doubt=bindparam("doubt"),
    settled_at=bindparam("at"),
)
_SET_DROPPED = _SETTLE.values(
    state=State.DROPPED,
    drop_reason=bindparam("code"),
    lease=None,
    reason=bindparam("why"),
    settled_at=bindparam("at"),
    attempt=deliveries.c.attempt - 1,
)


def _outcome_updates(settlements: Sequence[Settlement]) -> dict[Update, list[dict[str, Any]]]:
    """Return the update statements that store the outcomes, each with its list of parameters."""
    updates: dict[Update, list[dict[str, Any]]] = {}
    for entry in settlements:
        row: dict[str, Any] = {"settled": entry.delivery.key}
        match entry.outcome:
            case Sent(receipt):
                statement = _SET_SENT
                row |= {"at": entry.ended_at, "receipt": dict(receipt.reference)}
            case Retry(at=at, reason=reason, in_doubt=in_doubt):
                statement = _SET_RETRY
                row |= {"at": at, "why": reason, "doubt": in_doubt}
            case Dead(reason=reason, in_doubt=in_doubt):
                statement = _SET_DEAD
                row |= {"at": entry.ended_at, "why": reason, "doubt": in_doubt}
            case Dropped(why=code, reason=reason):
                statement = _SET_DROPPED
                row |= {"at": entry.ended_at, "why": reason, "code": code}
        updates.setdefault(statement, []).append(row)
    return updates
