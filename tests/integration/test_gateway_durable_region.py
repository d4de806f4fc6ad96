"""A region's gateways as one: keys, lists, sweepers; and over a real etcd."""

import asyncio
import os

import pytest
from reelmesh.v1 import video_pb2

from gateway import errors
from gateway.output.artifacts import artifact_key
from tests.support import fakenode
from tests.support.etcd import EtcdProcess
from tests.support.fakenode import VIDEO
from tests.support.gateway_region import gateway_region
from tests.support.gateways import ME, data_of, kinds

COMPLETED = video_pb2.VIDEO_STATUS_COMPLETED


@pytest.fixture
async def region(tmp_path):
    async with gateway_region(tmp_path) as region:
        yield region


def files(region):
    return list((region.tmp_path / "artifacts").rglob("*.mp4"))


# --- keys and lists ---


async def test_a_key_that_is_used_at_two_gateways_at_once_is_one_video(region):
    a, b = await region.pair()
    for _ in range(5):
        key = os.urandom(4).hex()
        creates = [m.create(idempotency_key=key, seed=1) for m in (a, b, a, b)]
        videos = await asyncio.gather(*creates)
        assert len({video.id for video in videos}) == 1
        streams = await asyncio.gather(*(m.watched(videos[0].id) for m in (a, b)))
        assert all(data_of(events) == VIDEO for events in streams)
        region.run_of(videos[0].id)
        with pytest.raises(errors.IdempotencyConflict):
            await b.create(idempotency_key=key, seed=2)


async def test_a_second_create_does_not_start_what_the_first_is_about_to(region):
    a = await region.start("a")
    a.jobs.after_create.shut()
    creating = asyncio.ensure_future(a.create(idempotency_key="k"))
    await a.jobs.after_create.until_reached()
    # The record stands and names this gateway, which does not run it yet: it takes it up.
    video = await a.create(idempotency_key="k")
    events = await a.watched(video.id)
    runs = a.execution(video.id)
    a.jobs.after_create.open()
    assert (await creating).id == video.id
    assert data_of(events) == VIDEO
    assert a.execution(video.id) is runs
    region.run_of(video.id)


async def test_every_gateway_lists_the_same(region):
    a, b = await region.pair()
    ids = [(await member.create()).id for member in (a, b, a, b, a)]
    for video_id in ids:
        await b.watched(video_id)
    for member in (a, b):
        first, token = await member.videos.list_page(ME, page_size=3, page_token="")
        rest, end = await member.videos.list_page(ME, page_size=3, page_token=token)
        assert [video.id for video in (*first, *rest)] == sorted(ids, reverse=True)
        assert {video.status for video in (*first, *rest)} == {COMPLETED}
        assert end == ""


# --- sweepers ---


async def test_two_sweepers_over_one_folder_remove_what_is_over_and_nothing_else(region):
    a, b = await region.pair(artifacts={"retention_s": 0.5}, runs={"linger_s": 0})
    old = [await member.create() for member in (a, b, a)]
    for video in old:
        await b.watched(video.id)
    orphaned = region.tmp_path / "artifacts" / artifact_key(old[0].id.replace("0", "1"), 1)
    orphaned.parent.mkdir(parents=True, exist_ok=True)
    orphaned.write_bytes(b"nobody's")
    os.utime(orphaned, (0, 0))
    await asyncio.sleep(0.6)
    for node in region.nodes:
        node.default = fakenode.held(before=2)
    live = await a.create()
    for member in (a, b):
        await asyncio.gather(*(m.core.sweeper.sweep() for m in (a, b)))
        for video in old:
            with pytest.raises(errors.VideoNotFound):
                await member.videos.get(ME, video.id)
    assert files(region) == []
    await region.until(lambda: region.node_of(live.id))
    region.run_of(live.id).go.set()
    assert data_of(await b.watched(live.id)) == VIDEO


# --- a real etcd ---


@pytest.fixture
async def etcd(tmp_path):
    process = EtcdProcess(tmp_path / "etcd")
    await process.start()
    yield process
    process.kill()


async def test_jobs_outlive_their_gateway_and_their_etcd(tmp_path, etcd):
    script = fakenode.held(before=3)
    async with gateway_region(tmp_path, etcd.endpoint, script=script) as region:
        a, b = await region.pair()
        video = await a.create()
        await region.until(lambda: region.node_of(video.id))
        etcd.kill()
        await a.crash()
        await etcd.start()
        watching = asyncio.ensure_future(b.watched(video.id))
        await region.until_record(video.id, lambda record: record.owner_gateway == "b")
        await b.until(lambda: b.execution(video.id))
        region.run_of(video.id).go.set()
        events = await watching
        assert data_of(events) == VIDEO
        assert "restarted" not in kinds(events)
        assert (await region.record(video.id)).epoch == 2


async def test_streams_do_not_notice_an_etcd_that_stands_still(tmp_path, etcd):
    script = fakenode.held(before=3)
    jobs = {"admit_patience_s": 0.3, "commit_patience_s": 0.3}
    async with gateway_region(tmp_path, etcd.endpoint, script=script) as region:
        a = await region.start("a", jobs=jobs)
        before = await a.create(streamed=True)
        with etcd.stopped():
            during = await a.create(streamed=True)
            assert (before.durable, during.durable) == (True, False)
            for video in (before, during):
                await region.until(lambda v=video: region.node_of(v.id))
                region.run_of(video.id).go.set()
                assert data_of(await a.watched(video.id)) == VIDEO
        await region.until_record_appears(during.id)
        for video in (before, during):
            await region.until_record(video.id, lambda r: r.video.status == COMPLETED)
