"""A batch whose home region is drained or cannot serve: its items are made elsewhere."""

import asyncio

from reelmesh.v1 import batch_pb2, video_pb2

from gateway.application import Caller
from gateway.batches.application import Row, Submission
from reelkit.clock import SystemClock
from reelkit.tasks import TaskScope
from tests.support.batches import batches_over
from tests.support.fakenode import FakeNode, serve_node
from tests.support.regions import open_region

ME = Caller("acme", "me", frozenset({"video:generate", "video:read"}))


async def until(condition):
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110 - of a store
            await asyncio.sleep(0.02)


async def test_the_items_of_a_drained_region_are_made_in_another_and_kept_as_long(tmp_path):
    async with (
        serve_node(FakeNode("n-ap")) as near,
        serve_node(FakeNode("n-eu")) as far,
        open_region(tmp_path, "ap") as ap,
        open_region(tmp_path, "eu") as eu,
        TaskScope("batches") as scope,
    ):
        await ap.gateway.know(near)
        await eu.gateway.know(far)
        ap.regions.take([eu.view(), ap.view(draining=True)])
        eu.regions.take([eu.view(), ap.view(draining=True)])
        await until(lambda: asyncio.sleep(0, bool(ap.regions.others()[0].ready_workers)))
        opened = await batches_over(ap.application, scope=scope, clock=SystemClock())
        rows = [Row(spec=video_pb2.VideoSpec(prompt=f"ball {n}")) for n in range(3)]
        batch = await opened.application.submit(ME, Submission(rows=rows))

        async def ended():
            now = await opened.application.get(ME, batch.id)
            return now.status == batch_pb2.BATCH_STATUS_COMPLETED

        await until(ended)
        items, _ = await opened.application.items(ME, batch.id, from_index=0, limit=0)
        assert {item.video_id.partition("-")[0] for item in items} == {"eu"}
        assert not near.runs
        for item in items:
            video = await eu.application.get(ME, item.video_id)
            assert video.batch_id == batch.id
            assert video.expires_at.seconds >= batch.expires_at.seconds
            # And each is read by way of the batch's own region.
            found = await ap.application.download(ME, item.video_id, offset=0)
            assert b"".join([piece async for piece in found.chunks])


async def test_one_that_nobody_can_make_now_waits_and_goes_on(tmp_path):
    async with (
        serve_node(FakeNode("n-ap")) as near,
        open_region(tmp_path, "ap") as ap,
        TaskScope("batches") as scope,
    ):
        await ap.gateway.know(near)
        opened = await batches_over(
            ap.application, scope=scope, clock=SystemClock(), max_pause_s=0.2
        )
        ap.regions.take([ap.view(draining=True)])
        rows = [Row(spec=video_pb2.VideoSpec(prompt="a ball"))]
        batch = await opened.application.submit(ME, Submission(rows=rows))
        await asyncio.sleep(0.5)
        assert (await opened.application.get(ME, batch.id)).status == batch_pb2.BATCH_STATUS_QUEUED
        ap.regions.take([ap.view()])

        async def ended():
            now = await opened.application.get(ME, batch.id)
            return now.status == batch_pb2.BATCH_STATUS_COMPLETED

        await until(ended)
