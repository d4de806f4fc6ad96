"""What every node promises of tickets: the real agent and the fake one alike.

A node of the suite holds two jobs and no more; ``fill`` takes both slots and ``free`` gives
one back.
"""

import asyncio
import contextlib

import pytest
from reelmesh.v1 import node_service_pb2 as pb
from reelmesh.v1 import tenant_pb2
from reelmesh.v1.node_service_pb2 import WatchStatusRequest

from tests.support.ticket_nodes import HARNESSES

DEADLINE_S = 20.0
BATCH = tenant_pb2.PRIORITY_BATCH


@pytest.fixture(params=HARNESSES)
async def node(request, tmp_path):
    async with request.param(tmp_path) as found, asyncio.timeout(DEADLINE_S):
        yield found


class Gateway:
    """A gateway's stream of tickets, by hand."""

    def __init__(self, stub):
        self.call = stub.Tickets()
        self._reading = None

    async def leave(self, *tickets, withdrawn=()):
        await self.call.write(pb.TicketsRequest(left=tickets, withdrawn=withdrawn))

    async def offer(self):
        # Shielded: a read that is cancelled takes its call with it.
        self._reading = self._reading or asyncio.ensure_future(self.call.read())
        response = await asyncio.shield(self._reading)
        self._reading = None
        assert 0 < response.offer.expires_s <= 0.2
        return response.offer.job_id

    async def no_offer(self, within_s=0.1):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.offer()


@pytest.fixture
async def gateways(node):
    both = [Gateway(node.stub), Gateway(node.stub)]
    yield both
    for gateway in both:
        gateway.call.cancel()
        if gateway._reading is not None:
            await asyncio.wait([gateway._reading])
            gateway._reading.cancelled() or gateway._reading.exception()


def ticket(job_id, tenant="acme", **fields):
    return pb.Ticket(job_id=job_id, tenant=tenant, units=1.0, **fields)


async def lie(node, *job_ids):
    """Until these tickets have come to the node."""
    while {t.job_id for t in node.book.in_order()} != set(job_ids):  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def until_free(node, slots):
    async for response in node.stub.WatchStatus(WatchStatusRequest()):
        if response.status.free_slots == slots:
            return


async def test_a_freed_slot_is_offered_in_one_order_over_all_gateways(node, gateways):
    one, two = gateways
    await node.fill()
    await one.leave(ticket("a-batch", priority=BATCH, came_at_s=-90), ticket("a", came_at_s=-50))
    await two.leave(
        ticket("b-late", "bora", came_at_s=-9),
        ticket("b-soon", "bora", came_at_s=-8, deadline_at_s=60),
    )
    await lie(node, "a-batch", "a", "b-late", "b-soon")
    await node.free()
    assert await one.offer() == "a"
    await node.run("a")
    await node.free()
    assert await two.offer() == "b-soon"
    await node.run("b-soon")
    await node.free()
    assert await two.offer() == "b-late"
    await node.run("b-late")
    await node.free()
    assert await one.offer() == "a-batch"


async def test_a_slot_that_is_offered_is_kept_for_that_job(node, gateways):
    one, _ = gateways
    await node.fill()
    await one.leave(ticket("mine"))
    await lie(node, "mine")
    await node.free()
    assert await one.offer() == "mine"
    busy = await node.run("another")
    assert busy.HasField("busy")
    admitted = await node.run("mine")
    assert admitted.event.HasField("accepted")


async def test_an_offer_that_nobody_takes_expires_and_then_the_slot_is_free(node, gateways):
    one, two = gateways
    await node.fill()
    await one.leave(ticket("first", came_at_s=-5), ticket("second", came_at_s=-4))
    await lie(node, "first", "second")
    await node.free()
    assert await one.offer() == "first"
    # It says nothing: it is offered nothing more until it does.
    await until_free(node, 1)
    await two.leave(ticket("other", "bora"))
    assert await two.offer() == "other"
    await two.leave(withdrawn=["other"])
    await one.no_offer()
    await one.leave()
    assert await one.offer() == "second"


async def test_a_declined_offer_goes_to_the_next(node, gateways):
    one, two = gateways
    await node.fill()
    await one.leave(ticket("placed elsewhere", came_at_s=-5))
    await two.leave(ticket("next", "bora"))
    await lie(node, "placed elsewhere", "next")
    await node.free()
    assert await one.offer() == "placed elsewhere"
    await one.leave(withdrawn=["placed elsewhere"])
    assert await two.offer() == "next"


async def test_tickets_and_offers_end_with_their_gateways_stream(node, gateways):
    one, two = gateways
    await node.fill()
    await one.leave(ticket("a", came_at_s=-5), ticket("b", came_at_s=-4))
    await two.leave(ticket("c", "bora"))
    await lie(node, "a", "b", "c")
    await node.free()
    assert await one.offer() == "a"
    one.call.cancel()
    assert await two.offer() == "c"
    await two.leave(withdrawn=["c"])
    await until_free(node, 1)
    assert len(node.book) == 0


async def test_a_ticket_left_while_a_slot_is_free_is_answered_at_once(node, gateways):
    one, _ = gateways
    await one.leave(ticket("now"))
    assert await one.offer() == "now"


async def test_a_node_that_is_being_emptied_offers_nothing(node, gateways):
    one, _ = gateways
    await node.drain()
    await one.leave(ticket("never"))
    await lie(node, "never")
    await one.no_offer()


@pytest.mark.parametrize(
    "left",
    [
        pb.Ticket(),
        pb.Ticket(job_id="x" * 1_000),
        pb.Ticket(job_id="x", units=float("nan"), weight=float("inf"), deadline_at_s=float("nan")),
        pb.Ticket(job_id="x", units=-1.0, weight=0.0, came_at_s=float("-inf"), priority=99),
    ],
)
async def test_a_ticket_that_makes_no_sense_harms_nobody(node, gateways, left):
    one, two = gateways
    await node.fill()
    await one.leave(left)
    await two.leave(ticket("sound", came_at_s=-1e6))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await lie(node, "sound")
    await node.free()
    first, second = asyncio.ensure_future(one.offer()), asyncio.ensure_future(two.offer())
    done, _ = await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
    if second not in done:
        await one.leave(withdrawn=[first.result()])
    assert await second == "sound"
    first.cancel()
