"""What an ended job leaves in memory: nothing that must wait for the garbage collector."""

import asyncio
import contextlib
import gc
import weakref

import pytest
from opentelemetry.sdk.trace import TracerProvider

from tests.support import fakenode
from tests.support.fakenode import FakeNode, serve_node
from tests.support.gateways import ME, open_gateway


@pytest.fixture(autouse=True)
def _no_collections():
    """Reference counts alone free memory here."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@contextlib.asynccontextmanager
async def mesh(tmp_path, node):
    async with serve_node(node), open_gateway(tmp_path) as gateway:
        await gateway.know(node)
        yield gateway


def log_of(gateway, video_id):
    """A weak reference to a job's log, and so to all that refers to it."""
    return weakref.ref(gateway.core.lifetimes.get(video_id).log)


async def test_a_deleted_job_that_waited_is_freed_at_once(tmp_path):
    node = FakeNode("n0")
    node.default = fakenode.held()
    async with mesh(tmp_path, node) as gateway:
        videos = [await gateway.create() for _ in range(3)]
        await node.run_at(0)
        waiting = [log_of(gateway, video.id) for video in videos[1:]]
        for video in videos[1:]:
            await gateway.videos.delete(ME, video.id)
        await gateway.until(lambda: not any(log() for log in waiting))
        assert gateway.core.lifetimes.held == 1


async def test_a_deleted_job_that_ran_is_freed_at_once(tmp_path):
    node = FakeNode("n0")
    node.default = fakenode.held(before=1)
    async with mesh(tmp_path, node) as gateway:
        video = await gateway.create()
        await node.run_at(0)
        log = log_of(gateway, video.id)
        await gateway.until(lambda: log().spooled.size)
        await gateway.videos.delete(ME, video.id)
        await gateway.until(lambda: log() is None)


async def test_a_deleted_job_that_was_watched_is_freed_when_its_reader_is_done(tmp_path):
    node = FakeNode("n0")
    node.default = fakenode.held(before=1)
    async with mesh(tmp_path, node) as gateway:
        video = await gateway.create(streamed=True)
        watching = asyncio.ensure_future(gateway.watched(video.id))
        await node.run_at(0)
        log = log_of(gateway, video.id)
        await gateway.until(lambda: log().readers)
        await gateway.videos.delete(ME, video.id)
        await watching
        await gateway.until(lambda: log() is None)


async def test_a_completed_job_is_freed_when_it_is_deleted(tmp_path):
    async with mesh(tmp_path, FakeNode("n0")) as gateway:
        video = await gateway.create()
        log = log_of(gateway, video.id)
        await gateway.watched(video.id)
        await gateway.until(lambda: not gateway.core.lifetimes.live)
        await gateway.videos.delete(ME, video.id)
        await gateway.until(lambda: log() is None)


async def test_a_job_does_not_hold_the_span_of_its_request(tmp_path):
    node = FakeNode("n0")
    node.default = fakenode.held()
    tracer = TracerProvider().get_tracer("test")
    async with mesh(tmp_path, node) as gateway:
        with tracer.start_as_current_span("request") as span:
            await gateway.create()
        await node.run_at(0)
        request = weakref.ref(span)
        del span
        await gateway.until(lambda: request() is None)
        assert gateway.core.lifetimes.live == 1
