"""Runs that the gateway gives up for what it saw itself: whose fault, and the node is told."""

import asyncio
import contextlib
import errno

import grpc

from gateway.output.spool_file import SpoolFile
from tests.support import fakenode
from tests.support.fakenode import VIDEO, FakeNode, serve_node
from tests.support.gateways import data_of, kinds, open_gateway

MIB = 1024 * 1024


@contextlib.asynccontextmanager
async def mesh(tmp_path, *nodes, **changes):
    """A gateway that knows some nodes."""
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(serve_node(node))
        gateway = await stack.enter_async_context(open_gateway(tmp_path, **changes))
        await gateway.know(*nodes)
        yield gateway


async def gap(run):
    """A chunk is missing, and the node goes on drawing."""
    yield run.started()
    yield run.chunk(b"x" * 100)
    run.offset += 7
    yield run.chunk(b"x" * 100)
    await run.cancelled.wait()


async def test_after_a_gap_the_node_is_told_to_stop(tmp_path):
    nodes = [FakeNode("n0"), FakeNode("n1")]
    nodes[1].script = nodes[0].script
    nodes[0].script.append(gap)
    async with mesh(tmp_path, *nodes) as gateway:
        video = await gateway.create()
        events = await gateway.watched(video.id)
        reasons = [event.restarted.reason for event in events if event.HasField("restarted")]
        assert reasons == ["corrupt_stream"]
        assert data_of(events) == VIDEO
        first = next(n for n in nodes if n.runs[0].request.attempt == 1)
        await first.until(lambda: first.cancels)
        assert (first.cancels[0].job_id, first.cancels[0].reason) == (video.id, "corrupt_stream")
        await first.until(lambda: not first.live)


async def test_a_late_cancel_does_not_stop_the_next_try_on_the_same_node(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.core.commit._NODE_CALL_DELAYS_S", (0.05,) * 5)

    class Deaf(FakeNode):
        asked = 0

        async def Cancel(self, request, context):  # noqa: N802 - the name of the RPC
            self.asked += 1
            if self.asked == 1:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted")
            return await super().Cancel(request, context)

    node = Deaf("n0")
    node.script.append(gap)
    node.default = fakenode.held(before=1)
    async with mesh(tmp_path, node) as gateway:
        video = await gateway.create()
        watching = asyncio.ensure_future(gateway.watched(video.id))
        again = await node.run_at(1)
        # As long as several of its attempts would take.
        await asyncio.sleep(0.3)
        assert not again.cancelled.is_set()
        again.go.set()
        assert data_of(await watching) == VIDEO
        assert len(node.runs) == 2


async def test_when_the_spool_is_full_the_node_is_told_to_stop(tmp_path):
    node = FakeNode("n0")
    node.default = fakenode.held(b"x" * 8 * MIB, before=4, piece=MIB)
    spool = {"memory_bytes_per_video": 0, "max_bytes_per_video": MIB}
    async with mesh(tmp_path, node, spool=spool) as gateway:
        video = await gateway.create()
        failed = (await gateway.watched(video.id))[-1].failed
        assert (failed.code, failed.retryable) == ("spool_full", True)
        await node.until(lambda: node.cancels)
        assert node.cancels[0].reason == "spool_full"
        await node.until(lambda: not node.live)


async def test_a_disk_that_times_out_is_not_the_nodes_fault(tmp_path, monkeypatch):
    def broken(*_args):
        raise OSError(errno.ETIMEDOUT, "Connection timed out")

    node = FakeNode("n0")
    node.default = fakenode.held(b"x" * 8 * MIB, before=8, piece=MIB)
    async with mesh(tmp_path, node, spool={"memory_bytes_per_video": 0}) as gateway:
        monkeypatch.setattr(SpoolFile, "write", broken)
        video = await gateway.create()
        events = await gateway.watched(video.id)
        monkeypatch.undo()
        failed = events[-1].failed
        assert (failed.code, failed.retryable) == ("spool_failed", True)
        assert gateway.metric("node_failures_total", cause="node_silent") == 0
        assert len(node.runs) == 1
        await node.until(lambda: node.cancels)


async def test_a_silent_node_is_told_to_stop_when_it_hears_again(tmp_path):
    nodes = [FakeNode("n0"), FakeNode("n1")]
    nodes[1].script = nodes[0].script
    nodes[0].script.append(fakenode.silent())
    async with mesh(tmp_path, *nodes, runs={"accept_timeout_s": 0.2}) as gateway:
        video = await gateway.create()
        assert kinds(await gateway.watched(video.id))[-1] == "completed"
        first = next(n for n in nodes if n.runs and n.runs[0].request.attempt == 1)
        await first.until(lambda: first.cancels)
        assert first.cancels[0].reason == "node_silent"
