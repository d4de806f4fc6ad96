"""gRPC clients that stop reading, read slowly, or have nothing to read for a while."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from reelmesh.v1 import video_pb2, video_service_pb2

from gateway.edge.config import EdgeConfig
from tests.support.edges import serve_edges

MIB = 1024 * 1024
# More than grpc takes in advance for a client that reads nothing.
PARTS = 32
WRITE_TIMEOUT_S = 0.3


@pytest.fixture
async def edges(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.fake_application.CHUNK_BYTES", MIB)
    config = EdgeConfig(write_timeout_s=WRITE_TIMEOUT_S)
    async with serve_edges(tmp_path, config=config) as found, asyncio.timeout(30):
        found.application.video_bytes = PARTS * MIB
        yield found


async def create(edges):
    spec = video_pb2.VideoSpec(prompt="a red ball", num_frames=9)
    request = video_service_pb2.CreateVideoRequest(spec=spec)
    return (await edges.videos.CreateVideo(request, metadata=edges.metadata())).video


def watch(edges, video, **fields):
    request = video_service_pb2.WatchVideoRequest(video_id=video.id, **fields)
    return edges.videos.WatchVideo(request, metadata=edges.metadata())


async def until(condition):
    """Waits for what the edge tells nobody; the fixture's deadline bounds it."""
    while not condition():  # noqa: ASYNC110 - likewise
        await asyncio.sleep(0.01)


def ended(edges, method, code):
    labels = {
        "protocol": "grpc",
        "route": f"/reelmesh.v1.VideoService/{method}",
        "method": "POST",
        "code": code,
    }
    return edges.registry.get_sample_value("reelmesh_gateway_requests_total", labels)


async def the_rest(call):
    """What is still read, and the error at the end."""
    read = []
    try:
        while (message := await call.read()) is not aio.EOF:
            read.append(message)
    except aio.AioRpcError as error:
        return read, error
    raise AssertionError("the stream ended without an error")


async def test_a_client_that_stops_reading_loses_its_stream_and_may_resume(edges):
    video = await create(edges)
    call = watch(edges, video)
    events = [(await call.read()).event]
    assert edges.application.watchers(video.id) == 1
    await until(lambda: edges.application.watchers(video.id) == 0)
    await until(lambda: ended(edges, "WatchVideo", "ABORTED") == 1)
    # What it was sent before is there when it reads on, and then the reason.
    read, error = await the_rest(call)
    events.extend(message.event for message in read)
    assert error.code() is grpc.StatusCode.ABORTED
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in rpc_status.from_call(error).details)
    assert (info.reason, info.metadata["retryable"]) == ("reader_too_slow", "true")
    again = watch(edges, video, after_seq=events[-1].seq)
    events.extend([message.event async for message in again])
    offsets = [event.chunk.offset for event in events if event.HasField("chunk")]
    assert offsets == [part * MIB for part in range(PARTS)]
    assert events[-1].HasField("completed")


async def test_a_download_that_is_not_read_ends_too(edges):
    video = await create(edges)
    request = video_service_pb2.DownloadVideoRequest(video_id=video.id)
    call = edges.videos.DownloadVideo(request, metadata=edges.metadata())
    await call.read()
    await until(lambda: ended(edges, "DownloadVideo", "ABORTED") == 1)
    _, error = await the_rest(call)
    assert error.code() is grpc.StatusCode.ABORTED


async def test_a_slow_client_that_goes_on_reading_is_served_to_the_end(edges):
    video = await create(edges)
    call = watch(edges, video)
    kinds = []
    started = asyncio.get_running_loop().time()
    while (message := await call.read()) is not aio.EOF:
        kinds.append(message.event.WhichOneof("event"))
        # Its pace, not a wait for a state: several timeouts in all.
        await asyncio.sleep(WRITE_TIMEOUT_S / 8)
    assert asyncio.get_running_loop().time() - started > 3 * WRITE_TIMEOUT_S
    assert kinds.count("chunk") == PARTS
    assert kinds[-1] == "completed"


async def test_a_stream_with_nothing_to_tell_is_no_slow_reader(edges):
    edges.application.hold = True
    edges.application.video_bytes = 100
    video = await create(edges)
    call = watch(edges, video)
    await call.read()
    # The silence is what is tested.
    await asyncio.sleep(3 * WRITE_TIMEOUT_S)
    edges.application.finish(video.id)
    last = None
    while (message := await call.read()) is not aio.EOF:
        last = message
    assert last.event.HasField("completed")
