"""Job records that are away or whose answers get lost: at admission, at a claim, at the end."""

import asyncio
import contextlib

import aiohttp
import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from reelmesh.v1 import video_pb2, video_service_pb2
from reelmesh.v1.video_service_pb2_grpc import VideoServiceStub

from gateway import errors
from tests.support import fakenode
from tests.support.fakenode import VIDEO
from tests.support.faultproxy import Direction, FaultProxy
from tests.support.gateway_region import acquainted, gateway_region
from tests.support.gateways import ME, data_of, kinds

COMPLETED = video_pb2.VIDEO_STATUS_COMPLETED
FAILED = video_pb2.VIDEO_STATUS_FAILED
IMPATIENT = {"patience_s": 0.5, "admit_patience_s": 0.3, "commit_patience_s": 0.3}


@pytest.fixture
async def region(tmp_path):
    async with gateway_region(tmp_path, script=fakenode.held(before=3)) as region:
        yield region


@contextlib.asynccontextmanager
async def behind(region, name, **jobs):
    """A gateway whose records alone are reached through a proxy."""
    async with FaultProxy(region.control.address) as way:
        member = await region.start(name, records=way.address, jobs=jobs)
        # Connected: from here on it is answers that get lost.
        await member.jobs.known({"nobody"})
        yield way, member


async def listed(region):
    records, _ = await region.records.list_page("acme", limit=100, after="", oldest_first=True)
    return records


async def until_listed(region, holds):
    async with asyncio.timeout(20):
        while not holds(found := await listed(region)):  # noqa: ASYNC110 - of a store
            await asyncio.sleep(0.02)
    return found


# --- lost answers ---


@pytest.mark.parametrize("key", ["", "k"])
async def test_a_create_whose_answer_was_lost_is_one_video(region, key):
    async with behind(region, "a") as (way, a):
        a.jobs.before_create.shut()
        creating = asyncio.ensure_future(a.create(idempotency_key=key))
        await a.jobs.before_create.until_reached()
        way.hold(Direction.TO_CLIENT)
        a.jobs.before_create.open()
        await until_listed(region, bool)
        assert not creating.done()
        way.cut()
        way.heal()
        video = await creating
        (record,) = await listed(region)
        assert record.video.id == video.id
        await region.until(lambda: region.node_of(video.id))
        region.run_of(video.id).go.set()
        assert data_of(await a.watched(video.id)) == VIDEO


async def test_an_end_whose_answer_was_lost_is_told_as_it_stands(region):
    async with behind(region, "a") as (way, a):
        video = await a.create()
        await region.until(lambda: region.node_of(video.id))
        watching = asyncio.ensure_future(a.watched(video.id))
        a.jobs.before_finish.shut()
        region.run_of(video.id).go.set()
        await a.jobs.before_finish.until_reached()
        way.hold(Direction.TO_CLIENT)
        a.jobs.before_finish.open()
        record = await region.until_record(video.id, lambda record: record.artifact_key)
        assert not watching.done()
        way.cut()
        way.heal()
        assert data_of(await watching) == VIDEO
        # Its own artifact, and not taken for a loser's.
        found = await a.videos.download(ME, video.id, offset=0)
        assert b"".join([data async for data in found.chunks]) == VIDEO
        assert (await region.record(video.id)).artifact_key == record.artifact_key


async def test_a_claim_whose_answer_was_lost_is_one_claim(region):
    a = await region.start("a")
    async with behind(region, "b") as (way, b):
        await acquainted(a, b)
        video = await a.create()
        await region.until(lambda: region.node_of(video.id))
        b.jobs.before_claim.shut()
        await a.crash()
        watching = asyncio.ensure_future(b.watched(video.id))
        await b.jobs.before_claim.until_reached()
        way.hold(Direction.TO_CLIENT)
        b.jobs.before_claim.open()
        await region.until_record(video.id, lambda record: record.owner_gateway == "b")
        assert b.execution(video.id) is None
        way.cut()
        way.heal()
        await b.until(lambda: b.execution(video.id))
        region.run_of(video.id).go.set()
        events = await watching
        assert data_of(events) == VIDEO
        assert "restarted" not in kinds(events)
        assert (await region.record(video.id)).epoch == 2


async def test_a_claim_that_was_given_up_and_yet_made_leaves_no_job_without_a_run(region):
    a = await region.start("a")
    async with behind(region, "b", **IMPATIENT) as (way, b):
        await acquainted(a, b)
        video = await a.create()
        await region.until(lambda: region.node_of(video.id))
        b.jobs.before_claim.shut()
        await a.crash()
        watching = asyncio.ensure_future(b.watched(video.id))
        await b.jobs.before_claim.until_reached()
        way.hold(Direction.TO_CLIENT)
        b.jobs.before_claim.open()
        with pytest.raises(errors.JobStoreAway):
            await watching
        assert (await region.record(video.id)).owner_gateway == "b"
        way.cut()
        way.heal()
        # It is no orphan, and nobody asks for it.
        region.run_of(video.id).go.set()
        record = await region.until_record(video.id, lambda r: r.video.status == COMPLETED)
        assert record.owner_gateway == "b"


# --- away at admission ---


async def test_a_streamed_video_is_admitted_without_its_record_and_says_so(region):
    async with behind(region, "a", **IMPATIENT) as (way, a):
        way.cut(refuse=True)
        video = await a.create(streamed=True)
        assert video.durable is False
        watching = asyncio.ensure_future(a.watched(video.id))
        await region.until(lambda: region.node_of(video.id))
        assert await listed(region) == []
        region.run_of(video.id).go.set()
        events = await watching
        assert events[0].queued.durable is False
        assert data_of(events) == VIDEO
        assert (await a.videos.get(ME, video.id)).status == COMPLETED
        way.heal()
        # Written late, and ended at that: no live job is left that nobody runs.
        record = await region.until_record_appears(video.id)
        assert record.epoch == 1
        await region.until_record(video.id, lambda record: record.video.status == COMPLETED)


async def test_what_must_be_durable_is_refused_and_its_run_stopped(region):
    async with behind(region, "a", **IMPATIENT) as (way, a):
        way.cut(refuse=True)
        for fields in ({}, {"streamed": True, "durable": True}):
            with pytest.raises(errors.JobStoreAway):
                await a.create(**fields)
        with pytest.raises(errors.JobStoreAway):
            await a.create(streamed=True, idempotency_key="k")
        # Two had begun meanwhile; the keyed one waits for its record before.
        await region.until(lambda: sum(len(node.cancels) for node in region.nodes) == 2)
        assert sum(len(node.runs) for node in region.nodes) == 2
        await region.until(lambda: not any(node.live for node in region.nodes))
        await a.until(lambda: a.core.lifetimes.live == 0)


async def test_the_refusal_is_told_as_one_that_a_retry_helps(region):
    async with behind(region, "a", **IMPATIENT) as (way, a):
        way.cut(refuse=True)
        token = {"Authorization": f"Bearer {region.issuer.issue()}"}
        async with aiohttp.ClientSession(f"http://{a.app.http_address}", headers=token) as http:
            answer = await http.post("/v1/videos", json={"prompt": "a ball"})
            problem = await answer.json()
        assert (answer.status, problem["code"]) == (503, "job_store_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
        async with aio.insecure_channel(a.app.grpc_address) as channel:
            request = video_service_pb2.CreateVideoRequest(
                spec=video_pb2.VideoSpec(prompt="a ball")
            )
            metadata = (("authorization", token["Authorization"]),)
            with pytest.raises(aio.AioRpcError) as refused:
                await VideoServiceStub(channel).CreateVideo(request, metadata=metadata, timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        details = rpc_status.from_call(refused.value).details
        assert any(detail.Unpack(info) for detail in details)
        assert info.reason == "job_store_unavailable"
        assert any(detail.Unpack(retry) for detail in details)
        assert retry.retry_delay.ToMilliseconds() >= 1000


@pytest.mark.parametrize("key", ["", "k"])
async def test_a_refused_video_whose_record_was_written_is_no_job_without_an_owner(region, key):
    async with behind(region, "a", **IMPATIENT) as (way, a):
        a.jobs.before_create.shut()
        creating = asyncio.ensure_future(a.create(idempotency_key=key))
        await a.jobs.before_create.until_reached()
        way.hold(Direction.TO_CLIENT)
        a.jobs.before_create.open()
        (record,) = await until_listed(region, bool)
        with pytest.raises(errors.JobStoreAway):
            await creating
        way.cut()
        way.heal()
        if not key:
            await until_listed(region, lambda found: not found)
            return
        # Its client comes back with the key, and it runs.
        await region.until(lambda: region.node_of(record.video.id))
        assert (await a.create(idempotency_key=key)).id == record.video.id
        region.run_of(record.video.id).go.set()
        assert data_of(await a.watched(record.video.id)) == VIDEO


async def test_a_replica_that_hangs_costs_one_video_its_record(region):
    async with FaultProxy(region.control.address) as way:
        replicas = (way.address, region.control.address)
        a = await region.start("a", records=replicas, jobs=IMPATIENT)
        way.hold()
        assert (await a.create(streamed=True)).durable is False
        for _ in range(2):
            assert (await a.create(streamed=True)).durable is True


# --- away at the end ---


async def test_a_streaming_client_is_told_first_and_the_record_follows(region):
    async with behind(region, "a", **IMPATIENT) as (way, a):
        video = await a.create(streamed=True)
        assert video.durable
        watching = asyncio.ensure_future(a.watched(video.id))
        await region.until(lambda: region.node_of(video.id))
        way.cut(refuse=True)
        region.run_of(video.id).go.set()
        events = await watching
        assert data_of(events) == VIDEO
        assert kinds(events)[-1] == "completed"
        assert (await region.record(video.id)).video.status != COMPLETED
        way.heal()
        await region.until_record(video.id, lambda record: record.video.status == COMPLETED)


async def test_a_durable_one_is_told_when_its_record_says_so(region):
    async with behind(region, "a", **IMPATIENT) as (way, a):
        video = await a.create()
        watching = asyncio.ensure_future(a.watched(video.id))
        await region.until(lambda: region.node_of(video.id))
        way.cut(refuse=True)
        a.jobs.before_finish.reached.clear()
        region.run_of(video.id).go.set()
        # Longer than anybody would be told without.
        for _ in range(2):
            await a.jobs.before_finish.until_reached()
            a.jobs.before_finish.reached.clear()
        assert not watching.done()
        way.heal()
        assert data_of(await watching) == VIDEO
        assert (await region.record(video.id)).video.status == COMPLETED
