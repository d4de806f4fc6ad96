"""Job records: the port to wherever they are kept, and the one that is this memory.

The first terminal write wins: :meth:`JobStore.finish` answers the record that stands,
which is the caller's only if it was first. A record names its tenant; a reader of
another tenant finds nothing.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection
from typing import Final, Protocol

from reelmesh.v1 import job_service_pb2, video_pb2

from gateway.errors import IdempotencyConflict, ResourceExhausted

TERMINAL_STATUSES: Final = frozenset(
    (
        video_pb2.VIDEO_STATUS_COMPLETED,
        video_pb2.VIDEO_STATUS_FAILED,
        video_pb2.VIDEO_STATUS_CANCELLED,
    )
)


class JobStore(Protocol):
    """Where job records are kept. Records are given and taken as copies."""

    @property
    def durable(self) -> bool:
        """Whether a record outlives this gateway."""
        ...

    async def create(
        self, record: job_service_pb2.JobRecord
    ) -> tuple[job_service_pb2.JobRecord, bool]:
        """Writes a new record; answers the record that stands and whether it is this one.

        Raises:
            IdempotencyConflict: The tenant used the key with another request.
            ResourceExhausted: There is no room for another record.
        """
        ...

    async def find_key(self, tenant: str, key: str) -> job_service_pb2.JobRecord | None:
        """The record that a tenant's idempotency key made."""
        ...

    async def get(self, tenant: str, job_id: str) -> job_service_pb2.JobRecord | None:
        """The tenant's record of that id."""
        ...

    async def list_page(
        self, tenant: str, *, limit: int, after: str, oldest_first: bool
    ) -> tuple[list[job_service_pb2.JobRecord], bool]:
        """Up to ``limit`` records after an id in the order asked for, and whether more follow.

        The id need not exist any more; "" begins at the first.
        """
        ...

    async def finish(self, record: job_service_pb2.JobRecord) -> job_service_pb2.JobRecord | None:
        """Writes a terminal record unless one is there; answers what stands.

        None: the record is gone (deleted or expired).
        """
        ...

    async def delete(self, tenant: str, job_id: str) -> job_service_pb2.JobRecord | None:
        """Removes a record and its key; answers what was removed."""
        ...

    async def expired(self, now_s: float, *, limit: int) -> list[job_service_pb2.JobRecord]:
        """Terminal records whose time is over, at most ``limit``."""
        ...

    async def known(self, job_ids: Collection[str]) -> set[str]:
        """Those of the ids that have a record, whatever their tenant."""
        ...


class MemoryJobStore:
    """Records in this process: not durable, and gone with it.

    Args:
        max_records: Beyond it, new jobs are refused until old ones expire.
    """

    def __init__(self, *, max_records: int) -> None:
        self._max_records = max_records
        self._records: dict[str, job_service_pb2.JobRecord] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._ids: dict[str, list[str]] = {}

    @property
    def durable(self) -> bool:
        """False: the memory of one process."""
        return False

    async def create(
        self, record: job_service_pb2.JobRecord
    ) -> tuple[job_service_pb2.JobRecord, bool]:
        """See :meth:`JobStore.create`."""
        key = (record.tenant, record.idempotency_key)
        standing_id = self._keys.get(key) if record.idempotency_key else None
        if standing_id is None and record.video.id in self._records:
            standing_id = record.video.id
        if standing_id is not None:
            standing = self._records[standing_id]
            check_digest(standing, record.request_digest)
            return _copy(standing), False
        if len(self._records) >= self._max_records:
            raise ResourceExhausted(
                f"this gateway keeps {self._max_records} records and has as many; "
                "delete videos you no longer need",
                retry_after_s=60.0,
            )
        self._records[record.video.id] = _copy(record)
        if record.idempotency_key:
            self._keys[key] = record.video.id
        bisect.insort(self._ids.setdefault(record.tenant, []), record.video.id)
        return _copy(record), True

    async def find_key(self, tenant: str, key: str) -> job_service_pb2.JobRecord | None:
        """See :meth:`JobStore.find_key`."""
        job_id = self._keys.get((tenant, key))
        return None if job_id is None else _copy(self._records[job_id])

    async def get(self, tenant: str, job_id: str) -> job_service_pb2.JobRecord | None:
        """See :meth:`JobStore.get`."""
        record = self._records.get(job_id)
        return _copy(record) if record is not None and record.tenant == tenant else None

    async def list_page(
        self, tenant: str, *, limit: int, after: str, oldest_first: bool
    ) -> tuple[list[job_service_pb2.JobRecord], bool]:
        """See :meth:`JobStore.list_page`."""
        ids = self._ids.get(tenant, [])
        if oldest_first:
            start = bisect.bisect_right(ids, after) if after else 0
            page = ids[start : start + limit]
            more = start + limit < len(ids)
        else:
            end = bisect.bisect_left(ids, after) if after else len(ids)
            page = ids[max(end - limit, 0) : end][::-1]
            more = end > limit
        return [_copy(self._records[job_id]) for job_id in page], more

    async def finish(self, record: job_service_pb2.JobRecord) -> job_service_pb2.JobRecord | None:
        """See :meth:`JobStore.finish`."""
        standing = self._records.get(record.video.id)
        if standing is None:
            return None
        if standing.video.status not in TERMINAL_STATUSES and record.epoch >= standing.epoch:
            standing = self._records[record.video.id] = _copy(record)
        return _copy(standing)

    async def delete(self, tenant: str, job_id: str) -> job_service_pb2.JobRecord | None:
        """See :meth:`JobStore.delete`."""
        record = self._records.get(job_id)
        if record is None or record.tenant != tenant:
            return None
        del self._records[job_id]
        if record.idempotency_key:
            self._keys.pop((tenant, record.idempotency_key), None)
        ids = self._ids[tenant]
        del ids[bisect.bisect_left(ids, job_id)]
        if not ids:
            del self._ids[tenant]
        return record

    async def expired(self, now_s: float, *, limit: int) -> list[job_service_pb2.JobRecord]:
        """See :meth:`JobStore.expired`."""
        found: list[job_service_pb2.JobRecord] = []
        now_ns = int(now_s * 1e9)
        for record in self._records.values():
            if len(found) >= limit:
                break
            video = record.video
            if video.status in TERMINAL_STATUSES and video.expires_at.ToNanoseconds() <= now_ns:
                found.append(_copy(record))
        return found

    async def known(self, job_ids: Collection[str]) -> set[str]:
        """See :meth:`JobStore.known`."""
        return {job_id for job_id in job_ids if job_id in self._records}


def check_digest(standing: job_service_pb2.JobRecord, digest: str) -> None:
    """Makes sure that a key is used again with the same request.

    Raises:
        IdempotencyConflict: It was used with another.
    """
    if standing.request_digest != digest:
        raise IdempotencyConflict(
            "the idempotency key was used with another request; use a new key for a new video"
        )


def _copy(record: job_service_pb2.JobRecord) -> job_service_pb2.JobRecord:
    copy = job_service_pb2.JobRecord()
    copy.CopyFrom(record)
    return copy
