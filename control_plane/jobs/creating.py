"""Makes new job records, each in one transaction, within its tenant's limits.

A tenant with a limit pays for it with a read of what it has, and with being served one
request at a time by each replica; whoever has none pays nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final

from reelmesh.v1 import job_service_pb2 as pb

from control_plane.errors import ControlPlaneError, NotReadyError, SupersededError
from control_plane.jobs.assignments import KeyElsewhere, region_in
from control_plane.jobs.ledger import Ledger, Locks
from control_plane.jobs.quota import Limits, Usage, day_of, refusal
from control_plane.jobs.records import (
    decode,
    encode,
    encode_live,
    ended,
    expires_at_ms,
    same_end,
    same_owner,
)
from control_plane.jobs.webhooks import webhook_put
from control_plane.keys import Keys
from control_plane.quotas.totals import Totals
from control_plane.store.port import (
    Compare,
    Get,
    KeyValue,
    Put,
    Store,
    absent,
    none_created_since,
    unchanged,
)
from control_plane.store.writer import FencedWriter
from reelkit.clock import Clock

# Each try lost to somebody else's write of the same job.
MAX_TRIES: Final = 8
# And to another job of the same tenant, made by way of another replica.
MAX_LIMITED_TRIES: Final = 64

Answer = tuple[pb.JobRecord, bool]


class _Creation:
    """One new record on its way into the store."""

    def __init__(self, record: pb.JobRecord, keys: Keys, *, over_assignment: bool) -> None:
        self.record = record
        self.job_key = keys.job(record.video.id)
        self._over_assignment = over_assignment
        job_id, tenant = record.video.id, record.tenant
        self.puts = [
            Put(self.job_key, encode(record)),
            Put(keys.tenant_jobs(tenant) + job_id, b""),
            # One that is answered from a cache begins with its end.
            Put(keys.job_expiry(expires_at_ms(record), job_id), b"")
            if ended(record)
            else Put(keys.live_job(tenant, job_id), encode_live(record)),
        ]
        if ended(record):
            self.puts.extend(webhook_put(keys, record))
        self._absent = absent(self.job_key)
        self.reads = [Get(self.job_key)]
        self._key = ""
        self._key_compare: Compare | None = None
        if record.idempotency_key:
            self._key = keys.job_key(tenant, record.idempotency_key)
            self.puts.append(Put(self._key, job_id.encode()))
            self._key_compare = absent(self._key)
            self.reads.append(Get(self._key))

    @property
    def compares(self) -> list[Compare]:
        """What must hold for the record to be new."""
        return [self._absent, *([self._key_compare] if self._key_compare else [])]

    def standing(self, found: KeyValue) -> Answer:
        """The answer where the job's id has a record."""
        standing = decode(found.value, revision=found.mod_revision)
        if ended(self.record):
            return standing, same_end(standing, self.record)
        return standing, same_owner(standing, self.record) and not ended(standing)

    def key_of(self, index: KeyValue | None) -> str | None:
        """The job that the idempotency key has made; None: try again.

        Raises:
            KeyElsewhere: It was assigned to another region.
        """
        region = None if index is None else region_in(index.value)
        if index is None:
            self._key_compare = absent(self._key)
        elif region is None:
            return index.value.decode()
        elif not self._over_assignment:
            raise KeyElsewhere(region)
        else:
            self._key_compare = unchanged(self._key, index.mod_revision)
        return None


class JobCreator:
    """Creates records."""

    def __init__(
        self,
        *,
        store: Store,
        writer: FencedWriter,
        keys: Keys,
        ledger: Ledger,
        totals: Totals,
        clock: Clock,
    ) -> None:
        self._totals = totals
        self._store = store
        self._writer = writer
        self._keys = keys
        self._ledger = ledger
        self._clock = clock
        self._locks = Locks()

    async def create(
        self, record: pb.JobRecord, *, over_assignment: bool, limits: Limits
    ) -> Answer:
        """See :meth:`control_plane.jobs.book.JobBook.create`."""
        creation = _Creation(record, self._keys, over_assignment=over_assignment)
        if ended(record):
            # It holds nothing of what is limited.
            limits = Limits()
        async with self._turn(record.tenant, limits):
            for _ in range(MAX_TRIES if limits.none else MAX_LIMITED_TRIES):
                within: list[Compare] = []
                if not limits.none:
                    answer, within = await self._room(creation, limits)
                    if answer is not None:
                        return answer
                result = await self._writer.txn(
                    [*creation.compares, *within], creation.puts, creation.reads
                )
                if result.succeeded:
                    return decode(creation.puts[0].value, revision=result.revision), True
                answer = await self._found(creation, result.gets)
                if answer is not None:
                    return answer
                if not limits.none:
                    await self._totals.refresh(record.tenant)
        job_id = record.video.id
        raise SupersededError(f"job {job_id} is written by others all the time; ask again")

    @contextlib.asynccontextmanager
    async def _turn(self, tenant: str, limits: Limits) -> AsyncIterator[None]:
        """A limited tenant's requests one after the other: side by side they would collide."""
        if limits.none:
            yield
            return
        async with self._locks.of(tenant):
            yield

    async def _room(
        self, creation: _Creation, limits: Limits
    ) -> tuple[Answer | None, list[Compare]]:
        """What makes the transaction keep the limits; or the record that stands already.

        Raises:
            QuotaExceededError: There is no room.
            QuotaTooSmallError: There never will be.
        """
        record = creation.record
        usage = await self._ledger.usage(
            record.tenant,
            record.reservation.day or day_of(self._clock.wall()),
            with_gpu=limits.gpu_seconds_per_day is not None,
        )
        refused = self._refusal(record, limits, usage)
        if refused is None:
            prefix = self._keys.tenants_live_jobs(record.tenant)
            fence = self._totals.fence(record.tenant)
            return None, [none_created_since(prefix, usage.revision), *fence]
        # A repeated call finds its own job, however full it is meanwhile.
        found = await self._store.txn([], creation.reads)
        answer = await self._found(creation, found.gets)
        if answer is None:
            raise refused
        return answer, []

    def _refusal(
        self, record: pb.JobRecord, limits: Limits, usage: Usage
    ) -> ControlPlaneError | None:
        part = self._totals.of(record.tenant)
        if part <= 0:
            return NotReadyError("this region has no part of the tenants' limits yet")
        return refusal(limits, usage, record.reservation, now_s=self._clock.wall(), part=part)

    async def _found(self, creation: _Creation, gets: tuple[KeyValue | None, ...]) -> Answer | None:
        """The answer that the store's own reads hold; None: nothing stands in the way."""
        if gets[0] is not None:
            return creation.standing(gets[0])
        if len(gets) == 1:
            return None
        job_id = creation.key_of(gets[1])
        if job_id is None:
            return None
        earlier = await self._store.get(self._keys.job(job_id))
        if earlier is None:
            # It was deleted just now, and the key with it: look again.
            return None
        return decode(earlier.value, revision=earlier.mod_revision), False
