"""Job records with the region's control plane, any replica of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final

import grpc
import structlog
from grpc import aio
from reelmesh.v1 import job_service_pb2 as pb
from reelmesh.v1.job_service_pb2_grpc import JobServiceStub

from gateway.errors import (
    ConcurrentJobsQuota,
    FieldViolation,
    GatewayError,
    GpuSecondsQuota,
    InvalidRequest,
    JobStoreAway,
    NotFinished,
    QuotaExceeded,
    QuotaTooSmall,
    ResourceExhausted,
    Unavailable,
)
from gateway.jobs.quota import job_limits
from gateway.jobs.replicas import CALL_TIMEOUT_S, RETRY_AFTER_S, NoRecord, Replicas
from gateway.jobs.store import KeyElsewhere, Owner, check_digest
from gateway.tenants import Policies, TenantPolicies
from reelkit.clock import Clock
from reelkit.rpc import internal_channel
from reelkit.rpc_errors import details_of

_log = structlog.get_logger("gateway.job_records")

_MAX_PAGE: Final = 100

if TYPE_CHECKING:
    # Exists in the stubs alone.
    from reelmesh.v1.job_service_pb2_grpc import JobServiceAsyncStub


class RemoteJobStore:
    """A :class:`gateway.jobs.store.JobStore` over ``JobService``.

    Args:
        endpoints: The control plane's replicas; the one that answered last is asked first.
        clock: For patience and pauses.
        patience_s: How long a call is repeated, on all replicas, before the store counts
            as away.
        open_channel: Makes a channel to a replica.
        policies: What tenants may do, told with each new record: the control plane may not
            have heard of it yet.
    """

    def __init__(
        self,
        *,
        endpoints: Sequence[str],
        clock: Clock,
        patience_s: float,
        open_channel: Callable[[str], aio.Channel] = internal_channel,
        policies: Policies | None = None,
    ) -> None:
        self._policies = policies or TenantPolicies()
        self._replicas: Replicas[JobServiceAsyncStub] = Replicas(
            endpoints=endpoints,
            stub_of=JobServiceStub,
            told=_told,
            clock=clock,
            patience_s=patience_s,
            open_channel=open_channel,
        )
        self._ask = self._replicas.ask
        self._find = self._replicas.find

    @property
    def away(self) -> bool:
        """Whether the last call found no replica that could answer."""
        return self._replicas.away

    async def close(self) -> None:
        """Closes the channels."""
        await self._replicas.close()

    @property
    def durable(self) -> bool:
        """True: the region's etcd."""
        return True

    async def create(
        self, record: pb.JobRecord, *, over_assignment: bool = False
    ) -> tuple[pb.JobRecord, bool]:
        """See :meth:`gateway.jobs.store.JobStore.create`."""
        request = pb.CreateJobRequest(
            job=record,
            over_assignment=over_assignment,
            limits=job_limits(self._policies.of(record.tenant)),
        )
        try:
            answer = await self._ask(lambda stub, limit_s: stub.CreateJob(request, timeout=limit_s))
        except QuotaExceeded as refused:
            refused.tenant = record.tenant
            raise
        if answer.key_region:
            raise KeyElsewhere(answer.key_region)
        if not answer.created:
            check_digest(answer.job, record.request_digest)
        return _bare(answer.job), answer.created

    async def find_key(self, tenant: str, key: str) -> pb.JobRecord | None:
        """See :meth:`gateway.jobs.store.JobStore.find_key`."""
        request = pb.FindJobByKeyRequest(tenant=tenant, idempotency_key=key)
        answer = await self._find(lambda stub, limit_s: stub.FindJobByKey(request, timeout=limit_s))
        if answer is not None and answer.key_region:
            raise KeyElsewhere(answer.key_region)
        return None if answer is None else _bare(answer.job)

    async def assign_key(
        self, tenant: str, key: str, *, region: str, over_region: str, keep_s: int
    ) -> str | None:
        """See :meth:`gateway.jobs.store.JobStore.assign_key`."""
        request = pb.AssignKeyRequest(
            tenant=tenant,
            idempotency_key=key,
            region=region,
            over_region=over_region,
            keep_s=keep_s,
        )
        answer = await self._ask(lambda stub, limit_s: stub.AssignKey(request, timeout=limit_s))
        return answer.region if answer.WhichOneof("standing") == "region" else None

    async def supersede(self, tenant: str, job_id: str, *, keep_s: int) -> bool:
        """See :meth:`gateway.jobs.store.JobStore.supersede`."""
        request = pb.SupersedeJobRequest(tenant=tenant, job_id=job_id, keep_s=keep_s)
        # Of the global store: that it is away says nothing of the region's records.
        try:
            await self._replicas.next.SupersedeJob(request, timeout=CALL_TIMEOUT_S)
        except aio.AioRpcError as error:
            raise JobStoreAway(
                f"nobody could be told ({error.code().name})", retry_after_s=RETRY_AFTER_S
            ) from None
        return True

    async def get(self, tenant: str, job_id: str) -> pb.JobRecord | None:
        """See :meth:`gateway.jobs.store.JobStore.get`."""
        request = pb.GetJobRequest(tenant=tenant, job_id=job_id)
        answer = await self._find(lambda stub, limit_s: stub.GetJob(request, timeout=limit_s))
        return None if answer is None else _bare(answer.job)

    async def list_page(
        self, tenant: str, *, limit: int, after: str, oldest_first: bool
    ) -> tuple[list[pb.JobRecord], bool]:
        """See :meth:`gateway.jobs.store.JobStore.list_page`."""
        request = pb.ListJobsRequest(
            tenant=tenant, page_size=limit, after_job_id=after, oldest_first=oldest_first
        )
        answer = await self._ask(lambda stub, limit_s: stub.ListJobs(request, timeout=limit_s))
        return [_bare(job) for job in answer.jobs], answer.more

    async def finish(self, record: pb.JobRecord) -> pb.JobRecord | None:
        """See :meth:`gateway.jobs.store.JobStore.finish`."""
        request = pb.UpdateJobRequest(job=record)
        answer = await self._find(lambda stub, limit_s: stub.UpdateJob(request, timeout=limit_s))
        return None if answer is None else _bare(answer.job)

    async def update(self, record: pb.JobRecord) -> None:
        """See :meth:`gateway.jobs.store.JobStore.update`."""
        await self.finish(record)

    async def claim(
        self, job_id: str, *, epoch: int, owner: Owner
    ) -> tuple[pb.JobRecord | None, bool]:
        """See :meth:`gateway.jobs.store.JobStore.claim`."""
        request = pb.ClaimJobRequest(
            job_id=job_id,
            gateway_id=owner.gateway_id,
            incarnation=owner.incarnation,
            epoch=epoch,
        )
        answer = await self._find(lambda stub, limit_s: stub.ClaimJob(request, timeout=limit_s))
        return (None, False) if answer is None else (_bare(answer.job), answer.claimed)

    async def delete(self, tenant: str, job_id: str) -> pb.JobRecord | None:
        """See :meth:`gateway.jobs.store.JobStore.delete`."""
        # Read first: a repeated deletion no longer says what was removed.
        standing = await self.get(tenant, job_id)
        if standing is None:
            return None
        request = pb.DeleteJobRequest(tenant=tenant, job_id=job_id)
        answer = await self._find(lambda stub, limit_s: stub.DeleteJob(request, timeout=limit_s))
        return standing if answer is None else _bare(answer.job)

    async def expired(self, now_s: float, *, limit: int) -> list[pb.JobRecord]:
        """See :meth:`gateway.jobs.store.JobStore.expired`."""
        request = pb.ListExpiredJobsRequest(limit=min(limit, _MAX_PAGE))
        request.now.FromNanoseconds(int(now_s * 1e9))
        answer = await self._ask(
            lambda stub, limit_s: stub.ListExpiredJobs(request, timeout=limit_s)
        )
        return [_bare(job) for job in answer.jobs]

    async def known(self, job_ids: Collection[str]) -> set[str]:
        """See :meth:`gateway.jobs.store.JobStore.known`."""
        found: set[str] = set()
        ids = sorted(job_ids)
        for start in range(0, len(ids), _MAX_PAGE):
            found.update(await self._known_page(ids[start : start + _MAX_PAGE]))
        return found

    async def owned(self, owner: Owner, *, prefix: str) -> list[pb.Orphan]:
        """See :meth:`gateway.jobs.store.JobStore.owned`."""
        request = pb.ListOwnedRequest(
            gateway_id=owner.gateway_id, incarnation=owner.incarnation, prefix=prefix
        )
        answer = await self._ask(lambda stub, limit_s: stub.ListOwned(request, timeout=limit_s))
        return list(answer.owned)

    async def claim_webhook(self, webhook_id: str, *, epoch: int, owner: Owner) -> bool:
        """See :meth:`gateway.jobs.store.JobStore.claim_webhook`."""
        request = pb.ClaimWebhookRequest(
            webhook_id=webhook_id,
            gateway_id=owner.gateway_id,
            incarnation=owner.incarnation,
            epoch=epoch,
        )
        answer = await self._find(lambda stub, limit_s: stub.ClaimWebhook(request, timeout=limit_s))
        return answer is not None and answer.claimed

    async def finish_webhook(self, webhook_id: str, *, owner: Owner) -> None:
        """See :meth:`gateway.jobs.store.JobStore.finish_webhook`."""
        request = pb.FinishWebhookRequest(
            webhook_id=webhook_id, gateway_id=owner.gateway_id, incarnation=owner.incarnation
        )
        await self._ask(lambda stub, limit_s: stub.FinishWebhook(request, timeout=limit_s))

    async def _known_page(self, ids: Sequence[str]) -> Sequence[str]:
        request = pb.KnownJobsRequest(job_ids=ids)
        answer = await self._ask(lambda stub, limit_s: stub.KnownJobs(request, timeout=limit_s))
        return answer.job_ids


_QUOTAS: Final[dict[str, type[GatewayError]]] = {
    each.code: each for each in (ConcurrentJobsQuota, GpuSecondsQuota, QuotaTooSmall)
}


def _told(error: aio.AioRpcError) -> Exception:
    details = details_of(error)
    quota = None if details is None else _QUOTAS.get(details.reason)
    if details is not None and quota is not None:
        return quota(error.details() or "", retry_after_s=details.retry_after_s)
    match error.code():
        case grpc.StatusCode.NOT_FOUND:
            return NoRecord()
        case grpc.StatusCode.FAILED_PRECONDITION:
            return NotFinished("the video has not ended; cancel it first")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ResourceExhausted(
                "the region's job records take no more now", retry_after_s=RETRY_AFTER_S
            )
        case grpc.StatusCode.INVALID_ARGUMENT:
            # Whatever else a client can get wrong was checked before: its texts are too long.
            return InvalidRequest(
                (FieldViolation("prompt", "is too long to be kept, with all else of the request"),)
            )
    _log.error("job records refused a call", code=error.code().name, details=error.details())
    return Unavailable("the region's job records refused this", retry_after_s=RETRY_AFTER_S)


def _bare(record: pb.JobRecord) -> pb.JobRecord:
    """Without the store's own figure, which nobody here compares by."""
    record.revision = 0
    return record
