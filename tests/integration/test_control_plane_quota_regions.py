"""Two regions with one etcd: a tenant's limits are one, and go where they are needed."""

import asyncio
import contextlib

import pytest
from reelmesh.v1 import job_service_pb2, tenant_pb2, video_pb2
from reelmesh.v1 import quota_service_pb2 as pb
from reelmesh.v1.quota_service_pb2_grpc import QuotaServiceStub

from control_plane.keys import GlobalKeys
from gateway.errors import ConcurrentJobsQuota, Unavailable
from gateway.jobs.quota import reservation
from gateway.jobs.remote import RemoteJobStore
from reelkit import rpc
from reelkit.clock import SystemClock
from tests.support.controlplanes import running
from tests.support.stores import etcd_store, running_etcd

pytestmark = pytest.mark.timeout(120)

QUOTAS = {"max_regions": 2, "max_gateways": 2, "share_ttl_s": 2, "region_ttl_s": 10}
SAFE = 0.25


class Region:
    """A region's control plane and one gateway, as far as limits go."""

    def __init__(self, name, control):
        self.name = name
        self.jobs = RemoteJobStore(endpoints=[control.address], clock=SystemClock(), patience_s=2.0)
        self.channel = rpc.internal_channel(control.address)
        self.stub = QuotaServiceStub(self.channel)
        self.number = self.made = self.lease_id = 0
        self.part = 0.0

    async def close(self):
        await self.jobs.close()
        await self.channel.close()

    async def lease(self, demand):
        self.number += 1
        ask = pb.ShareAsk(tenant="t", held=self.part, demand=demand)
        answer = await self.stub.LeaseShares(
            pb.LeaseSharesRequest(
                gateway_id="g", number=self.number, lease_id=self.lease_id, asks=[ask]
            ),
            timeout=5,
        )
        self.lease_id = answer.lease_id
        self.part = sum(share.part for share in answer.shares)
        return self.part

    async def create(self):
        """Whether there was room for one more."""
        self.made += 1
        record = job_service_pb2.JobRecord(
            tenant="t", owner_gateway="g", owner_incarnation="1", epoch=1
        )
        record.video.id = f"{self.name}-{self.made:026d}"
        record.video.status = video_pb2.VIDEO_STATUS_QUEUED
        record.reservation.CopyFrom(reservation(1.0, now_s=SystemClock().wall()))
        try:
            await self.jobs.create(record)
        except (ConcurrentJobsQuota, Unavailable):
            return False
        return True


@contextlib.asynccontextmanager
async def region_of(name, etcd, quotas=QUOTAS):
    fields = {"region": name, "replica_id": f"{name}-r0", "quotas": quotas}
    async with running(etcd.endpoint, **fields) as control:
        region = Region(name, control)
        try:
            yield region
        finally:
            await region.close()


@pytest.fixture
async def regions(tmp_path):
    async with (
        running_etcd(tmp_path) as etcd,
        etcd_store(etcd.endpoint) as store,
        region_of("ap", etcd) as ap,
        region_of("eu", etcd) as eu,
    ):
        policy = tenant_pb2.TenantPolicy(tenant="t", concurrent_jobs=8)
        key = GlobalKeys(prefix="/reelmesh").tenant("t")
        await store.put(key, policy.SerializeToString())
        yield ap, eu


async def until(condition, *, seconds=40.0):
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0.2)


async def test_a_rate_follows_demand_over_regions_and_is_never_more_than_the_whole(regions):
    ap, eu = regions

    async def leased(busy, idle):
        with contextlib.suppress(rpc.aio.AioRpcError):
            await busy.lease(1.0)
        with contextlib.suppress(rpc.aio.AioRpcError):
            await idle.lease(0.0)
        assert ap.part + eu.part <= 1 + 1e-6
        return busy.part >= 1 - SAFE - 0.06

    await until(lambda: leased(ap, eu))
    await until(lambda: leased(eu, ap))


async def test_jobs_at_once_are_bounded_over_regions_and_go_where_they_are_asked_for(regions):
    ap, eu = regions
    made = {"ap": 0, "eu": 0}

    async def filled(region, count):
        made[region.name] += await region.create()
        assert sum(made.values()) <= 8
        return made[region.name] == count

    # All but what is kept for the other region, which takes that.
    await until(lambda: filled(ap, 6))
    await until(lambda: filled(eu, 2))
    for _ in range(5):
        assert not await ap.create()
        assert not await eu.create()
        await asyncio.sleep(0.5)


async def test_of_more_regions_than_are_configured_one_has_the_whole(tmp_path):
    alone = {**QUOTAS, "max_regions": 1}
    async with (
        running_etcd(tmp_path) as etcd,
        region_of("ap", etcd, alone) as ap,
        region_of("eu", etcd, alone) as eu,
    ):

        async def known():
            await ap.lease(1.0)
            await eu.lease(1.0)
            return (ap.part, eu.part) == (1.0, 0.0)

        await until(known)
