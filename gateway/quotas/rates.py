"""Counts each tenant's calls against this gateway's part of its rate."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from reelmesh.v1 import tenant_pb2

from gateway.auth.rates import Allowance, allowance
from gateway.errors import QuotaUnknown, RequestQuota
from gateway.quotas.buckets import Bucket
from gateway.quotas.shares import MAX_TENANTS, Shares
from gateway.tenants import Policies
from reelkit.clock import Clock

_RETRY_UNKNOWN_S: Final = 1.0


def burst_of(policy: tenant_pb2.TenantPolicy) -> float:
    """Requests at once; without one of its own, a second's worth, and one at least."""
    return max(policy.burst if policy.HasField("burst") else policy.requests_per_second, 1.0)


class RequestRates:
    """A :class:`gateway.auth.rates.Rates` over leased parts."""

    def __init__(self, *, policies: Policies, shares: Shares, clock: Clock) -> None:
        self._policies = policies
        self._shares = shares
        self._clock = clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    async def charge(self, tenant: str) -> Allowance | None:
        """See :meth:`gateway.auth.rates.Rates.charge`."""
        policy = self._policies.of(tenant)
        if not policy.HasField("requests_per_second"):
            return None
        self._shares.note_call(tenant)
        await self._shares.settle(tenant, more=False)
        bucket = self._bucket(tenant, policy)
        wait_s = bucket.take(self._clock.monotonic())
        if wait_s > 0:
            await self._shares.settle(tenant, more=True)
            bucket = self._bucket(tenant, policy)
            wait_s = bucket.take(self._clock.monotonic())
        if bucket.rate <= 0:
            raise QuotaUnknown(
                "this gateway has no part of the tenant's limits yet; try again or another",
                retry_after_s=_RETRY_UNKNOWN_S,
            )
        told = self._told(policy, bucket)
        if wait_s > 0:
            raise self._refusal(tenant, policy, wait_s, told)
        return told

    def _bucket(self, tenant: str, policy: tenant_pb2.TenantPolicy) -> Bucket:
        now_s, part = self._clock.monotonic(), self._shares.part(tenant)
        size = max(part * burst_of(policy), 1.0) if part > 0 else 0.0
        bucket = self._buckets.get(tenant)
        if bucket is None:
            # One call at once, unless it is sure that nobody has used any of the burst.
            bucket = self._buckets[tenant] = Bucket(min(part * burst_of(policy), 1.0), now_s)
            if len(self._buckets) > MAX_TENANTS:
                self._buckets.popitem(last=False)
        if self._shares.take_fresh(tenant):
            bucket.tokens = size
        bucket.set(now_s, rate=part * policy.requests_per_second, size=size)
        self._buckets.move_to_end(tenant)
        return bucket

    @staticmethod
    def _told(policy: tenant_pb2.TenantPolicy, bucket: Bucket) -> Allowance:
        return allowance(
            rate=policy.requests_per_second,
            burst=burst_of(policy),
            tokens=bucket.tokens,
            missing=max(bucket.size - bucket.tokens, 0.0),
            speed=bucket.rate,
        )

    @staticmethod
    def _refusal(
        tenant: str, policy: tenant_pb2.TenantPolicy, wait_s: float, told: Allowance
    ) -> RequestQuota:
        error = RequestQuota(
            f"the tenant may send {policy.requests_per_second:g} requests a second and "
            f"{burst_of(policy):g} at once",
            retry_after_s=wait_s,
            tenant=tenant,
        )
        error.headers = told.headers
        return error
