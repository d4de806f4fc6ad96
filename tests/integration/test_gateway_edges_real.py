"""Both edges over the gateway's own application and a fake node: all of it but the wiring."""

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
    async with open_gateway(tmp_path, runs={"client_grace_s": 0.1}) as gateway:
        await gateway.know(node)
        async with (
            serve_edges(tmp_path, application=gateway.core.videos) as found,
            asyncio.timeout(30),
        ):
            yield found


@pytest.fixture
async def client(edges):
    base_url = f"{edges.http_url}/v1"
    async with openai.AsyncOpenAI(api_key=edges.issuer.issue(), base_url=base_url) as found:
        yield found


async def test_openais_client_from_create_to_delete(client):
    video = await client.videos.create_and_poll(
        prompt="a panda dances", seconds="4", poll_interval_ms=20
    )
    assert (video.status, video.seconds, video.num_frames) == ("completed", "4", 33)
    content = await client.videos.download_content(video.id)
    assert content.content == VIDEO
    assert [v.id async for v in client.videos.list()] == [video.id]
    await client.videos.delete(video.id)
    with pytest.raises(openai.NotFoundError):
        await client.videos.retrieve(video.id)


async def test_a_range_is_read_from_the_artifact(edges, client):
    video = await client.videos.create_and_poll(prompt="a panda", poll_interval_ms=20)
    headers = {**edges.bearer(), "Range": "bytes=1000-4999"}
    async with edges.http.get(f"/v1/videos/{video.id}/content", headers=headers) as answer:
        assert (answer.status, await answer.read()) == (206, VIDEO[1_000:5_000])


async def test_a_generated_video_streams_to_its_end(edges):
    request = video_service_pb2.GenerateVideoRequest(spec=video_pb2.VideoSpec(prompt="a ball"))
    call = edges.videos.GenerateVideo(request, metadata=edges.metadata())
    events = [response.event async for response in call]
    assert (kinds(events)[0], kinds(events)[-1]) == ("queued", "completed")
    assert data_of(events) == VIDEO


async def test_who_leaves_a_stream_frees_the_node(edges, node):
    node.default = held(before=1)
    request = video_service_pb2.GenerateVideoRequest(spec=video_pb2.VideoSpec(prompt="a ball"))
    call = edges.videos.GenerateVideo(request, metadata=edges.metadata())
    await call.read()
    await node.until(lambda: node.runs)
    call.cancel()
    await node.until(lambda: node.cancels)
    await node.runs[0].ended.wait()


async def test_events_over_http_resume_inside_a_running_video(edges, node):
    node.default = held(before=1)
    body = {"prompt": "a ball"}
    async with edges.http.post("/v1/videos", json=body, headers=edges.bearer()) as answer:
        path = f"/v1/videos/{(await answer.json())['id']}/events?chunks=1"
    last = ""
    async with edges.http.get(path, headers=edges.bearer()) as answer:
        while not (line := (await answer.content.readline()).decode()).startswith("event: chunk"):
            last = line.removeprefix("id: ").strip() if line.startswith("id: ") else last
    node.runs[0].go.set()
    headers = {**edges.bearer(), "Last-Event-ID": last}
    async with edges.http.get(path, headers=headers) as answer:
        text = await answer.text()
    found = [line.removeprefix("event: ") for line in text.split("\n") if line.startswith("event:")]
    assert found[0] == "queued"
    assert set(found[1:-1]) == {"chunk"}
    assert found[-1] == "completed"
