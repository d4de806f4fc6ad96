"""The records of a gateway: the region's, and a few of its own while those are away."""

from __future__ import annotations

from collections.abc import Collection

from reelmesh.v1 import job_service_pb2

from gateway.jobs.memory import MemoryJobStore
from gateway.jobs.store import TERMINAL_STATUSES, JobStore, Owner


class HomeJobs:
    """A :class:`gateway.jobs.store.JobStore` over the region's records and a side book.

    The side book holds jobs that were admitted while the region's records could not be
    written; this gateway alone knows them, and says so (``durable`` is False).

    Args:
        region: The region's records.
        own: This process's.
    """

    def __init__(self, *, region: JobStore, own: MemoryJobStore) -> None:
        self._region = region
        self._own = own

    @property
    def durable(self) -> bool:
        """Whether the region's records outlive this gateway."""
        return self._region.durable

    @property
    def away(self) -> bool:
        """Whether the region's records gave no answer last."""
        return self._region.away

    async def create(
        self, record: job_service_pb2.JobRecord, *, over_assignment: bool = False
    ) -> tuple[job_service_pb2.JobRecord, bool]:
        """See :meth:`gateway.jobs.store.JobStore.create`: the region's."""
        return await self._region.create(record, over_assignment=over_assignment)

    async def create_here(self, record: job_service_pb2.JobRecord) -> None:
        """Writes a record that only this gateway will know.

        Raises:
            ResourceExhausted: The side book is full.
        """
        record.video.durable = False
        await self._own.create(record)

    async def move(self, record: job_service_pb2.JobRecord) -> None:
        """Brings a record of the side book, as it was made, to the region's; repeatable.

        A write that was given up may have been applied there: without this the region would
        have a job that never ends.

        Raises:
            JobStoreAway: Not yet; call again with the same record.
        """
        await self._region.create(record)
        newest = await self._own.get(record.tenant, record.video.id)
        if newest is not None and newest.video.status in TERMINAL_STATUSES:
            await self._region.finish(newest)
        self._own.take(record.video.id)

    async def find_key(self, tenant: str, key: str) -> job_service_pb2.JobRecord | None:
        """See :meth:`gateway.jobs.store.JobStore.find_key`; the side book has no keys."""
        return await self._region.find_key(tenant, key)

    async def assign_key(
        self, tenant: str, key: str, *, region: str, over_region: str, keep_s: int
    ) -> str | None:
        """See :meth:`gateway.jobs.store.JobStore.assign_key`: the region's."""
        return await self._region.assign_key(
            tenant, key, region=region, over_region=over_region, keep_s=keep_s
        )

    async def supersede(self, tenant: str, job_id: str, *, keep_s: int) -> bool:
        """See :meth:`gateway.jobs.store.JobStore.supersede`."""
        return await self._region.supersede(tenant, job_id, keep_s=keep_s)

    async def get(self, tenant: str, job_id: str) -> job_service_pb2.JobRecord | None:
        """See :meth:`gateway.jobs.store.JobStore.get`."""
        return await self._own.get(tenant, job_id) or await self._region.get(tenant, job_id)

    async def list_page(
        self, tenant: str, *, limit: int, after: str, oldest_first: bool
    ) -> tuple[list[job_service_pb2.JobRecord], bool]:
        """See :meth:`gateway.jobs.store.JobStore.list_page`."""
        own, more_own = await self._own.list_page(
            tenant, limit=limit, after=after, oldest_first=oldest_first
        )
        region, more = await self._region.list_page(
            tenant, limit=limit, after=after, oldest_first=oldest_first
        )
        if not own:
            return region, more
        merged = sorted(
            (*own, *region), key=lambda record: record.video.id, reverse=not oldest_first
        )
        return merged[:limit], more or more_own or len(merged) > limit

    async def finish(self, record: job_service_pb2.JobRecord) -> job_service_pb2.JobRecord | None:
        """See :meth:`gateway.jobs.store.JobStore.finish`."""
        return await (await self._book_of(record.video.id)).finish(record)

    async def update(self, record: job_service_pb2.JobRecord) -> None:
        """See :meth:`gateway.jobs.store.JobStore.update`."""
        await (await self._book_of(record.video.id)).update(record)

    async def claim(
        self, job_id: str, *, epoch: int, owner: Owner
    ) -> tuple[job_service_pb2.JobRecord | None, bool]:
        """See :meth:`gateway.jobs.store.JobStore.claim`; nobody claims from the side book."""
        return await self._region.claim(job_id, epoch=epoch, owner=owner)

    async def delete(self, tenant: str, job_id: str) -> job_service_pb2.JobRecord | None:
        """See :meth:`gateway.jobs.store.JobStore.delete`."""
        return await (await self._book_of(job_id)).delete(tenant, job_id)

    async def expired(self, now_s: float, *, limit: int) -> list[job_service_pb2.JobRecord]:
        """See :meth:`gateway.jobs.store.JobStore.expired`."""
        own = await self._own.expired(now_s, limit=limit)
        return own or await self._region.expired(now_s, limit=limit)

    async def known(self, job_ids: Collection[str]) -> set[str]:
        """See :meth:`gateway.jobs.store.JobStore.known`."""
        own = await self._own.known(job_ids)
        rest = set(job_ids) - own
        return own | (await self._region.known(rest) if rest else set())

    async def owned(self, owner: Owner, *, prefix: str) -> list[job_service_pb2.Orphan]:
        """See :meth:`gateway.jobs.store.JobStore.owned`: the region's."""
        return await self._region.owned(owner, prefix=prefix)

    async def claim_webhook(self, webhook_id: str, *, epoch: int, owner: Owner) -> bool:
        """See :meth:`gateway.jobs.store.JobStore.claim_webhook`: the region's."""
        return await self._region.claim_webhook(webhook_id, epoch=epoch, owner=owner)

    async def finish_webhook(self, webhook_id: str, *, owner: Owner) -> None:
        """See :meth:`gateway.jobs.store.JobStore.finish_webhook`: the region's."""
        await self._region.finish_webhook(webhook_id, owner=owner)

    async def _book_of(self, job_id: str) -> JobStore:
        return self._own if await self._own.known((job_id,)) else self._region
