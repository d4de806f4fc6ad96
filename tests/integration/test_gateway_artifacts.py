"""Finished videos: committed once, swept in time, collected when nobody refers to them."""

import asyncio

import pytest
from reelmesh.v1 import video_pb2, video_service_pb2

from gateway import errors
from gateway.output import local_file
from gateway.output.artifacts import ArtifactMissing, open_store
from reelkit.settings import ConfigError
from tests.support import fakenode
from tests.support.artifacts import Slow, listed
from tests.support.fakenode import VIDEO, FakeNode, serve_node
from tests.support.gateways import ME, data_of, kinds, open_gateway


async def test_a_deleted_videos_artifact_goes_at_once(tmp_path):
    node, artifacts = FakeNode("n0"), open_store("memory:///")
    async with serve_node(node), open_gateway(tmp_path, artifacts=artifacts) as gateway:
        await gateway.know(node)
        video = await gateway.create()
        await gateway.watched(video.id)
        assert len(await listed(artifacts)) == 1
        await gateway.core.videos.delete(ME, video.id)
        async with asyncio.timeout(5):
            while await listed(artifacts):  # noqa: ASYNC110 - told to nobody
                await asyncio.sleep(0.01)


async def test_nothing_is_said_to_be_completed_before_it_is_written(tmp_path):
    node, slow = FakeNode("n0"), Slow(open_store("memory:///"))
    async with serve_node(node), open_gateway(tmp_path, artifacts=slow) as gateway:
        await gateway.know(node)
        video = await gateway.create()
        events = gateway.core.videos.watch(ME, video.id, after_seq=0)
        seen = []
        async with asyncio.timeout(5):
            while sum(len(e.chunk.data) for e in seen) < len(VIDEO):
                seen.append(await anext(events))
            await slow.writing.wait()
        record = await gateway.core.videos.get(ME, video.id)
        assert record.status == video_pb2.VIDEO_STATUS_RUNNING
        assert not node.releases
        with pytest.raises(errors.NotFinished):
            await gateway.core.videos.download(ME, video.id, offset=0)
        slow.go.set()
        seen.extend([event async for event in events])
        assert kinds(seen)[-1] == "completed"


async def test_a_cancel_while_it_is_written_wins_and_leaves_no_artifact(tmp_path):
    node, slow = FakeNode("n0"), Slow(open_store("memory:///"))
    async with serve_node(node), open_gateway(tmp_path, artifacts=slow) as gateway:
        await gateway.know(node)
        video = await gateway.create()
        watching = asyncio.ensure_future(gateway.watched(video.id))
        await slow.writing.wait()
        assert (
            await gateway.core.videos.cancel(ME, video.id)
        ).status == video_pb2.VIDEO_STATUS_CANCELLED
        assert kinds(await watching)[-1] == "cancelled"
        slow.go.set()
        await node.until(lambda: node.releases)
        await gateway.until(lambda: gateway.metric("jobs_live") == 0)
        async with asyncio.timeout(5):
            while await listed(slow):  # noqa: ASYNC110 - told to nobody
                await asyncio.sleep(0.01)


async def test_a_store_that_stumbles_is_tried_again(tmp_path):
    node, slow = FakeNode("n0"), Slow(open_store("memory:///"), failures=1)
    slow.go.set()
    async with serve_node(node), open_gateway(tmp_path, artifacts=slow) as gateway:
        await gateway.know(node)
        video = await gateway.create()
        assert kinds(await gateway.watched(video.id))[-1] == "completed"


async def test_a_store_that_is_down_fails_the_job_as_retryable(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.core.commit._WRITE_DELAYS_S", (0.01, 0.01))
    node, slow = FakeNode("n0"), Slow(open_store("memory:///"), failures=99)
    slow.go.set()
    async with serve_node(node), open_gateway(tmp_path, artifacts=slow) as gateway:
        await gateway.know(node)
        video = await gateway.create()
        events = await gateway.watched(video.id)
        assert (events[-1].failed.code, events[-1].failed.retryable) == ("artifact_store", True)
        assert len(node.runs) == 1


async def test_an_artifact_that_is_gone_is_not_found(tmp_path):
    node, artifacts = FakeNode("n0"), open_store("memory:///")
    opened = open_gateway(tmp_path, artifacts=artifacts, runs={"linger_s": 0})
    async with serve_node(node), opened as gateway:
        await gateway.know(node)
        video = await gateway.create()
        await gateway.watched(video.id)
        await artifacts.delete((await listed(artifacts))[0].key)
        with pytest.raises(errors.VideoNotFound):
            await gateway.watched(video.id)
        download = await gateway.core.videos.download(ME, video.id, offset=0)
        with pytest.raises(errors.VideoNotFound):
            await anext(download.chunks)


def damage(tmp_path):
    """One bit of the only video in the gateway's folder is another."""
    (path,) = (tmp_path / "gateway" / "artifacts" / "videos").glob("*/*.mp4")
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)


async def test_a_damaged_video_is_never_sent_for_the_whole(tmp_path):
    node = FakeNode("n0")
    async with serve_node(node), open_gateway(tmp_path, runs={"linger_s": 0}) as gateway:
        await gateway.know(node)
        video = await gateway.create()
        assert data_of(await gateway.watched(video.id)) == VIDEO
        opened = await gateway.videos.download(ME, video.id, offset=0, as_file=True)
        damage(tmp_path)
        opened.file.close()
        # The kernel would send it unseen: it is looked at before.
        with pytest.raises(errors.VideoDamaged):
            await gateway.videos.download(ME, video.id, offset=0, as_file=True)
        download = await gateway.videos.download(ME, video.id, offset=0)
        with pytest.raises(errors.VideoDamaged):
            await anext(download.chunks)
        with pytest.raises(errors.VideoDamaged):
            await gateway.watched(video.id)
        thumbnail = video_service_pb2.VIDEO_VARIANT_THUMBNAIL
        with pytest.raises(errors.VideoDamaged):
            await gateway.videos.download(ME, video.id, offset=0, variant=thumbnail)
        assert gateway.metric("artifacts_damaged_total") == 4


async def test_a_file_is_checked_once_and_again_when_it_was_replaced(tmp_path, monkeypatch):
    hashed = []
    whole = local_file.sha256_of
    monkeypatch.setattr(local_file, "sha256_of", lambda fd: hashed.append(fd) or whole(fd))
    node = FakeNode("n0")
    async with serve_node(node), open_gateway(tmp_path) as gateway:
        await gateway.know(node)
        video = await gateway.create()
        await gateway.watched(video.id)
        for _ in range(3):
            download = await gateway.videos.download(ME, video.id, offset=0, as_file=True)
            download.file.close()
        assert len(hashed) == 1
        damage(tmp_path)
        with pytest.raises(errors.VideoDamaged):
            await gateway.videos.download(ME, video.id, offset=0, as_file=True)
        assert len(hashed) == 2


async def test_a_large_video_passes_the_disk_once_and_comes_back_whole(tmp_path):
    node = FakeNode("n0")
    big = bytes(range(256)) * 4096 * 5
    node.default = fakenode.finish(big, piece=256 * 1024)
    async with serve_node(node), open_gateway(tmp_path) as gateway:
        await gateway.know(node)
        video = await gateway.create()
        assert data_of(await gateway.watched(video.id)) == big
        download = await gateway.core.videos.download(ME, video.id, offset=3)
        assert b"".join([piece async for piece in download.chunks]) == big[3:]
        assert gateway.metric("spool_bytes") == 0
        assert list((tmp_path / "gateway" / "spool").iterdir()) == []


async def test_a_store_that_cannot_be_written_stops_the_start(tmp_path):
    class Broken(Slow):
        async def verify(self, _gateway_id):
            raise ArtifactMissing("scripted")

    with pytest.raises(ConfigError, match=r"artifacts\.url"):
        async with open_gateway(tmp_path, artifacts=Broken(None)):
            pass
