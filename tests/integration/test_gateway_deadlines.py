"""A job's deadline in every queue that it may stand in, and at work."""

from __future__ import annotations

import asyncio
import contextlib

from gateway.fleet.ejection import RETRY_FLOOR
from tests.support import fakenode
from tests.support.fakenode import FakeNode, serve_node
from tests.support.fakeworker import Script
from tests.support.gateways import kinds, open_gateway
from tests.support.node_region import node_region


@contextlib.asynccontextmanager
async def mesh(tmp_path, *nodes, **changes):
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(serve_node(node))
        gateway = await stack.enter_async_context(open_gateway(tmp_path, **changes))
        await gateway.know(*nodes)
        yield gateway


def ended_by_deadline(events):
    failed = events[-1].failed
    return kinds(events)[-1] == "failed" and (failed.code, failed.retryable) == (
        "deadline_exceeded",
        True,
    )


async def test_in_the_gateways_line(tmp_path):
    node = FakeNode("n0", slots=1)
    node.default = fakenode.held()
    async with mesh(tmp_path, node) as gateway:
        await gateway.create()
        await node.run_at(0)
        late = await gateway.create(deadline_s=0.3)
        behind = await gateway.create()
        assert gateway.metric("jobs_waiting") == 2
        assert ended_by_deadline(await gateway.watched(late.id))
        await gateway.until(lambda: gateway.metric("jobs_waiting") == 1)
        node.default = fakenode.finish()
        node.runs[0].go.set()
        assert kinds(await gateway.watched(behind.id))[-1] == "completed"
        # It never reached the node.
        assert late.id not in {run.request.job_id for run in node.runs}


async def test_while_it_waits_for_the_retry_budget(tmp_path):
    nodes = [FakeNode("n0", slots=50), FakeNode("n1", slots=50)]
    for node in nodes:
        node.default = fakenode.fail("worker_stalled")
    async with mesh(tmp_path, *nodes, runs={"max_tries": 100}) as gateway:
        late = [await gateway.create(deadline_s=1.0) for _ in range(4)]
        for video in late:
            assert ended_by_deadline(await gateway.watched(video.id))
        # The budget's floor, and the four first tries: the rest of that second was waiting.
        assert sum(len(node.runs) for node in nodes) <= RETRY_FLOOR + 4


async def test_in_the_nodes_waiting_slot_and_on_the_device(tmp_path):
    script = Script(step_s=0.05)
    async with node_region(tmp_path, 1, script=script) as region:
        gateway, (node,) = region.gateway, region.nodes
        running = await gateway.create(steps=100, deadline_s=30)
        await node.until(lambda s: any(e.running for e in s.executions))
        waiting = await gateway.create(steps=1)
        await node.until(lambda s: len(s.executions) == 2)
        table = node.app.table
        # By hand: the gateway refuses a job whose deadline is below the predicted wait.
        for video, left_s in ((waiting, 0.1), (running, 0.4)):
            held = table._jobs.get(video.id)
            held.deadline_at_s = node.app._clock.monotonic() + left_s
        for video in (waiting, running):
            events = await gateway.watched(video.id)
            assert events[-1].failed.code == "deadline_exceeded"
        # The worker has let go of both, and lives.
        await node.until(lambda s: s.free_slots == 2 and not s.executions)
        assert node.app.board.current.workers[0].restarts == 0
        after = await gateway.create(prompt="after")
        assert kinds(await gateway.watched(after.id))[-1] == "completed"


async def test_from_the_client_to_the_worker(tmp_path, monkeypatch):
    async with node_region(tmp_path, 1, script=Script(step_s=0.05)) as region:
        gateway, (node,) = region.gateway, region.nodes
        told = []
        send = node.app.supervisor.workers[0].send
        monkeypatch.setattr(
            node.app.supervisor.workers[0],
            "send",
            lambda command: (told.append(command), send(command)),
        )
        began_s = asyncio.get_running_loop().time()
        video = await gateway.create(steps=100, deadline_s=1.0)
        assert ended_by_deadline(await gateway.watched(video.id))
        assert asyncio.get_running_loop().time() - began_s < 3.0
        generate = next(c.generate for c in told if c.HasField("generate"))
        assert 0 < generate.deadline_s <= 1.0
        await node.until(lambda s: s.free_slots == 2 and not s.executions)
