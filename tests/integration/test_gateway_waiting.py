"""What those who wait are told, and what the line keeps."""

import asyncio

from gateway.fleet.placement import Ask
from gateway.fleet.waiting import WaitingRoom
from reelkit.clock import ManualClock
from reelkit.tasks import TaskScope
from tests.support import fakenode
from tests.support.fakenode import FakeNode, serve_node
from tests.support.gateways import ME, kinds, open_gateway


async def test_with_no_node_left_no_estimate_is_told(tmp_path):
    node = FakeNode("n0", slots=1)
    node.default = fakenode.held()
    async with serve_node(node), open_gateway(tmp_path) as gateway, asyncio.timeout(20):
        await gateway.know(node)
        await gateway.create()
        await node.run_at(0)
        waiting = await gateway.create()
        events = gateway.videos.watch(ME, waiting.id, after_seq=0)
        assert (await anext(events)).queued.HasField("eta_s")
        await node.kill()
        queued = (await anext(events)).queued
        while queued.HasField("eta_s"):
            queued = (await anext(events)).queued
        # The one whose run broke waits again, ahead of this one.
        node.default = fakenode.finish()
        await node.start()
        event = await anext(events)
        while event.HasField("queued") and not event.queued.HasField("eta_s"):
            event = await anext(events)
        rest = [event, *[event async for event in events]]
        assert kinds(rest)[-1] == "completed"


class NoFleet:
    """A fleet without nodes."""

    def views(self, _now_s):
        return []

    def link(self, _node_id):
        return None


async def test_a_line_is_forgotten_when_its_last_has_left():
    async with TaskScope("test") as scope:
        told = []
        waiting = WaitingRoom(fleet=NoFleet(), clock=ManualClock(), scope=scope, max_waiting=1000)
        for version in range(100):
            ask = Ask(model=("wan", str(version)), units=1.0)
            tickets = [waiting.enter(f"{version}-{i}", ask, told.append) for i in range(2)]
            assert waiting.ahead(ask.model) == 2
            for ticket in tickets:
                waiting.abandon(ticket)
            # Twice is as good as once: an ending may come after a cancel.
            waiting.abandon(tickets[0])
            assert waiting.ahead(ask.model) == 0
        assert len(waiting) == waiting.lines == 0


async def test_each_model_of_the_line_is_told_that_nobody_serves_it():
    clock, told = ManualClock(), {}
    async with TaskScope("test") as scope:
        waiting = WaitingRoom(fleet=NoFleet(), clock=clock, scope=scope, max_waiting=10)
        for model in ("a", "b"):
            ask = Ask(model=(model, "1"), units=1.0)
            waiting.enter(model, ask, lambda *of, model=model: told.update({model: of}))
        await asyncio.sleep(0)
        await clock.advance(1.0)
        assert told == {"a": (0, None), "b": (0, None)}
