"""The ledger's verbs. Each is one transaction: it holds whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    Table,
    Update,
    and_,
    bindparam,
    delete,
    func,
    or_,
    select,
    update,
)

from channels.contract import EarlierMessage, Thread
from dispatcher.ledger import claim
from dispatcher.ledger.claim import Changes
from dispatcher.ledger.destination_state import DestinationStates
from dispatcher.ledger.engine import TIMEOUT, Database, Schema
from dispatcher.ledger.launch_plan_status import LaunchPlanStatus
from dispatcher.ledger.queries import Queries
from dispatcher.ledger.records import (
    Attempt,
    Backlog,
    Claim,
    DeliveryFilter,
    DirectDispatch,
    RecordedEvent,
    RecordResult,
    Rejected,
    Settlement,
    StoredDelivery,
    StoredEvent,
)
from dispatcher.ledger.rows import (
    a_rejected,
    an_attempt,
    attempt_row,
    delivery_row,
    event_row,
    filed,
    known,
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
    launch_plan_status,
    launch_plan_versions,
    rejected,
)
from dispatcher.ledger.search import TOLD, conditions, of_execution
from dispatcher.ledger.statements import Rows, among, asking, changing, into, run
from dispatcher.model.delivery import Dead, Delivery, Retry, Sent, State, in_time
from dispatcher.model.event import Event, ExecutionId
from dispatcher.model.phase import TERMINAL
from dispatcher.model.rate_limit import ENOUGH, AdmissionControl, Feedback

if TYPE_CHECKING:  # `database` has it without the ORM
    from sqlalchemy.ext.asyncio import AsyncConnection

DUE_COUNTED = 10_000
"""Of what is due no more is counted, by channel."""
_COMPLETE_SINCE, _RECONCILED, _PINGED = "complete_since", "reconciled", "pinged"
_CHECKPOINT = select(checkpoints.c.at).where(checkpoints.c.name == bindparam("name"))
_OLDEST = select(func.min(events.c.recorded_at))
_Settling = tuple[Settlement, asyncio.Future[bool]]
"""A settlement, and who waits for it to be written."""
NOBODY: Mapping[str, DirectDispatch] = {}
"""Nobody offers to carry anything."""
NOTHING: Mapping[str, Changes] = {}
"""Nothing is claimed at once."""


class Ledger:
    """What was heard, what is owed, how it ended.

    Every verb raises LedgerUnavailable while the database can't be used; nothing is then half-written,
    and the same call may be made again.
    """

    def __init__(self, url: str, timeout: timedelta = TIMEOUT, password_file: Path | None = None) -> None:
        """Opens nothing yet. Raises SettingsError for a URL that can't be used.

        `timeout`: of one statement on PostgreSQL. `password_file`: see Database.
        """
        self._database = Database(url, timeout, password_file)
        self.queries = Queries(self._database)
        self._dialect = import_module(f"sqlalchemy.dialects.{self._database.dialect.name}")
        self._settling: deque[_Settling] = deque()
        self._settler: asyncio.Task[None] | None = None

    async def open(self) -> Self:
        """Make or update the tables. Raises LedgerIncompatible for a ledger that this version can't work with."""
        await self.migrate()
        return self

    async def migrate(self) -> Schema:
        """Make or update the tables, as `open` does; returns what they were before."""
        return await self._database.migrate()

    async def make_room(self) -> None:
        """What makes the many commits to come quicker (`Database.make_room`); for those who stay."""
        await self._database.make_room()

    async def schema(self) -> Schema:
        """What tables there are; nothing is changed. Raises LedgerIncompatible where an unreleased version made them."""
        return await self._database.schema()

    async def aclose(self) -> None:
        if self._settler is not None:
            await asyncio.wait([self._settler])
        await self._database.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- intake

    async def record(
        self,
        heard: Sequence[RecordedEvent],
        refused: Sequence[Rejected],
        *,
        now: datetime,
        offers: Mapping[str, DirectDispatch] = NOBODY,
    ) -> RecordResult:
        """Write a batch: events with what they owe, and messages that were rejected.

        What is there already is left alone, whoever wrote it: an event's deliveries are written only with
        the event's first record. A success also owes what ends the conversations about earlier failures, and
        takes the place of what a rule owes to the same address.

        `offers`: by channel; what is owed is claimed for them as it is written, which saves a claim's way there and back.
        Each is answered, whatever happens.
        """
        written = RecordResult()
        claimed: Mapping[str, Delivery] = {}
        record = partial(self._record, heard, refused, now, offers)
        try:
            if heard or refused:
                written, claimed = await self._database.write(record)
        finally:
            for channel, offer in offers.items():
                offer.take([delivery for delivery in claimed.values() if delivery.channel == channel])
        return written

    def _record(
        self,
        heard: Sequence[RecordedEvent],
        refused: Sequence[Rejected],
        now: datetime,
        offers: Mapping[str, DirectDispatch],
        connection: Connection,
    ) -> tuple[RecordResult, Mapping[str, Delivery]]:
        by_key = {entry.event.key: entry for entry in reversed(heard)}
        new = into(events, connection.dialect).insert_new(
            connection, [event_row(entry, now) for entry in by_key.values()]
        )
        owed, claimed = self._owe(connection, [by_key[key] for key in new], offers)
        self._insert(connection, rejected, [rejected_row(entry) for entry in refused])
        left = [one for one in owed if one.state is State.WAITING and one.key not in claimed]
        return RecordResult(frozenset(new), left), claimed

    def _owe(
        self, connection: Connection, entries: Sequence[RecordedEvent], offers: Mapping[str, DirectDispatch]
    ) -> tuple[Sequence[Delivery], Mapping[str, Delivery]]:
        """Write what new events owe; returns all of that, and what of it is claimed for the offers, by key."""
        owed = [delivery for entry in entries for delivery in entry.deliveries]
        failures = [delivery for delivery in owed if delivery.launch_plan]
        recoveries = sorted(
            (entry.resolution for entry in entries if entry.resolution), key=lambda one: one.occurred_at
        )
        standing = LaunchPlanStatus(connection, self._dialect)
        runs = {
            (entry.version.launch_plan, entry.version.version): entry.version
            for entry in reversed(entries)
            if entry.version
        }
        standing.load(
            [one.launch_plan for one in failures]
            + [one.launch_plan for one in recoveries]
            + [one.launch_plan for one in runs.values()]
        )
        first = failures if recoveries else []  # what a success ends may be among them
        traces = {entry.event.key: entry.span.trace for entry in entries}
        self._insert_deliveries(connection, first, traces)
        for delivery in failures:
            standing.failed(delivery)
        good_news = [
            made
            for recovery in recoveries
            for opened in standing.recovered(recovery)
            if (made := recovery.close(opened)) is not None
        ]
        standing.save()
        told = {(news.event, news.channel, news.addresses) for news in good_news}
        rest = [
            one
            for one in owed
            if (not first if one.launch_plan else (one.event, one.channel, one.addresses) not in told)
        ]
        changes = [told for run in runs.values() if standing.is_new(run) for told in run.tell()]
        later = [*good_news, *rest, *changes]
        taken = claim.at_once(connection, later, offers, standing) if offers else {}
        claimed = self._insert_deliveries(connection, later, traces, taken)
        return [*first, *later], claimed

    async def rejected_of(self, executions: Iterable[ExecutionId]) -> list[Rejected]:
        """The events of these executions that were rejected because nobody knew whose rules hold, not replayed yet."""
        keys = [f"{execution}/{phase}" for execution in executions for phase in sorted(TERMINAL)]
        entries = []
        async with self._database.reading() as connection:
            for some in _in_portions(keys):
                rows = await connection.execute(
                    select(rejected).where(rejected.c.event.in_(some), rejected.c.replayed_at.is_(None))
                )
                entries += [a_rejected(row) for row in rows]
        return entries

    # -- reconciliation

    async def seen_events(self, events_: Iterable[str]) -> frozenset[str]:
        """Those of the events' keys that were heard of, be it that they were rejected."""
        found: set[str] = set()
        async with self._database.reading() as connection:
            for some in _in_portions(sorted(set(events_))):
                found |= set(await connection.scalars(select(events.c.key).where(events.c.key.in_(some))))
                found |= set(await connection.scalars(select(rejected.c.event).where(rejected.c.event.in_(some))))
        return frozenset(found)

    async def begin(self, *, now: datetime) -> None:
        """Remember the first start; the oldest event's time where there are events already. Later calls do nothing."""
        async with self._database.writing() as connection:
            oldest = await connection.scalar(_OLDEST)
            await connection.run_sync(
                self._insert, checkpoints, [{"name": _COMPLETE_SINCE, "at": min(oldest or now, now)}]
            )

    async def complete_since(self, *, now: datetime) -> datetime:
        """From when on all that was told is in here: since the first start, or what a purge has left.

        Where nothing was ever begun or recorded: since now.
        """
        async with self._database.reading() as connection:
            since: datetime | None = await connection.scalar(_CHECKPOINT, {"name": _COMPLETE_SINCE})
            since = since or await connection.scalar(_OLDEST)
        return since or now

    async def reconciled_until(self) -> datetime | None:
        """The end of the last time that was looked through for lost events; None before the first."""
        async with self._database.reading() as connection:
            until: datetime | None = await connection.scalar(_CHECKPOINT, {"name": _RECONCILED})
        return until

    async def set_reconciled_until(self, until: datetime) -> None:
        """Remember that everything before then was looked through. It never goes back."""
        async with self._database.writing() as connection:
            await connection.run_sync(self._insert, checkpoints, [{"name": _RECONCILED, "at": until}])
            await _advance_checkpoint(connection, _RECONCILED, until)

    # -- couriers

    async def claim(self, channel: str, limit: int, *, lease: str, until: datetime, gate: AdmissionControl) -> Claim:
        """Take up to `limit` due deliveries that the gate admits, oldest first, until the lease runs out.

        Those that it doesn't admit yet are due again when it says; of a conversation only the first is taken.
        A delivery whose last lease ran out unsettled is due again, and doubtful: its attempt may have arrived.
        """
        return await self._database.write(
            lambda connection: claim.claim(connection, channel, limit, lease=lease, until=until, gate=gate)
        )

    async def settle(self, settlement: Settlement) -> bool:
        """Write how an attempt ended, and what follows from it, if the lease is still the delivery's own.

        False where it wasn't: another worker has the delivery, and its word counts. The attempt itself is
        written in either case. Settlements that come while one is being written share the next transaction.
        """
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._settling.append((settlement, done))
        if self._settler is None or self._settler.done():
            self._settler = asyncio.create_task(self._settle_waiting())  # noqa: TID251 - `aclose` waits for it
        return await done

    async def _settle_waiting(self) -> None:
        """Write what waits, in groups. On its own: whoever is cancelled meanwhile leaves the others' words alone."""
        while self._settling:
            group: list[_Settling] = []
            try:
                held = await self._database.write(partial(self._settle_all, group), patient=True)
            except Exception as error:  # noqa: BLE001 - each caller gets it, at its own await
                for _, done in group or self._taken():
                    if not done.cancelled():
                        done.set_exception(error)
            else:
                for settlement, done in group:
                    if not done.cancelled():
                        done.set_result(settlement.delivery.key in held)

    def _settle_all(self, group: list[_Settling], connection: Connection) -> frozenset[str]:
        """Settle whatever waits by now, and put it into the group."""
        group += self._taken()
        return self._settle([settlement for settlement, _ in group], connection)

    def _taken(self) -> Iterator[_Settling]:
        """What waits, which then waits no more; in any thread."""
        with suppress(IndexError):
            while True:
                yield self._settling.popleft()

    def _settle(self, settlements: Sequence[Settlement], connection: Connection) -> frozenset[str]:
        held = _held_still(connection, settlements)
        counting = [entry for entry in settlements if entry.delivery.key in held]
        for ending, rows in _endings(counting).items():
            changing(ending, connection.dialect).change(connection, rows)
        self._insert(
            connection, attempts, [attempt_row(entry, held=entry.delivery.key in held) for entry in settlements]
        )
        traces = {entry.delivery.event: entry.delivery.trace for entry in counting}
        self._insert_deliveries(connection, [follow for entry in counting for follow in entry.follow_ups], traces)
        lessons: dict[str, list[Feedback]] = {}
        for entry in settlements:
            if entry.feedback is not None:
                lessons.setdefault(entry.delivery.channel, []).append(entry.feedback)
        for channel, told in sorted(lessons.items()):
            DestinationStates(connection, channel).learn(told)
        return held

    async def release(self, delivery: Delivery, *, due_at: datetime) -> None:
        """Give a claimed delivery back, its attempt uncounted."""
        values = {"due_at": due_at, "in_doubt": delivery.in_doubt}
        release = update(deliveries).where(*_held(delivery))
        release = release.values(lease=None, attempt=deliveries.c.attempt - 1, **values)
        await self._database.write(lambda connection: connection.execute(release))

    async def thread(self, delivery: Delivery) -> Thread | None:
        """What was said before in a claimed delivery's conversation; None where it stands alone."""
        if not delivery.thread:
            return None
        if delivery.first:
            return Thread(key=delivery.thread, resolves=delivery.resolves)
        theirs = deliveries.c.thread == delivery.thread
        before = (theirs, deliveries.c.occurred_at <= delivery.occurred_at, deliveries.c.key != delivery.key)
        ended = select(func.max(deliveries.c.occurred_at)).where(
            *before, deliveries.c.resolves.is_(True), deliveries.c.state == State.SENT
        )
        async with self._database.reading() as connection:
            well = await connection.scalar(
                select(launch_plan_status.c.succeeded_at).where(launch_plan_status.c.name == delivery.launch_plan)
            )
            since = await connection.scalar(ended)
            over = await _over(connection, delivery, well)
            earlier = await _said(
                connection, *before, *([deliveries.c.occurred_at > since] if since is not None else [])
            )
        return Thread(key=delivery.thread, earlier=earlier, resolves=delivery.resolves, over=over)

    async def event(self, key: str) -> Event | None:
        """The event of that key, as it was recorded."""
        async with self._database.reading() as connection:
            facts = await connection.scalar(select(events.c.facts).where(events.c.key == key))
        return None if facts is None else Event.model_validate(facts)

    async def newest(self) -> tuple[str, datetime] | None:
        """The key of the event that was recorded last, and when; None where there is none."""
        query = select(events.c.key, events.c.recorded_at).order_by(events.c.recorded_at.desc()).limit(1)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else (row.key, row.recorded_at)

    async def told(self, event: str) -> frozenset[tuple[str, str]]:
        """The channels and addresses that the event has deliveries for."""
        query = select(deliveries.c.channel, deliveries.c.addresses).where(deliveries.c.event == event)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return frozenset((row.channel, address) for row in rows for address in row.addresses)

    # -- people

    async def find(self, wanted: DeliveryFilter, *, limit: int) -> list[StoredDelivery]:
        """The newest deliveries that fit, newest first."""
        query = select(deliveries).where(*conditions(wanted)).order_by(deliveries.c.created_at.desc(), deliveries.c.key)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query.limit(limit))).all()
            bodies = await _bodies(connection, {row.content for row in rows})
        return [filed(row, bodies) for row in rows]

    async def delivery(self, key: str) -> StoredDelivery | None:
        """The delivery of that key."""
        async with self._database.reading() as connection:
            row = (await connection.execute(select(deliveries).where(deliveries.c.key == key))).first()
            return filed(row, await _bodies(connection, {row.content})) if row is not None else None

    async def history(self, delivery: str) -> list[Attempt]:
        """The delivery's attempts, in order. An attempt whose worker died has left none."""
        query = select(attempts).where(attempts.c.delivery == delivery).order_by(attempts.c.number, attempts.c.id)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [an_attempt(row) for row in rows]

    async def known(self, execution: ExecutionId) -> list[StoredEvent]:
        """The terminal events of an execution, in the order in which they were recorded.

        Flyte has one for each execution (its database refuses a second); other engines may send more.
        """
        theirs = of_execution(str(execution))
        query = select(events).where(*theirs).order_by(events.c.recorded_at, events.c.occurred_at, events.c.key)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [known(row) for row in rows]

    async def find_rejected(
        self,
        *,
        limit: int,
        since: datetime | None = None,
        id_starts: str = "",
        execution: ExecutionId | None = None,
    ) -> list[Rejected]:
        """The newest rejected messages, newest first.

        `execution`: only those that were understood to be of this execution, or whose kept bytes name it. That
        looks into every rejected message: it is for people, not for a hot path.
        """
        query = select(rejected).order_by(rejected.c.received_at.desc(), rejected.c.id).limit(limit)
        if since is not None:
            query = query.where(rejected.c.received_at >= since)
        if id_starts:
            query = query.where(rejected.c.id.startswith(id_starts, autoescape=True))
        if execution is not None:
            query = query.where(self._concerns(execution))
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [a_rejected(row) for row in rows]

    async def redrive(self, wanted: DeliveryFilter, *, now: datetime) -> int:
        """Put dead deliveries back: due at once, patience and attempts counted anew. How many there were.

        Only what fits the filter, and only what is dead; a delivery that may have arrived stays doubtful.
        """
        again = update(deliveries).where(*conditions(replace(wanted, states=frozenset({State.DEAD}))))
        values = {"state": State.WAITING, "due_at": now, "retry_window_start": now, "attempt": 0, "settled_at": None}
        async with self._database.writing() as connection:
            return (await connection.execute(again.values(values))).rowcount

    async def replayed(self, identity: str, *, now: datetime) -> None:
        """Note that a rejected message was understood after all."""
        async with self._database.writing() as connection:
            await connection.execute(update(rejected).where(rejected.c.id == identity).values(replayed_at=now))

    async def purge(self, before: datetime, *, limit: int) -> int:
        """Forget up to `limit` events that were recorded before then and whose deliveries are all settled.

        With an event go its deliveries, their attempts and contents that nothing else sends. Small limits keep
        the transactions short, so that deliveries go on meanwhile. Rejected messages of that age go too.
        How many went in all. What ended before then is no news any more, even if an event of it was lost.
        """
        waiting = select(deliveries.c.event).where(deliveries.c.state == State.WAITING)
        old = select(events.c.key).where(events.c.recorded_at < before, events.c.key.not_in(waiting)).limit(limit)
        async with self._database.writing() as connection:
            keys = list(await connection.scalars(old))
            theirs = select(deliveries.c.key).where(deliveries.c.event.in_(keys))
            sent = set(await connection.scalars(select(deliveries.c.content).where(deliveries.c.event.in_(keys))))
            await connection.execute(delete(attempts).where(attempts.c.delivery.in_(theirs)))
            await connection.execute(delete(deliveries).where(deliveries.c.event.in_(keys)))
            await connection.execute(delete(events).where(events.c.key.in_(keys)))
            still = select(deliveries.c.content).where(deliveries.c.content.in_(sent))
            await connection.execute(
                delete(contents).where(contents.c.content_hash.in_(sent), contents.c.content_hash.not_in(still))
            )
            spoken_of = select(deliveries.c.key).where(deliveries.c.launch_plan == launch_plan_status.c.name).exists()
            old_news = (
                or_(at.is_(None), at < before)
                for at in (launch_plan_status.c.failed_at, launch_plan_status.c.succeeded_at)
            )
            await connection.execute(delete(launch_plan_status).where(*old_news, ~spoken_of))
            forgotten = launch_plan_versions.c.launch_plan.not_in(select(launch_plan_status.c.name))
            await connection.execute(delete(launch_plan_versions).where(forgotten))
            idle = (
                destinations.c.theoretical_arrival_at < before,
                func.coalesce(destinations.c.blocked_until, before) <= before,
            )
            await connection.execute(delete(destinations).where(*idle))
            noise = select(rejected.c.id).where(rejected.c.received_at < before).limit(limit)
            gone = await connection.execute(delete(rejected).where(rejected.c.id.in_(noise)))
            await _advance_checkpoint(connection, _COMPLETE_SINCE, before)
        return len(keys) + gone.rowcount

    async def counts(self) -> Mapping[tuple[str, State], int]:
        """How many deliveries stand in each state, by channel."""
        query = select(deliveries.c.channel, deliveries.c.state, func.count().label("number")).group_by(
            deliveries.c.channel, deliveries.c.state
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return {(row.channel, State(row.state)): row.number for row in rows}

    async def backlog(self, *, now: datetime) -> Mapping[str, Backlog]:
        """What each channel has still to do, and has given up. Cheap: it reads indexes of what isn't settled."""
        channel, number = deliveries.c.channel, func.count()
        waiting = deliveries.c.state == State.WAITING
        queries = (
            select(channel, func.min(deliveries.c.created_at), number).where(waiting).group_by(channel),
            select(channel, number).where(deliveries.c.state == State.DEAD).group_by(channel),
            select(destinations.c.channel, number)
            .where(destinations.c.failures >= ENOUGH)
            .group_by(destinations.c.channel),
        )
        due: dict[str, int] = {}
        async with self._database.reading() as connection:
            queued, dead, broken = [{row[0]: row[1:] for row in await connection.execute(one)} for one in queries]
            for name in queued:
                could_go = select(channel).where(channel == name, waiting, deliveries.c.due_at <= now)
                some = could_go.limit(DUE_COUNTED).subquery()
                due[name] = await connection.scalar(select(number).select_from(some)) or 0
        return {
            name: Backlog(
                oldest=queued[name][0] if name in queued else None,
                waiting=queued[name][1] if name in queued else 0,
                due=due.get(name, 0),
                dead=dead[name][0] if name in dead else 0,
                broken=broken[name][0] if name in broken else 0,
            )
            for name in queued.keys() | dead.keys() | broken.keys()
        }

    async def take_turn(self, name: str, at: datetime) -> bool:
        """Whether we are the first of all replicas who come for the turn of that moment."""
        there = self._dialect.insert(checkpoints).on_conflict_do_nothing().returning(checkpoints.c.name)
        later = update(checkpoints).where(checkpoints.c.name == name, checkpoints.c.at < at).values(at=at)
        async with self._database.writing() as connection:
            if await connection.scalar(there, {"name": name, "at": at}) is not None:
                return True
            return (await connection.execute(later)).rowcount == 1

    async def overdue(self, channel: str, *, before: datetime) -> bool:
        """Whether something of a channel is due since then, in nobody's hands, and nothing of its conversation before it."""
        async with self._database.reading() as connection:
            found = await connection.execute(claim.DUE, {"channel": channel, "now": before, "size": 1})
            return found.first() is not None

    async def ping(self, *, now: datetime) -> None:
        """Return once a row has been written: a full disk answers everything less. Raises LedgerUnavailable."""

        def write(connection: Connection) -> None:
            self._insert(connection, checkpoints, [{"name": _PINGED, "at": now}])
            connection.execute(update(checkpoints).where(checkpoints.c.name == _PINGED).values(at=now))

        await self._database.write(write)

    # -- rows

    def _concerns(self, execution: ExecutionId) -> ColumnElement[bool]:
        """Whether a rejected message is about an execution: its event's key says so, or its bytes do."""
        search = func.instr if self._database.sqlite else func.pg_catalog.position
        named = (search(rejected.c.body, orjson.dumps(part)) > 0 for part in execution.model_dump().values())
        return or_(
            rejected.c.event.startswith(f"{execution}/", autoescape=True), and_(rejected.c.event.is_(None), *named)
        )

    def _insert_deliveries(
        self,
        connection: Connection,
        owed: Sequence[Delivery],
        traces: Mapping[str, str],
        taken: Mapping[str, Changes] = NOTHING,
    ) -> dict[str, Delivery]:
        """Write what is owed, with its content; `traces`: by the event's key; `taken`: what is claimed at once.

        Returns what is claimed, by key: with its content as claims read it, so that each attempt sends the same.
        """
        bodies = {}
        rows = []
        claimed = {}
        for delivery in owed:
            body, trace = orjson.dumps(delivery.content), traces.get(delivery.event, "")
            digest = in_time(hashlib.sha256(body).hexdigest(), delivery.occurred_at)
            bodies[digest] = EncodedJson(body)
            row = delivery
            if (changes := taken.get(delivery.key)) is not None:
                content = delivery.content if _plain(delivery.content) else orjson.loads(body)
                row = claimed[delivery.key] = delivery._replace(content=content, trace=trace, **changes)
            rows.append(delivery_row(row, digest, trace))
        self._insert(connection, contents, [{"content_hash": digest, "body": body} for digest, body in bodies.items()])
        self._insert(connection, deliveries, rows)
        if rows and self._database.sqlite:
            keys = orjson.dumps([row["key"] for row in rows]).decode()
            run(connection, TOLD, (keys, keys))
        return claimed

    def _insert(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Insert the rows whose keys are not there yet."""
        into(table, connection.dialect).insert(connection, rows)


async def _advance_checkpoint(connection: AsyncConnection, name: str, at: datetime) -> None:
    """Move a mark that is there forward."""
    await connection.execute(update(checkpoints).where(checkpoints.c.name == name, checkpoints.c.at < at).values(at=at))


def _plain(content: Any) -> bool:
    """Whether it is texts alone, as a mail's content is, and so what JSON makes of it is itself."""
    return type(content) is str or (type(content) is dict and all(map(_plain, content.values())))


def _in_portions(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """A few hundred at a time: databases bound how many values a statement may have."""
    for begin in range(0, len(keys), 500):
        yield keys[begin : begin + 500]


async def _over(connection: AsyncConnection, delivery: Delivery, succeeded_at: datetime | None) -> bool:
    """Whether something newer has made this message of a conversation pointless."""
    later = select(deliveries.c.key).where(
        deliveries.c.thread == delivery.thread,
        deliveries.c.occurred_at >= delivery.occurred_at,
        deliveries.c.key != delivery.key,
    )
    if delivery.resolves:
        failed_since = later.where(
            deliveries.c.occurred_at > delivery.occurred_at,
            deliveries.c.resolves.is_(False),
            deliveries.c.state == State.SENT,
        )
        return await connection.scalar(failed_since.limit(1)) is not None
    if succeeded_at is None or succeeded_at <= delivery.occurred_at:
        return False
    news_waits = and_(deliveries.c.resolves.is_(True), deliveries.c.state == State.WAITING)
    fails_again = and_(deliveries.c.occurred_at > succeeded_at, deliveries.c.state != State.DEAD)
    return await connection.scalar(later.where(or_(news_waits, fails_again)).limit(1)) is None


async def _said(connection: AsyncConnection, *conditions: ColumnElement[bool]) -> tuple[EarlierMessage, ...]:
    """The first and the last of these that arrived, or may have; what told of a success is none of them."""
    arrived = or_(deliveries.c.state == State.SENT, and_(deliveries.c.state == State.DEAD, deliveries.c.in_doubt))
    query = select(deliveries).where(*conditions, deliveries.c.resolves.is_(False), arrived)
    first = (await connection.execute(query.order_by(deliveries.c.occurred_at, deliveries.c.key).limit(1))).first()
    if first is None:
        return ()
    backwards = query.order_by(deliveries.c.occurred_at.desc(), deliveries.c.key.desc())
    last = (await connection.execute(backwards.limit(1))).one()
    bodies = await _bodies(connection, {first.content, last.content})
    rows = [first] if first.key == last.key else [first, last]
    return tuple(EarlierMessage(reference=row.reference or {}, content=bodies[row.content]) for row in rows)


async def _bodies(connection: AsyncConnection, digests: Iterable[str]) -> dict[str, Any]:
    rows = await connection.execute(select(contents).where(contents.c.content_hash.in_(set(digests))))
    return {row.content_hash: row.body for row in rows}


def _held(delivery: Delivery) -> tuple[Any, ...]:
    return (
        deliveries.c.key == delivery.key,
        deliveries.c.lease == delivery.lease,
        deliveries.c.attempt == delivery.attempt,
    )


def _held_still(connection: Connection, settlements: Sequence[Settlement]) -> frozenset[str]:
    """The keys of those whose lease is still their own; nobody else may take them until the transaction ends."""
    claimed = {entry.delivery.key: (entry.delivery.lease, entry.delivery.attempt) for entry in settlements}
    rows = asking(_LEASES, connection.dialect).rows(connection, held=list(claimed))
    return frozenset(row.key for row in rows if (row.lease, row.attempt) == claimed[row.key])


_LEASES = (
    select(deliveries.c.key, deliveries.c.lease, deliveries.c.attempt)
    .where(among(deliveries.c.key, "held"))
    .with_for_update()
)
_ENDED = update(deliveries).where(deliveries.c.key == bindparam("settled"))
_SENT = _ENDED.values(
    state=State.SENT,
    lease=None,
    reason="",
    in_doubt=False,
    settled_at=bindparam("at"),
    reference=bindparam("receipt"),
)
_AGAIN = _ENDED.values(lease=None, reason=bindparam("why"), in_doubt=bindparam("perhaps"), due_at=bindparam("at"))
_DEAD = _ENDED.values(
    state=State.DEAD,
    lease=None,
    reason=bindparam("why"),
    in_doubt=bindparam("perhaps"),
    settled_at=bindparam("at"),
)


def _endings(settlements: Sequence[Settlement]) -> dict[Update, list[dict[str, Any]]]:
    """What is written of each delivery, by the statement that writes it."""
    found: dict[Update, list[dict[str, Any]]] = {}
    for entry in settlements:
        row: dict[str, Any] = {"settled": entry.delivery.key}
        match entry.outcome:
            case Sent(receipt):
                ending = _SENT
                row |= {"at": entry.ended_at, "receipt": dict(receipt.reference)}
            case Retry(at=at, reason=reason, in_doubt=in_doubt):
                ending = _AGAIN
                row |= {"at": at, "why": reason, "perhaps": in_doubt}
            case Dead(reason=reason, in_doubt=in_doubt):
                ending = _DEAD
                row |= {"at": entry.ended_at, "why": reason, "perhaps": in_doubt}
        found.setdefault(ending, []).append(row)
    return found
