"""Jobs change hands: a drain, a restart, a deadline, a job that kills workers, an idle client."""

import asyncio
import time

import pytest
from reelmesh.v1 import video_pb2

from tests.support import fakenode
from tests.support.fakenode import VIDEO
from tests.support.gateway_region import gateway_region
from tests.support.gateways import ME, data_of, kinds

COMPLETED = video_pb2.VIDEO_STATUS_COMPLETED
CANCELLED = video_pb2.VIDEO_STATUS_CANCELLED


@pytest.fixture
async def region(tmp_path):
    async with gateway_region(tmp_path, script=fakenode.held(before=3)) as region:
        yield region


async def running_at(region, member, **fields):
    video = await member.create(**fields)
    await region.until(lambda: region.node_of(video.id))
    return video


async def until_owned(region, video, owner):
    return await region.until_record(video.id, lambda record: record.owner_gateway == owner)


# --- drains and restarts ---


async def test_a_drain_hands_jobs_to_another_gateway_at_once(region):
    a, b = await region.pair(drain_s=0)
    videos = [await running_at(region, a) for _ in range(2)]
    began_s = time.monotonic()
    await a.drain()
    for video in videos:
        record = await until_owned(region, video, "b")
        assert record.epoch == 2
    # Not when the lease is over.
    assert time.monotonic() - began_s < 2.0
    for video in videos:
        await b.until(lambda v=video: b.execution(v.id))
        region.run_of(video.id).go.set()
        events = await b.watched(video.id)
        assert data_of(events) == VIDEO
        assert (await b.videos.get(ME, video.id)).status == COMPLETED
    for node in region.nodes:
        assert not node.cancels


async def test_the_only_gateways_jobs_wait_for_the_next_one(region):
    a = await region.start("a", drain_s=0)
    videos = [await running_at(region, a) for _ in range(2)]
    # Where each runs is not in its record: only the nodes know.
    assert not any([(await region.record(video.id)).attempts for video in videos])
    await a.drain()
    for node in region.nodes:
        node.slots = 4
        # The next gateway hears of the jobs before the nodes tell what they run.
        node.first_status_after_s = 0.3
    b = await region.start("b", ready=False)
    for video in videos:
        await until_owned(region, video, "b")
        await b.until(lambda v=video: b.execution(v.id))
        region.run_of(video.id).go.set()
        assert data_of(await b.watched(video.id)) == VIDEO
        assert region.run_of(video.id).claim[0] == 2


async def test_a_gateway_that_was_killed_and_started_again_takes_its_jobs_up_again(region):
    a = await region.start("a")
    videos = [await running_at(region, a) for _ in range(4)]
    await a.crash()
    again = await region.start("a", ready=False)
    assert again.core.owner != a.core.owner
    for video in videos:
        record = await region.until_record(video.id, lambda record: record.epoch == 2)
        assert record.owner_incarnation == again.core.owner.incarnation
        region.run_of(video.id).go.set()
        events = await again.watched(video.id)
        assert data_of(events) == VIDEO
        assert "restarted" not in kinds(events)


async def test_a_video_that_waits_for_its_record_when_its_gateway_drains_is_not_lost(region):
    a, b = await region.pair(drain_s=0.2)
    video = await running_at(region, a)
    await region.until_record(video.id, lambda record: record.attempts)
    a.jobs.before_finish.shut()
    region.run_of(video.id).go.set()
    await a.jobs.before_finish.until_reached()
    await a.drain()
    assert data_of(await b.watched(video.id)) == VIDEO
    # The node had kept it: it was not drawn again.
    assert region.run_of(video.id).claim[0] == 2


async def test_a_video_that_was_recorded_as_its_gateway_drained_keeps_its_bytes(region):
    a, b = await region.pair(drain_s=0.2)
    video = await running_at(region, a)
    a.jobs.after_finish.shut()
    region.run_of(video.id).go.set()
    # The record is completed and names the artifact; the gateway has not heard of that.
    await a.jobs.after_finish.until_reached()
    await a.drain()
    assert (await region.record(video.id)).video.status == COMPLETED
    assert data_of(await b.watched(video.id)) == VIDEO


# --- what an heir keeps to ---


async def test_the_deadline_is_the_jobs_own_whoever_has_it(region):
    a, b = await region.pair()
    video = await running_at(region, a, deadline_s=4.0)
    await a.crash()
    events = await b.watched(video.id)
    assert events[-1].failed.code == "deadline_exceeded"
    video = await b.videos.get(ME, video.id)
    lasted_s = (video.completed_at.ToNanoseconds() - video.created_at.ToNanoseconds()) / 1e9
    assert 3.5 < lasted_s < 8.0
    assert (await region.record(video.id)).epoch == 2
    node = next(node for node in region.nodes if node.runs)
    await node.until(lambda: node.cancels)


async def test_a_job_that_killed_a_worker_under_one_owner_and_another_under_the_next(region):
    # The first dies at once; the second try is under way when its owner does.
    tries = iter([fakenode.fail("worker_died"), fakenode.held()])
    for node in region.nodes:
        node.default = lambda run: next(tries)(run)
    a, b = await region.pair()
    video = await a.create()
    await region.until(lambda: all(node.runs for node in region.nodes))
    second = max(region.nodes, key=lambda node: node.runs[0].claim)
    first = next(node for node in region.nodes if node is not second)
    record = await region.until_record(
        video.id, lambda record: any(attempt.cause for attempt in record.attempts)
    )
    assert [attempt.node_id for attempt in record.attempts][:1] == [first.node_id]
    await a.crash()
    await second.kill()
    for node in region.nodes:
        node.default = fakenode.fail("worker_died")
    await second.start()
    events = await b.watched(video.id)
    failed = events[-1].failed
    assert (failed.code, failed.retryable) == ("poison", False)
    assert first.node_id in failed.message
    record = await region.record(video.id)
    deaths = [attempt for attempt in record.attempts if attempt.cause == "worker_died"]
    assert [attempt.epoch for attempt in deaths] == [1, 2]
    assert all(run.request.alone for run in second.runs)


@pytest.mark.parametrize("durable", [False, True])
async def test_a_streamed_video_whose_client_does_not_come_back_is_given_up(region, durable):
    a, _ = await region.pair(runs={"client_grace_s": 0.5})
    video = await running_at(region, a, streamed=True, durable=durable)
    assert (await region.record(video.id)).keep is durable
    watching = asyncio.ensure_future(a.watched(video.id))
    await a.until(lambda: a.execution(video.id).log.readers)
    await a.crash()
    watching.cancel()
    await asyncio.wait([watching])
    await until_owned(region, video, "b")
    node = region.node_of(video.id)
    if durable:
        region.run_of(video.id).go.set()
    record = await region.until_record(video.id, lambda record: record.video.HasField("expires_at"))
    assert record.video.status == (COMPLETED if durable else CANCELLED)
    if not durable:
        assert record.video.error.code == "disconnected"
        await node.until(lambda: node.cancels)


async def test_a_client_that_comes_back_to_another_gateway_keeps_its_video(region):
    a, b = await region.pair(runs={"client_grace_s": 0.5})
    video = await running_at(region, a, streamed=True)
    await a.crash()
    watching = asyncio.ensure_future(b.watched(video.id))
    await b.until(lambda: b.execution(video.id))
    await asyncio.sleep(0.8)
    region.run_of(video.id).go.set()
    assert data_of(await watching) == VIDEO


async def test_what_was_asked_to_run_on_does_so_under_the_next_owner_too(region):
    a, b = await region.pair(runs={"client_grace_s": 0.5})
    video = await running_at(region, a, streamed=True, idempotency_key="k")
    # The same request again, by a client that does not stay.
    assert (await a.create(idempotency_key="k")).id == video.id
    await region.until_record(video.id, lambda record: record.keep)
    await a.crash()
    await until_owned(region, video, "b")
    await b.until(lambda: b.execution(video.id))
    assert b.execution(video.id).keep
