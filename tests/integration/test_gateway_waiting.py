"""What those who wait are told, and what the line keeps."""

import asyncio

from reelmesh.v1 import video_pb2

from gateway.fleet.order import Standing
from gateway.fleet.placement import Ask, NodeView
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
            tickets = [
                waiting.enter(f"{version}-{i}", ask, Standing(), told.append) for i in range(2)
            ]
            assert waiting.ahead(ask.model, Standing()) == 2
            for ticket in tickets:
                waiting.abandon(ticket)
            # Twice is as good as once: an ending may come after a cancel.
            waiting.abandon(tickets[0])
            assert waiting.ahead(ask.model, Standing()) == 0
        assert len(waiting) == waiting.lines == 0


class FullFleet(NoFleet):
    """One node that serves every model and has no room; or none, as the test says."""

    def __init__(self, *models):
        self._models = frozenset(models)
        self.there = True

    def views(self, _now_s):
        node = NodeView(
            node_id="n0",
            models=self._models,
            routable=self.there,
            free_slots=0,
            workers=1,
            remaining_work_s=5.0,
            sent_work_s=0.0,
            units_per_second=1.0,
            held_jobs=1,
        )
        return [node]


async def test_each_line_is_told_when_its_last_node_goes_and_when_one_is_back():
    clock, told = ManualClock(), {}
    models = [("a", "1"), ("b", "1")]
    fleet = FullFleet(*models)
    async with TaskScope("test") as scope:
        waiting = WaitingRoom(fleet=fleet, clock=clock, scope=scope, max_waiting=10)
        for model in models:
            ask = Ask(model=model, units=1.0)
            waiting.enter(
                model[0], ask, Standing(), lambda *of, name=model[0]: told.update({name: of})
            )
        for there, wait_s in ((True, 5.0), (False, None), (True, 5.0)):
            fleet.there = there
            waiting.pump()
            await asyncio.sleep(0)
            await clock.advance(1.0)
            assert told == {"a": (0, wait_s), "b": (0, wait_s)}
            told.clear()
            # Nothing new: nobody is told.
            waiting.pump()
            await asyncio.sleep(0)
            await clock.advance(1.0)
            assert told == {}


async def test_the_progress_of_a_lost_attempt_is_not_shown(tmp_path):
    node = FakeNode("n0")
    node.default = fakenode.held()
    async with serve_node(node), open_gateway(tmp_path) as gateway:
        await gateway.know(node)
        video = await gateway.create()
        execution = gateway.core.lifetimes.get(video.id)
        await gateway.until(lambda: execution.progress_percent > 0)
        await node.kill()
        await gateway.until(lambda: execution.record.video.status == video_pb2.VIDEO_STATUS_QUEUED)
        assert (await gateway.core.videos.get(ME, video.id)).progress_percent == 0
