"""Videos of another region whose bytes cross once."""

import asyncio
import hashlib

import pytest
from reelmesh.v1 import video_pb2, video_service_pb2

from gateway.application import Caller
from gateway.core import mesh as core_mesh
from gateway.errors import HomeUnreachable, InvalidRequest, NotFinished, VideoNotFound
from tests.support import fakenode
from tests.support.fakenode import VIDEO, FakeNode, serve_node
from tests.support.gateways import DEADLINE_S, ME, data_of, kinds
from tests.support.regions import open_region

STRANGER = Caller("stranger", "s", frozenset())
MISS, HIT = video_pb2.CACHE_STATUS_MISS, video_pb2.CACHE_STATUS_HIT


@pytest.fixture
async def pair(tmp_path, request):
    """ap reads what eu draws."""
    changes = getattr(request, "param", {})
    async with (
        open_region(tmp_path, "ap", **changes) as ap,
        open_region(tmp_path, "eu") as eu,
        serve_node(FakeNode("eu-node-0", slots=50)) as node,
    ):
        await eu.gateway.know(node)
        ap.regions.take([eu.view()])
        eu.regions.take([ap.view()])
        await ap.gateway.until(lambda: ap.regions.link("eu").load is not None)
        yield ap, eu, node


async def made(region, *, prompt="a ball"):
    spec = video_pb2.VideoSpec(prompt=prompt)
    options = video_service_pb2.CreateOptions()
    video = await region.application.create(ME, spec, options, streamed=False)
    await watched(region, video.id)
    return video


async def watched(region, video_id, *, after_seq=0, caller=ME):
    async with asyncio.timeout(DEADLINE_S):
        events = region.application.watch(caller, video_id, after_seq=after_seq)
        return [event async for event in events]


async def read(region, video_id, *, offset=0, caller=ME, as_file=False):
    download = await region.application.download(caller, video_id, offset=offset, as_file=as_file)
    data = b"".join([chunk async for chunk in download.chunks])
    assert download.total_bytes == len(VIDEO)
    assert download.sha256 == hashlib.sha256(VIDEO).hexdigest()
    return data, download.cache


def crossed(region):
    return region.gateway.metric("kept_bytes_total", source="home")


def here(region):
    return region.gateway.metric("kept_bytes_total", source="here")


async def until_kept(region, video_id):
    await region.gateway.until(lambda: region.kept.holds(video_id))


async def test_the_bytes_cross_once(pair):
    ap, eu, _node = pair
    video = await made(eu)
    assert await read(ap, video.id) == (VIDEO, MISS)
    await until_kept(ap, video.id)
    for offset in (0, 5000, len(VIDEO)):
        assert await read(ap, video.id, offset=offset) == (VIDEO[offset:], HIT)
    assert crossed(ap) == len(VIDEO)
    assert here(ap) == 2 * len(VIDEO) - 5000
    assert ap.gateway.metric("kept_copies_bytes") == len(VIDEO)
    with pytest.raises(InvalidRequest):
        await read(ap, video.id, offset=len(VIDEO) + 1)


async def test_a_copy_is_a_file_for_whoever_asks_for_one(pair):
    ap, eu, _node = pair
    video = await made(eu)
    await read(ap, video.id)
    await until_kept(ap, video.id)
    download = await ap.application.download(ME, video.id, offset=0, as_file=True)
    assert download.file is not None
    assert await download.file.read(100, 50) == VIDEO[100:150]
    download.file.close()
    await download.chunks.aclose()


async def test_a_part_that_is_asked_for_first_brings_the_whole(pair):
    ap, eu, _node = pair
    video = await made(eu)
    assert (await read(ap, video.id, offset=3000))[0] == VIDEO[3000:]
    await until_kept(ap, video.id)
    assert await read(ap, video.id) == (VIDEO, HIT)


async def test_those_who_come_at_once_share_the_fetch(pair):
    ap, eu, _node = pair
    video = await made(eu)
    answers = await asyncio.gather(*(read(ap, video.id, offset=n) for n in range(20)))
    for offset, (data, _) in enumerate(answers):
        assert data == VIDEO[offset:]
    await until_kept(ap, video.id)
    assert crossed(ap) == len(VIDEO)
    assert len(ap.kept) == 1


async def test_one_who_leaves_leaves_the_others_everything(pair):
    ap, eu, _node = pair
    video = await made(eu)
    download = await ap.application.download(ME, video.id, offset=0)
    await anext(download.chunks)
    await download.chunks.aclose()
    await until_kept(ap, video.id)
    assert await read(ap, video.id) == (VIDEO, HIT)


# --- its home has the word ---


async def test_a_video_that_was_deleted_is_served_no_more(pair):
    ap, eu, _node = pair
    video = await made(eu)
    await read(ap, video.id)
    await until_kept(ap, video.id)
    await eu.application.delete(ME, video.id)
    for _ in range(2):
        with pytest.raises(VideoNotFound):
            await read(ap, video.id)
        with pytest.raises(VideoNotFound):
            await watched(ap, video.id)


async def test_one_that_is_deleted_from_here_leaves_no_bytes(pair, tmp_path):
    ap, eu, _node = pair
    video = await made(eu)
    await read(ap, video.id)
    await until_kept(ap, video.id)
    files = tmp_path / "ap" / "gateway" / "kept" / "videos"
    assert list(files.glob("*/*"))
    await ap.application.delete(ME, video.id)
    await ap.gateway.until(lambda: not list(files.glob("*/*")))
    assert len(ap.kept) == 0


@pytest.mark.parametrize("pair", [{"cache": {"keep_s": 1.0}}], indirect=True)
async def test_a_copy_that_nobody_was_allowed_to_read_goes_in_time(pair, tmp_path):
    ap, eu, _node = pair
    video = await made(eu)
    await read(ap, video.id)
    await until_kept(ap, video.id)
    await eu.application.delete(ME, video.id)

    async def ask():
        with pytest.raises(VideoNotFound):
            await read(ap, video.id)

    async with asyncio.timeout(DEADLINE_S):
        while len(ap.kept):
            # Being asked for and refused is no reason to stay.
            await ask()
            await asyncio.sleep(0.05)
    files = tmp_path / "ap" / "gateway" / "kept" / "videos"
    await ap.gateway.until(lambda: not list(files.glob("*/*")))


async def test_another_tenant_is_refused_by_its_home_and_evicts_nothing(pair):
    ap, eu, _node = pair
    video = await made(eu)
    with pytest.raises(VideoNotFound):
        await read(ap, video.id, caller=STRANGER)
    await read(ap, video.id)
    await until_kept(ap, video.id)
    for call in (read, watched):
        with pytest.raises(VideoNotFound):
            await call(ap, video.id, caller=STRANGER)
    assert await read(ap, video.id) == (VIDEO, HIT)


async def test_without_its_home_nobody_reads_a_copy(pair):
    ap, eu, _node = pair
    video = await made(eu)
    await read(ap, video.id)
    await until_kept(ap, video.id)
    await eu.vanish()
    with pytest.raises(HomeUnreachable):
        await read(ap, video.id)


async def test_an_unfinished_video_has_no_bytes(pair):
    ap, eu, node = pair
    node.default = fakenode.held()
    spec = video_pb2.VideoSpec(prompt="held")
    options = video_service_pb2.CreateOptions()
    video = await eu.application.create(ME, spec, options, streamed=False)
    with pytest.raises(NotFinished):
        await read(ap, video.id)
    (await node.run_at(0)).go.set()
    await watched(eu, video.id)
    assert (await read(ap, video.id))[0] == VIDEO


# --- events ---


async def test_a_video_that_is_watched_again_is_kept(pair):
    ap, eu, _node = pair
    video = await made(eu)
    first = await watched(ap, video.id)
    assert not len(ap.kept)
    await watched(ap, video.id)
    await until_kept(ap, video.id)
    sent = crossed(ap)
    third = await watched(ap, video.id)
    assert data_of(first) == data_of(third) == VIDEO
    assert third[-1] == first[-1]
    assert crossed(ap) == sent
    # From its own numbers it is resumed as its home would.
    chunk = next(event for event in third if event.HasField("chunk"))
    assert kinds(await watched(ap, video.id, after_seq=chunk.seq)) == ["queued", "completed"]
    live = next(event for event in first if event.HasField("chunk"))
    resumed = await watched(ap, video.id, after_seq=live.seq)
    assert kinds(resumed)[:2] == ["queued", "restarted"]
    assert data_of(resumed) == VIDEO


# --- bounds and faults ---


@pytest.mark.parametrize("pair", [{"cache": {"kept_bytes": 3 * len(VIDEO)}}], indirect=True)
async def test_copies_are_bounded_and_the_hot_ones_stay(pair, tmp_path):
    ap, eu, _node = pair
    hot = await made(eu, prompt="hot")
    await read(ap, hot.id)
    await until_kept(ap, hot.id)
    for _ in range(5):
        await read(ap, hot.id)
    for number in range(12):
        cold = await made(eu, prompt=f"cold {number}")
        assert (await read(ap, cold.id))[0] == VIDEO
        assert ap.kept.bytes_held <= 3 * len(VIDEO)
        await read(ap, hot.id)
    assert (await read(ap, hot.id)) == (VIDEO, HIT)
    assert ap.gateway.metric("cache_evictions_total", cache="kept") > 0
    files = tmp_path / "ap" / "gateway" / "kept" / "videos"
    await ap.gateway.until(lambda: len(list(files.glob("*/*"))) <= 3)


@pytest.mark.parametrize("pair", [{"cache": {"kept_bytes": 0}}], indirect=True)
async def test_nothing_is_kept_where_nothing_may_be(pair):
    ap, eu, _node = pair
    video = await made(eu)
    for _ in range(3):
        assert (await read(ap, video.id))[0] == VIDEO
    assert ap.kept is None


async def test_a_home_that_stops_in_the_middle_is_told_and_tried_again(pair, monkeypatch):
    ap, eu, _node = pair
    video = await made(eu)
    fetch_of = core_mesh.MeshVideos._fetch_of

    def breaking(self, link, caller, video_id):
        fetch = fetch_of(self, link, caller, video_id)

        async def broken(offset):
            download = await fetch(offset)
            return type(download)(download.total_bytes, download.sha256, _cut(download.chunks))

        return broken

    async def _cut(chunks):
        yield (await anext(chunks))[:4000]
        raise ConnectionError("scripted")

    monkeypatch.setattr(core_mesh.MeshVideos, "_fetch_of", breaking)
    with pytest.raises(Exception, match="stopped answering"):
        await read(ap, video.id)
    await ap.gateway.until(lambda: not len(ap.kept))
    monkeypatch.undo()
    assert await read(ap, video.id) == (VIDEO, MISS)


async def test_bytes_that_are_not_the_videos_reach_nobody_whole(pair, monkeypatch):
    ap, eu, _node = pair
    video = await made(eu)
    fetch_of = core_mesh.MeshVideos._fetch_of

    def spoiling(self, link, caller, video_id):
        fetch = fetch_of(self, link, caller, video_id)

        async def spoilt(offset):
            download = await fetch(offset)
            return type(download)(download.total_bytes, download.sha256, _spoil(download.chunks))

        return spoilt

    async def _spoil(chunks):
        async for chunk in chunks:
            yield bytes(len(chunk))

    monkeypatch.setattr(core_mesh.MeshVideos, "_fetch_of", spoiling)
    download = await ap.application.download(ME, video.id, offset=0)
    got = bytearray()

    async def take():
        async for chunk in download.chunks:
            got.extend(chunk)

    with pytest.raises(Exception, match="stopped answering"):
        await take()
    assert len(got) < len(VIDEO)
    assert not ap.kept.holds(video.id)


async def test_a_reader_outlives_its_copy(pair):
    ap, eu, _node = pair
    video = await made(eu)
    await read(ap, video.id)
    await until_kept(ap, video.id)
    download = await ap.application.download(ME, video.id, offset=0)
    ap.kept.forget(video.id)
    await ap.gateway.until(lambda: not ap.kept.holds(video.id))
    await asyncio.sleep(0.05)
    assert b"".join([chunk async for chunk in download.chunks]) == VIDEO
