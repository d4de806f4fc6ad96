"""Jobs of several gateways wait for the same nodes: one order, and every way it can go wrong."""

import asyncio
import contextlib

import pytest
from reelmesh.v1 import control_plane_service_pb2, node_pb2, tenant_pb2
from reelmesh.v1 import node_service_pb2 as pb
from reelmesh.v1.node_service_pb2_grpc import NodeServiceStub

from gateway.application import Caller
from reelkit.rpc import internal_channel
from tests.support import fakenode
from tests.support.fakenode import FakeNode, serve_node
from tests.support.fakeworker import Script
from tests.support.gateways import ME, kinds, open_gateway
from tests.support.node_region import node_region, record_of

SCOPES = frozenset({"video:generate", "video:read"})
ACME, BORA = Caller("acme", "a", SCOPES), Caller("bora", "b", SCOPES)
BATCH = tenant_pb2.PRIORITY_BATCH


def one_slot(name):
    node = FakeNode(name, slots=1)
    node.default = fakenode.held()
    return node


@pytest.fixture
async def node():
    async with serve_node(one_slot("n0")) as node, asyncio.timeout(30):
        yield node


@pytest.fixture
async def other():
    async with serve_node(one_slot("n1")) as node:
        yield node


@contextlib.asynccontextmanager
async def two_gateways(tmp_path, *nodes):
    async with contextlib.AsyncExitStack() as stack:
        both = []
        for name in ("g0", "g1"):
            folder = tmp_path / name
            folder.mkdir()
            gateway = await stack.enter_async_context(open_gateway(folder, gateway_id=name))
            await gateway.know(*nodes)
            both.append(gateway)
        yield both


async def fill(gateway, *nodes):
    for number in range(len(nodes)):
        await gateway.create(prompt=f"running {number}")
    await gateway.until(lambda: all(node.runs for node in nodes))


async def lie(node, count):
    while len(node.tickets) != count:  # noqa: ASYNC110 - the node notifies nobody of tickets
        await asyncio.sleep(0.005)


async def run_order(node, count):
    prompts = []
    for index in range(count):
        run = await node.run_at(index)
        prompts.append(run.request.spec.prompt)
        run.go.set()
    return prompts


async def test_jobs_of_two_gateways_run_in_one_order(node, tmp_path):
    async with two_gateways(tmp_path, node) as (one, two):
        await fill(one, node)
        for gateway, caller, prompt, options in (
            (one, ACME, "batch 1", {"priority": BATCH}),
            (two, BORA, "batch b", {"priority": BATCH}),
            (two, ACME, "whenever", {}),
            (one, ACME, "late", {"deadline_s": 90_000}),
            (two, ACME, "soon", {"deadline_s": 80_000}),
            (one, BORA, "b", {}),
        ):
            await gateway.create(caller=caller, prompt=prompt, **options)
        await lie(node, 6)
        order = await run_order(node, 7)
        interactive, batch = order[1:5], order[5:]
        assert [prompt for prompt in interactive if prompt != "b"] == ["soon", "late", "whenever"]
        assert interactive.index("b") <= 1
        assert sorted(batch) == ["batch 1", "batch b"]
        taken = sum(each.metric("node_offers_total", answer="taken") for each in (one, two))
        assert taken == 6


async def test_tenants_share_alike_whatever_gateway_they_use(node, tmp_path):
    async with two_gateways(tmp_path, node) as (one, two):
        await fill(one, node)
        for _ in range(8):
            await one.create(caller=ACME, prompt="a")
        for _ in range(4):
            await two.create(caller=BORA, prompt="b")
        await lie(node, 12)
        order = await run_order(node, 9)
        assert order[1:].count("b") == 4


async def test_a_lone_request_on_an_idle_node_takes_no_ticket(node, tmp_path):
    async with open_gateway(tmp_path) as gateway:
        await gateway.know(node)
        await gateway.create()
        (await node.run_at(0)).go.set()
        assert len(gateway.core.fleet.link("n0").tickets) == 0
        assert gateway.metric("node_offers_total", answer="taken") == 0


async def test_a_gateway_that_stands_still_keeps_a_slot_no_longer_than_an_offer(node, tmp_path):
    async with open_gateway(tmp_path) as gateway, internal_channel(node.address) as channel:
        await gateway.know(node)
        await fill(gateway, node)
        stalled = NodeServiceStub(channel).Tickets()
        left = [pb.Ticket(job_id=f"x{n}", tenant="x", units=1, came_at_s=-1e6) for n in range(40)]
        await stalled.write(pb.TicketsRequest(left=left))
        await lie(node, 40)
        await gateway.create(prompt="waits")
        await lie(node, 41)
        (await node.run_at(0)).go.set()
        # Its 40 tickets are older, and hold the slot for one offer alone.
        run = await node.run_at(1)
        assert run.request.spec.prompt == "waits"
        assert len(node.tickets) == 39
        stalled.cancel()
        await lie(node, 0)


async def test_who_wants_to_start_soon_is_offered_no_slot_behind_long_work(tmp_path):
    node = FakeNode("n0", slots=2)
    node.default, node.remaining_work_s = fakenode.held(), 30.0
    async with (
        serve_node(node),
        open_gateway(tmp_path) as gateway,
        internal_channel(node.address) as channel,
        asyncio.timeout(30),
    ):
        await gateway.know(node)
        await fill(gateway, node)
        asks = NodeServiceStub(channel).Tickets()
        left = pb.Ticket(job_id="soon", tenant="x", units=1, max_wait_s=0.05)
        await asks.write(pb.TicketsRequest(left=[left]))
        await lie(node, 1)
        assert node.status().free_slots == 1
        node.remaining_work_s = 0.01
        await node.push()
        assert (await asks.read()).offer.job_id == "soon"
        assert node.status().free_slots == 0
        asks.cancel()


async def test_tickets_of_a_gateway_that_ends_are_gone(node, tmp_path):
    async with open_gateway(tmp_path) as gateway:
        await gateway.know(node)
        await fill(gateway, node)
        folder = tmp_path / "ending"
        folder.mkdir()
        async with open_gateway(folder, gateway_id="ending") as ending:
            await ending.know(node)
            await ending.create()
            await lie(node, 1)
        await lie(node, 0)


async def test_a_cancelled_job_takes_its_ticket_back(node, tmp_path):
    async with open_gateway(tmp_path) as gateway:
        await gateway.know(node)
        await fill(gateway, node)
        video = await gateway.create()
        await lie(node, 1)
        await gateway.videos.cancel(ME, video.id)
        await lie(node, 0)


async def test_a_job_that_two_nodes_offer_a_slot_runs_once(node, other, tmp_path):
    async with open_gateway(tmp_path) as gateway:
        await gateway.know(node, other)
        await fill(gateway, node, other)
        video = await gateway.create(prompt="waits")
        await lie(node, 1)
        await lie(other, 1)
        for each in (node, other):
            each.runs[0].go.set()
        await gateway.until(lambda: len(node.runs) + len(other.runs) == 3)
        await gateway.until(lambda: node.tickets.offered == other.tickets.offered == 0)
        await lie(node, 0)
        await lie(other, 0)
        assert len(node.runs) + len(other.runs) == 3
        for each in (node, other):
            each.runs[-1].go.set()
        assert kinds(await gateway.watched(video.id))[-1] == "completed"


async def test_a_node_that_dies_takes_its_tickets_along_and_no_others(node, other, tmp_path):
    async with open_gateway(tmp_path) as gateway:
        await gateway.know(node, other)
        await fill(gateway, node, other)
        waiting = [await gateway.create(prompt=f"waits {number}") for number in range(2)]
        await lie(node, 2)
        await lie(other, 2)
        await node.kill()
        node.default = other.default = fakenode.finish()
        # Also that whose run broke.
        await lie(other, 3)
        other.runs[0].go.set()
        for video in waiting:
            assert kinds(await gateway.watched(video.id))[-1] == "completed"


async def test_a_node_that_comes_back_is_left_the_tickets_again(node, tmp_path):
    async with open_gateway(tmp_path) as gateway:
        await gateway.know(node)
        await fill(gateway, node)
        await gateway.create(prompt="one")
        await gateway.create(prompt="two")
        await lie(node, 2)
        await node.kill()
        node.state = node_pb2.NODE_STATE_LOADING
        await node.start()
        node.state = node_pb2.NODE_STATE_READY
        node.default = fakenode.finish()
        await node.push()
        await gateway.until(lambda: len(node.runs) >= 4)


async def test_a_run_that_comes_after_its_offer_expired_goes_back_to_its_place(node, tmp_path):
    async with open_gateway(tmp_path) as gateway:
        await gateway.know(node)
        await fill(gateway, node)
        for prompt in ("first", "second", "third"):
            await gateway.create(prompt=prompt)
        await lie(node, 3)
        node.script.append(fakenode.busy())
        node.runs[0].go.set()
        # The slot may be the second's before the first one is back in line.
        run = await node.run_at(2)
        await lie(node, 2)
        run.go.set()
        (await node.run_at(3)).go.set()
        await node.run_at(4)
        prompts = [run.request.spec.prompt for run in node.runs[2:]]
        assert prompts.index("first") < prompts.index("third")


async def test_real_agents_serve_two_gateways_in_one_order(tmp_path):
    script = Script(step_s=0.05)
    async with (
        node_region(tmp_path, 1, script=script) as region,
        open_gateway(tmp_path / "node-0", gateway_id="second") as second,
        asyncio.timeout(60),
    ):
        first, agent = region.gateway, region.nodes[0]
        second.core.fleet.replace(
            control_plane_service_pb2.FleetSnapshot(
                nodes=[record_of(agent)], models=[agent.app.folder.to_model_info()]
            )
        )
        await second.until(lambda: second.core.fleet.ready_workers)
        # One runs, one waits at the node, the rest in the gateways.
        ahead = [await first.create(prompt=f"ahead {number}") for number in range(2)]
        await agent.until(lambda status: len(status.executions) == 2)
        batch = [await first.create(prompt="batch", priority=BATCH) for _ in range(3)]
        urgent = [await second.create(prompt="urgent") for _ in range(2)]
        for gateway, videos in ((first, ahead + batch), (second, urgent)):
            for video in videos:
                assert kinds(await gateway.watched(video.id))[-1] == "completed"
        ended = {}
        for gateway, videos in ((first, batch), (second, urgent)):
            for video in videos:
                found = await gateway.videos.get(ME, video.id)
                ended[found.completed_at.ToNanoseconds()] = found.spec.prompt
        assert [ended[at] for at in sorted(ended)] == ["urgent"] * 2 + ["batch"] * 3
