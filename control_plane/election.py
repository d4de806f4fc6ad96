"""Leader election on a store: one key under a lease, and a fence that every write carries.

A lease signals liveness and is no lock: a replica that was stopped, or cut off, may
believe that it leads for a while after another one does. So each write of a leader is a
transaction that also compares the election key's create revision and value; one that
comes late fails at the store, whatever the clocks say. The lease and the local clock
only make such writes rare: a leader stops by itself before its lease can have run out.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import structlog

from control_plane.errors import CompactedError, LeaseNotFoundError, NotLeaderError, StoreError
from control_plane.store.port import (
    Compare,
    EventKind,
    Get,
    KeyValue,
    Op,
    Put,
    Store,
    Target,
    TxnResult,
    absent,
    holds,
)
from control_plane.store.writer import DEFAULT_PATIENCE_S, FencedWriter
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

_log = structlog.get_logger("control_plane.election")

# Of the lease's time: renewals, and the part at its end in which nothing is begun.
RENEW_SHARE = 1 / 4
MARGIN_SHARE = 1 / 5
RETRY_DELAY_S = 0.5
# The store's own deadline is about a second; nothing here waits much longer for it.
CALL_TIMEOUT_S = 3.0
RESIGN_TIMEOUT_S = 1.0

Duty = Callable[["Leadership"], Awaitable[None]]


class Leadership:
    """One reign: from the moment that this replica leads to the moment that it may not."""

    def __init__(self, *, key: str, value: bytes, revision: int, writer: FencedWriter) -> None:
        # The election key's create revision: rises with each change of the leader.
        self.revision = revision
        self.lost = asyncio.Event()
        self._key = key
        self._value = value
        self._writer = writer

    @property
    def fence(self) -> tuple[Compare, ...]:
        """What each of the leader's transactions compares.

        The create revision tells reigns apart; the value does where a restored store
        counts revisions again that an older reign had.
        """
        return (
            Compare(self._key, Target.CREATE_REVISION, self.revision),
            holds(self._key, self._value),
        )

    async def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Op],
        reads_on_failure: Sequence[Get] = (),
        *,
        patience_s: float = DEFAULT_PATIENCE_S,
    ) -> TxnResult:
        """As :meth:`~control_plane.store.writer.FencedWriter.txn`, only while this leads.

        Raises:
            NotLeaderError: Nothing was written: the reign is over.
            StoreError: As the writer.
        """
        if self.lost.is_set():
            raise NotLeaderError("this replica no longer leads")
        result = await self._writer.txn(
            [*self.fence, *compares],
            success,
            [Get(self._key), *reads_on_failure],
            patience_s=patience_s,
        )
        if result.succeeded:
            return result
        if not self.is_held_by(result.gets[0]):
            self.lost.set()
            raise NotLeaderError("another replica leads, or nobody does")
        return TxnResult(False, result.revision, result.gets[1:])

    def is_held_by(self, found: KeyValue | None) -> bool:
        """Whether the election key is still the one of this reign."""
        return (
            found is not None
            and found.create_revision == self.revision
            and found.value == self._value
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Seat:
    """A lease of ours, and the time until which we know that it holds."""

    lease_id: int
    ttl_s: float
    holds_until_s: float


class Election:
    """One replica's part in an election; :meth:`run` campaigns, :meth:`lead` does the work.

    Args:
        store: Where the election is held; each store has elections of its own.
        writer: A writer on the same store.
        key: The election's key; replicas that share it elect one among them.
        identity: This replica's name, for people who read the key.
        clock: Only its monotonic side is used.
        ttl_s: How long the leader's lease lasts, and so how long nobody leads after a
            leader died without a word.
    """

    def __init__(
        self,
        *,
        store: Store,
        writer: FencedWriter,
        key: str,
        identity: str,
        clock: Clock,
        ttl_s: float,
    ) -> None:
        self.key = key
        self._store = store
        self._writer = writer
        self._clock = clock
        self._ttl_s = ttl_s
        # The nonce tells this life of the replica from its others.
        self._value = f"{identity} {secrets.token_hex(8)}".encode()
        self._seat: _Seat | None = None
        self._reign: Leadership | None = None
        self._news = asyncio.Event()
        self._resigned = False

    @property
    def leadership(self) -> Leadership | None:
        """The reign that goes on, or None where this replica does not lead, or may not."""
        seat, reign = self._seat, self._reign
        if seat is None or reign is None or reign.lost.is_set():
            return None
        # A process that was stopped for a while finds here that its time is over.
        return reign if self._clock.monotonic() < seat.holds_until_s else None

    async def run(self) -> None:
        """Campaigns until :meth:`resign`; cancelling it resigns too."""
        try:
            while not self._resigned:
                try:
                    await self._campaign()
                except (StoreError, TimeoutError) as error:
                    _log.info("election waits for the store", key=self.key, error=str(error))
                    await self._clock.sleep(RETRY_DELAY_S)
        finally:
            await self.resign()

    async def resign(self) -> None:
        """Gives the lead up at once, so that another replica need not wait for the lease."""
        self._resigned = True
        self._step_down("resigns")
        seat, self._seat = self._seat, None
        if seat is None:
            return
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(RESIGN_TIMEOUT_S):
                await self._store.revoke(seat.lease_id)

    async def lead(self, duty: Duty, *, name: str) -> None:
        """Runs ``duty`` during each reign of this replica, for ever.

        It is cancelled when the reign ends; one that returns is not called again in the
        same reign. Its NotLeaderError ends the reign for it; of the store's errors it is
        begun anew.
        """
        while True:
            reign = await self.won()
            async with TaskScope(name) as scope:
                work = scope.spawn(self._dutiful(duty, reign, name), name=name, fatal=False)
                lost = scope.spawn(reign.lost.wait(), name="lost", fatal=False)
                await asyncio.wait((work, lost), return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()
                    await reign.lost.wait()

    async def won(self) -> Leadership:
        """Waits until this replica leads."""
        while True:
            news, reign = self._news, self.leadership
            if reign is not None:
                return reign
            await news.wait()

    async def _dutiful(self, duty: Duty, reign: Leadership, name: str) -> None:
        while not reign.lost.is_set():
            try:
                await duty(reign)
            except NotLeaderError:
                return
            except StoreError as error:
                _log.info("leader's duty waits for the store", duty=name, error=str(error))
                await self._clock.sleep(RETRY_DELAY_S)
            else:
                return

    # Campaigning

    async def _campaign(self) -> None:
        found, seen_revision = await self._look()
        if found is None:
            await self._stand()
        elif found.value == self._value and found.lease_id:
            # Ours from before an outage: nobody else can have led since.
            seat = await self._renewed(found.lease_id)
            if seat is not None:
                await self._reign_on(seat, found.create_revision)
        else:
            await self._until_gone(seen_revision)

    async def _look(self) -> tuple[KeyValue | None, int]:
        """The election key, and the store's revision at which it was seen."""
        page = await self._store.range(self.key)
        return next((kv for kv in page.items if kv.key == self.key), None), page.revision

    async def _stand(self) -> None:
        """Puts the key in place, if nobody was faster."""
        sent_s = self._clock.monotonic()
        lease = await self._store.grant(self._ttl_s)
        seat = self._seat = self._held(lease.lease_id, lease.granted_s, sent_s)
        result = await self._writer.txn(
            [absent(self.key)], [Put(self.key, self._value, lease.lease_id)]
        )
        if not result.succeeded:
            self._seat = None
            await self._store.revoke(lease.lease_id)
            return
        # The put's own revision creates the key; where its answer was lost, the writer
        # found the same revision in its slot.
        await self._reign_on(seat, result.revision)

    async def _until_gone(self, seen_revision: int) -> None:
        """Waits without a question until the key's holder is gone."""
        watch = self._store.watch(self.key, from_revision=seen_revision + 1)
        async with contextlib.aclosing(watch) as batches:
            async for batch in batches:
                for event in batch.events:
                    if event.kv.key == self.key and event.kind is EventKind.DELETE:
                        return

    # Reigning

    async def _reign_on(self, seat: _Seat, revision: int) -> None:
        """Leads until the lease is lost, or may be, or somebody took the key away."""
        if self._resigned:
            return
        reign = Leadership(key=self.key, value=self._value, revision=revision, writer=self._writer)
        self._seat, self._reign = seat, reign
        _log.info("this replica leads", key=self.key, revision=revision)
        self._tell()
        ends = (self._keep_seat(), self._until_overthrown(reign), reign.lost.wait())
        try:
            async with TaskScope("reign") as scope:
                tasks = [scope.spawn(end, name="reign", fatal=False) for end in ends]
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._step_down("its reign ended")

    async def _keep_seat(self) -> None:
        """Renews the lease; returns when it is lost, or may be."""
        while (seat := self._seat) is not None:
            remaining_s = seat.holds_until_s - self._clock.monotonic()
            if remaining_s <= 0:
                return
            await self._clock.sleep(min(seat.ttl_s * RENEW_SHARE, remaining_s))
            if self._clock.monotonic() >= seat.holds_until_s:
                return
            try:
                renewed = await self._renewed(seat.lease_id)
            except (StoreError, TimeoutError):
                await self._clock.sleep(min(RETRY_DELAY_S, seat.ttl_s * RENEW_SHARE))
                continue
            if renewed is None:
                self._seat = None
                return
            if self._clock.monotonic() >= seat.holds_until_s:
                # It holds after all, but somebody may have been told already that it does
                # not: begin a new reign.
                return
            self._seat = renewed

    async def _until_overthrown(self, reign: Leadership) -> None:
        """Returns when the key was removed or replaced by somebody else."""
        while True:
            found, seen_revision = await self._look()
            if not reign.is_held_by(found):
                return
            with contextlib.suppress(CompactedError):
                watch = self._store.watch(self.key, from_revision=seen_revision + 1)
                async with contextlib.aclosing(watch) as batches:
                    async for batch in batches:
                        if any(event.kv.key == self.key for event in batch.events):
                            return

    async def _renewed(self, lease_id: int) -> _Seat | None:
        sent_s = self._clock.monotonic()
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                ttl_s = await self._store.keep_alive(lease_id)
        except LeaseNotFoundError:
            return None
        return self._held(lease_id, ttl_s, sent_s)

    @staticmethod
    def _held(lease_id: int, ttl_s: float, sent_s: float) -> _Seat:
        # From when we asked, not from when we heard: the store counts from in between.
        return _Seat(lease_id, ttl_s, sent_s + ttl_s * (1 - MARGIN_SHARE))

    def _step_down(self, why: str) -> None:
        reign, self._reign = self._reign, None
        if reign is not None:
            reign.lost.set()
            _log.info("this replica leads no longer", key=self.key, why=why)
            self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


@contextlib.asynccontextmanager
async def campaigning(election: Election, scope: TaskScope) -> AsyncIterator[Election]:
    """Campaigns while the block runs, and resigns at its end."""
    scope.spawn(election.run(), name=f"election {election.key}")
    try:
        yield election
    finally:
        await election.resign()
