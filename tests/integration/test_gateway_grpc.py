"""The gRPC edge over a real server and the fake application."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from reelmesh.v1 import fleet_service_pb2, video_pb2, video_service_pb2

from gateway import errors
from gateway.edge.config import EdgeConfig
from tests.support.edges import serve_edges


@pytest.fixture
async def edges(tmp_path):
    config = EdgeConfig(health_poll_s=0.02)
    async with serve_edges(tmp_path, config=config) as found, asyncio.timeout(30):
        yield found


def spec(**fields):
    return video_pb2.VideoSpec(**{"prompt": "a red ball", "num_frames": 9, **fields})


async def create(edges, **options):
    request = video_service_pb2.CreateVideoRequest(
        spec=spec(), options=video_service_pb2.CreateOptions(**options)
    )
    response = await edges.videos.CreateVideo(request, metadata=edges.metadata(), timeout=10)
    return response.video


def details_of(error, cls):
    for detail in rpc_status.from_call(error).details:
        message = cls()
        if detail.Unpack(message):
            return message
    return None


async def refused(call):
    with pytest.raises(aio.AioRpcError) as raised:
        await call
    return raised.value


async def until(condition):
    """Waits for what the fake tells nobody; the fixture's deadline bounds it."""
    while not condition():  # noqa: ASYNC110 - likewise
        await asyncio.sleep(0.01)


async def test_a_generated_video_streams_to_its_end(edges):
    request = video_service_pb2.GenerateVideoRequest(spec=spec())
    call = edges.videos.GenerateVideo(request, metadata=edges.metadata())
    events = [response.event async for response in call]
    assert events[0].WhichOneof("event") == "queued"
    assert events[-1].WhichOneof("event") == "completed"
    data = b"".join(event.chunk.data for event in events if event.HasField("chunk"))
    assert len(data) == events[-1].completed.size_bytes


async def test_a_video_by_itself_from_create_to_delete(edges):
    video = await create(edges)
    get = video_service_pb2.GetVideoRequest(video_id=video.id)
    found = (await edges.videos.GetVideo(get, metadata=edges.metadata())).video
    assert found.status == video_pb2.VIDEO_STATUS_COMPLETED
    listed = await edges.videos.ListVideos(
        video_service_pb2.ListVideosRequest(), metadata=edges.metadata()
    )
    assert [v.id for v in listed.videos] == [video.id]
    cancel = video_service_pb2.CancelVideoRequest(video_id=video.id)
    won = (await edges.videos.CancelVideo(cancel, metadata=edges.metadata())).video
    assert won.status == video_pb2.VIDEO_STATUS_COMPLETED
    delete = video_service_pb2.DeleteVideoRequest(video_id=video.id)
    await edges.videos.DeleteVideo(delete, metadata=edges.metadata())
    error = await refused(edges.videos.GetVideo(get, metadata=edges.metadata()))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert details_of(error, error_details_pb2.ErrorInfo).reason == "video_not_found"


async def test_a_watch_resumes(edges):
    video = await create(edges)

    async def watch(after_seq):
        request = video_service_pb2.WatchVideoRequest(video_id=video.id, after_seq=after_seq)
        call = edges.videos.WatchVideo(request, metadata=edges.metadata())
        return [response.event async for response in call]

    events = await watch(0)
    middle = events[len(events) // 2]
    resumed = await watch(middle.seq)
    expected = [event.seq for event in events if event.seq > middle.seq]
    assert [event.seq for event in resumed if event.seq] == expected


async def test_a_download_tells_size_and_digest_once_and_goes_on_from_an_offset(edges):
    video = await create(edges)

    async def download(offset):
        request = video_service_pb2.DownloadVideoRequest(video_id=video.id, offset=offset)
        call = edges.videos.DownloadVideo(request, metadata=edges.metadata())
        return [response async for response in call]

    whole = await download(0)
    data = b"".join(part.data for part in whole)
    assert [part.total_bytes for part in whole] == [10_000, 0, 0]
    assert len(whole[0].sha256) == 64
    offset = 0
    for part in whole:
        assert part.offset == offset
        offset += len(part.data)
    assert b"".join(part.data for part in await download(9_000)) == data[9_000:]
    (end,) = await download(10_000)
    assert (end.data, end.total_bytes) == (b"", 10_000)
    request = video_service_pb2.DownloadVideoRequest(video_id=video.id, offset=10_001)
    past = await refused(edges.videos.DownloadVideo(request, metadata=edges.metadata()).read())
    assert past.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_pictures_are_downloaded_by_their_variant(edges):
    video = await create(edges)

    async def download(variant):
        request = video_service_pb2.DownloadVideoRequest(video_id=video.id, variant=variant)
        call = edges.videos.DownloadVideo(request, metadata=edges.metadata())
        return [response async for response in call]

    for variant, content_type in ((0, "video/mp4"), (1, "video/mp4"), (2, "image/jpeg")):
        (first, *_rest) = await download(variant)
        assert first.content_type == content_type
    error = await refused(download(9))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "VIDEO_VARIANT_SPRITESHEET" in error.details()


async def test_an_unfinished_video_has_no_download(edges):
    edges.application.hold = True
    video = await create(edges)
    request = video_service_pb2.DownloadVideoRequest(video_id=video.id)
    error = await refused(edges.videos.DownloadVideo(request, metadata=edges.metadata()).read())
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details_of(error, error_details_pb2.ErrorInfo).reason == "not_finished"


async def test_a_key_with_another_request_already_exists(edges):
    first = await create(edges, idempotency_key="k")
    assert (await create(edges, idempotency_key="k")).id == first.id
    request = video_service_pb2.CreateVideoRequest(
        spec=spec(prompt="another"), options=video_service_pb2.CreateOptions(idempotency_key="k")
    )
    error = await refused(edges.videos.CreateVideo(request, metadata=edges.metadata()))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_a_refusal_says_when_to_come_back(edges):
    edges.application.broken = errors.ResourceExhausted("the queue is full", retry_after_s=1.5)
    request = video_service_pb2.CreateVideoRequest(spec=spec())
    error = await refused(edges.videos.CreateVideo(request, metadata=edges.metadata()))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    delay = details_of(error, error_details_pb2.RetryInfo).retry_delay
    assert (delay.seconds, delay.nanos) == (1, 500_000_000)


async def test_an_unforeseen_error_is_told_without_detail(edges):
    edges.application.broken = RuntimeError("secret /var/lib/path")
    request = video_service_pb2.GetVideoRequest(video_id="ap-x")
    error = await refused(edges.videos.GetVideo(request, metadata=edges.metadata()))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details() + str(error.trailing_metadata())
    assert details_of(error, error_details_pb2.ErrorInfo).reason == "internal"


async def test_a_cancelled_client_closes_the_handlers_iterator(edges):
    edges.application.hold = True
    video = await create(edges)
    request = video_service_pb2.WatchVideoRequest(video_id=video.id)
    call = edges.videos.WatchVideo(request, metadata=edges.metadata())
    await call.read()
    assert edges.application.watchers(video.id) == 1
    call.cancel()
    await until(lambda: edges.application.watchers(video.id) == 0)
    name = "reelmesh_gateway_requests_total"
    labels = {
        "protocol": "grpc",
        "route": "/reelmesh.v1.VideoService/WatchVideo",
        "method": "POST",
        "code": "CANCELLED",
    }
    await until(lambda: edges.registry.get_sample_value(name, labels) == 1)


async def test_a_deadline_and_a_lost_connection_close_it_too(edges):
    edges.application.hold = True
    video = await create(edges)
    request = video_service_pb2.WatchVideoRequest(video_id=video.id)
    call = edges.videos.WatchVideo(request, metadata=edges.metadata(), timeout=0.2)
    await call.read()
    await until(lambda: edges.application.watchers(video.id) == 0)
    async with aio.insecure_channel(edges.grpc_address) as channel:
        path = "/reelmesh.v1.VideoService/WatchVideo"
        raw = channel.unary_stream(path)(request.SerializeToString(), metadata=edges.metadata())
        await raw.read()
        assert edges.application.watchers(video.id) == 1
    await until(lambda: edges.application.watchers(video.id) == 0)


async def test_a_generate_that_is_given_up_cancels_its_video(edges):
    edges.application.hold = True
    request = video_service_pb2.GenerateVideoRequest(spec=spec())
    call = edges.videos.GenerateVideo(request, metadata=edges.metadata())
    video_id = (await call.read()).event.video_id
    call.cancel()
    get = video_service_pb2.GetVideoRequest(video_id=video_id)
    status = video_pb2.VIDEO_STATUS_QUEUED
    while status != video_pb2.VIDEO_STATUS_CANCELLED:
        status = (await edges.videos.GetVideo(get, metadata=edges.metadata())).video.status


async def test_the_callers_trace_goes_on(edges):
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    traceparent = ("traceparent", f"00-{trace_id}-b7ad6b7169203331-01")
    request = video_service_pb2.CreateVideoRequest(spec=spec())
    await edges.videos.CreateVideo(request, metadata=(*edges.metadata(), traceparent))
    assert trace_id in edges.application.traceparents[0]


async def test_large_chunks_pass(edges):
    edges.application.video_bytes = 3_000_000
    monkey = "gateway.fake_application.CHUNK_BYTES"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monkey, 1_000_000)
        request = video_service_pb2.GenerateVideoRequest(spec=spec())
        call = edges.videos.GenerateVideo(request, metadata=edges.metadata())
        sizes = [len(r.event.chunk.data) async for r in call if r.event.HasField("chunk")]
    assert sizes == [1_000_000] * 3


async def test_the_fleet_is_told(edges):
    regions = await edges.fleet.ListRegions(
        fleet_service_pb2.ListRegionsRequest(), metadata=edges.metadata()
    )
    assert [region.name for region in regions.regions] == ["ap"]
    models = await edges.fleet.ListModels(
        fleet_service_pb2.ListModelsRequest(), metadata=edges.metadata()
    )
    assert models.default_model == models.models[0].name == "fake-t2v"


# --- standard services ---

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_follows_readiness(edges):
    health = health_pb2_grpc.HealthStub(edges.channel)
    services = ("BatchService", "FleetService", "VideoService")
    names = ["", *(f"reelmesh.v1.{service}" for service in services)]
    for ready, expected in ((True, SERVING), (False, NOT_SERVING)):
        edges.application.readiness = (ready, "why not")
        for name in names:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == expected
        listed = await health.List(health_pb2.HealthListRequest())
        assert {n: s.status for n, s in listed.statuses.items()} == dict.fromkeys(names, expected)
    error = await refused(health.Check(health_pb2.HealthCheckRequest(service="other")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_health_watch_tells_each_change(edges):
    health = health_pb2_grpc.HealthStub(edges.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == SERVING
    edges.application.readiness = (False, "draining")
    assert (await watch.read()).status == NOT_SERVING
    edges.application.readiness = (True, "")
    assert (await watch.read()).status == SERVING
    watch.cancel()
    unknown = health.Watch(health_pb2.HealthCheckRequest(service="other"))
    assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()


async def test_reflection_lists_the_services(edges):
    stub = reflection_pb2_grpc.ServerReflectionStub(edges.channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert names == {
        "reelmesh.v1.BatchService",
        "reelmesh.v1.FleetService",
        "reelmesh.v1.VideoService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    symbol = reflection_pb2.ServerReflectionRequest(
        file_containing_symbol="reelmesh.v1.VideoService"
    )
    await call.write(symbol)
    assert (await call.read()).HasField("file_descriptor_response")
    await call.done_writing()


async def test_an_unknown_rpc_is_unimplemented(edges):
    call = edges.channel.unary_unary("/reelmesh.v1.VideoService/Nothing")
    error = await refused(call(b"", metadata=edges.metadata()))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
