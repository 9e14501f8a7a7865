"""The ledger's public face: each verb is one transaction, and the file that is named after it does the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from channels.contract import Content, Thread
from dispatcher.holding.silences import LONGEST
from dispatcher.ledger import actions, claim, record, retention
from dispatcher.ledger.canned import rehearse
from dispatcher.ledger.causes import Causes
from dispatcher.ledger.checkpoints import Checkpoints
from dispatcher.ledger.closing import OpenDigests
from dispatcher.ledger.engine import TIMEOUT, Database, RollBack
from dispatcher.ledger.held import HeldDeliveries
from dispatcher.ledger.history import History
from dispatcher.ledger.names import Names
from dispatcher.ledger.owners import Owners
from dispatcher.ledger.queries import Queries
from dispatcher.ledger.records import (
    Action,
    Claim,
    ClaimedThread,
    Filter,
    RecordedEvent,
    RecordResult,
    Rejected,
    Settlement,
)
from dispatcher.ledger.refusals import Refusals
from dispatcher.ledger.rejected import RejectedMessages
from dispatcher.ledger.releases import Releases
from dispatcher.ledger.replicas import Replicas
from dispatcher.ledger.settle import Settlements
from dispatcher.ledger.silences import Silences
from dispatcher.ledger.summaries import summary
from dispatcher.ledger.threads import claimed_thread, first_message
from dispatcher.ledger.versions import Schema
from dispatcher.model.delivery import Delivery, Kind
from dispatcher.model.rate_limit import AdmissionControl
from dispatcher.model.summary import Summary


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
        longest_hold: timedelta = LONGEST,
    ) -> None:
        """Check the URL, but open no connection yet. Raises SettingsError if the URL can't be used.

        `timeout`: maximum time for one statement on PostgreSQL. `password_file`: the file that contains PostgreSQL's
        password. `settle_wait`: on SQLite, settlements wait up to this time to share the transaction of other writes.
        `longest_hold`: no delivery is held longer.
        """
        self._longest_hold = longest_hold
        self._database = Database(url, timeout, password_file)
        self._settlements = Settlements(self._database, settle_wait, longest_hold)
        self.history = History(self._database)
        self.queries = Queries(self._database)
        self.names = Names(self._database)
        self.causes = Causes(self._database)
        self.rejected = RejectedMessages(self._database)
        self.checkpoints = Checkpoints(self._database)
        self.refusals = Refusals(self._database)
        self.replicas = Replicas(self._database)
        self.owners = Owners(self._database)
        self.silences = Silences(self._database, longest_hold)
        self.digests = OpenDigests(self._database, longest_hold)
        self.releases = Releases(self._database, longest_hold)
        self.held = HeldDeliveries(self._database)

    async def open(self) -> Self:
        """Create or upgrade the tables. Raises LedgerIncompatible for a ledger that this version can't work with."""
        await self.migrate()
        return self

    async def migrate(self) -> Schema:
        """Create or upgrade the tables, like `open`, and return the schema as it was before the migration."""
        return await self._database.migrate()

    async def schema(self) -> Schema:
        """Read the version of the tables. Raises LedgerIncompatible if an unreleased version created them."""
        return await self._database.schema()

    async def require_tables(self) -> Schema:
        """Return the schema. Raises LedgerIncompatible if `migrate` has to run first, or if this version is too old."""
        return (await self.schema()).require_compatible()

    async def clock_offset(self, now: Callable[[], datetime]) -> timedelta:
        """Return how far `now` is ahead of the database's clock, at least; negative if it is behind, 0 on SQLite."""
        return await self._database.clock_offset(now)

    async def aclose(self) -> None:
        await self._settlements.aclose()
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
        entries: Sequence[RecordedEvent],
        rejections: Sequence[Rejected],
        *,
        now: datetime,
        silences: int | None = None,
    ) -> RecordResult:
        """Write a batch in one transaction: events with their deliveries, and rejected messages.

        An event that any replica has recorded before stays unchanged, and its deliveries are not written again. A
        success also adds a resolved notice for each open thread that it ends. If the success has another delivery to
        the same addresses, only the resolved notice is written. Resolved notices and change events are written without
        content: nothing is planned or rendered in the transaction.

        What a silence or quiet hours cover is held, each address apart. A success drops the held failures that it
        resolves; a failure that would be held is dropped if a success has resolved it before.

        `silences`: the version of the silences by which `RecordedEvent.silences` was found; None if no event has any.
        Raises SilencesChanged if the silences have another version by now. Nothing was recorded then.
        """
        if not entries and not rejections:
            return RecordResult()
        return await self._database.write(
            partial(
                record.record,
                entries=entries,
                rejections=rejections,
                now=now,
                longest=self._longest_hold,
                silences=silences,
            )
        )

    async def rehearse(self, channels: Sequence[str], *, now: datetime) -> None:
        """Test the ledger: record a canned event, claim and settle its deliveries, and roll everything back.

        The event has all optional facts and a delivery for each of the channels. Raises LedgerFailed if the
        tables, or this version of the dispatcher, are wrong.
        """
        with suppress(RollBack):
            await self._database.write(partial(rehearse, channels=channels, now=now))

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

    async def thread(self, delivery: Delivery) -> ClaimedThread | None:
        """Return a claimed delivery's thread, with its earlier messages; None if the delivery has no thread.

        A digest has no thread, but replies to the message with which its burst began, if that was sent.
        """
        if not delivery.thread:
            if not delivery.reply_to:
                return None
            async with self._database.reading() as connection:
                return await connection.run_sync(first_message, delivery)
        if delivery.opens_thread:
            resolves = delivery.kind is Kind.RESOLVED_NOTICE
            return ClaimedThread(Thread(key=delivery.thread, resolves=resolves), superseded=False)
        async with self._database.reading() as connection:
            return await connection.run_sync(claimed_thread, delivery)

    async def summary(self, delivery: Delivery) -> Summary | None:
        """Return what a digest or a summary tells of; the same for a notice that one of these is dead.

        None for any other delivery. At most `MAX_GROUPS` groups are listed, each with at most `MAX_LISTED` executions;
        the counts are exact.
        """
        async with self._database.reading() as connection:
            return await connection.run_sync(summary, delivery)

    async def store_content(self, delivery: Delivery, content: Content) -> bool:
        """Store the content of a claimed delivery that has none. Returns False if the lease is lost."""
        return await self._database.write(lambda connection: record.store_content(connection, delivery, content))

    async def settle(self, settlement: Settlement) -> bool:
        """Store an attempt's outcome, and insert the deliveries that follow from it, if the lease is still held.

        Returns False if the lease is lost. The delivery then stays unchanged, because another worker may have claimed
        it. The attempt's own row is written in both cases, unless the delivery is dropped. Settlements that arrive
        during a write share the next transaction.
        """
        return await self._settlements.settle(settlement)

    async def release(self, delivery: Delivery, *, due_at: datetime) -> None:
        """Give a claimed delivery back without counting the attempt. The delivery is due again at `due_at`."""
        await self._database.write(lambda connection: claim.release(connection, delivery, due_at=due_at))

    # -- operators

    async def change(self, wanted: Filter, action: Action) -> int:
        """Redrive, retry now, cancel or dismiss the deliveries that match the filter, as `action.what` says.

        - redrive: dead deliveries are due at once, with a new retry budget.
        - retry now: waiting deliveries are due at once, and back off anew. Nothing holds them any more, but they overtake
          neither their thread nor the rate limit nor a circuit breaker.
        - cancel: waiting deliveries are dropped; dismiss: dead ones are. No fallback is notified of them.

        Leaves out deliveries that a worker is sending. Returns the number of changed deliveries. A delivery in doubt
        stays in doubt. The action is recorded if there is such a delivery.
        """
        return await self._database.write(partial(actions.change, wanted=wanted, action=action))

    async def count_purgeable(self, before: datetime) -> int:
        """Return how many events and rejected messages `purge` would delete. Reads all events before this time."""
        async with self._database.reading() as connection:
            return await connection.run_sync(retention.count_purgeable, before)

    async def forget_streaks(self) -> None:
        """Forget the failures that were counted in streaks, because no route has one any more."""
        await self._database.write(retention.forget_streaks)

    async def purge(self, before: datetime, *, limit: int, action: Action | None = None) -> int:
        """Delete up to `limit` events that were recorded before this time and have no waiting delivery.

        Also deletes: their deliveries and attempts; contents that no other delivery uses; up to `limit` rejected
        messages that were received before this time; subjects that have no deliveries, no later success and no later
        failure in a streak, and their versions; outdated states of destinations; unresolved owners without a later
        event; actions from before this time whose deliveries are all deleted. Moves `complete_since` forward to the
        newest event or rejected message before this time. A digest or summary is deleted after its last member, and
        keeps its members until it is as old. Silences go when they have ended and can hold nothing any more. Returns how
        many events, digests, summaries and rejected messages were deleted. A small limit keeps the transaction short, so that workers do not wait for it.

        `action`: recorded if something was deleted; None if no operator asked for it.
        """
        longest = self._longest_hold
        return await self._database.write(
            partial(retention.purge, before=before, limit=limit, action=action, longest=longest)
        )
