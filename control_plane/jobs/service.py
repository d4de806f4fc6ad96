"""The gRPC face of the job records: calls in, errors out by the one table."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from reelmesh.v1 import job_service_pb2 as pb
from reelmesh.v1 import job_service_pb2_grpc as pb_grpc
from reelmesh.v1 import tenant_pb2

from control_plane.calls import (
    MAX_PAGE,
    Observe,
    Req,
    Resp,
    answer,
    check_count,
    check_id,
    check_text,
)
from control_plane.errors import ControlPlaneError, InvalidRequestError, abort
from control_plane.jobs.assignments import KeyElsewhere
from control_plane.jobs.book import JobBook
from control_plane.jobs.orphans import OrphanWatchers
from control_plane.jobs.quota import Limits, limits_of
from control_plane.jobs.records import check

MAX_KEEP_S: Final = 366 * 24 * 3600

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["JobService"].full_name


class Supersede(Protocol):
    """Writes that a job of another region goes on elsewhere."""

    async def __call__(self, tenant: str, job_id: str, *, keep_s: int) -> None:
        """Raises StoreError where the global store is away."""
        ...


class Policies(Protocol):
    """What tenants may do."""

    @property
    def version(self) -> int:
        """0 until they were read."""
        ...

    def of(self, tenant: str) -> tenant_pb2.TenantPolicy:
        """The policy that holds for a tenant."""
        ...


class JobService(pb_grpc.JobServiceServicer):
    """Serves one region's records on this replica.

    Args:
        policies: Whose limits on jobs hold.
        supersede: Writes that a job's client goes on elsewhere.
        observe: Told the method and the outcome of each call.
    """

    def __init__(
        self,
        *,
        book: JobBook,
        watchers: OrphanWatchers,
        policies: Policies,
        supersede: Supersede,
        observe: Observe,
    ) -> None:
        self._book = book
        self._policies = policies
        self._supersede = supersede
        self._watchers = watchers
        self._observe = observe

    async def CreateJob(self, request: pb.CreateJobRequest, context: Any) -> pb.CreateJobResponse:  # noqa: N802 - gRPC names it
        """See job_service.proto."""
        return await self._answer("CreateJob", self._create, request, context)

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:  # noqa: N802 - as above
        """See job_service.proto."""
        return await self._answer("GetJob", self._get, request, context)

    async def FindJobByKey(  # noqa: N802 - as above
        self, request: pb.FindJobByKeyRequest, context: Any
    ) -> pb.FindJobByKeyResponse:
        """See job_service.proto."""
        return await self._answer("FindJobByKey", self._find, request, context)

    async def AssignKey(self, request: pb.AssignKeyRequest, context: Any) -> pb.AssignKeyResponse:  # noqa: N802 - as above
        """See job_service.proto."""
        return await self._answer("AssignKey", self._assign_key, request, context)

    async def SupersedeJob(  # noqa: N802 - as above
        self, request: pb.SupersedeJobRequest, context: Any
    ) -> pb.SupersedeJobResponse:
        """See job_service.proto."""
        return await self._answer("SupersedeJob", self._supersede_job, request, context)

    async def ClaimJob(self, request: pb.ClaimJobRequest, context: Any) -> pb.ClaimJobResponse:  # noqa: N802 - as above
        """See job_service.proto."""
        return await self._answer("ClaimJob", self._claim, request, context)

    async def UpdateJob(self, request: pb.UpdateJobRequest, context: Any) -> pb.UpdateJobResponse:  # noqa: N802 - as above
        """See job_service.proto."""
        return await self._answer("UpdateJob", self._update, request, context)

    async def DeleteJob(self, request: pb.DeleteJobRequest, context: Any) -> pb.DeleteJobResponse:  # noqa: N802 - as above
        """See job_service.proto."""
        return await self._answer("DeleteJob", self._delete, request, context)

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:  # noqa: N802 - as above
        """See job_service.proto."""
        return await self._answer("ListJobs", self._list, request, context)

    async def ListExpiredJobs(  # noqa: N802 - as above
        self, request: pb.ListExpiredJobsRequest, context: Any
    ) -> pb.ListExpiredJobsResponse:
        """See job_service.proto."""
        return await self._answer("ListExpiredJobs", self._expired, request, context)

    async def KnownJobs(self, request: pb.KnownJobsRequest, context: Any) -> pb.KnownJobsResponse:  # noqa: N802 - as above
        """See job_service.proto."""
        return await self._answer("KnownJobs", self._known, request, context)

    async def WatchOrphans(  # type: ignore[override]  # noqa: N802  # grpc.aio also takes coroutines that write
        self, request: pb.WatchOrphansRequest, context: Any
    ) -> None:
        """See job_service.proto."""
        try:
            async with contextlib.aclosing(self._watchers.serve(request)) as responses:
                async for response in responses:
                    await context.write(response)
        except ControlPlaneError as error:
            await abort(context, error)

    async def ClaimWebhook(  # noqa: N802 - as above
        self, request: pb.ClaimWebhookRequest, context: Any
    ) -> pb.ClaimWebhookResponse:
        """See job_service.proto."""
        return await self._answer("ClaimWebhook", self._claim_webhook, request, context)

    async def FinishWebhook(  # noqa: N802 - as above
        self, request: pb.FinishWebhookRequest, context: Any
    ) -> pb.FinishWebhookResponse:
        """See job_service.proto."""
        return await self._answer("FinishWebhook", self._finish_webhook, request, context)

    async def ListOwned(self, request: pb.ListOwnedRequest, context: Any) -> pb.ListOwnedResponse:  # noqa: N802 - as above
        """See job_service.proto."""
        return await self._answer("ListOwned", self._owned, request, context)

    async def _answer(
        self,
        method: str,
        work: Callable[[Req], Awaitable[Resp]],
        request: Req,
        context: Any,
    ) -> Resp:
        return await answer(self._observe, method, work, request, context)

    # --- the calls ---

    async def _create(self, request: pb.CreateJobRequest) -> pb.CreateJobResponse:
        check(request.job)
        try:
            job, created = await self._book.create(
                request.job,
                over_assignment=request.over_assignment,
                limits=self._limits(request),
            )
        except KeyElsewhere as elsewhere:
            return pb.CreateJobResponse(key_region=elsewhere.region)
        return pb.CreateJobResponse(job=job, created=created)

    def _limits(self, request: pb.CreateJobRequest) -> Limits:
        """Those that this replica read; before it did, those that the gateway knows."""
        if not self._policies.version:
            return limits_of(request.limits)
        return limits_of(self._policies.of(request.job.tenant))

    async def _get(self, request: pb.GetJobRequest) -> pb.GetJobResponse:
        check_id("job_id", request.job_id)
        return pb.GetJobResponse(job=await self._book.get(request.tenant, request.job_id))

    async def _find(self, request: pb.FindJobByKeyRequest) -> pb.FindJobByKeyResponse:
        try:
            job = await self._book.find_key(request.tenant, request.idempotency_key)
        except KeyElsewhere as elsewhere:
            return pb.FindJobByKeyResponse(key_region=elsewhere.region)
        return pb.FindJobByKeyResponse(job=job)

    async def _assign_key(self, request: pb.AssignKeyRequest) -> pb.AssignKeyResponse:
        for field in ("tenant", "idempotency_key", "region"):
            check_text(field, getattr(request, field))
        _check_keep(request.keep_s)
        standing = await self._book.assign_key(
            request.tenant,
            request.idempotency_key,
            region=request.region,
            over_region=request.over_region,
            keep_s=request.keep_s,
        )
        if isinstance(standing, str):
            return pb.AssignKeyResponse(region=standing)
        return pb.AssignKeyResponse(job=standing)

    async def _supersede_job(self, request: pb.SupersedeJobRequest) -> pb.SupersedeJobResponse:
        check_id("job_id", request.job_id)
        check_text("tenant", request.tenant)
        _check_keep(request.keep_s)
        await self._supersede(request.tenant, request.job_id, keep_s=request.keep_s)
        return pb.SupersedeJobResponse()

    async def _claim(self, request: pb.ClaimJobRequest) -> pb.ClaimJobResponse:
        for field in ("job_id", "gateway_id", "incarnation"):
            check_id(field, getattr(request, field))
        job, claimed = await self._book.claim(
            request.job_id,
            epoch=request.epoch,
            gateway_id=request.gateway_id,
            incarnation=request.incarnation,
        )
        return pb.ClaimJobResponse(job=job, claimed=claimed)

    async def _update(self, request: pb.UpdateJobRequest) -> pb.UpdateJobResponse:
        check(request.job)
        job, written = await self._book.update(request.job)
        return pb.UpdateJobResponse(job=job, written=written)

    async def _delete(self, request: pb.DeleteJobRequest) -> pb.DeleteJobResponse:
        check_id("job_id", request.job_id)
        return pb.DeleteJobResponse(job=await self._book.delete(request.tenant, request.job_id))

    async def _list(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        check_count("page_size", request.page_size)
        jobs, more = await self._book.list_page(
            request.tenant,
            limit=request.page_size,
            after=request.after_job_id,
            oldest_first=request.oldest_first,
        )
        return pb.ListJobsResponse(jobs=jobs, more=more)

    async def _expired(self, request: pb.ListExpiredJobsRequest) -> pb.ListExpiredJobsResponse:
        check_count("limit", request.limit)
        jobs = await self._book.expired(request.now.ToMilliseconds(), limit=request.limit)
        return pb.ListExpiredJobsResponse(jobs=jobs)

    async def _claim_webhook(self, request: pb.ClaimWebhookRequest) -> pb.ClaimWebhookResponse:
        for field in ("webhook_id", "gateway_id", "incarnation"):
            check_id(field, getattr(request, field))
        claimed = await self._book.webhooks.claim(
            request.webhook_id,
            epoch=request.epoch,
            gateway_id=request.gateway_id,
            incarnation=request.incarnation,
        )
        return pb.ClaimWebhookResponse(claimed=claimed)

    async def _finish_webhook(self, request: pb.FinishWebhookRequest) -> pb.FinishWebhookResponse:
        for field in ("webhook_id", "gateway_id", "incarnation"):
            check_id(field, getattr(request, field))
        await self._book.webhooks.finish(
            request.webhook_id, gateway_id=request.gateway_id, incarnation=request.incarnation
        )
        return pb.FinishWebhookResponse()

    async def _owned(self, request: pb.ListOwnedRequest) -> pb.ListOwnedResponse:
        for field in ("gateway_id", "incarnation", "prefix"):
            check_id(field, getattr(request, field))
        owned = self._watchers.owned(
            (request.gateway_id, request.incarnation), prefix=request.prefix
        )
        return pb.ListOwnedResponse(owned=owned)

    async def _known(self, request: pb.KnownJobsRequest) -> pb.KnownJobsResponse:
        if len(request.job_ids) > MAX_PAGE:
            raise InvalidRequestError("job_ids", f"must be at most {MAX_PAGE}")
        return pb.KnownJobsResponse(job_ids=await self._book.known(request.job_ids))


def _check_keep(keep_s: int) -> None:
    if not 1 <= keep_s <= MAX_KEEP_S:
        raise InvalidRequestError("keep_s", f"must be 1 to {MAX_KEEP_S}, not {keep_s}")
