"""Job records in this process's memory: not durable, and gone with it."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Collection

from reelmesh.v1 import job_service_pb2, video_pb2

from gateway.errors import (
    ConcurrentJobsQuota,
    GpuSecondsQuota,
    NotFinished,
    QuotaTooSmall,
    ResourceExhausted,
)
from gateway.jobs.quota import SLACK_S, seconds_left_of
from gateway.jobs.store import TERMINAL_STATUSES, KeyElsewhere, Owner, check_digest, copied
from gateway.tenants import Policies, TenantPolicies


class MemoryJobStore:
    """Records in this process: not durable, and gone with it.

    Args:
        max_records: Beyond it, new jobs are refused until old ones expire.
        policies: Whose limits on jobs hold, as far as this process's jobs go.
    """

    def __init__(self, *, max_records: int, policies: Policies | None = None) -> None:
        self._max_records = max_records
        self._policies = policies or TenantPolicies()
        # Reservations of live jobs by tenant and id; what ended ones took by tenant and day.
        self._live: dict[str, dict[str, job_service_pb2.QuotaReservation]] = {}
        self._spent: dict[tuple[str, str], float] = {}
        self._records: dict[str, job_service_pb2.JobRecord] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._ids: dict[str, list[str]] = {}
        # Regions by keys whose videos are made there.
        self._assigned: OrderedDict[tuple[str, str], str] = OrderedDict()

    @property
    def durable(self) -> bool:
        """False: the memory of one process."""
        return False

    @property
    def away(self) -> bool:
        """Never."""
        return False

    async def create(
        self, record: job_service_pb2.JobRecord, *, over_assignment: bool = False
    ) -> tuple[job_service_pb2.JobRecord, bool]:
        """See :meth:`JobStore.create`."""
        key = (record.tenant, record.idempotency_key)
        if over_assignment:
            self._assigned.pop(key, None)
        elif key in self._assigned:
            raise KeyElsewhere(self._assigned[key])
        standing_id = self._keys.get(key) if record.idempotency_key else None
        if standing_id is None and record.video.id in self._records:
            standing_id = record.video.id
        if standing_id is not None:
            standing = self._records[standing_id]
            check_digest(standing, record.request_digest)
            return copied(standing), False
        if len(self._records) >= self._max_records:
            raise ResourceExhausted(
                f"this gateway keeps {self._max_records} records and has as many; "
                "delete videos you no longer need",
                retry_after_s=60.0,
            )
        if record.video.status not in TERMINAL_STATUSES:
            self._check_quota(record)
            self._live.setdefault(record.tenant, {})[record.video.id] = copied(record).reservation
        self._records[record.video.id] = copied(record)
        if record.idempotency_key:
            self._keys[key] = record.video.id
        bisect.insort(self._ids.setdefault(record.tenant, []), record.video.id)
        return copied(record), True

    async def find_key(self, tenant: str, key: str) -> job_service_pb2.JobRecord | None:
        """See :meth:`JobStore.find_key`."""
        if (tenant, key) in self._assigned:
            raise KeyElsewhere(self._assigned[tenant, key])
        job_id = self._keys.get((tenant, key))
        return None if job_id is None else copied(self._records[job_id])

    async def assign_key(
        self,
        tenant: str,
        key: str,
        *,
        region: str,
        over_region: str,
        keep_s: int,  # noqa: ARG002 - the port's
    ) -> str | None:
        """See :meth:`JobStore.assign_key`; the oldest are forgotten when they are many."""
        if (tenant, key) in self._keys:
            return None
        standing = self._assigned.get((tenant, key))
        if standing is None or standing == over_region:
            self._assigned[tenant, key] = region
            if len(self._assigned) > self._max_records:
                self._assigned.popitem(last=False)
        return self._assigned[tenant, key]

    async def supersede(self, tenant: str, job_id: str, *, keep_s: int) -> bool:  # noqa: ARG002 - the port's
        """See :meth:`JobStore.supersede`: nobody else reads this memory."""
        return False

    async def get(self, tenant: str, job_id: str) -> job_service_pb2.JobRecord | None:
        """See :meth:`JobStore.get`."""
        record = self._records.get(job_id)
        return copied(record) if record is not None and record.tenant == tenant else None

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
        return [copied(self._records[job_id]) for job_id in page], more

    async def finish(self, record: job_service_pb2.JobRecord) -> job_service_pb2.JobRecord | None:
        """See :meth:`JobStore.finish`."""
        standing = self._records.get(record.video.id)
        if standing is None:
            return None
        if standing.video.status not in TERMINAL_STATUSES and _owner(record) == _owner(standing):
            standing = self._records[record.video.id] = copied(record)
            if record.video.status in TERMINAL_STATUSES:
                self._settle(record)
        return copied(standing)

    async def update(self, record: job_service_pb2.JobRecord) -> None:
        """See :meth:`JobStore.update`."""
        standing = self._records.get(record.video.id)
        if (
            standing is not None
            and standing.video.status not in TERMINAL_STATUSES
            and _owner(standing) == _owner(record)
        ):
            self._records[record.video.id] = copied(record)

    async def claim(
        self, job_id: str, *, epoch: int, owner: Owner
    ) -> tuple[job_service_pb2.JobRecord | None, bool]:
        """See :meth:`JobStore.claim`."""
        standing = self._records.get(job_id)
        if standing is None:
            return None, False
        wanted = (owner.gateway_id, owner.incarnation, epoch + 1)
        if standing.video.status in TERMINAL_STATUSES or standing.epoch != epoch:
            won = _owner(standing) == wanted
            return copied(standing), won and standing.video.status not in TERMINAL_STATUSES
        standing.owner_gateway, standing.owner_incarnation, standing.epoch = wanted
        return copied(standing), True

    async def delete(self, tenant: str, job_id: str) -> job_service_pb2.JobRecord | None:
        """See :meth:`JobStore.delete`."""
        record = self._records.get(job_id)
        if record is None or record.tenant != tenant:
            return None
        if record.video.status not in TERMINAL_STATUSES:
            raise NotFinished("the video has not ended; cancel it first")
        self._remove(record)
        return record

    def take(self, job_id: str) -> job_service_pb2.JobRecord | None:
        """Removes a record in whatever state it is; answers it."""
        record = self._records.get(job_id)
        if record is not None:
            self._remove(record)
        return record

    def _remove(self, record: job_service_pb2.JobRecord) -> None:
        job_id, tenant = record.video.id, record.tenant
        del self._records[job_id]
        self._forget_live(tenant, job_id)
        if record.idempotency_key:
            self._keys.pop((tenant, record.idempotency_key), None)
        ids = self._ids[tenant]
        del ids[bisect.bisect_left(ids, job_id)]
        if not ids:
            del self._ids[tenant]

    def _check_quota(self, record: job_service_pb2.JobRecord) -> None:
        policy, asked = self._policies.of(record.tenant), record.reservation
        live = self._live.get(record.tenant, {})
        if policy.HasField("gpu_seconds_per_day"):
            most_s = policy.gpu_seconds_per_day
            reserved = sum(r.gpu_seconds for r in live.values() if r.day == asked.day)
            used_s = reserved + self._spent.get((record.tenant, asked.day), 0.0)
            if asked.gpu_seconds > most_s + SLACK_S:
                raise QuotaTooSmall(
                    f"this video is predicted to take {asked.gpu_seconds:.1f} GPU-seconds, more "
                    f"than the {most_s:g} that the tenant has a day"
                )
            if used_s + asked.gpu_seconds > most_s + SLACK_S:
                raise GpuSecondsQuota(
                    f"{max(most_s - used_s, 0.0):.1f} of the tenant's {most_s:g} GPU-seconds of "
                    f"{asked.day} are left",
                    retry_after_s=seconds_left_of(record),
                    tenant=record.tenant,
                )
        if policy.HasField("concurrent_jobs"):
            if not policy.concurrent_jobs:
                raise QuotaTooSmall("this tenant may have no videos made")
            if len(live) >= policy.concurrent_jobs:
                raise ConcurrentJobsQuota(
                    f"{len(live)} of the tenant's videos run or wait, and it may have "
                    f"{policy.concurrent_jobs}",
                    retry_after_s=1.0,
                    tenant=record.tenant,
                )

    def _settle(self, record: job_service_pb2.JobRecord) -> None:
        reserved = self._forget_live(record.tenant, record.video.id)
        if reserved is None or record.video.status != video_pb2.VIDEO_STATUS_COMPLETED:
            return
        day = (record.tenant, reserved.day)
        taken_s = min(max(record.video.result.gpu_seconds, 0.0), reserved.gpu_seconds)
        self._spent[day] = self._spent.get(day, 0.0) + taken_s
        # Of two days ago nobody is told any more.
        today = max(each for _, each in self._spent)
        self._spent = {k: v for k, v in self._spent.items() if k[1] == today or k == day}

    def _forget_live(self, tenant: str, job_id: str) -> job_service_pb2.QuotaReservation | None:
        live = self._live.get(tenant, {})
        reserved = live.pop(job_id, None)
        if not live:
            self._live.pop(tenant, None)
        return reserved

    async def expired(self, now_s: float, *, limit: int) -> list[job_service_pb2.JobRecord]:
        """See :meth:`JobStore.expired`."""
        found: list[job_service_pb2.JobRecord] = []
        now_ns = int(now_s * 1e9)
        for record in self._records.values():
            if len(found) >= limit:
                break
            video = record.video
            if video.status in TERMINAL_STATUSES and video.expires_at.ToNanoseconds() <= now_ns:
                found.append(copied(record))
        return found

    async def known(self, job_ids: Collection[str]) -> set[str]:
        """See :meth:`JobStore.known`."""
        return {job_id for job_id in job_ids if job_id in self._records}

    async def owned(self, owner: Owner, *, prefix: str) -> list[job_service_pb2.Orphan]:  # noqa: ARG002 - the port's
        """See :meth:`JobStore.owned`: nothing, since all of it goes with this process."""
        return []

    async def claim_webhook(self, webhook_id: str, *, epoch: int, owner: Owner) -> bool:  # noqa: ARG002 - the port's
        """See :meth:`JobStore.claim_webhook`: there is nobody to take one from."""
        return False

    async def finish_webhook(self, webhook_id: str, *, owner: Owner) -> None:
        """See :meth:`JobStore.finish_webhook`: nothing is kept of it."""


def _owner(record: job_service_pb2.JobRecord) -> tuple[str, str, int]:
    return record.owner_gateway, record.owner_incarnation, record.epoch
