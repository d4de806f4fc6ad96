"""Nodes that are called and tried by a real control plane over real connections."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from reelmesh.v1 import node_pb2
from reelmesh.v1.node_service_pb2 import RunRequest

from control_plane.store.memory import MemoryStore
from reelkit.clock import SystemClock
from tests.support.controlplanes import running, watcher
from tests.support.fakenode import MODEL, FakeRun, break_off, busy, fail, finish, held, silent
from tests.support.faultproxy import FaultProxy
from tests.support.healthnodes import QUICK, HealthNode, attached, quick_canary

READY = node_pb2.NODE_STATE_READY
UNHEALTHY = node_pb2.NODE_STATE_UNHEALTHY


@pytest.fixture
async def store():
    async with MemoryStore(clock=SystemClock()) as store:
        yield store


@contextlib.asynccontextmanager
async def watched(store, health, **fields):
    """A control plane and a gateway's view of its fleet."""
    fields = {"lease_ttl_s": 20, "health": health, **fields}
    async with running(store=store, **fields) as app, watcher(app.address) as fleet:
        yield app, fleet


def state(fleet, node="n0"):
    return fleet.nodes[node].state if node in fleet.nodes else None


async def until(fleet, wanted, node="n0"):
    await fleet.until(lambda: state(fleet, node) == wanted)


async def test_a_node_that_cannot_be_reached_is_unhealthy_and_comes_back(store):
    async with watched(store, QUICK) as (app, fleet):
        node = HealthNode("n0")
        async with attached(app.address, node):
            await until(fleet, READY)
            since = fleet.nodes["n0"].state_since.ToNanoseconds()
            assert since > 0
            await node.kill()
            await until(fleet, UNHEALTHY)
            assert "does not answer at its address: no connection" in fleet.nodes["n0"].reason
            assert fleet.nodes["n0"].state_since.ToNanoseconds() > since
            await node.start()
            await until(fleet, READY)
            assert fleet.removed == []


async def test_a_node_behind_a_silent_network_is_unhealthy(store):
    node = HealthNode("n0")
    async with watched(store, QUICK) as (app, fleet):
        await node.start()
        async with FaultProxy(node.address) as proxy:
            await node.kill()
            async with attached(app.address, node, address=proxy.address):
                await until(fleet, READY)
                proxy.hold()
                await until(fleet, UNHEALTHY)
                assert "no answer in 0.3 s" in fleet.nodes["n0"].reason
                proxy.heal()
                await until(fleet, READY)


async def test_when_most_nodes_fail_at_once_none_is_taken_out(store):
    async with watched(store, QUICK) as (app, fleet), contextlib.AsyncExitStack() as stack:
        nodes = [HealthNode(f"n{number}") for number in range(4)]
        for node in nodes:
            await stack.enter_async_context(attached(app.address, node))
        await fleet.until(lambda: [state(fleet, n.node_id) for n in nodes] == [READY] * 4)
        for node in nodes[:3]:
            await node.kill()
        # Long enough for ten calls to each; the fourth is unhealthy in a third of it alone.
        await fleet.heartbeats(5)
        assert [state(fleet, node.node_id) for node in nodes] == [READY] * 4
        # Two of four are back: the one that is left is believed.
        await nodes[0].start()
        await nodes[1].start()
        await until(fleet, UNHEALTHY, "n2")
        assert state(fleet, "n0") == state(fleet, "n3") == READY


async def test_a_silent_agent_is_unhealthy_before_its_lease_ends(store):
    async with watched(store, QUICK, lease_ttl_s=4) as (app, fleet):
        node = HealthNode("n0")
        async with attached(app.address, node) as stream:
            await until(fleet, READY)
            node.changed = asyncio.Condition()

            async def nothing(_status):
                return None

            stream.report = nothing
            await until(fleet, UNHEALTHY)
            assert "stopped reporting" in fleet.nodes["n0"].reason
            # Its lease is not renewed for what others find out about it.
            await fleet.until(lambda: fleet.removed == ["n0"])


async def test_an_idle_node_is_tried_with_the_smallest_video_and_released(store):
    async with watched(store, quick_canary()) as (app, _fleet):
        node = HealthNode("n0")
        async with attached(app.address, node):
            first = await node.run_at(0)
            second = await node.run_at(1)
            await node.until(lambda: len(node.releases) >= 2)
        request = first.request
        assert request.canary
        assert request.job_id.startswith("canary-n0-")
        assert request.job_id != second.request.job_id
        assert (request.epoch, getattr(request, "try"), request.attempt) == (1, 1, 1)
        spec = request.spec
        assert (spec.width, spec.height, spec.num_frames, spec.steps) == (96, 64, 5, 1)
        assert (spec.model, spec.model_version, spec.fps) == (MODEL.name, MODEL.version, 8)
        assert spec.seed == second.request.spec.seed
        assert request.deadline_s > 0
        assert [release.job_id for release in node.releases][:1] == [request.job_id]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (fail("worker_died"), "worker_died"),
        (silent(), "no video in"),
        (finish(b""), "its video is not what it says it is"),
    ],
)
async def test_a_node_whose_canaries_fail_is_unhealthy_until_one_succeeds(store, script, why):
    async with watched(store, quick_canary()) as (app, fleet):
        node = HealthNode("n0")
        node.default = script
        async with attached(app.address, node):
            await until(fleet, UNHEALTHY)
            assert "canary generations fail" in fleet.nodes["n0"].reason
            assert why in fleet.nodes["n0"].reason
            node.default = finish()
            await until(fleet, READY)


@pytest.mark.parametrize("script", [busy(), fail("worker_unavailable"), break_off()])
async def test_what_tells_nothing_of_the_device_counts_as_nothing(store, script):
    async with watched(store, quick_canary()) as (app, fleet):
        node = HealthNode("n0")
        node.default = script
        async with attached(app.address, node):
            await node.run_at(3)
            assert state(fleet) == READY


async def test_a_busy_node_is_not_tried(store):
    async with watched(store, quick_canary(idle_s=0.5)) as (app, fleet):
        node = HealthNode("n0")
        job = held()
        node.script.append(job)
        async with attached(app.address, node):
            await until(fleet, READY)
            node.live["somebodys-job"] = FakeRun(RunRequest(job_id="somebodys-job"), None)
            await node.push()
            runs_before = len(node.runs)
            await fleet.heartbeats(6)
            assert len(node.runs) == runs_before
            del node.live["somebodys-job"]
            await node.push()
            await node.run_at(runs_before)


async def test_canaries_can_be_turned_off(store):
    async with watched(store, quick_canary(enabled=False)) as (app, fleet):
        node = HealthNode("n0")
        async with attached(app.address, node):
            await until(fleet, READY)
            await fleet.heartbeats(4)
            assert node.runs == []
