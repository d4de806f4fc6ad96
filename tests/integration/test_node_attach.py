"""A node agent and real control planes on one in-memory store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import node_pb2
from reelmesh.v1.control_plane_service_pb2_grpc import ControlPlaneServiceStub

from control_plane.app import ControlPlaneApp
from control_plane.app import build_app as build_control_plane
from control_plane.config import ControlPlaneConfig
from control_plane.keys import Keys
from control_plane.store.memory import MemoryStore
from control_plane.store.port import Put
from reelkit.clock import SystemClock
from reelkit.rpc import internal_channel
from tests.support.fakeworker import FakeLauncher, Script, fake_spec, write_fake_model
from tests.support.nodes import DEADLINE_S, node_config, run_request, running_node

KEYS = Keys(prefix="/reelmesh", region="ap")


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    async with MemoryStore(clock=SystemClock()) as store:
        yield store


@contextlib.asynccontextmanager
async def control_plane(
    store: MemoryStore, replica_id: str = "cp-0", *, lease_ttl_s: float = 2.0
) -> AsyncIterator[ControlPlaneApp]:
    config = ControlPlaneConfig.model_validate(
        {
            "listen": "127.0.0.1:0",
            "region": "ap",
            "replica_id": replica_id,
            "etcd": {"prefix": "/reelmesh"},
            "lease_ttl_s": lease_ttl_s,
            "drain_s": 0.1,
        }
    )
    async with build_control_plane(config, store=store) as app:
        async with asyncio.timeout(DEADLINE_S):
            await app.ready.wait()
        yield app


class Fleet:
    """What WatchFleet tells, message by message."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.nodes: dict[str, cp.NodeRecord] = {}
        self.models: dict[str, str] = {}
        self.removals = 0

    async def until(self, holds: Callable[[Fleet], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S), internal_channel(self._address) as channel:
            stub = ControlPlaneServiceStub(channel)
            async for response in stub.WatchFleet(cp.WatchFleetRequest()):
                self._take(response)
                if holds(self):
                    return

    def _take(self, response: cp.WatchFleetResponse) -> None:
        if response.HasField("snapshot"):
            self.nodes = {node.node_id: node for node in response.snapshot.nodes}
            self.models = {m.manifest_sha256: m.name for m in response.snapshot.models}
        for node in response.delta.upserted_nodes:
            self.nodes[node.node_id] = node
        for model in response.delta.upserted_models:
            self.models[model.manifest_sha256] = model.name
        for node_id in response.delta.removed_node_ids:
            self.nodes.pop(node_id, None)
            self.removals += 1

    def state(self, node_id: str = "ap-node-0") -> int | None:
        record = self.nodes.get(node_id)
        return record.state if record is not None else None


def ready(fleet: Fleet) -> bool:
    return fleet.state() == node_pb2.NODE_STATE_READY


async def test_a_node_appears_with_its_model_and_leaves_with_a_goodbye(tmp_path, store):
    async with control_plane(store, lease_ttl_s=60) as control:
        fleet = Fleet(control.address)
        config = node_config(tmp_path, control_planes=[control.address])
        async with running_node(config) as node:
            await fleet.until(ready)
            record = fleet.nodes["ap-node-0"]
            assert record.address == node.app.address
            assert record.worker_count == 1
            assert record.units_per_second == 100.0
            assert set(fleet.models.values()) == {"fake"}
            assert record.models[0].manifest_sha256 in fleet.models
            await node.app.drain()
        await fleet.until(lambda f: not f.nodes)


async def test_a_node_that_is_killed_leaves_when_its_lease_does(tmp_path, store):
    async with control_plane(store, lease_ttl_s=2) as control:
        fleet = Fleet(control.address)
        config = node_config(tmp_path, control_planes=[control.address])
        async with running_node(config) as node:
            await fleet.until(ready)
            # No drain: as far as the control plane sees, the stream breaks.
            node.app.attachment._leaving = True
            node.app.attachment._call.cancel()
            await fleet.until(lambda f: not f.nodes)


async def test_an_idle_node_is_kept_by_its_beats(tmp_path, store):
    async with control_plane(store, lease_ttl_s=2) as control:
        fleet = Fleet(control.address)
        config = node_config(tmp_path, control_planes=[control.address])
        async with running_node(config):
            await fleet.until(ready)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3.0):
                    await fleet.until(lambda f: not f.nodes)


async def test_the_node_moves_to_another_replica_with_its_lease(tmp_path, store):
    async with contextlib.AsyncExitStack() as stack:
        replicas = {}
        for name in ("cp-0", "cp-1"):
            ending = await stack.enter_async_context(contextlib.AsyncExitStack())
            app = await ending.enter_async_context(control_plane(store, name, lease_ttl_s=5))
            replicas[name] = (app, ending)
        config = node_config(tmp_path, control_planes=[app.address for app, _ in replicas.values()])
        async with running_node(config) as node:
            attachment = node.app.attachment
            first, _ = next(iter(replicas.values()))
            await Fleet(first.address).until(ready)
            held_by, lease_id = attachment.replica_id, attachment.lease_id
            other, _ = replicas[next(name for name in replicas if name != held_by)]
            fleet = Fleet(other.address)
            await fleet.until(ready)
            leaving, ending = replicas[held_by]
            await leaving.drain()
            await ending.aclose()

            async def moved() -> None:
                while attachment.replica_id == held_by:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.02)

            await asyncio.wait_for(moved(), DEADLINE_S)
            assert attachment.lease_id == lease_id
            await fleet.until(ready)
            assert fleet.removals == 0


async def test_runs_go_on_while_control_planes_leave_one_after_the_other(tmp_path, store):
    """Moved within a lease; and with none left the node serves on."""
    lease_ttl_s = 5.0
    async with contextlib.AsyncExitStack() as stack:
        replicas = {}
        for name in ("cp-0", "cp-1"):
            ending = await stack.enter_async_context(contextlib.AsyncExitStack())
            app = await ending.enter_async_context(
                control_plane(store, name, lease_ttl_s=lease_ttl_s)
            )
            replicas[name] = (app, ending)
        config = node_config(tmp_path, control_planes=[app.address for app, _ in replicas.values()])
        async with running_node(config) as node:
            attachment = node.app.attachment
            await Fleet(next(iter(replicas.values()))[0].address).until(ready)
            lease_id = attachment.lease_id
            call = node.stub.Run(run_request(spec=fake_spec("slow", steps=20)))
            await node.read_until(call, "progress")
            held_by = attachment.replica_id
            await replicas.pop(held_by)[1].aclose()

            async def moved() -> None:
                while attachment.replica_id == held_by:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.02)

            await asyncio.wait_for(moved(), lease_ttl_s)
            assert attachment.lease_id == lease_id
            (_, last_ending) = replicas.popitem()[1]
            await last_ending.aclose()
            # The same stream, to its end.
            events = await node.read_until(call, "completed")
            assert [e.progress.step for e in events if e.HasField("progress")][-1] == 20
            assert (await node.events(run_request("another")))[-1].HasField("completed")
            assert node.app.board.current.state == node_pb2.NODE_STATE_READY


async def test_a_dead_address_in_the_list_is_passed_over(tmp_path, store):
    async with control_plane(store) as control:
        planes = ["127.0.0.1:1", control.address, "127.0.0.1:2"]
        async with running_node(node_config(tmp_path, control_planes=planes)):
            await Fleet(control.address).until(ready)


async def test_a_node_serves_without_any_control_plane(tmp_path):
    async with running_node(node_config(tmp_path, control_planes=["127.0.0.1:1"])) as node:
        await node.until_ready()


async def test_cordon_and_its_end_reach_the_node_and_come_back_as_state(tmp_path, store):
    async with control_plane(store) as control:
        fleet = Fleet(control.address)
        async with running_node(node_config(tmp_path, control_planes=[control.address])) as node:
            await fleet.until(ready)
            desired = cp.DesiredNodeState(cordoned=True)
            await store.txn([], [Put(KEYS.desired("ap-node-0"), desired.SerializeToString())])
            await fleet.until(lambda f: f.state() == node_pb2.NODE_STATE_CORDONED)
            assert node.app.table.admitting is False
            desired.cordoned = False
            await store.txn([], [Put(KEYS.desired("ap-node-0"), desired.SerializeToString())])
            await fleet.until(ready)


async def test_weights_that_arrive_late_are_told_by_a_new_hello(tmp_path, store):
    async with control_plane(store) as control:
        fleet = Fleet(control.address)
        config = node_config(
            tmp_path,
            control_planes=[control.address],
            model={"source": str(tmp_path / "late")},
        )
        async with running_node(config):
            await fleet.until(lambda f: f.state() == node_pb2.NODE_STATE_UNHEALTHY)
            assert "late" in fleet.nodes["ap-node-0"].reason
            assert not fleet.models
            write_fake_model(tmp_path / "late")
            await fleet.until(ready)
            assert set(fleet.models.values()) == {"fake"}
            assert fleet.removals == 0


async def test_a_worker_that_cannot_load_is_seen_in_the_fleet(tmp_path, store):
    async with control_plane(store) as control:
        fleet = Fleet(control.address)
        config = node_config(tmp_path, control_planes=[control.address])
        launcher = FakeLauncher([Script(load="fatal")])
        async with running_node(config, launcher=launcher):
            await fleet.until(lambda f: f.state() == node_pb2.NODE_STATE_UNHEALTHY)
            assert "model_broken" in fleet.nodes["ap-node-0"].reason
