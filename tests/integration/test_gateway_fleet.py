"""The gateway's view of its region: control plane gone, nodes gone, replicas changed."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
from reelmesh.v1 import control_plane_service_pb2, node_pb2

from gateway.fleet.watch import ControlPlaneLink
from reelkit.clock import SystemClock
from tests.support import fakenode
from tests.support.fakecontrol import FakeControl, serve_control
from tests.support.fakenode import FakeNode, serve_node
from tests.support.gateways import kinds, open_gateway


@contextlib.asynccontextmanager
async def following(gateway, *controls, silence_timeout_s=10.0, clock=None):
    """A link of the gateway to control planes."""
    hello = control_plane_service_pb2.GatewayHello(gateway_id="g", region="ap", incarnation="1")
    link = ControlPlaneLink(
        endpoints=[control.address for control in controls],
        fleet=gateway.core.fleet,
        clock=clock or SystemClock(),
        hello=hello,
        silence_timeout_s=silence_timeout_s,
    )
    link.start(gateway.core.scope)
    try:
        yield link
    finally:
        await link.close()


async def test_a_gateway_attaches_beats_and_learns_the_fleet(tmp_path):
    node = FakeNode("n0")
    async with (
        serve_node(node),
        serve_control(FakeControl(lease_ttl_s=0.3)) as control,
        open_gateway(tmp_path) as gateway,
        following(gateway, control),
    ):
        await control.tell(node.record())
        await gateway.until(lambda: gateway.ready(node))
        await control.until(lambda: control.beats >= 2)
        assert control.hellos[0].gateway_id == "g"
        assert gateway.core.videos.ready() == (True, "")
        models, default = gateway.core.videos.models()
        assert [model.name for model in models] == [default] == ["fake-wan"]
        assert gateway.core.videos.regions()[0].ready_workers == 1


async def test_with_the_control_plane_gone_routing_goes_on(tmp_path):
    node = FakeNode("n0")
    async with (
        serve_node(node),
        serve_control(FakeControl()) as control,
        open_gateway(tmp_path) as gateway,
        following(gateway, control) as link,
    ):
        await control.tell(node.record())
        await gateway.until(lambda: gateway.ready(node))
        await control.kill()
        await gateway.until(lambda: not link.connected)
        video = await gateway.create()
        assert kinds(await gateway.watched(video.id))[-1] == "completed"
        # It comes back and is followed again, under the same lease.
        watches = len(control.watches)
        await control.start()
        await control.until(lambda: len(control.watches) > watches)
        await control.until(lambda: control.hellos[-1].lease_id == 4711)
        assert control.watches[-1] >= 1


async def test_a_mass_expiry_evicts_nobody_who_still_answers(tmp_path):
    nodes = [FakeNode(f"n{index}") for index in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(serve_node(node))
        control = await stack.enter_async_context(serve_control(FakeControl()))
        gateway = await stack.enter_async_context(open_gateway(tmp_path))
        await stack.enter_async_context(following(gateway, control))
        await control.tell(*(node.record() for node in nodes))
        await gateway.until(lambda: all(gateway.ready(node) for node in nodes))
        await control.tell(removed=tuple(node.node_id for node in nodes))
        video = await gateway.create()
        assert kinds(await gateway.watched(video.id))[-1] == "completed"
        assert gateway.metric("ready_workers") == 3
        # One that is not listed and does not answer is forgotten.
        await nodes[0].kill()
        await gateway.until(lambda: gateway.core.fleet.link("n0") is None)
        assert gateway.ready(nodes[1])


async def test_a_node_whose_stream_is_broken_is_no_candidate_though_listed(tmp_path):
    nodes = [FakeNode("n0"), FakeNode("n1")]
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(serve_node(node))
        gateway = await stack.enter_async_context(open_gateway(tmp_path))
        await gateway.know(*nodes)
        await nodes[0].kill()
        await gateway.until(lambda: not gateway.ready(nodes[0]))
        for _ in range(4):
            video = await gateway.create()
            assert kinds(await gateway.watched(video.id))[-1] == "completed"
        assert not nodes[0].runs
        await nodes[0].start()
        await gateway.until(lambda: gateway.ready(nodes[0]))


async def test_another_replica_is_followed_when_one_is_silent(tmp_path):
    node = FakeNode("n0")
    async with (
        serve_node(node),
        serve_control(FakeControl()) as first,
        serve_control(FakeControl()) as second,
        open_gateway(tmp_path) as gateway,
    ):
        await second.tell(node.record())
        # Neither sends heartbeats, so both are silent in turn; the nodes stay.
        async with following(gateway, first, second, silence_timeout_s=0.2):
            await first.until(lambda: first.watches)
            await second.until(lambda: second.watches)
            await gateway.until(lambda: gateway.ready(node))


async def test_a_replica_that_hangs_is_left_by_both_streams(tmp_path):
    async with (
        serve_control(FakeControl()) as hangs,
        serve_control(FakeControl(heartbeat_s=0.05)) as lives,
        open_gateway(tmp_path) as gateway,
        following(gateway, hangs, lives, silence_timeout_s=0.3),
    ):
        await hangs.until(lambda: hangs.hellos and hangs.watches)
        await lives.until(lambda: lives.hellos and lives.watches)
        # The lease moves with it.
        assert lives.hellos[0].lease_id == 4711


async def test_an_attachment_without_news_is_no_silence_while_the_replica_lives(tmp_path):
    async with (
        serve_control(FakeControl(lease_ttl_s=0.6, heartbeat_s=0.05)) as control,
        open_gateway(tmp_path) as gateway,
        following(gateway, control, silence_timeout_s=0.3),
    ):
        # Five beats are more than three times the silence that would be too long.
        await control.until(lambda: control.beats >= 5)
        assert len(control.hellos) == 1
        assert len(control.watches) == 1


async def test_a_node_that_moves_is_followed_to_its_new_address(tmp_path):
    async with (
        serve_node(FakeNode("n0")) as old,
        serve_node(FakeNode("n0")) as new,
        open_gateway(tmp_path) as gateway,
    ):
        await gateway.know(old)
        await gateway.know(new)
        await gateway.until(lambda: gateway.core.fleet.link("n0").record.address == new.address)
        await gateway.until(lambda: gateway.ready(new))
        video = await gateway.create()
        assert kinds(await gateway.watched(video.id))[-1] == "completed"
        assert len(new.runs) == 1
        assert not old.runs


async def test_a_run_on_a_node_that_leaves_the_fleet_goes_on_elsewhere(tmp_path):
    old, spare = FakeNode("n0"), FakeNode("n1")
    old.default = fakenode.held(before=1)
    async with serve_node(old), serve_node(spare), open_gateway(tmp_path) as gateway:
        await gateway.know(old)
        video = await gateway.create()
        watching = asyncio.ensure_future(gateway.watched(video.id))
        await old.run_at(0)
        await gateway.know(old, spare)
        moved = old.record()
        moved.address = "127.0.0.1:1"
        delta = control_plane_service_pb2.FleetDelta(upserted_nodes=[moved])
        gateway.core.fleet.apply(delta)
        events = await watching
        assert "restarted" in kinds(events)
        assert kinds(events)[-1] == "completed"
        assert len(spare.runs) == 1


async def test_a_node_that_leaves_just_after_its_run_is_no_trouble(tmp_path):
    node = FakeNode("n0")
    async with serve_node(node), open_gateway(tmp_path) as gateway:
        await gateway.know(node)
        link = gateway.core.fleet.link("n0")
        video = await gateway.create()
        await gateway.watched(video.id)
        # Before the release, which waits for the answers to leave.
        await link.channel.close()
        waiting = await gateway.create()
        # It was placed there and lost, or the node was seen to be gone before.
        await gateway.until(lambda: not link.connected)
        moved = control_plane_service_pb2.FleetDelta(removed_node_ids=["n0"])
        gateway.core.fleet.apply(moved)
        await gateway.know(node)
        assert kinds(await gateway.watched(waiting.id))[-1] in ("completed", "failed")


async def test_a_node_that_fails_most_runs_rests(tmp_path):
    nodes = [FakeNode("n0", slots=50, units_per_second=1e6), FakeNode("n1", slots=50)]
    nodes[0].default = fakenode.fail("worker_stalled")
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(serve_node(node))
        gateway = await stack.enter_async_context(open_gateway(tmp_path))
        await gateway.know(*nodes)
        for _ in range(8):
            video = await gateway.create()
            assert kinds(await gateway.watched(video.id))[-1] == "completed"
        # Fast and broken: it drew the first three, and none after that.
        assert len(nodes[0].runs) == 3
        assert gateway.metric("node_ejections_total") == 1


async def test_a_cordoned_node_keeps_its_run_and_gets_no_more(tmp_path):
    nodes = [FakeNode("n0"), FakeNode("n1")]
    nodes[0].default = fakenode.held()
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(serve_node(node))
        gateway = await stack.enter_async_context(open_gateway(tmp_path))
        await gateway.know(nodes[0])
        running = await gateway.create()
        run = await nodes[0].run_at(0)
        nodes[0].state = node_pb2.NODE_STATE_CORDONED
        await nodes[0].push()
        await gateway.until(lambda: not gateway.ready(nodes[0]))
        gateway.core.fleet.apply(
            control_plane_service_pb2.FleetDelta(upserted_nodes=[nodes[1].record()])
        )
        await gateway.until(lambda: gateway.ready(nodes[1]))
        other = await gateway.create()
        assert kinds(await gateway.watched(other.id))[-1] == "completed"
        run.go.set()
        assert kinds(await gateway.watched(running.id))[-1] == "completed"
        assert len(nodes[0].runs) == 1


class TellingClock(SystemClock):
    """Tells when somebody begins to wait."""

    def __init__(self):
        self.waited = asyncio.Event()

    async def sleep(self, delay_s):
        self.waited.set()
        await super().sleep(delay_s)


async def test_a_link_that_never_connected_is_closed_without_a_failed_task(tmp_path):
    nobody, clock = SimpleNamespace(address="127.0.0.1:1"), TellingClock()
    async with open_gateway(tmp_path) as gateway:
        async with following(gateway, nobody, clock=clock):
            async with asyncio.timeout(5):
                await clock.waited.wait()
        # A stream that went on would begin anew on a closed channel after its first pause.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await gateway.core.scope.failed.wait()
