"""What clients see of the cache over HTTP and gRPC."""

import asyncio

import openai
import pytest
from reelmesh.v1 import video_pb2, video_service_pb2

from tests.support.edges import serve_edges
from tests.support.fakenode import VIDEO, FakeNode, held, serve_node
from tests.support.gateways import data_of, kinds, open_gateway

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")


@pytest.fixture
async def node():
    async with serve_node(FakeNode("n0")) as found:
        yield found


@pytest.fixture
async def edges(tmp_path, node):
    async with open_gateway(tmp_path, cache={"enabled": True}) as gateway:
        await gateway.know(node)
        async with (
            serve_edges(tmp_path, application=gateway.core.videos) as found,
            asyncio.timeout(30),
        ):
            yield found


async def create(edges, **headers):
    body = {"prompt": "a ball"}
    async with edges.http.post(
        "/v1/videos", json=body, headers={**edges.bearer(), **headers}
    ) as answer:
        assert answer.status == 200
        return await answer.json(), answer.headers["Cache-Status"]


async def ended(edges, video_id):
    while True:
        path = f"/v1/videos/{video_id}"
        async with edges.http.get(path, headers=edges.bearer()) as answer:
            video = await answer.json()
            if video["status"] in ("completed", "failed"):
                return video, answer.headers["Cache-Status"]
        await asyncio.sleep(0.01)


async def test_cache_status_says_how_a_video_came_to_be(edges, node):
    node.default = held()
    first, said = await create(edges)
    assert (first["cache"], said) == ("miss", "reelmesh; fwd=miss")
    run = await node.run_at(0)
    second, said = await create(edges)
    assert (second["cache"], said) == ("shared", "reelmesh; fwd=miss; collapsed")
    run.go.set()
    assert (await ended(edges, first["id"]))[1] == "reelmesh; fwd=miss; stored"
    assert (await ended(edges, second["id"]))[1] == "reelmesh; fwd=miss; collapsed"
    third, said = await create(edges)
    assert (third["cache"], third["status"], said) == ("hit", "completed", "reelmesh; hit")
    path = f"/v1/videos/{third['id']}/content"
    for method in (edges.http.get, edges.http.head):
        async with method(path, headers=edges.bearer()) as answer:
            assert answer.headers["Cache-Status"] == "reelmesh; hit"


@pytest.mark.parametrize("said", ["no-cache", "max-age=0, No-Cache", "no-cache=Set-Cookie"])
async def test_no_cache_of_a_request_is_heard(edges, node, said):
    first, _ = await create(edges)
    await ended(edges, first["id"])
    second, status = await create(edges, **{"Cache-Control": said})
    assert (second["cache"], status) == ("refreshed", "reelmesh; fwd=request")
    _, status = await ended(edges, second["id"])
    assert status == "reelmesh; fwd=request; stored"
    assert len(node.runs) == 2


async def test_other_words_of_cache_control_change_nothing(edges):
    first, _ = await create(edges)
    await ended(edges, first["id"])
    assert (await create(edges, **{"Cache-Control": "no-transform"}))[1] == "reelmesh; hit"


async def test_openais_client_polls_a_hit_that_is_complete_already(edges):
    async with openai.AsyncOpenAI(
        api_key=edges.issuer.issue(), base_url=f"{edges.http_url}/v1"
    ) as client:
        for _ in range(2):
            video = await client.videos.create_and_poll(prompt="a panda", poll_interval_ms=20)
            assert video.status == "completed"
            assert (await client.videos.download_content(video.id)).content == VIDEO
        assert video.cache == "hit"


async def test_a_stream_of_a_hit_is_whole(edges):
    for expected in (video_pb2.CACHE_STATUS_MISS, video_pb2.CACHE_STATUS_HIT):
        request = video_service_pb2.GenerateVideoRequest(spec=video_pb2.VideoSpec(prompt="a ball"))
        call = edges.videos.GenerateVideo(request, metadata=edges.metadata())
        events = [response.event async for response in call]
        assert (kinds(events)[0], kinds(events)[-1]) == ("queued", "completed")
        assert data_of(events) == VIDEO
        assert events[-1].completed.cache == expected
    options = video_service_pb2.CreateOptions(no_cache=True)
    created = await edges.videos.CreateVideo(
        video_service_pb2.CreateVideoRequest(
            spec=video_pb2.VideoSpec(prompt="a ball"), options=options
        ),
        metadata=edges.metadata(),
    )
    assert created.video.cache == video_pb2.CACHE_STATUS_REFRESHED
