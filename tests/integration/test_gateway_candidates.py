"""Who gets new work: what the control plane says, what nodes say, what the gateway sees."""

from __future__ import annotations

import contextlib

import pytest
from reelmesh.v1 import control_plane_service_pb2, node_pb2

from gateway.fleet import nodes as fleet_nodes
from gateway.fleet.ejection import EjectionRules, Standing
from tests.integration.test_gateway_fleet import following
from tests.support import fakenode
from tests.support.fakecontrol import FakeControl, serve_control
from tests.support.fakenode import FakeNode, serve_node
from tests.support.gateways import kinds, open_gateway

READY, UNHEALTHY = node_pb2.NODE_STATE_READY, node_pb2.NODE_STATE_UNHEALTHY


@contextlib.asynccontextmanager
async def region(tmp_path, count, **node_fields):
    """A gateway that knows some nodes."""
    nodes = [FakeNode(f"n{index}", **node_fields) for index in range(count)]
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(serve_node(node))
        gateway = await stack.enter_async_context(open_gateway(tmp_path))
        await gateway.know(*nodes)
        yield gateway, nodes


def said(node, state, **fields):
    """The node's record with the control plane's word of it."""
    record = node.record()
    record.state = state
    for name, value in fields.items():
        setattr(record, name, value)
    return record


def tell(gateway, *records):
    gateway.core.fleet.apply(control_plane_service_pb2.FleetDelta(upserted_nodes=records))


async def draw(gateway, count=1):
    for _ in range(count):
        video = await gateway.create()
        assert kinds(await gateway.watched(video.id))[-1] == "completed"


@pytest.mark.parametrize(
    "state",
    [
        node_pb2.NODE_STATE_UNHEALTHY,
        node_pb2.NODE_STATE_LOST,
        node_pb2.NODE_STATE_CORDONED,
        node_pb2.NODE_STATE_DRAINING,
    ],
)
async def test_a_node_that_the_control_plane_takes_out_keeps_its_run_and_gets_no_more(
    tmp_path, state
):
    async with region(tmp_path, 2) as (gateway, nodes):
        for node in nodes:
            node.default = fakenode.held()
        running = await gateway.create()
        await gateway.until(lambda: any(node.runs for node in nodes))
        out = next(node for node in nodes if node.runs)
        spare = next(node for node in nodes if node is not out)
        tell(gateway, said(out, state))
        spare.default = fakenode.finish()
        await draw(gateway, 4)
        assert (len(out.runs), len(spare.runs)) == (1, 4)
        assert gateway.metric("ready_workers") == 1
        out.runs[0].go.set()
        assert kinds(await gateway.watched(running.id))[-1] == "completed"
        # And is one like any other when it is well again.
        tell(gateway, said(out, READY))
        assert gateway.metric("ready_workers") == 2


async def test_a_word_about_another_life_of_the_node_is_none(tmp_path):
    async with region(tmp_path, 1) as (gateway, nodes):
        tell(gateway, said(nodes[0], node_pb2.NODE_STATE_DRAINING, incarnation="before"))
        await draw(gateway)


async def test_if_all_are_called_unfit_what_the_gateway_sees_rules(tmp_path):
    async with region(tmp_path, 3) as (gateway, nodes):
        tell(gateway, *(said(node, UNHEALTHY) for node in nodes))
        await draw(gateway, 3)
        # Once one is well, it alone gets the work.
        tell(gateway, said(nodes[2], READY))
        before = len(nodes[2].runs)
        await draw(gateway, 3)
        assert len(nodes[2].runs) == before + 3


async def test_with_the_control_plane_away_its_word_grows_old(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet_nodes, "WORD_HOLDS_S", 0.3)
    nodes = [FakeNode("n0"), FakeNode("n1")]
    async with (
        serve_node(nodes[0]),
        serve_node(nodes[1]),
        serve_control(FakeControl(heartbeat_s=0.05)) as control,
        open_gateway(tmp_path) as gateway,
        following(gateway, control) as link,
    ):
        await control.tell(nodes[0].record(), said(nodes[1], UNHEALTHY))
        await gateway.until(lambda: all(gateway.ready(node) for node in nodes))
        await gateway.until(lambda: gateway.metric("ready_workers") == 1)
        await control.kill()
        await gateway.until(lambda: not link.connected)
        await gateway.until(lambda: gateway.metric("ready_workers") == 2)
        # It is back with the same word, which holds again.
        await control.start()
        await gateway.until(lambda: gateway.metric("ready_workers") == 1)


async def test_a_job_that_waits_for_an_unfit_node_starts_when_the_word_grows_old(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(fleet_nodes, "WORD_HOLDS_S", 0.3)
    busy, unfit = FakeNode("n0", slots=1), FakeNode("n1")
    busy.default = fakenode.held()
    async with (
        serve_node(busy),
        serve_node(unfit),
        serve_control(FakeControl(heartbeat_s=0.05)) as control,
        open_gateway(tmp_path) as gateway,
        following(gateway, control),
    ):
        await control.tell(busy.record(), said(unfit, UNHEALTHY))
        await gateway.until(lambda: gateway.ready(busy) and gateway.ready(unfit))
        await gateway.create()
        await busy.run_at(0)
        waiting = await gateway.create()
        assert gateway.metric("jobs_waiting") == 1
        await control.kill()
        assert kinds(await gateway.watched(waiting.id))[-1] == "completed"
        assert len(unfit.runs) == 1


# --- rests ---


def judge_soon(gateway, node, **rules):
    """Rests of this node are short."""
    gateway.core.fleet.link(node.node_id).standing = Standing(EjectionRules(**rules))


async def test_after_its_rest_a_node_gets_one_run_and_then_its_share(tmp_path):
    async with region(tmp_path, 2, slots=50) as (gateway, nodes):
        bad = nodes[0]
        bad.units_per_second = 1e6
        await bad.push()
        await gateway.until(lambda: gateway.core.fleet.link("n0").status.units_per_second == 1e6)
        judge_soon(gateway, bad, first_s=0.3)
        bad.default = fakenode.fail("worker_stalled")
        await draw(gateway, 5)
        assert len(bad.runs) == 3
        bad.default = fakenode.held()
        await gateway.until(lambda: gateway.metric("ready_workers") == 2)
        trial = await gateway.create()
        await bad.run_at(3)
        # One run at a time until that has ended, however fast it claims to be.
        await draw(gateway, 3)
        assert len(bad.runs) == 4
        bad.default = fakenode.finish()
        bad.runs[3].go.set()
        assert kinds(await gateway.watched(trial.id))[-1] == "completed"
        await draw(gateway, 3)
        assert len(bad.runs) == 7


async def test_a_worker_that_takes_its_neighbours_along_sends_no_node_to_rest(tmp_path):
    async with region(tmp_path, 2, slots=3) as (gateway, nodes):
        for node in nodes:
            node.default = fakenode.held()
        videos = [await gateway.create() for _ in range(6)]
        await gateway.until(lambda: all(len(node.runs) == 3 for node in nodes))
        for node in nodes:
            node.default = fakenode.finish()
        await nodes[0].kill()
        await gateway.until(lambda: gateway.metric("node_failures_total", cause="node_lost") == 3)
        assert gateway.metric("node_ejections_total") == 0
        for run in nodes[1].runs:
            run.go.set()
        for video in videos:
            assert kinds(await gateway.watched(video.id))[-1] == "completed"


async def test_never_more_than_half_rest_though_all_fail(tmp_path):
    async with region(tmp_path, 2, slots=50) as (gateway, nodes):
        for node in nodes:
            node.default = fakenode.fail("worker_stalled")
        for _ in range(4):
            video = await gateway.create()
            await gateway.watched(video.id)
        assert gateway.metric("node_ejections_total") >= 2
        assert gateway.metric("ready_workers") == 1
        for node in nodes:
            node.default = fakenode.finish()
        await draw(gateway, 3)


async def test_a_restarted_agent_is_tried_at_once(tmp_path):
    async with region(tmp_path, 2, slots=50) as (gateway, nodes):
        link = gateway.core.fleet.link("n0")
        for _ in range(3):
            link.note_end("some job", failed=True)
        assert gateway.metric("ready_workers") == 1
        nodes[0].incarnation = "2"
        await nodes[0].push()
        await gateway.until(lambda: gateway.core.fleet.link("n0").status.incarnation == "2")
        assert gateway.metric("ready_workers") == 2
