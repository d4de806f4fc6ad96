import pytest

from reelmesh.v1 import video_pb2, video_service_pb2
from tests.support.edges import serve_edges


@pytest.fixture
async def edges(tmp_path):
    async with serve_edges(tmp_path) as found:
        yield found


async def test_a_generated_video_streams_to_its_end(edges):
    request = video_service_pb2.GenerateVideoRequest(spec=video_pb2.VideoSpec(prompt="a ball"))
    call = edges.videos.GenerateVideo(request, metadata=edges.metadata())
    events = [response.event async for response in call]
    assert events[0].WhichOneof("event") == "queued"
    assert events[-1].WhichOneof("event") == "completed"
    data = b"".join(event.chunk.data for event in events if event.HasField("chunk"))
    assert len(data) == events[-1].completed.size_bytes
