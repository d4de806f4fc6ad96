"""What every ArtifactStore promises: a local folder and a store by URL alike."""

import hashlib
import uuid
from concurrent.futures import ThreadPoolExecutor

import obstore
import pytest

from gateway.output.artifacts import (
    ArtifactCorrupt,
    ArtifactError,
    ArtifactMissing,
    artifact_key,
    delete_video,
    open_store,
    picture_key,
    pieces,
)
from gateway.output.spool_file import SpoolFile
from tests.support.artifacts import listed
from tests.support.s3 import BUCKET, SECRET_ACCESS_KEY

VIDEO_ID = "ap-01jd3x8z5q0e8m2c4r6t7v9wxy"
DATA = bytes(range(256)) * 3000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def s3_prefix(s3_access):
    """A folder of its own in a real S3."""
    return f"artifacts/{uuid.uuid4().hex}"


@pytest.fixture(params=["folder", "file url", "memory", "s3"])
def store(request, tmp_path):
    if request.param == "s3":
        return open_store(f"s3://{BUCKET}/{request.getfixturevalue('s3_prefix')}")
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
    there = await listed(store)
    assert [(a.key, a.video_id) for a in there] == [(key, VIDEO_ID)]
    assert there[0].modified_at_s > 1e9


async def test_keys_of_one_attempt_differ(store):
    assert artifact_key(VIDEO_ID, 1) != artifact_key(VIDEO_ID, 1)


async def test_what_is_not_there_is_missing(store):
    with pytest.raises(ArtifactMissing):
        await store.read("videos/x/1.mp4", 0, 1)
    await store.delete("videos/x/1.mp4")
    assert await listed(store) == []


async def test_a_deleted_artifact_is_gone(store, data):
    key = artifact_key(VIDEO_ID, 1)
    await store.put(key, data)
    await store.delete(key)
    with pytest.raises(ArtifactMissing):
        await store.read(key, 0, 1)
    await store.delete(key)


async def test_a_small_one_is_fetched_whole(store, data):
    key = artifact_key(VIDEO_ID, 1)
    await store.put(key, data)
    assert await store.fetch(key, max_bytes=len(DATA)) == DATA
    with pytest.raises(ArtifactError, match="more than"):
        await store.fetch(key, max_bytes=len(DATA) - 1)
    with pytest.raises(ArtifactMissing):
        await store.fetch(artifact_key(VIDEO_ID, 2), max_bytes=1)


async def test_bytes_that_are_not_the_digests_do_not_pass_for_the_whole(store, data):
    key = artifact_key(VIDEO_ID, 1)
    await store.put(key, data)
    whole = pieces(store, key, offset=0, total=len(DATA), sha256=SHA256)
    assert b"".join([piece async for piece in whole]) == DATA
    got = []

    async def take_all():
        whole = pieces(store, key, offset=0, total=len(DATA), sha256="0" * 64)
        got.extend([piece async for piece in whole])

    with pytest.raises(ArtifactCorrupt, match=SHA256):
        await take_all()
    assert len(b"".join(got)) < len(DATA)
    # A part of it says nothing of the whole.
    part = pieces(store, key, offset=1, total=len(DATA), sha256="0" * 64)
    assert b"".join([piece async for piece in part]) == DATA[1:]


async def test_a_video_is_deleted_with_its_pictures(store, data):
    key = artifact_key(VIDEO_ID, 1)
    other = artifact_key(VIDEO_ID, 2)
    for each in (key, picture_key(key, "thumbnail"), picture_key(key, "spritesheet"), other):
        await store.put(each, data)
    assert {a.video_id for a in await listed(store)} == {VIDEO_ID}
    await delete_video(store, key)
    assert [a.key for a in await listed(store)] == [other]
    await delete_video(store, other)
    await delete_video(store, other)
    assert await listed(store) == []


async def test_a_folders_artifact_is_opened_once_it_is_the_right_one(store, data):
    key = artifact_key(VIDEO_ID, 1)
    await store.put(key, data)
    opened = await store.open(key, sha256=SHA256)
    if opened is None:
        # Of another store than a plain folder.
        return
    assert await opened.read(7, 9) == DATA[7:16]
    opened.close()
    with pytest.raises(ArtifactCorrupt, match="0000"):
        await store.open(key, sha256="0" * 64)
    with pytest.raises(ArtifactMissing):
        await store.open(artifact_key(VIDEO_ID, 2), sha256=SHA256)


async def test_a_read_past_the_end_is_an_error(store):
    await store.put("videos/x/1.mp4", b"abc")
    with pytest.raises(ArtifactError):
        await store.read("videos/x/1.mp4", 2, 5)


async def test_a_marker_shows_that_the_store_works(store):
    await store.verify("gateway-1")
    await store.verify("gateway-1")
    # A marker is no artifact.
    assert await listed(store) == []


@pytest.mark.parametrize("url", ["nothing://x", "s3:///", "/proc/no/such/folder"])
def test_a_store_that_cannot_be_opened_says_so(url):
    with pytest.raises(ArtifactError, match=r"artifacts\.url"):
        open_store(url)


# --- what an object store does otherwise than a folder ---


async def test_more_artifacts_than_a_page_of_s3_are_all_listed(s3_server, s3_prefix):
    store = open_store(f"s3://{BUCKET}/{s3_prefix}")
    keys = {artifact_key(f"ap-{number:04}", 1) for number in range(1005)}
    with ThreadPoolExecutor(16) as pool:
        plain = s3_server.store(s3_prefix)
        list(pool.map(lambda key: obstore.put(plain, key, b"", use_multipart=False), keys))
    assert {artifact.key for artifact in await listed(store)} == keys


async def test_an_upload_to_s3_that_breaks_off_leaves_no_artifact(s3_prefix):
    """A folder takes the finished file by its name; here it is copied, in parts."""

    class Broken:
        def pieces(self):
            yield bytes(6 * 1024 * 1024)
            raise OSError("the spool is gone")

    store = open_store(f"s3://{BUCKET}/{s3_prefix}")
    key = artifact_key(VIDEO_ID, 1)
    with pytest.raises(ArtifactError, match="the spool is gone"):
        await store.put(key, Broken())
    with pytest.raises(ArtifactMissing):
        await store.read(key, 0, 1)
    assert await listed(store) == []


@pytest.mark.parametrize(
    ("bucket", "secret"), [(BUCKET, "wrong"), ("no-such-bucket", SECRET_ACCESS_KEY)]
)
async def test_an_s3_that_cannot_be_used_is_found_out_at_the_start(
    s3_prefix, monkeypatch, bucket, secret
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with pytest.raises(ArtifactError, match=f"s3://{bucket}"):
        await open_store(f"s3://{bucket}/{s3_prefix}").verify("gateway-1")


async def test_a_copy_is_whole_and_outlives_what_it_was_made_of(store, data):
    key, copy = artifact_key(VIDEO_ID, 1), artifact_key(VIDEO_ID.replace("01", "02"), 1)
    await store.put(key, data)
    await store.copy(key, copy, size=len(DATA), sha256=SHA256)
    await store.delete(key)
    assert await store.read(copy, 0, len(DATA)) == DATA
    assert [artifact.key for artifact in await listed(store)] == [copy]
    with pytest.raises(ArtifactMissing):
        await store.copy(key, artifact_key(VIDEO_ID, 2), size=len(DATA), sha256=SHA256)
    with pytest.raises(ArtifactError):
        await store.copy(copy, key, size=len(DATA) - 1, sha256=SHA256)
    assert [artifact.key for artifact in await listed(store)] == [copy]
