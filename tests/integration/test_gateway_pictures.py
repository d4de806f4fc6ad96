"""Pictures of videos: what they show, what bounds their drawing, and that they are deleted."""

import asyncio
import contextlib
import io
import subprocess
import sys
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reelmesh.v1 import video_pb2, video_service_pb2

from gateway import errors
from gateway.output import pictures
from gateway.output.artifacts import ArtifactError, open_store
from gateway.output.picture_child import BadVideo, chosen, draw
from reelkit.clock import SystemClock
from tests.support import fakenode
from tests.support.artifacts import listed
from tests.support.fakenode import FakeNode, serve_node
from tests.support.gateways import ME, kinds, open_gateway
from tests.support.mp4s import graded_mp4, shade_at, shade_of
from tests.support.s3 import BUCKET

THUMBNAIL = video_service_pb2.VIDEO_VARIANT_THUMBNAIL
SPRITESHEET = video_service_pb2.VIDEO_VARIANT_SPRITESHEET
FRAMES = 33


def drawn(kind, data, frames=FRAMES):
    return Image.open(io.BytesIO(draw(io.BytesIO(data), kind, frames)))


# --- what they show ---


@given(st.integers(1, 10_000), st.integers(1, 64))
def test_frames_are_chosen_in_order_each_once_and_from_end_to_end(num_frames, cells):
    found = chosen(num_frames, cells)
    assert len(found) == min(num_frames, cells)
    assert list(found) == sorted(set(found))
    assert 0 <= found[0] <= found[-1] < num_frames
    if cells > 1:
        assert (found[0], found[-1]) == (0, num_frames - 1)


def test_a_thumbnail_is_the_frame_in_the_middle():
    picture = drawn("thumbnail", graded_mp4(FRAMES))
    assert (picture.format, picture.size) == ("JPEG", (128, 96))
    assert abs(shade_at(picture, 100, 80) - shade_of(FRAMES // 2, FRAMES)) < 8


def test_a_large_video_has_a_smaller_thumbnail_of_its_shape():
    assert drawn("thumbnail", graded_mp4(5, width=1280, height=704)).size == (640, 352)
    assert drawn("spritesheet", graded_mp4(5, width=704, height=1280), 5).size == (704, 640)


@pytest.mark.parametrize(("frames", "grid"), [(1, (1, 1)), (3, (3, 1)), (5, (4, 2)), (33, (4, 4))])
def test_a_sheet_shows_the_frames_in_the_order_of_reading(frames, grid):
    picture = drawn("spritesheet", graded_mp4(frames), frames)
    columns, rows = grid
    assert picture.size == (columns * 128, rows * 96)
    for cell, number in enumerate(chosen(frames, 16)):
        x, y = cell % columns * 128 + 100, cell // columns * 96 + 80
        assert abs(shade_at(picture, x, y) - shade_of(number, frames)) < 8


def test_a_video_that_is_shorter_than_was_said_has_pictures_all_the_same():
    assert drawn("thumbnail", graded_mp4(3), 400).size == (128, 96)
    assert drawn("spritesheet", graded_mp4(5), 400).size == (128, 96)


@pytest.mark.parametrize("data", [b"", b"no video", bytes(10_000), graded_mp4()[:900]])
def test_what_is_no_video_is_told_so(data):
    with pytest.raises(BadVideo):
        draw(io.BytesIO(data), "thumbnail", FRAMES)


def test_the_process_reads_a_video_and_writes_a_picture(tmp_path):
    (tmp_path / "video.mp4").write_bytes(graded_mp4())
    with (tmp_path / "video.mp4").open("rb") as video:
        command = [sys.executable, "-m", "gateway.output.picture_child", "thumbnail", "33", "10"]
        done = subprocess.run(command, stdin=video, capture_output=True, check=True)
    assert Image.open(io.BytesIO(done.stdout)).size == (128, 96)
    assert done.stderr == b""


# --- in a gateway ---


@contextlib.asynccontextmanager
async def gateway_with_a_video(tmp_path, *, data=None, artifacts=None, **changes):
    """A gateway, its store and a finished video."""
    node = FakeNode("n0")
    node.default = fakenode.finish(graded_mp4() if data is None else data)
    artifacts = artifacts or open_store(str(tmp_path / "artifacts"))
    opened = open_gateway(tmp_path, artifacts=artifacts, **changes)
    async with serve_node(node), opened as gateway, asyncio.timeout(60):
        await gateway.know(node)
        video = await gateway.create(num_frames=FRAMES)
        assert kinds(await gateway.watched(video.id))[-1] == "completed"
        yield gateway, artifacts, video


async def picture_of(gateway, video, variant=THUMBNAIL):
    download = await gateway.videos.download(ME, video.id, offset=0, variant=variant)
    return b"".join([piece async for piece in download.chunks])


async def until_empty(artifacts):
    async with asyncio.timeout(10):
        while await listed(artifacts):  # noqa: ASYNC110 - told to nobody
            await asyncio.sleep(0.01)


@pytest.fixture(params=["folder", "memory", "s3"])
def artifacts(request, tmp_path):
    if request.param == "s3":
        request.getfixturevalue("s3_access")
        return open_store(f"s3://{BUCKET}/pictures/{uuid.uuid4().hex}")
    return open_store(str(tmp_path / "a") if request.param == "folder" else "memory:///")


async def test_pictures_are_kept_beside_the_video_and_go_with_it(tmp_path, artifacts):
    async with gateway_with_a_video(tmp_path, artifacts=artifacts) as (gateway, _store, video):
        thumbnail = await picture_of(gateway, video)
        sheet = await picture_of(gateway, video, SPRITESHEET)
        assert Image.open(io.BytesIO(thumbnail)).size == (128, 96)
        assert Image.open(io.BytesIO(sheet)).size == (4 * 128, 4 * 96)
        kept = await listed(artifacts)
        assert {a.video_id for a in kept} == {video.id}
        endings = sorted(a.key.partition(".")[2] for a in kept)
        assert endings == ["mp4", "spritesheet.jpg", "thumbnail.jpg"]
        await gateway.videos.delete(ME, video.id)
        await until_empty(artifacts)


async def test_a_picture_is_drawn_once_however_many_ask(tmp_path, monkeypatch):
    drawings = []
    draw_whole = pictures._drawn_by_child

    def counted(*args):
        drawings.append(args[1])
        return draw_whole(*args)

    monkeypatch.setattr(pictures, "_drawn_by_child", counted)
    async with gateway_with_a_video(tmp_path) as (gateway, _store, video):
        found = await asyncio.gather(*(picture_of(gateway, video) for _ in range(8)))
        assert len(set(found)) == 1
        assert await picture_of(gateway, video) == found[0]
        assert drawings == ["thumbnail"]


async def test_who_leaves_does_not_stop_it_for_the_others(tmp_path):
    async with gateway_with_a_video(tmp_path) as (gateway, _store, video):
        leaves = asyncio.ensure_future(picture_of(gateway, video))
        stays = asyncio.ensure_future(picture_of(gateway, video))
        await asyncio.sleep(0)
        leaves.cancel()
        assert await stays
        assert leaves.cancelled()


async def test_a_video_that_is_deleted_while_it_is_drawn_leaves_no_picture(tmp_path, monkeypatch):
    async with gateway_with_a_video(tmp_path) as (gateway, artifacts, video):
        loop = asyncio.get_running_loop()

        def deleting(*args):
            asyncio.run_coroutine_threadsafe(gateway.videos.delete(ME, video.id), loop).result()
            return b"\xff\xd8\xff"

        monkeypatch.setattr(pictures, "_drawn_by_child", deleting)
        with pytest.raises(errors.VideoNotFound):
            await picture_of(gateway, video)
        await until_empty(artifacts)


class WallClock(SystemClock):
    """The machine's clock, some time ahead."""

    ahead_s = 0.0

    def wall(self):
        return super().wall() + self.ahead_s


async def test_expired_pictures_are_swept_with_their_video(tmp_path, artifacts):
    clock = WallClock()
    opened = gateway_with_a_video(tmp_path, clock=clock, artifacts=artifacts)
    async with opened as (gateway, artifacts, video):
        await picture_of(gateway, video)
        await gateway.core.sweeper.sweep()
        assert len(await listed(artifacts)) == 2
        clock.ahead_s = 24 * 3600 + 60
        await gateway.core.sweeper.sweep()
        assert await listed(artifacts) == []


async def test_a_picture_that_cannot_be_kept_is_sent_all_the_same(tmp_path, monkeypatch):
    async with gateway_with_a_video(tmp_path) as (gateway, artifacts, video):

        async def refusing(_key, _data):
            raise ArtifactError("scripted")

        monkeypatch.setattr(artifacts, "put", refusing)
        assert await picture_of(gateway, video)
        assert len(await listed(artifacts)) == 1


# --- what bounds it ---


async def test_a_video_that_is_none_is_an_error_that_no_retry_helps(tmp_path):
    async with gateway_with_a_video(tmp_path, data=b"no video " * 1000) as (gateway, store, video):
        with pytest.raises(errors.PictureFailed) as raised:
            await picture_of(gateway, video)
        assert not raised.value.retryable
        # The gateway is as it was, and so is the video.
        assert await picture_of(gateway, video, video_service_pb2.VIDEO_VARIANT_VIDEO)
        assert len(await listed(store)) == 1


def in_the_child(monkeypatch, code):
    """Has another program run in place of the one that draws."""
    run = subprocess.run

    def instead(_command, **kwargs):
        return run([sys.executable, "-c", code], **kwargs)

    monkeypatch.setattr(pictures.subprocess, "run", instead)


async def test_a_drawing_that_hangs_is_killed_in_time(tmp_path, monkeypatch):
    in_the_child(monkeypatch, "import time; time.sleep(600)")
    async with gateway_with_a_video(tmp_path) as (gateway, store, video):
        gateway.videos._contents._pictures._timeout_s = 0.2
        with pytest.raises(errors.Unavailable, match="took too long"):
            await picture_of(gateway, video)
        assert len(await listed(store)) == 1


async def test_a_decoder_that_dies_takes_nobody_with_it(tmp_path, monkeypatch):
    in_the_child(monkeypatch, "import os; os.kill(os.getpid(), 11)")
    async with gateway_with_a_video(tmp_path) as (gateway, _store, video):
        with pytest.raises(errors.PictureFailed):
            await picture_of(gateway, video)
        assert (await gateway.videos.get(ME, video.id)).status == video_pb2.VIDEO_STATUS_COMPLETED


def test_what_takes_too_much_memory_or_time_ends_itself():
    code = (
        "import sys; from gateway.output import picture_child as c; c._bound(1);"
        "what = sys.argv[1];\n"
        "if what == 'memory': bytearray(3 * 1024**3)\n"
        "while True: pass"
    )
    for what, ends in (("memory", 1), ("time", -9)):
        done = subprocess.run(
            [sys.executable, "-c", code, what], capture_output=True, check=False, timeout=60
        )
        assert done.returncode == ends


async def test_more_pictures_than_may_wait_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_WAITING_PER_DRAWN", -1)
    async with gateway_with_a_video(tmp_path) as (gateway, _store, video):
        with pytest.raises(errors.ResourceExhausted) as raised:
            await picture_of(gateway, video)
        assert raised.value.retry_after_s
