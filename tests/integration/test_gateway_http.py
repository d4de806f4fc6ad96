import pytest

from tests.support.edges import serve_edges


@pytest.fixture
async def edges(tmp_path):
    async with serve_edges(tmp_path) as found:
        yield found


async def test_a_video_is_created_read_downloaded_and_deleted(edges):
    async with edges.http.post(
        "/v1/videos",
        json={"prompt": "a red ball", "num_frames": 9, "seed": 7},
        headers=edges.bearer(),
    ) as answer:
        created = await answer.json()
        assert answer.status == 200, created
    path = f"/v1/videos/{created['id']}"
    assert answer.headers["Location"] == path
    async with edges.http.get(path, headers=edges.bearer()) as answer:
        video = await answer.json()
    assert video["status"] == "completed"
    async with edges.http.get(f"{path}/content", headers=edges.bearer()) as answer:
        data = await answer.read()
    assert len(data) == video["result"]["size_bytes"]
    async with edges.http.delete(path, headers=edges.bearer()) as answer:
        assert await answer.json() == {
            "id": created["id"],
            "object": "video.deleted",
            "deleted": True,
        }
    async with edges.http.get(path, headers=edges.bearer()) as answer:
        assert answer.status == 404
