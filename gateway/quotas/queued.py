"""Bounds how many of a tenant's videos may wait in this gateway."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Final, Protocol, TypeVar

from reelmesh.v1 import job_service_pb2

from gateway.errors import QueuedJobsQuota, QuotaUnknown
from gateway.fleet.placement import ModelKey
from gateway.quotas.shares import Shares
from gateway.tenants import Policies

T = TypeVar("T")

_SLACK: Final = 1e-6
_RETRY_UNKNOWN_S: Final = 1.0


class Waiting(Protocol):
    """Where videos wait."""

    def waiting_of(self, tenant: str) -> int:
        """A tenant's videos that no node has taken yet."""
        ...

    def must_wait(self, model: ModelKey) -> bool:
        """Whether a video that came now would have to wait."""
        ...


class QueuedJobs:
    """Refuses what would wait beyond this gateway's part of a tenant's limit.

    What waits already goes on where the part shrinks, and so do jobs that come back for
    another try.

    Args:
        shares: Whose parts; None: nobody is limited.
    """

    def __init__(self, *, policies: Policies, shares: Shares | None, waiting: Waiting) -> None:
        self._policies = policies
        self._shares = shares
        self._waiting = waiting
        # Videos that were let in and do not stand in line yet.
        self._coming: Counter[str] = Counter()

    async def check(self, record: job_service_pb2.JobRecord, *, wait_s: float) -> None:
        """Lets one more in; follow with :meth:`counted`.

        Args:
            record: Of a new job.
            wait_s: What it would wait, as is told to those who are refused.

        Raises:
            QueuedJobsQuota: As many of the tenant's as may wait do so.
            QuotaUnknown: This gateway has no part of the tenant's limits.
        """
        tenant, spec = record.tenant, record.video.spec
        policy, model = self._policies.of(tenant), (spec.model, spec.model_version)
        if self._shares is None or not policy.HasField("queued_jobs"):
            return
        limit = policy.queued_jobs
        have = self._waiting.waiting_of(tenant) + self._coming[tenant]
        if not have and not self._waiting.must_wait(model):
            self._shares.note_waiting(tenant, 0.0)
            return
        self._shares.note_call(tenant)
        self._shares.note_waiting(tenant, (have + 1) / limit if limit else 0.0)
        await self._shares.settle(tenant, more=have >= self._most(tenant, limit))
        # Others may have come meanwhile.
        have = self._waiting.waiting_of(tenant) + self._coming[tenant]
        if have < self._most(tenant, limit):
            return
        if limit and self._shares.part(tenant) <= 0:
            raise QuotaUnknown(
                "this gateway has no part of the tenant's limits yet; try again or another",
                retry_after_s=_RETRY_UNKNOWN_S,
            )
        raise QueuedJobsQuota(
            f"{have} of the tenant's videos wait here, of {limit} that may wait at all gateways",
            retry_after_s=max(wait_s, 1.0),
            tenant=tenant,
        )

    def counted(self, tenant: str, beginning: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """The same beginning, which counts as waiting until it stands in line or has a node."""
        self._coming[tenant] += 1
        return self._begun(tenant, beginning)

    async def _begun(self, tenant: str, beginning: Coroutine[Any, Any, T]) -> T:
        try:
            return await beginning
        finally:
            self._coming[tenant] -= 1
            if not self._coming[tenant]:
                del self._coming[tenant]

    def _most(self, tenant: str, limit: int) -> int:
        assert self._shares is not None  # noqa: S101 - for mypy: the caller looked
        return math.floor(self._shares.part(tenant) * limit + _SLACK)
