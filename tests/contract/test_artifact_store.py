"""What every ArtifactStore promises: a local folder and a store by URL alike."""

import pytest

from gateway.output.artifacts import (
    ArtifactError,
    ArtifactMissing,
    artifact_key,
    open_store,
    pieces,
)
from gateway.output.spool_file import SpoolFile

VIDEO_ID = "ap-01jd3x8z5q0e8m2c4r6t7v9wxy"
DATA = bytes(range(256)) * 3000


@pytest.fixture(params=["folder", "file url", "memory"])
def store(request, tmp_path):
    if request.param == "folder":
        return open_store(str(tmp_path / "artifacts"))
    if request.param == "memory":
        return open_store("memory:///")
    (tmp_path / "by-url").mkdir()
    return open_store((tmp_path / "by-url").as_uri())


@pytest.fixture(params=["bytes", "file"])
def data(request, tmp_path):
    if request.param == "bytes":
        yield DATA
        return
    (tmp_path / "spool").mkdir()
    file = SpoolFile(tmp_path / "spool")
    file.write(DATA)
    yield file
    file.close()


async def test_what_is_put_is_read(store, data):
    key = artifact_key(VIDEO_ID, 1)
    await store.put(key, data)
    assert await store.read(key, 0, len(DATA)) == DATA
    assert await store.read(key, 1000, 17) == DATA[1000:1017]
    found = [piece async for piece in pieces(store, key, offset=5, total=len(DATA))]
    assert b"".join(found) == DATA[5:]
    assert max(map(len, found)) <= 256 * 1024
    listed = await store.listing()
    assert [(a.key, a.video_id) for a in listed] == [(key, VIDEO_ID)]
    assert listed[0].modified_at_s > 1e9


async def test_keys_of_one_attempt_differ(store):
    assert artifact_key(VIDEO_ID, 1) != artifact_key(VIDEO_ID, 1)


async def test_what_is_not_there_is_missing(store):
    with pytest.raises(ArtifactMissing):
        await store.read("videos/x/1.mp4", 0, 1)
    await store.delete("videos/x/1.mp4")
    assert await store.listing() == []


async def test_a_deleted_artifact_is_gone(store, data):
    key = artifact_key(VIDEO_ID, 1)
    await store.put(key, data)
    await store.delete(key)
    with pytest.raises(ArtifactMissing):
        await store.read(key, 0, 1)
    await store.delete(key)


async def test_a_read_past_the_end_is_an_error(store):
    await store.put("videos/x/1.mp4", b"abc")
    with pytest.raises(ArtifactError):
        await store.read("videos/x/1.mp4", 2, 5)


async def test_a_marker_shows_that_the_store_works(store):
    await store.verify("gateway-1")
    await store.verify("gateway-1")
    # A marker is no artifact.
    assert await store.listing() == []


@pytest.mark.parametrize("url", ["nothing://x", "s3:///", "/proc/no/such/folder"])
def test_a_store_that_cannot_be_opened_says_so(url):
    with pytest.raises(ArtifactError, match=r"artifacts\.url"):
        open_store(url)
