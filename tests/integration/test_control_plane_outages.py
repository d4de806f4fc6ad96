"""Control planes while etcd, a replica or the network is away."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import node_pb2
from reelmesh.v1.control_plane_service_pb2_grpc import ControlPlaneServiceStub

from control_plane.app import build_app
from control_plane.keys import Keys
from control_plane.store.memory import MemoryStore
from control_plane.store.port import Delete
from reelkit import rpc
from reelkit.clock import SystemClock
from tests.support.controlplanes import (
    DEADLINE_S,
    REGION,
    agent,
    config_for,
    node_hello,
    node_status,
    running,
    watcher,
)
from tests.support.faultproxy import FaultProxy
from tests.support.stores import answers, etcd_store, eventually, running_etcd

KEYS = Keys(prefix="/reelmesh", region=REGION)
DRAINING = node_pb2.NODE_STATE_DRAINING


@pytest.fixture
async def etcd(tmp_path):
    async with running_etcd(tmp_path) as process:
        yield process


async def test_two_replicas_agree(etcd):
    async with (
        running(etcd.endpoint) as a,
        running(etcd.endpoint, replica_id="r1") as b,
        watcher(a.address) as at_a,
        watcher(b.address) as at_b,
        contextlib.AsyncExitStack() as stack,
    ):
        for number in range(20):
            app = (a, b)[number % 2]
            node = await stack.enter_async_context(
                agent(app.address, node_hello(f"n{number}", pid=number))
            )
            await node.attach()
            node.keep_reporting()
        for gateway in (at_a, at_b):
            await gateway.until(lambda gateway=gateway: len(gateway.nodes) == 20)
        await at_a.heartbeats()
        await at_b.heartbeats()
        assert at_a.nodes == at_b.nodes
        assert at_a.version == at_b.version
        # So a gateway may go on at the other replica where it left this one.
        async with watcher(b.address, after_version=at_a.version) as moved:
            await moved.heartbeats()
            assert moved.kinds == []


async def test_streams_and_fleet_outlive_the_store(etcd):
    async with (
        etcd_store(etcd.endpoint) as store,
        running(etcd.endpoint, lease_ttl_s=5) as app,
        agent(app.address) as node,
        watcher(app.address) as gateway,
    ):
        lease_id = (await node.attach()).lease_id
        node.keep_reporting(0.3)
        await gateway.until(lambda: bool(gateway.nodes))
        etcd.kill()
        await node.report(node_status(DRAINING))
        await gateway.heartbeats(5)
        async with watcher(app.address) as late:
            # The last state that was known, and news when there are some.
            await late.until(lambda: late.kinds == ["snapshot"])
            assert late.nodes == gateway.nodes
        async with agent(app.address, node_hello("newcomer")) as newcomer:
            with pytest.raises(grpc.RpcError) as caught:
                await newcomer.attach()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not node.ended.is_set()
        await etcd.start()
        # What was reported meanwhile is written now.
        await gateway.until(lambda: gateway.nodes["ap-node-0"].state == DRAINING)
        assert gateway.removed == []
        assert [welcome.lease_id for welcome in node.welcomes] == [lease_id]
        await answers(store)
        assert (await store.get(KEYS.node("ap-node-0"))).lease_id == lease_id


async def test_a_store_that_lost_everything_is_filled_again(etcd):
    async with (
        running(etcd.endpoint) as app,
        agent(app.address) as node,
        watcher(app.address) as gateway,
    ):
        first = await node.attach()
        node.keep_reporting(0.3)
        await gateway.until(lambda: bool(gateway.nodes))
        etcd.kill()
        etcd.wipe()
        await etcd.start()
        await node.until(lambda: len(node.welcomes) == 2)
        assert node.welcomes[1].lease_id != first.lease_id
        # The watcher is told whole what the new store holds.
        await gateway.until(lambda: gateway.kinds.count("snapshot") == 2 and bool(gateway.nodes))
        assert gateway.nodes["ap-node-0"].state == node_pb2.NODE_STATE_READY
        assert "0" * 64 in gateway.models


async def test_a_cut_between_replica_and_store_is_survived(etcd):
    async with (
        FaultProxy(etcd.address) as proxy,
        running(f"http://{proxy.address}", lease_ttl_s=8) as app,
        agent(app.address) as node,
        watcher(app.address) as gateway,
    ):
        await node.attach()
        node.keep_reporting(0.3)
        await gateway.until(lambda: bool(gateway.nodes))
        for _ in range(2):
            proxy.hold()
            await gateway.heartbeats(8)
            proxy.cut()
            proxy.heal()
            await gateway.heartbeats(8)
        await node.report(node_status(DRAINING))
        await gateway.until(lambda: gateway.nodes["ap-node-0"].state == DRAINING)
        assert gateway.removed == []
        assert len(node.welcomes) == 1


async def test_a_replica_that_starts_before_its_store_is_ready_later(etcd, tmp_path, monkeypatch):
    monkeypatch.setattr("control_plane.watch_fleet.FIRST_READ_S", 0.5)
    etcd.kill()
    ready_file = tmp_path / "ready.json"
    config = config_for(etcd.endpoint, ready_file=str(ready_file))
    ready_file.write_text("of an earlier life")
    async with build_app(config) as app:
        assert not ready_file.exists()
        async with watcher(app.address) as gateway:
            with pytest.raises(grpc.RpcError) as caught:
                await gateway.until(lambda: False)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not app.ready.is_set()
        await etcd.start()
        async with asyncio.timeout(DEADLINE_S):
            await app.ready.wait()
        assert ready_file.exists()
        async with agent(app.address) as node:
            await node.attach()


async def test_a_replica_that_stops_sends_its_clients_elsewhere(etcd):
    async with (
        running(etcd.endpoint, replica_id="r1") as other,
        running(etcd.endpoint) as app,
        agent(app.address) as node,
        watcher(app.address) as gateway,
        watcher(other.address) as beyond,
    ):
        lease_id = (await node.attach()).lease_id
        await beyond.until(lambda: bool(beyond.nodes))
        await app.drain()
        await node.until(node.ended.is_set)
        assert node.error.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError) as caught:
            await gateway.until(lambda: False)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with agent(other.address, node_hello(lease_id=lease_id)) as moved:
            assert (await moved.attach()).lease_id == lease_id
            assert beyond.removed == []


async def test_a_slow_watcher_is_given_the_rest_at_once_and_holds_up_nobody():
    """It stops reading while the fleet changes far beyond the history and gRPC's buffers."""
    record = cp.NodeRecord(node_id="n", region=REGION, reason="x" * 12_000)
    last = 2_000
    async with (
        MemoryStore(clock=SystemClock()) as store,
        running(store=store) as app,
        watcher(app.address) as quick,
        rpc.internal_channel(app.address) as channel,
    ):
        slow = ControlPlaneServiceStub(channel).WatchFleet(cp.WatchFleetRequest())
        assert (await slow.read()).HasField("snapshot")
        await quick.until(lambda: quick.kinds == ["snapshot"])
        for number in range(last + 1):
            record.pid = number
            await store.put(KEYS.node("n"), record.SerializeToString())
            # A few turns of the loop: each change becomes a delta of its own.
            for _ in range(5):
                await asyncio.sleep(0)
        await quick.until(lambda: quick.nodes["n"].pid == last)
        kinds, pid = [], 0
        async with asyncio.timeout(DEADLINE_S):
            while pid < last:
                response = await slow.read()
                kinds.append(response.WhichOneof("message"))
                for node in (*response.snapshot.nodes, *response.delta.upserted_nodes):
                    pid = node.pid
        # In one delta, or a snapshot where the history does not reach back so far.
        assert kinds.count("snapshot") <= 1
        assert len(kinds) < last / 2


async def test_models_that_nobody_names_are_removed_in_time(monkeypatch):
    monkeypatch.setattr("control_plane.model_sweep.SWEEP_EVERY_S", 0.05)
    monkeypatch.setattr("control_plane.model_sweep.KEEP_UNNAMED_S", 0.2)
    async with (
        MemoryStore(clock=SystemClock()) as store,
        running(store=store) as app,
        agent(app.address) as node,
        watcher(app.address) as gateway,
    ):
        await node.attach()
        await gateway.until(lambda: bool(gateway.models))
        await store.txn([], [Delete(KEYS.node("ap-node-0"))])

        async def gone() -> bool:
            return await store.get(KEYS.model("0" * 64)) is None

        await eventually(gone)

        # The node is still there, and with its next change so is its model.
        async def back() -> bool:
            await node.report(node_status(DRAINING, reason=str(asyncio.get_running_loop().time())))
            return not await gone()

        await eventually(back)
