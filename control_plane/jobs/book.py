"""The region's job records in the store; each write is one transaction.

Any replica may run any of these at any time, also twice: every write compares what it
read, or who owns the job, so the first terminal write wins and a repeated call finds its
own earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from reelmesh.v1 import job_service_pb2 as pb

from control_plane.errors import NotFinishedError, NotFoundError, SupersededError
from control_plane.jobs.assignments import KeyElsewhere, assigned_to, region_in
from control_plane.jobs.creating import JobCreator
from control_plane.jobs.ledger import Ledger, Locks
from control_plane.jobs.quota import Limits
from control_plane.jobs.records import (
    decode,
    encode,
    encode_live,
    ended,
    expires_at_ms,
    same_end,
    same_owner,
)
from control_plane.jobs.webhooks import WebhookBook, webhook_put
from control_plane.keys import Keys
from control_plane.passing import PassingKeys
from control_plane.quotas.totals import Totals, Whole
from control_plane.store.port import (
    Compare,
    Delete,
    Get,
    KeyValue,
    Put,
    Store,
    TxnResult,
    holds,
    unchanged,
)
from control_plane.store.writer import FencedWriter
from reelkit.clock import Clock

# Each try lost to somebody else's write of the same job.
MAX_TRIES: Final = 8
UNLIMITED: Final = Limits()


class JobBook:
    """Creates, claims, updates, lists and deletes records.

    Args:
        ledger: What tenants have.
        totals: What the region may have of their limits; the whole by default.
    """

    def __init__(
        self,
        *,
        store: Store,
        writer: FencedWriter,
        keys: Keys,
        clock: Clock,
        ledger: Ledger | None = None,
        totals: Totals | None = None,
    ) -> None:
        self._store = store
        self._passing = PassingKeys(store=store, writer=writer, clock=clock)
        self._writer = writer
        self._keys = keys
        self.ledger = ledger or Ledger(store=store, keys=keys)
        self._creator = JobCreator(
            store=store,
            writer=writer,
            keys=keys,
            ledger=self.ledger,
            totals=totals or Whole(),
            clock=clock,
        )
        self._charges = Locks()
        self.webhooks = WebhookBook(store=store, writer=writer, keys=keys)

    async def create(
        self, record: pb.JobRecord, *, over_assignment: bool = False, limits: Limits = UNLIMITED
    ) -> tuple[pb.JobRecord, bool]:
        """The record that stands, and whether it is this one.

        Args:
            record: The new one.
            over_assignment: Its key may be assigned to another region.
            limits: What its tenant may have, with this one.

        Raises:
            KeyElsewhere: Its key is, and ``over_assignment`` was not given.
            QuotaExceededError: The tenant has as much as it may.
            QuotaTooSmallError: It may never have this.
            RecordTooLargeError: It passes the store's limit.
            StoreError: Whether it was written is not known; call again.
        """
        return await self._creator.create(record, over_assignment=over_assignment, limits=limits)

    async def get(self, tenant: str, job_id: str) -> pb.JobRecord:
        """The tenant's record of that id.

        Raises:
            NotFoundError: There is none of this tenant.
        """
        return _record(await self._own(tenant, job_id))

    async def find_key(self, tenant: str, idempotency_key: str) -> pb.JobRecord:
        """The record that a tenant's key made.

        Raises:
            NotFoundError: There is none.
            KeyElsewhere: It was assigned to another region.
        """
        index = await self._store.get(self._keys.job_key(tenant, idempotency_key))
        if index is None:
            raise NotFoundError("the key was never used, or its job is gone")
        region = region_in(index.value)
        if region is not None:
            raise KeyElsewhere(region)
        return await self.get(tenant, index.value.decode())

    async def assign_key(
        self, tenant: str, idempotency_key: str, *, region: str, over_region: str, keep_s: int
    ) -> pb.JobRecord | str:
        """The region that the key is assigned to, or the job that it has made here.

        Args:
            tenant: Whose key.
            idempotency_key: The key.
            region: Where its video is to be made.
            over_region: The assignment that gives way.
            keep_s: Seconds until it is forgotten, at least.
        """
        key = self._keys.job_key(tenant, idempotency_key)
        found = await self._store.get(key)
        for _ in range(MAX_TRIES):
            if found is not None:
                standing = region_in(found.value)
                if standing is not None and standing != over_region:
                    return standing
                if standing is None:
                    job = await self._store.get(self._keys.job(found.value.decode()))
                    if job is not None:
                        return _record(job)
            result = await self._passing.put(
                key,
                assigned_to(region),
                keep_s=keep_s,
                compares=[unchanged(key, found.mod_revision if found else 0)],
            )
            if result.succeeded:
                return region
            found = result.gets[0]
        raise SupersededError("the key is written by others all the time; ask again")

    async def claim(
        self, job_id: str, *, epoch: int, gateway_id: str, incarnation: str
    ) -> tuple[pb.JobRecord, bool]:
        """The record as it stands, and whether the claimant owns it now.

        Raises:
            NotFoundError: There is no such job.
        """
        wanted = pb.JobRecord(
            owner_gateway=gateway_id, owner_incarnation=incarnation, epoch=epoch + 1
        )
        for _ in range(MAX_TRIES):
            found = await self._any(job_id)
            standing = _record(found)
            if ended(standing) or standing.epoch != epoch:
                return standing, same_owner(standing, wanted) and not ended(standing)
            standing.epoch = wanted.epoch
            standing.owner_gateway = gateway_id
            standing.owner_incarnation = incarnation
            result = await self._writer.txn(
                [unchanged(found.key, found.mod_revision)],
                [
                    Put(found.key, encode(standing)),
                    Put(self._keys.live_job(standing.tenant, job_id), encode_live(standing)),
                ],
            )
            if result.succeeded:
                standing.revision = result.revision
                return standing, True
        raise SupersededError(f"job {job_id} is written by others all the time; ask again")

    async def update(self, record: pb.JobRecord) -> tuple[pb.JobRecord, bool]:
        """The record as it stands, and whether it is what the caller asked for.

        The write that ends a job charges its tenant.

        Raises:
            NotFoundError: It was deleted or has expired.
            RecordTooLargeError: It passes the store's limit.
        """
        job_id = record.video.id
        key, live = self._keys.job(job_id), self._keys.live_job(record.tenant, job_id)
        written = pb.JobRecord()
        written.CopyFrom(record)
        # Nearly always the first word is enough: the job lives, and is the caller's.
        compares = [holds(live, encode_live(record))]
        for _ in range(MAX_TRIES):
            result = await self._put(written, compares)
            if result is None:
                continue
            if result.succeeded:
                written.revision = result.revision
                return written, True
            found = result.gets[0]
            standing = None if found is None else _record(found)
            if found is None or standing is None or standing.tenant != record.tenant:
                raise _no_job(job_id)
            if ended(standing):
                return standing, same_end(standing, record)
            if not same_owner(standing, record):
                return standing, False
            # The live key was written by another release, say: compare the record itself.
            # What was reserved at admission is not the owner's to change.
            written.ClearField("reservation")
            if standing.HasField("reservation"):
                written.reservation.CopyFrom(standing.reservation)
            compares = [unchanged(key, found.mod_revision)]
        raise SupersededError(f"job {job_id} is written by others all the time; ask again")

    async def _put(self, record: pb.JobRecord, compares: Sequence[Compare]) -> TxnResult | None:
        """Writes a record, and what its end costs; None: only the sum of that had changed."""
        job_id = record.video.id
        key = self._keys.job(job_id)
        writes: list[Put | Delete] = [Put(key, encode(record))]
        if ended(record):
            writes.append(Delete(self._keys.live_job(record.tenant, job_id)))
            writes.append(Put(self._keys.job_expiry(expires_at_ms(record), job_id), b""))
            writes.extend(webhook_put(self._keys, record))
        charge = self.ledger.charging(record, record.reservation)
        if charge is None:
            return await self._writer.txn(compares, writes, [Get(key)])
        async with self._charges.of(charge.key):
            result = await self._writer.txn(
                [*compares, charge.compare()], [*writes, charge.write()], [Get(key), charge.read()]
            )
            if result.succeeded:
                charge.written(result.revision)
                return result
            sum_changed = charge.found(result.gets[1])
        return None if sum_changed else result

    async def delete(self, tenant: str, job_id: str) -> pb.JobRecord:
        """Removes an ended job; answers what was removed.

        Raises:
            NotFoundError: There is none of this tenant.
            NotFinishedError: It has not ended.
        """
        for _ in range(MAX_TRIES):
            found = await self._own(tenant, job_id)
            record = _record(found)
            if not ended(record):
                raise NotFinishedError(f"job {job_id} has not ended; cancel it first")
            deletes = [
                Delete(found.key),
                Delete(self._keys.tenant_jobs(tenant) + job_id),
                Delete(self._keys.job_expiry(expires_at_ms(record), job_id)),
            ]
            if record.idempotency_key:
                deletes.append(Delete(self._keys.job_key(tenant, record.idempotency_key)))
            if record.webhook_url:
                deletes.append(Delete(self._keys.webhook(job_id)))
            result = await self._writer.txn([unchanged(found.key, found.mod_revision)], deletes)
            if result.succeeded:
                return record
        raise SupersededError(f"job {job_id} is written by others all the time; ask again")

    async def list_page(
        self, tenant: str, *, limit: int, after: str, oldest_first: bool
    ) -> tuple[list[pb.JobRecord], bool]:
        """Up to ``limit`` records after an id in the order asked for, and whether more follow."""
        prefix = self._keys.tenant_jobs(tenant)
        page = await self._store.range(
            prefix,
            after=prefix + after if after else None,
            limit=limit,
            descending=not oldest_first,
        )
        found = await self._all([item.key.removeprefix(prefix) for item in page.items])
        return [_record(kv) for kv in found if kv is not None], page.more

    async def expired(self, now_ms: int, *, limit: int) -> list[pb.JobRecord]:
        """Ended records whose time is over, the oldest first."""
        page = await self._store.range(self._keys.job_expiries, limit=limit)
        due = []
        for item in page.items:
            at_ms, _, job_id = item.key.removeprefix(self._keys.job_expiries).partition("/")
            if int(at_ms) <= now_ms:
                due.append(job_id)
        return [_record(kv) for kv in await self._all(due) if kv is not None]

    async def known(self, job_ids: Sequence[str]) -> list[str]:
        """Those of the ids that have a record."""
        found = await self._all(job_ids)
        return [job_id for job_id, kv in zip(job_ids, found, strict=True) if kv is not None]

    async def _all(self, job_ids: Sequence[str]) -> Sequence[KeyValue | None]:
        if not job_ids:
            return []
        no_compare: list[Compare] = []
        gets = [Get(self._keys.job(job_id)) for job_id in job_ids]
        return (await self._store.txn(no_compare, gets)).gets

    async def _any(self, job_id: str) -> KeyValue:
        found = await self._store.get(self._keys.job(job_id))
        if found is None:
            raise _no_job(job_id)
        return found

    async def _own(self, tenant: str, job_id: str) -> KeyValue:
        """One of another tenant is none: nobody learns that it exists."""
        found = await self._any(job_id)
        if _record(found).tenant != tenant:
            raise _no_job(job_id)
        return found


def _no_job(job_id: str) -> NotFoundError:
    return NotFoundError(f"there is no job {job_id}")


def _record(kv: KeyValue) -> pb.JobRecord:
    return decode(kv.value, revision=kv.mod_revision)
