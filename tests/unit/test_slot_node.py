"""The node whose capacity is known: what it takes, in which order, and when a slot is free."""

import asyncio
import contextlib

from reelmesh.v1 import node_service_pb2

from benchmarks.support.slot_node import SlotNode
from reelkit.tasks import TaskScope

HOLD_S = 0.05


@contextlib.asynccontextmanager
async def working(slots):
    node = SlotNode("n0", slots=slots, hold_s=HOLD_S)
    async with TaskScope("test") as scope, asyncio.timeout(20):
        scope.spawn(node.work(), name="work")
        yield node, scope


def request(job_id, **fields):
    return node_service_pb2.RunRequest(job_id=job_id, epoch=1, attempt=1, **fields)


async def ran(node, job_id, **fields):
    """The kinds of what a run answers, to its end."""
    answers = node.run(request(job_id, **fields).SerializeToString(), None)
    kinds = []
    async for data in answers:
        answer = node_service_pb2.RunResponse.FromString(data)
        kinds.append(answer.WhichOneof("result"))
        if kinds[-1] == "event":
            kinds[-1] = answer.event.WhichOneof("event")
    return kinds


WHOLE = ["accepted", "started", "chunk", "completed"]


async def test_a_slot_runs_one_and_lets_one_wait_and_more_are_busy():
    async with working(slots=2) as (node, scope):
        runs = [scope.spawn(ran(node, f"j{n}"), name="run", fatal=False) for n in range(6)]
        ends = await asyncio.gather(*runs)
        assert ends == [WHOLE] * 4 + [["busy"]] * 2
        assert node.completed == 4
        status = node.status()
        assert (status.free_slots, len(status.executions), status.remaining_work_s) == (4, 0, 0.0)


async def test_what_waits_begins_the_moment_that_a_slot_is_free():
    async with working(slots=1) as (node, scope):
        first = scope.spawn(ran(node, "a"), name="a", fatal=False)
        await asyncio.sleep(0)
        second = scope.spawn(ran(node, "b"), name="b", fatal=False)
        while len(node._live) < 2:  # noqa: ASYNC110 - of the node's own tasks
            await asyncio.sleep(0)
        one, other = node._live["a"], node._live["b"]
        assert await asyncio.gather(first, second) == [WHOLE, WHOLE]
        # Not when this loop came to it, which is later.
        assert abs(other.started_s - one.started_s - HOLD_S) < 1e-9


async def test_a_cancel_frees_the_slot_and_a_wait_that_is_too_long_is_refused():
    async with working(slots=1) as (node, scope):
        running = scope.spawn(ran(node, "a"), name="a", fatal=False)
        while not node._running:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0)
        assert await ran(node, "c", max_wait_s=0.001) == ["busy"]
        asked = node_service_pb2.CancelRequest(job_id="a", epoch=1).SerializeToString()
        found = node_service_pb2.CancelResponse.FromString(await node.cancel(asked, None))
        assert found.found
        assert await running == ["accepted", "started", "cancelled"]
        assert await ran(node, "b") == WHOLE
        assert node.completed == 1
