"""How jobs end: deadlines, cancels, deletes, clients that leave, a gateway that stops."""

import asyncio
import contextlib

import pytest
from reelmesh.v1 import video_pb2

from gateway import errors
from tests.support import fakenode
from tests.support.fakenode import FakeNode, serve_node
from tests.support.gateways import ME, kinds, open_gateway

COMPLETED = video_pb2.VIDEO_STATUS_COMPLETED
CANCELLED = video_pb2.VIDEO_STATUS_CANCELLED


@contextlib.asynccontextmanager
async def mesh(tmp_path, *nodes, **changes):
    """A gateway that knows some nodes."""
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(serve_node(node))
        gateway = await stack.enter_async_context(open_gateway(tmp_path, **changes))
        await gateway.know(*nodes)
        yield gateway


# --- deadlines ---


async def test_a_deadline_ends_a_running_job_and_frees_the_node(tmp_path):
    node = FakeNode("n0")
    node.default = fakenode.held()
    async with mesh(tmp_path, node) as gateway:
        video = await gateway.create(deadline_s=0.3)
        events = await gateway.watched(video.id)
        assert events[-1].failed.code == "deadline_exceeded"
        await node.until(lambda: node.cancels)
        assert node.cancels[0].reason == "deadline"
        assert 0 < node.runs[0].request.deadline_s <= 0.3


async def test_a_wait_past_the_deadline_is_refused_at_once(tmp_path):
    node = FakeNode("n0")
    node.remaining_work_s = 50.0
    async with mesh(tmp_path, node) as gateway:
        with pytest.raises(errors.ResourceExhausted) as raised:
            await gateway.create(deadline_s=10)
        assert raised.value.retry_after_s == pytest.approx(50)
        await gateway.create(deadline_s=60)


# --- cancel and delete ---


async def test_cancel_stops_the_run_at_the_node(tmp_path):
    node = FakeNode("n0")
    node.default = fakenode.held(before=1)
    async with mesh(tmp_path, node) as gateway:
        video = await gateway.create()
        await node.run_at(0)
        watching = asyncio.ensure_future(gateway.watched(video.id))
        await asyncio.sleep(0)
        cancelled = await gateway.core.videos.cancel(ME, video.id)
        assert cancelled.status == CANCELLED
        assert (await watching)[-1].cancelled.reason == "client"
        await node.until(lambda: node.cancels)
        assert node.cancels[0].job_id == video.id
        assert (await gateway.core.videos.cancel(ME, video.id)).status == CANCELLED


async def test_cancel_while_waiting_leaves_the_line(tmp_path):
    node = FakeNode("n0", slots=1)
    node.default = fakenode.held()
    async with mesh(tmp_path, node) as gateway:
        await gateway.create()
        run = await node.run_at(0)
        video = await gateway.create()
        await gateway.until(lambda: gateway.metric("jobs_waiting") == 1)
        await gateway.core.videos.cancel(ME, video.id)
        assert kinds(await gateway.watched(video.id)) == ["queued", "cancelled"]
        await gateway.until(lambda: gateway.metric("jobs_waiting") == 0)
        run.go.set()
        await run.ended.wait()
        assert len(node.runs) == 1


async def test_cancel_and_finish_have_one_winner(tmp_path):
    node = FakeNode("n0", slots=100)
    node.default = fakenode.held()
    async with mesh(tmp_path, node) as gateway:
        winners = set()
        for index in range(30):
            video = await gateway.create()
            run = await node.run_at(index)
            watching = asyncio.ensure_future(gateway.watched(video.id))
            await asyncio.sleep(0)
            run.go.set()
            for _ in range(index):
                await asyncio.sleep(0.0005)
            answered = await gateway.core.videos.cancel(ME, video.id)
            events = await watching
            record = await gateway.core.videos.get(ME, video.id)
            assert answered.status == record.status
            terminal = {COMPLETED: "completed", CANCELLED: "cancelled"}[record.status]
            assert kinds(events)[-1] == terminal
            assert kinds(events).count("completed") + kinds(events).count("cancelled") == 1
            winners.add(terminal)
        assert winners == {"completed", "cancelled"}
        assert gateway.metric("jobs_live") == 0


async def test_delete_while_running_stops_and_forgets(tmp_path):
    node = FakeNode("n0")
    node.default = fakenode.held()
    async with mesh(tmp_path, node) as gateway:
        video = await gateway.create()
        await node.run_at(0)
        watching = asyncio.ensure_future(gateway.watched(video.id))
        await asyncio.sleep(0)
        await gateway.core.videos.delete(ME, video.id)
        assert kinds(await watching)[-1] == "cancelled"
        await node.until(lambda: node.cancels)
        with pytest.raises(errors.VideoNotFound):
            await gateway.core.videos.get(ME, video.id)
        with pytest.raises(errors.VideoNotFound):
            await gateway.core.videos.delete(ME, video.id)


# --- clients that leave ---


async def test_a_streamed_video_is_cancelled_after_its_client_left(tmp_path):
    node = FakeNode("n0")
    node.default = fakenode.held()
    async with mesh(tmp_path, node, runs={"client_grace_s": 0.2}) as gateway:
        video = await gateway.create(streamed=True)
        events = gateway.core.videos.watch(ME, video.id, after_seq=0)
        await anext(events)
        await node.run_at(0)
        await events.aclose()
        await node.until(lambda: node.cancels)
        assert node.cancels[0].reason == "disconnected"
        events = await gateway.watched(video.id)
        assert events[-1].cancelled.reason == "disconnected"


async def test_a_client_that_comes_back_in_time_keeps_its_video(tmp_path):
    node = FakeNode("n0")
    node.default = fakenode.held()
    async with mesh(tmp_path, node, runs={"client_grace_s": 0.5}) as gateway:
        video = await gateway.create(streamed=True)
        events = gateway.core.videos.watch(ME, video.id, after_seq=0)
        await anext(events)
        run = await node.run_at(0)
        await events.aclose()
        again = asyncio.ensure_future(gateway.watched(video.id))
        await asyncio.sleep(0.7)
        run.go.set()
        assert kinds(await again)[-1] == "completed"


async def test_a_durable_video_runs_on(tmp_path):
    node = FakeNode("n0")
    node.default = fakenode.held()
    async with mesh(tmp_path, node, runs={"client_grace_s": 0.1}) as gateway:
        video = await gateway.create(streamed=True, durable=True)
        assert not video.durable
        run = await node.run_at(0)
        await asyncio.sleep(0.3)
        run.go.set()
        assert kinds(await gateway.watched(video.id))[-1] == "completed"


# --- shutdown ---


async def test_drain_refuses_new_jobs_and_waits_for_running_ones(tmp_path):
    node = FakeNode("n0")
    node.default = fakenode.held()
    async with mesh(tmp_path, node) as gateway:
        video = await gateway.create()
        run = await node.run_at(0)
        draining = asyncio.ensure_future(gateway.core.lifetimes.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(errors.Unavailable):
            await gateway.create()
        assert gateway.core.videos.ready() == (False, "shutting down")
        run.go.set()
        await draining
        assert (await gateway.core.videos.get(ME, video.id)).status == COMPLETED


async def test_what_outlasts_the_drain_is_failed_and_stopped(tmp_path):
    node = FakeNode("n0")
    node.default = fakenode.held()
    async with mesh(tmp_path, node) as gateway:
        video = await gateway.create()
        await node.run_at(0)
        await gateway.core.lifetimes.drain(0.1)
        events = await gateway.watched(video.id)
        assert events[-1].failed.code == "gateway_stopped"
        assert events[-1].failed.retryable
        assert len(node.cancels) == 1
