"""Summaries of regions in the global store, over real gRPC and real control planes."""

import asyncio
import contextlib

import grpc
import pytest
from grpc import aio
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import job_service_pb2 as pb
from reelmesh.v1 import node_pb2, region_pb2
from reelmesh.v1.control_plane_service_pb2_grpc import ControlPlaneServiceStub
from reelmesh.v1.job_service_pb2_grpc import JobServiceStub

from control_plane.app import build_app
from control_plane.errors import NotFoundError
from control_plane.keys import GlobalKeys
from control_plane.regions.book import RegionBook
from control_plane.regions.summary import newest, says_the_same, summarize
from control_plane.store.memory import MemoryStore
from control_plane.store.mirror import ChangeKind, MirrorChange
from control_plane.store.writer import FencedWriter
from reelkit import rpc
from reelkit.clock import SystemClock
from tests.support.controlplanes import Agent, config_for, node_hello
from tests.support.stores import eventually

DEADLINE_S = 20.0


@contextlib.asynccontextmanager
async def region(name, shared, *, replica="r0", store=None, **fields):
    """A region's control plane; regions share the global store alone."""
    config = config_for(region=name, replica_id=replica, **fields)
    store = store or MemoryStore(clock=SystemClock())
    async with build_app(config, store=store, global_store=shared) as app:
        async with asyncio.timeout(DEADLINE_S):
            await app.ready.wait()
        yield app


@pytest.fixture
def shared():
    return MemoryStore(clock=SystemClock())


@contextlib.asynccontextmanager
async def watching(app):
    """Reads WatchRegions until something holds of what it shows, by region."""
    async with rpc.internal_channel(app.address) as channel:
        call = ControlPlaneServiceStub(channel).WatchRegions(cp.WatchRegionsRequest())

        async def until(holds):
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    views = {view.region: view for view in (await call.read()).regions}
                    if holds(views):
                        return views

        try:
            yield until
        finally:
            call.cancel()


async def test_regions_see_one_another_and_what_becomes_of_them(shared):
    async with region("ap", shared) as ap, watching(ap) as until:
        async with region("eu", shared) as eu:
            await until(lambda views: set(views) == {"ap", "eu"})
            agent = Agent(eu.address, node_hello("eu-node-0", region="eu"))
            await agent.attach()
            agent.keep_reporting()
            views = await until(lambda views: views["eu"].summary.ready_nodes == 1)
            summary = views["eu"].summary
            assert (summary.ready_workers, summary.known_nodes) == (1, 1)
            assert [model.version for model in summary.models] == ["v0"]
            await agent.crash()
        # Its lease has run out: nothing is known of it, and nothing is said of it.
        await until(lambda views: "eu" not in views)


async def test_one_replica_that_goes_leaves_the_summary_of_the_other(shared):
    store = MemoryStore(clock=SystemClock())
    async with region("ap", shared, store=store) as first, watching(first) as until:
        async with region("ap", shared, replica="r1", store=store):
            await until(lambda views: "ap" in views)
        deadline_s = asyncio.get_running_loop().time() + 3.0
        while asyncio.get_running_loop().time() < deadline_s:
            await until(lambda views: views["ap"].HasField("summary"))


async def test_the_global_store_may_be_away(shared):
    async with region("ap", shared) as ap, watching(ap) as until:
        await until(lambda views: "ap" in views)
        shared.set_available(available=False)
        agent = Agent(ap.address, node_hello())
        await agent.attach()
        # What was read last is shown, and nodes come and go as ever.
        await until(lambda views: "ap" in views)
        shared.set_available(available=True)
        agent.keep_reporting()
        await until(lambda views: views["ap"].summary.ready_nodes == 1)
        await agent.crash()


async def test_a_policy_is_for_a_region_that_there_is(shared):
    async with region("ap", shared) as ap, watching(ap) as until:
        await until(lambda views: "ap" in views)
        keys, clock = GlobalKeys(prefix="/reelmesh"), SystemClock()
        writer = FencedWriter(shared, prefix=keys.writer_slots("ap", "test"), clock=clock)
        book = RegionBook(keys=keys, store=shared, writer=writer, clock=clock)
        with pytest.raises(NotFoundError, match="known are: none"):
            await book.set_policy("ap", draining=True, reason="", by="me")
        page = await shared.range(keys.regions)
        book.apply(MirrorChange(ChangeKind.SNAPSHOT, page.revision, page.items))
        with pytest.raises(NotFoundError, match="known are: ap"):
            await book.set_policy("eu", draining=True, reason="", by="me")
        view = await book.set_policy("ap", draining=True, reason="upgrade", by="me")
        assert view.policy.draining
        views = await until(lambda views: views["ap"].policy.draining)
        assert views["ap"].policy.changed_by == "me"
        await book.set_policy("ap", draining=False, reason="", by="me")
        await until(lambda views: not views["ap"].policy.draining)


async def superseded_at(app, *, messages):
    """The jobs that a watcher hears of in so many messages."""
    found = []
    async with rpc.internal_channel(app.address) as channel, asyncio.timeout(DEADLINE_S):
        call = ControlPlaneServiceStub(channel).WatchRegions(cp.WatchRegionsRequest())
        for _ in range(messages):
            found += [(job.job_id, job.tenant) for job in (await call.read()).superseded]
        call.cancel()
    return found


async def test_a_region_hears_once_which_of_its_jobs_go_on_elsewhere(shared, monkeypatch):
    async with (
        region("ap", shared, fleet={"heartbeat_s": 0.1}) as ap,
        region("eu", shared, fleet={"heartbeat_s": 0.1}) as eu,
        rpc.internal_channel(ap.address) as channel,
    ):
        jobs = JobServiceStub(channel)
        told = pb.SupersedeJobRequest(tenant="t", job_id="eu-1", keep_s=60)
        await jobs.SupersedeJob(told)
        await jobs.SupersedeJob(told)

        async def heard():
            return await superseded_at(eu, messages=1) == [("eu-1", "t")]

        await eventually(heard)
        assert await superseded_at(eu, messages=4) == [("eu-1", "t")]
        assert await superseded_at(ap, messages=4) == []
        monkeypatch.setattr("control_plane.regions.book.MAX_SUPERSEDED", 1)
        with pytest.raises(aio.AioRpcError, match="1 are kept already"):
            await jobs.SupersedeJob(pb.SupersedeJobRequest(tenant="t", job_id="eu-2", keep_s=60))
        monkeypatch.undo()
        shared.set_available(available=False)
        with pytest.raises(aio.AioRpcError) as raised:
            await jobs.SupersedeJob(told, timeout=10)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(aio.AioRpcError, match="job_id"):
            await jobs.SupersedeJob(pb.SupersedeJobRequest(tenant="t", job_id="a/b", keep_s=60))


def test_equal_fleets_say_the_same_and_the_newest_is_believed():
    nodes = [
        cp.NodeRecord(node_id="b", state=node_pb2.NODE_STATE_READY, worker_count=2),
        cp.NodeRecord(node_id="a", state=node_pb2.NODE_STATE_CORDONED, worker_count=1),
    ]
    gateways = [cp.GatewayHello(gateway_id=name, peer_address=name) for name in ("g1", "g0")]
    older = summarize("ap", nodes=nodes, gateways=gateways, fleet_version=3)
    newer = summarize("ap", nodes=nodes[::-1], gateways=gateways[::-1], fleet_version=9)
    newer.changed_at.FromSeconds(5)
    assert says_the_same(older, newer)
    assert (older.ready_nodes, older.ready_workers, older.known_nodes) == (1, 2, 2)
    assert newest([newer, older]) == newer
    assert newest([]) is None
    changed = summarize("ap", nodes=nodes[:1], gateways=gateways, fleet_version=3)
    assert not says_the_same(older, changed)
    assert isinstance(older, region_pb2.RegionSummary)
