"""What every VideoApplication promises of finished bytes: the fake and the real one alike.

See tests/contract/test_video_application.py for the rest of the port.
"""

import asyncio
import hashlib
import socket

import pytest
from reelmesh.v1 import video_pb2, video_service_pb2

from gateway import errors
from gateway.application import Caller
from tests.support.gateways import data_of
from tests.support.video_applications import HARNESSES

SCOPES = frozenset({"video:generate", "video:read"})
ME = Caller("acme", "me", SCOPES)
STRANGER = Caller("other", "me", SCOPES)
DEADLINE_S = 20
VIDEO = video_service_pb2.VIDEO_VARIANT_VIDEO
PICTURES = (
    video_service_pb2.VIDEO_VARIANT_THUMBNAIL,
    video_service_pb2.VIDEO_VARIANT_SPRITESHEET,
)


@pytest.fixture(params=HARNESSES)
async def harness(request, tmp_path):
    async with request.param(tmp_path) as found, asyncio.timeout(DEADLINE_S):
        yield found


async def create(app):
    spec = video_pb2.VideoSpec(prompt="a red ball", num_frames=9, steps=2)
    return await app.create(ME, spec, video_service_pb2.CreateOptions(), streamed=False)


async def finished(harness):
    """A video that is complete, and its events."""
    app = harness.application
    video = await create(app)
    await harness.finish(video.id)
    return video, [event async for event in app.watch(ME, video.id, after_seq=0)]


async def test_a_download_is_the_bytes_of_the_chunks(harness):
    video, events = await finished(harness)
    download = await harness.application.download(ME, video.id, offset=0)
    data = b"".join([piece async for piece in download.chunks])
    assert data == data_of(events)
    assert (download.total_bytes, download.sha256) == (
        len(data),
        hashlib.sha256(data).hexdigest(),
    )


async def test_a_download_goes_on_from_an_offset(harness):
    video, events = await finished(harness)
    data = data_of(events)
    for offset in (1, len(data) - 1, len(data)):
        download = await harness.application.download(ME, video.id, offset=offset)
        assert b"".join([piece async for piece in download.chunks]) == data[offset:]
        assert download.total_bytes == len(data)


async def test_a_download_past_the_end_is_refused(harness):
    video, events = await finished(harness)
    with pytest.raises(errors.InvalidRequest) as raised:
        await harness.application.download(ME, video.id, offset=len(data_of(events)) + 1)
    assert raised.value.violations[0].field == "offset"


async def test_an_unfinished_video_has_no_bytes_to_download(harness):
    app = harness.application
    video = await create(app)
    for variant in (VIDEO, *PICTURES):
        with pytest.raises(errors.NotFinished):
            await app.download(ME, video.id, offset=0, variant=variant)


async def test_a_download_is_a_file_where_that_is_asked_for(harness):
    video, events = await finished(harness)
    data = data_of(events)
    plain = await harness.application.download(ME, video.id, offset=0)
    assert plain.file is None
    download = await harness.application.download(ME, video.id, offset=0, as_file=True)
    file = download.file
    assert (file.size, download.content_type) == (len(data), "video/mp4")
    assert await file.read(0, len(data) + 1) == data
    assert await file.read(len(data), 10) == b""
    assert b"".join([piece async for piece in download.chunks]) == data
    file.close()
    file.close()


async def test_an_open_file_outlives_its_video_and_is_sent_to_a_socket(harness):
    video, events = await finished(harness)
    data = data_of(events)
    download = await harness.application.download(ME, video.id, offset=0, as_file=True)
    await harness.application.delete(ME, video.id)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        attached = download.file.attach(ours.fileno())
        assert attached != ours.fileno()
        assert await download.file.send(10, len(data)) == len(data) - 10
        assert await download.file.send(len(data), 1) == 0
        download.file.close()
        ours.close()
        assert theirs.makefile("rb").read() == data[10:]


@pytest.mark.parametrize("variant", PICTURES)
async def test_a_picture_of_a_video_is_a_jpeg_and_stays_the_same(harness, variant):
    video, _events = await finished(harness)
    app = harness.application
    found = []
    for _ in range(2):
        # A picture is no file to be sent, whoever asks.
        download = await app.download(ME, video.id, offset=0, variant=variant, as_file=True)
        assert (download.content_type, download.file) == ("image/jpeg", None)
        picture = b"".join([piece async for piece in download.chunks])
        assert (download.total_bytes, download.sha256) == (
            len(picture),
            hashlib.sha256(picture).hexdigest(),
        )
        found.append(picture)
    assert found[0] == found[1]
    assert found[0].startswith(b"\xff\xd8\xff")
    part = await app.download(ME, video.id, offset=5, variant=variant)
    assert b"".join([piece async for piece in part.chunks]) == found[0][5:]
    with pytest.raises(errors.InvalidRequest):
        await app.download(ME, video.id, offset=len(found[0]) + 1, variant=variant)
    with pytest.raises(errors.VideoNotFound):
        await app.download(STRANGER, video.id, offset=0, variant=variant)
    await app.delete(ME, video.id)
    with pytest.raises(errors.VideoNotFound):
        await app.download(ME, video.id, offset=0, variant=variant)


async def test_where_the_store_gives_no_links_that_is_said(harness):
    video, _events = await finished(harness)
    with pytest.raises(errors.InvalidRequest) as raised:
        await harness.application.link(ME, video.id)
    assert raised.value.violations[0].field == "link"
    with pytest.raises(errors.VideoNotFound):
        await harness.application.link(STRANGER, video.id)
    unfinished = await create(harness.application)
    with pytest.raises(errors.NotFinished):
        await harness.application.link(ME, unfinished.id)


async def test_a_variant_that_there_is_not_is_refused(harness):
    video, _events = await finished(harness)
    with pytest.raises(errors.InvalidRequest) as raised:
        await harness.application.download(ME, video.id, offset=0, variant=99)
    assert raised.value.violations[0].field == "variant"
