"""Batch records in this process's memory: not durable, and gone with it."""

from __future__ import annotations

from collections.abc import Collection

from reelmesh.v1 import batch_pb2
from reelmesh.v1 import batch_record_service_pb2 as pb

from gateway.batches.records import ended, seconds
from gateway.batches.store import check_digest, copied
from gateway.errors import BatchNotFinished, ResourceExhausted
from gateway.jobs.store import Owner

MAX_RECORDS = 1_000


class MemoryBatchStore:
    """A :class:`gateway.batches.store.BatchStore` in this process."""

    def __init__(self, *, max_records: int = MAX_RECORDS) -> None:
        self._max_records = max_records
        self._records: dict[str, pb.BatchRecord] = {}

    @property
    def durable(self) -> bool:
        """False: the memory of one process."""
        return False

    async def create(self, record: pb.BatchRecord) -> tuple[pb.BatchRecord, bool]:
        """See :meth:`BatchStore.create`."""
        standing = self._records.get(record.batch.id)
        if standing is not None:
            return copied(standing), _owner(standing) == _owner(record) and not ended(standing)
        if record.idempotency_key:
            earlier = await self.find_key(record.tenant, record.idempotency_key)
            if earlier is not None:
                check_digest(earlier, record.request_digest)
                return earlier, False
        if len(self._records) >= self._max_records:
            raise ResourceExhausted("too many batches are kept; delete some", retry_after_s=60.0)
        self._records[record.batch.id] = copied(record)
        return copied(record), True

    async def get(self, tenant: str, batch_id: str) -> pb.BatchRecord | None:
        """See :meth:`BatchStore.get`."""
        record = self._own(tenant, batch_id)
        return None if record is None else copied(record)

    async def find_key(self, tenant: str, key: str) -> pb.BatchRecord | None:
        """See :meth:`BatchStore.find_key`."""
        for record in self._records.values():
            same = (record.tenant, record.idempotency_key) == (tenant, key)
            if same and not record.deleted:
                return copied(record)
        return None

    async def list_page(
        self, tenant: str, *, limit: int, after: str
    ) -> tuple[list[pb.BatchRecord], bool]:
        """See :meth:`BatchStore.list_page`."""
        found = sorted(
            batch_id
            for batch_id, record in self._records.items()
            if record.tenant == tenant and not record.deleted and (not after or batch_id < after)
        )[::-1]
        return [copied(self._records[batch_id]) for batch_id in found[:limit]], len(found) > limit

    async def update(self, record: pb.BatchRecord) -> tuple[pb.BatchRecord | None, bool]:
        """See :meth:`BatchStore.update`."""
        standing = self._records.get(record.batch.id)
        if standing is None:
            return None, False
        if ended(standing) or _owner(standing) != _owner(record):
            same_end = standing.batch.completed_at == record.batch.completed_at
            won = _owner(standing) == _owner(record) and ended(record) and same_end
            return copied(standing), won
        written = copied(record)
        written.cancel_requested = standing.cancel_requested or record.cancel_requested
        if written.cancel_requested and not ended(written):
            written.batch.status = batch_pb2.BATCH_STATUS_CANCELLING
        self._records[record.batch.id] = written
        return copied(written), True

    async def claim(
        self, batch_id: str, *, epoch: int, owner: Owner
    ) -> tuple[pb.BatchRecord | None, bool]:
        """See :meth:`BatchStore.claim`."""
        standing = self._records.get(batch_id)
        if standing is None:
            return None, False
        wanted = (owner.gateway_id, owner.incarnation, epoch + 1)
        if ended(standing) or standing.epoch != epoch:
            return copied(standing), _owner(standing) == wanted and not ended(standing)
        standing.owner_gateway, standing.owner_incarnation, standing.epoch = wanted
        return copied(standing), True

    async def cancel(self, tenant: str, batch_id: str) -> pb.BatchRecord | None:
        """See :meth:`BatchStore.cancel`."""
        standing = self._own(tenant, batch_id)
        if standing is None:
            return None
        if not ended(standing):
            standing.cancel_requested = True
            standing.batch.status = batch_pb2.BATCH_STATUS_CANCELLING
        return copied(standing)

    async def delete(self, tenant: str, batch_id: str) -> pb.BatchRecord | None:
        """See :meth:`BatchStore.delete`."""
        standing = self._own(tenant, batch_id)
        if standing is None:
            return None
        if not ended(standing):
            raise BatchNotFinished("the batch has not ended; cancel it first")
        standing.deleted = True
        return copied(standing)

    async def expired(self, now_s: float, *, limit: int) -> list[pb.BatchRecord]:
        """See :meth:`BatchStore.expired`."""
        found = [
            copied(record)
            for record in self._records.values()
            if ended(record) and (record.deleted or seconds(record.batch.expires_at) <= now_s)
        ]
        return found[:limit]

    async def purge(self, batch_id: str) -> None:
        """See :meth:`BatchStore.purge`."""
        standing = self._records.get(batch_id)
        if standing is not None and not ended(standing):
            raise BatchNotFinished("the batch has not ended; cancel it first")
        self._records.pop(batch_id, None)

    async def known(self, batch_ids: Collection[str]) -> set[str]:
        """See :meth:`BatchStore.known`."""
        return {batch_id for batch_id in batch_ids if batch_id in self._records}

    def _own(self, tenant: str, batch_id: str) -> pb.BatchRecord | None:
        record = self._records.get(batch_id)
        shown = record is not None and record.tenant == tenant and not record.deleted
        return record if shown else None


def _owner(record: pb.BatchRecord) -> tuple[str, str, int]:
    return record.owner_gateway, record.owner_incarnation, record.epoch
