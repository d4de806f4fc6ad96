"""Jobs that share a run, and gateways that die: none is lost, and none waits for ever."""

import asyncio

import pytest
from reelmesh.v1 import tenant_pb2, video_pb2

from gateway.application import Caller
from gateway.jobs.store import Owner
from tests.support import fakenode
from tests.support.fakenode import VIDEO
from tests.support.gateway_region import gateway_region
from tests.support.gateways import ME, data_of, kinds

COMPLETED = video_pb2.VIDEO_STATUS_COMPLETED
CANCELLED = video_pb2.VIDEO_STATUS_CANCELLED
SHARED = video_pb2.CACHE_STATUS_SHARED
OTHERS = Caller("globex", "them", ME.scopes)
ON = {"cache": {"enabled": True}}


@pytest.fixture
async def region(tmp_path):
    async with gateway_region(tmp_path, script=fakenode.held(before=3)) as region:
        yield region


async def shared_pair(region, gateway, *, caller=ME, **fields):
    """A leader whose run goes on, and a job that follows it."""
    first = await gateway.create(**fields)
    await region.until(lambda: region.node_of(first.id))
    second = await gateway.create(caller=caller, **fields)
    assert second.cache == SHARED
    assert (await region.record(second.id, tenant=caller.tenant)).follows == first.id
    return first, second


def runs(region):
    return [run for node in region.nodes for run in node.runs]


async def test_another_gateway_relays_a_follower(region):
    a, b = await region.pair(**ON)
    first, second = await shared_pair(region, a)
    watching = asyncio.ensure_future(b.watched(second.id))
    await a.until(lambda: a.execution(second.id).log.readers)
    region.run_of(first.id).go.set()
    assert data_of(await watching) == VIDEO
    assert {event.video_id for event in await b.watched(second.id)} == {second.id}
    await b.videos.delete(ME, first.id)
    assert data_of(await b.watched(second.id)) == VIDEO


@pytest.mark.parametrize("asked_first", ["leader", "follower", "nobody"])
async def test_their_next_owner_lets_them_share_again(region, asked_first):
    a, b = await region.pair(**ON)
    first, second = await shared_pair(region, a)
    reading = a.videos.watch(ME, second.id, after_seq=0)
    async for event in reading:
        if event.chunk.offset == 1024:
            break
    await a.crash()
    if asked_first != "nobody":
        asked = {"leader": first, "follower": second}[asked_first]
        await b.videos.get(ME, asked.id)
    await b.until(lambda: b.execution(first.id) and b.execution(second.id))
    watching = [
        asyncio.ensure_future(b.watched(first.id)),
        asyncio.ensure_future(b.watched(second.id, after_seq=event.seq)),
    ]
    await b.until(lambda: b.execution(second.id).log.readers)
    region.run_of(first.id).go.set()
    for task in watching:
        assert data_of(await task) == VIDEO
    # What its client had is void: it counts attempts by its own epoch.
    assert "restarted" in kinds(await watching[1])
    assert len(runs(region)) == 1
    record = await region.until_record(second.id, lambda found: found.video.HasField("result"))
    assert (record.epoch, record.follows) == (2, first.id)
    assert record.video.result.cache == SHARED
    assert record.video.result.gpu_seconds == 0


async def test_a_follower_whose_leader_was_cancelled_before_runs_by_itself(region):
    a, b = await region.pair(**ON)
    first, second = await shared_pair(region, a)
    await a.videos.cancel(ME, first.id)
    # The charge has moved, and the record says so.
    await region.until_record(second.id, lambda record: not record.follows)
    await a.crash()
    for node in region.nodes:
        node.default = fakenode.finish()
    assert data_of(await b.watched(second.id)) == VIDEO
    record = await region.record(second.id)
    assert record.video.status == COMPLETED
    assert record.video.result.gpu_seconds == 0.5


async def test_a_follower_whose_leader_was_deleted_unnoticed_runs_by_itself(region):
    a, b = await region.pair(**ON)
    first, second = await shared_pair(region, a)
    # As if the word of it had been lost with its gateway.
    await a.crash()
    standing = await region.record(first.id)
    standing.video.status = CANCELLED
    standing.video.expires_at.FromSeconds(2**31)
    await region.records.finish(standing)
    await region.records.delete("acme", first.id)
    for node in region.nodes:
        node.default = fakenode.finish()
    assert data_of(await b.watched(second.id)) == VIDEO
    assert (await region.record(second.id)).follows == ""


async def test_between_the_leaders_end_and_its_own_it_gets_the_video_all_the_same(region):
    a, b = await region.pair(**ON)
    first, second = await shared_pair(region, a)
    finish = a.jobs.finish

    async def leaders_alone(record):
        if record.video.id == second.id:
            a.jobs.before_finish.shut()
        return await finish(record)

    a.jobs.finish = leaders_alone
    region.run_of(first.id).go.set()
    await a.watched(first.id)
    await a.jobs.before_finish.until_reached()
    await a.crash()
    assert (await region.record(second.id)).video.status != COMPLETED
    assert data_of(await b.watched(second.id)) == VIDEO
    assert len(runs(region)) == 1
    record = await region.record(second.id)
    assert record.video.result.cache == SHARED
    assert record.artifact_key != (await region.record(first.id)).artifact_key


async def test_one_whose_leader_is_another_tenants_runs_by_itself(region):
    shared = tenant_pb2.CACHE_SHARING_SHARED
    a, b = await region.pair(**ON)
    for member in (a, b):
        policies = member.core.lifetimes._sharing._policies
        policies.replace([tenant_pb2.TenantPolicy(tenant="*", cache_sharing=shared)])
    first, second = await shared_pair(region, a, caller=OTHERS)
    await a.crash()
    for node in region.nodes:
        node.default = fakenode.finish()
    # It cannot ask for a record that is another's.
    assert data_of(await b.watched(second.id, caller=OTHERS)) == VIDEO
    region.run_of(first.id).go.set()
    assert data_of(await b.watched(first.id)) == VIDEO


async def test_a_leader_that_another_gateway_took_leaves_its_followers_behind(region):
    a, b = await region.pair(**ON)
    first, second = await shared_pair(region, a)
    third = await a.create()
    reading = asyncio.ensure_future(a.watched(second.id))
    await a.until(lambda: a.execution(second.id).log.readers)
    for node in region.nodes:
        node.default = fakenode.finish()
    # As after a partition: it claims, though the owner lives.
    record = await region.record(first.id)
    await b.core.adoption.adopt(record)
    await a.until(lambda: a.execution(first.id) is None)
    for video in (second, third):
        assert data_of(await a.watched(video.id)) == VIDEO
    events = await reading
    assert data_of(events) == VIDEO
    assert events[-1].completed.attempt == 2
    region.run_of(first.id).go.set()
    assert data_of(await a.watched(first.id)) == VIDEO
    # One run more, which the two that were left share.
    assert len(runs(region)) == 2
    results = [(await region.record(v.id)).video.result.gpu_seconds for v in (second, third)]
    assert results == [0.5, 0]


async def test_a_drained_gateway_leaves_all_of_them_to_the_others(region):
    a, b = await region.pair(drain_s=0.1, **ON)
    first, second = await shared_pair(region, a)
    await a.drain()
    watching = [asyncio.ensure_future(b.watched(v.id)) for v in (first, second)]
    await b.until(lambda: b.execution(first.id) and b.execution(second.id))
    run = region.run_of(first.id)
    assert not run.cancelled.is_set()
    run.go.set()
    for task in watching:
        assert data_of(await task) == VIDEO
    assert len(runs(region)) == 1


async def test_without_its_record_a_follower_was_never_there(region):
    a, b = await region.pair(**ON)
    first = await a.create()
    await region.until(lambda: region.node_of(first.id))
    a.jobs.before_create.shut()
    creating = asyncio.ensure_future(a.create())
    await a.jobs.before_create.until_reached()
    region.run_of(first.id).go.set()
    assert data_of(await a.watched(first.id)) == VIDEO
    # The run is over, and its end waits for the record.
    assert not creating.done()
    a.jobs.before_create.open()
    second = await creating
    assert data_of(await a.watched(second.id)) == VIDEO
    assert (await region.record(second.id)).video.status == COMPLETED
    assert data_of(await b.watched(second.id)) == VIDEO


async def test_the_owner_of_a_leader_that_lives_keeps_it(region):
    a, b = await region.pair(**ON)
    first, second = await shared_pair(region, a)
    # The follower alone changes hands.
    record = await region.record(second.id)
    for node in region.nodes:
        node.default = fakenode.finish()
    assert await b.core.adoption.adopt(record)
    assert data_of(await b.watched(second.id)) == VIDEO
    standing = await region.record(first.id)
    assert Owner(standing.owner_gateway, standing.owner_incarnation) == a.core.owner
    region.run_of(first.id).go.set()
    assert data_of(await a.watched(first.id)) == VIDEO
    # Its former owner tells what its new one has made of it.
    assert data_of(await a.watched(second.id)) == VIDEO
    assert (await a.videos.get(ME, second.id)).result.attempt == 1025
    assert (await region.record(second.id)).owner_gateway == "b"
