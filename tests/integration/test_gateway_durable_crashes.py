"""A gateway dies at each step of a job's life; another one brings the video."""

import asyncio
import hashlib

import pytest
from reelmesh.v1 import video_pb2

from gateway.jobs.attempts import TERMINAL_N, split_seq
from tests.support import fakenode
from tests.support.fakenode import VIDEO
from tests.support.gateway_region import gateway_region
from tests.support.gateways import ME, data_of, kinds

COMPLETED = video_pb2.VIDEO_STATUS_COMPLETED
SHA256 = hashlib.sha256(VIDEO).hexdigest()


@pytest.fixture
async def region(tmp_path):
    async with gateway_region(tmp_path, script=fakenode.held(before=3)) as region:
        yield region


def whole(events):
    """Whether a client of these events, from the first, has the video."""
    numbered = [event.seq for event in events if event.seq]
    assert numbered == sorted(set(numbered))
    assert kinds(events)[-1] == "completed"
    assert split_seq(events[-1].seq)[1] == TERMINAL_N
    assert events[-1].completed.sha256 == SHA256
    return data_of(events) == VIDEO


async def test_before_the_record_nothing_is_left_and_nothing_was_promised(region):
    a, b = await region.pair()
    a.jobs.before_create.shut()
    creating = asyncio.ensure_future(a.create())
    await a.jobs.before_create.until_reached()
    # Its run began meanwhile.
    await region.until(lambda: any(node.runs for node in region.nodes))
    assert not creating.done()
    await a.crash()
    await asyncio.wait([creating])
    videos, _ = await b.videos.list_page(ME, page_size=0, page_token="")
    assert videos == []


async def test_after_the_record_and_before_a_node_has_it(region):
    for node in region.nodes:
        node.slots = 0
        await node.push()
    a, b = await region.pair()
    video = await a.create()
    await a.crash()
    for node in region.nodes:
        node.slots, node.default = 2, fakenode.finish()
        await node.push()
    assert whole(await b.watched(video.id))
    record = await region.record(video.id)
    assert (record.epoch, record.owner_gateway, record.video.status) == (2, "b", COMPLETED)


async def test_in_the_middle_of_the_run_it_goes_on_where_it_is(region):
    a, b = await region.pair()
    video = await a.create()
    await region.until(lambda: region.node_of(video.id))
    await a.crash()
    watching = asyncio.ensure_future(b.watched(video.id))
    await b.until(lambda: b.execution(video.id))
    run = region.run_of(video.id)
    run.go.set()
    events = await watching
    assert whole(events)
    assert "restarted" not in kinds(events)
    assert region.run_of(video.id) is run
    record = await region.record(video.id)
    assert (record.epoch, record.video.result.attempt) == (2, 1)


async def test_without_a_client_it_is_adopted_when_the_lease_is_over(region):
    a, b = await region.pair()
    video = await a.create()
    await region.until(lambda: region.node_of(video.id))
    await a.crash()
    region.run_of(video.id).go.set()
    await region.until_record(video.id, lambda record: record.video.status == COMPLETED)
    assert region.run_of(video.id)
    assert whole(await b.watched(video.id))


async def test_after_the_artifact_and_before_the_swap_the_nodes_copy_is_taken(region):
    a, b = await region.pair()
    video = await a.create()
    await region.until(lambda: region.node_of(video.id))
    # The record says where it runs; the node no longer does once it has ended.
    await region.until_record(video.id, lambda record: record.attempts)
    a.jobs.before_finish.shut()
    region.run_of(video.id).go.set()
    await a.jobs.before_finish.until_reached()
    await a.crash()
    assert (await region.record(video.id)).video.status != COMPLETED
    assert whole(await b.watched(video.id))
    run = region.run_of(video.id)
    assert run.claim[0] == 2
    node = next(node for node in region.nodes if run in node.runs)
    await node.until(lambda: node.releases)
    assert [release.epoch for release in node.releases] == [2]
    # The dead gateway's artifact is nobody's; the record names the other.
    record = await region.record(video.id)
    assert record.artifact_key in artifacts(region)


async def test_after_the_swap_and_before_completed_was_told(region):
    a, b = await region.pair()
    video = await a.create()
    await region.until(lambda: region.node_of(video.id))
    a.jobs.after_finish.shut()
    watching = asyncio.ensure_future(a.watched(video.id))
    region.run_of(video.id).go.set()
    await a.jobs.after_finish.until_reached()
    assert (await region.record(video.id)).video.status == COMPLETED
    assert not watching.done()
    await a.crash()
    watching.cancel()
    await asyncio.wait([watching])
    assert whole(await b.watched(video.id))
    record = await region.record(video.id)
    assert (record.epoch, record.owner_gateway) == (1, "a")
    assert artifacts(region) == [record.artifact_key]


async def test_a_run_that_died_with_its_gateway_is_begun_anew_and_says_so(region):
    a, b = await region.pair()
    video = await a.create()
    await region.until(lambda: region.node_of(video.id))
    await region.until_record(video.id, lambda record: record.attempts)
    first = []
    async for event in a.videos.watch(ME, video.id, after_seq=0):
        first.append(event)
        if event.HasField("chunk"):
            break
    node = region.node_of(video.id)
    other = next(each for each in region.nodes if each is not node)
    other.default = fakenode.finish()
    await a.crash()
    await node.kill()
    await b.until(lambda: not b.ready(node))
    rest = await b.watched(video.id, after_seq=first[-1].seq)
    numbered = [event for event in rest if event.seq]
    assert numbered[0].restarted.reason == "owner_lost"
    assert whole([*first, *rest])
    record = await region.record(video.id)
    assert [attempt.cause for attempt in record.attempts][-2:] == ["owner_lost", ""]


async def test_the_record_that_was_acknowledged_is_the_one_that_another_serves(region):
    a, b = await region.pair()
    video = await a.create(seed=7)
    await region.until(lambda: region.node_of(video.id))
    await a.crash()
    region.run_of(video.id).go.set()
    events = await b.watched(video.id)
    assert events[-1].completed.seed == 7
    assert (await b.videos.get(ME, video.id)).spec == video.spec


def artifacts(region):
    folder = region.tmp_path / "artifacts"
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix == ".mp4"
    )
