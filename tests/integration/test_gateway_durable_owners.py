"""Which gateway answers for a job: its owner, through any other, or whoever takes it over."""

import asyncio
import hashlib
import time

import grpc
import pytest
from grpc import aio
from reelmesh.v1 import peer_service_pb2 as pb
from reelmesh.v1 import video_pb2
from reelmesh.v1.peer_service_pb2_grpc import PeerServiceStub

from gateway import errors
from gateway.application import Caller
from gateway.core.adoption import ASK_AGAIN_S
from tests.support import fakenode
from tests.support.etcd import free_port
from tests.support.fakenode import VIDEO
from tests.support.faultproxy import FaultProxy
from tests.support.gateway_region import acquainted, gateway_region
from tests.support.gateways import ME, data_of, kinds

RUNNING = video_pb2.VIDEO_STATUS_RUNNING
COMPLETED = video_pb2.VIDEO_STATUS_COMPLETED
CANCELLED = video_pb2.VIDEO_STATUS_CANCELLED
SHA256 = hashlib.sha256(VIDEO).hexdigest()
OTHERS = Caller("globex", "them", frozenset({"video:generate", "video:read"}))


@pytest.fixture
async def region(tmp_path):
    async with gateway_region(tmp_path, script=fakenode.held(before=3)) as region:
        yield region


async def running_at(region, member, **fields):
    video = await member.create(**fields)
    await region.until(lambda: region.node_of(video.id))
    await member.until(lambda: member.execution(video.id).record.video.status == RUNNING)
    return video


class Behind:
    """A gateway whose peers reach it through a proxy."""

    def __init__(self, region, name, **changes):
        self._region, self._name, self._changes = region, name, changes
        self.port = free_port()
        self.proxy = FaultProxy(f"127.0.0.1:{self.port}")

    async def __aenter__(self):
        await self.proxy.__aenter__()
        peer = {"listen": f"127.0.0.1:{self.port}", "advertise": self.proxy.address}
        self.member = await self._region.start(self._name, peer=peer, **self._changes)
        return self

    async def __aexit__(self, *args):
        await self.proxy.__aexit__(*args)


# --- through a gateway that does not own it ---


async def test_another_gateway_relays_what_its_owner_says(region):
    a, b = await region.pair()
    video = await running_at(region, a)
    run = region.run_of(video.id)
    await a.until(lambda: a.execution(video.id).progress_percent)
    seen = await b.videos.get(ME, video.id)
    # The record has no progress.
    assert (seen.status, seen.progress_percent) == (RUNNING, 22)
    watching = asyncio.ensure_future(b.watched(video.id))
    own = asyncio.ensure_future(a.watched(video.id))
    await a.until(lambda: a.execution(video.id).log.readers == 2)
    with pytest.raises(errors.NotFinished):
        await b.videos.download(ME, video.id, offset=0)
    run.go.set()
    events, own_events = await watching, await own
    assert data_of(events) == VIDEO
    assert events[-1] == own_events[-1]
    found = await b.videos.download(ME, video.id, offset=100)
    assert b"".join([data async for data in found.chunks]) == VIDEO[100:]
    assert (await region.record(video.id)).epoch == 1
    assert b.core.lifetimes.held == 0


async def test_a_cancel_through_another_gateway_stops_the_gpu(region):
    a, b = await region.pair()
    video = await running_at(region, a)
    watching = asyncio.ensure_future(a.watched(video.id))
    await a.until(lambda: a.execution(video.id).log.readers)
    assert (await b.videos.cancel(ME, video.id)).status == CANCELLED
    assert kinds(await watching)[-1] == "cancelled"
    node = next(node for node in region.nodes if node.runs)
    await node.until(lambda: node.cancels)
    assert (await region.record(video.id)).epoch == 1


async def test_a_deletion_through_another_gateway_is_one_everywhere(region):
    a, b = await region.pair()
    live = await running_at(region, a)
    await b.videos.delete(ME, live.id)
    done = await running_at(region, a)
    for node in region.nodes:
        for run in node.runs:
            run.go.set()
    await a.watched(done.id)
    # The former owner still keeps its events for readers that come back.
    await b.videos.delete(ME, done.id)
    await a.until(lambda: a.execution(done.id) is None)
    for video in (live, done):
        for member in (a, b):
            with pytest.raises(errors.VideoNotFound):
                await member.videos.get(ME, video.id)
            with pytest.raises(errors.VideoNotFound):
                await member.watched(video.id)
        assert await region.records.get("acme", video.id) is None


async def test_a_resume_through_another_gateway_goes_on_after_the_last_event(region):
    a, b = await region.pair()
    video = await running_at(region, a)
    first = []
    async for event in a.videos.watch(ME, video.id, after_seq=0):
        first.append(event)
        if event.HasField("chunk") and event.chunk.offset:
            break
    watching = asyncio.ensure_future(b.watched(video.id, after_seq=first[-1].seq))
    await a.until(lambda: a.execution(video.id).log.readers)
    region.run_of(video.id).go.set()
    rest = await watching
    assert "restarted" not in kinds(rest)
    seqs = [event.seq for event in (*first, *rest) if event.seq]
    assert seqs == sorted(set(seqs))
    assert data_of([*first, *rest]) == VIDEO
    assert rest[-1].completed.sha256 == SHA256


# --- owners that are gone, silent, or only thought to be ---


async def test_two_gateways_that_claim_at_once_make_one_owner_and_one_video(region):
    a, b = await region.pair()
    c = await region.start("c")
    await acquainted(a, b, c)
    video = await running_at(region, a)
    for member in (b, c):
        member.jobs.before_claim.shut()
    await a.crash()
    watching = [asyncio.ensure_future(member.watched(video.id)) for member in (b, c)]
    for member in (b, c):
        await member.jobs.before_claim.until_reached()
    for member in (b, c):
        member.jobs.before_claim.open()
    await region.until_record(video.id, lambda record: record.epoch == 2)
    region.run_of(video.id).go.set()
    for events in await asyncio.gather(*watching):
        assert data_of(events) == VIDEO
        assert "restarted" not in kinds(events)
    record = await region.record(video.id)
    assert (record.epoch, record.video.status) == (2, COMPLETED)
    assert (b.core.lifetimes.held, c.core.lifetimes.held) in ((1, 0), (0, 1))


async def test_a_silent_owners_job_is_read_from_its_record_and_watched_by_taking_it_over(region):
    b = await region.start("b")
    async with Behind(region, "a") as behind:
        a = behind.member
        await acquainted(a, b)
        video = await running_at(region, a)
        await region.until_record(video.id, lambda record: record.attempts)
        former = asyncio.ensure_future(a.watched(video.id))
        await a.until(lambda: a.execution(video.id).log.readers)
        behind.proxy.hold()
        asked_s = time.monotonic()
        assert (await b.videos.get(ME, video.id)).status == RUNNING
        assert time.monotonic() - asked_s < 1.0
        assert (await region.record(video.id)).epoch == 1
        watching = asyncio.ensure_future(b.watched(video.id))
        await region.until_record(video.id, lambda record: record.owner_gateway == "b")
        run = region.run_of(video.id)
        await region.until(lambda: run.claim[0] == 2)
        # The former owner learns it from the node, and its readers notice nothing.
        await a.until(lambda: a.execution(video.id) is None)
        await b.until(lambda: b.execution(video.id).log.readers == 2)
        run.go.set()
        for events in (await watching, await former):
            seqs = [event.seq for event in events if event.seq]
            assert seqs == sorted(set(seqs))
            assert data_of(events) == VIDEO
            assert "restarted" not in kinds(events)
            assert events[-1].completed.sha256 == SHA256


async def test_an_owner_without_a_lease_that_answers_keeps_its_job(region):
    async with FaultProxy(region.control.address) as way:
        # Its records go another way: only its lease is lost.
        a = await region.start("a", control=way.address, records=region.control.address)
        b = await region.start("b")
        await acquainted(a, b)
        video = await running_at(region, a)
        listed = asyncio.Event()
        take = b.core.adoption.take
        b.app._control._on_orphans = lambda orphans: (take(orphans), orphans and listed.set())
        way.cut(refuse=True)
        async with asyncio.timeout(20):
            await listed.wait()
        # As the heir, or after it: it asks the owner, again and again.
        await asyncio.sleep(2 * ASK_AGAIN_S)
        assert (await region.record(video.id)).epoch == 1
        region.run_of(video.id).go.set()
        assert data_of(await a.watched(video.id)) == VIDEO
        assert (await region.record(video.id)).owner_gateway == "a"


async def test_a_job_that_its_owner_knows_nothing_of_is_taken_over_by_who_is_asked(region):
    a, b = await region.pair()
    video = await running_at(region, a)
    # As after a fault that nobody thought of: the record names it and it has no such job.
    a.core.lifetimes.disown(a.execution(video.id))
    watching = asyncio.ensure_future(b.watched(video.id))
    await b.until(lambda: b.execution(video.id))
    region.run_of(video.id).go.set()
    assert data_of(await watching) == VIDEO
    assert (await region.record(video.id)).owner_gateway == "b"


# --- tenants ---


async def test_another_tenant_finds_nothing_through_any_gateway(region):
    a, b = await region.pair()
    video = await running_at(region, a)
    for member in (a, b):
        with pytest.raises(errors.VideoNotFound):
            await member.videos.get(OTHERS, video.id)
        with pytest.raises(errors.VideoNotFound):
            await member.watched(video.id, caller=OTHERS)
        with pytest.raises(errors.VideoNotFound):
            await member.videos.cancel(OTHERS, video.id)
        with pytest.raises(errors.VideoNotFound):
            await member.videos.delete(OTHERS, video.id)
        with pytest.raises(errors.VideoNotFound):
            await member.videos.download(OTHERS, video.id, offset=0)
        videos, _ = await member.videos.list_page(OTHERS, page_size=0, page_token="")
        assert videos == []
    await a.crash()
    with pytest.raises(errors.VideoNotFound):
        await b.watched(video.id, caller=OTHERS)
    assert (await region.record(video.id)).epoch == 1


async def test_peers_are_told_who_asks_and_through_how_many(region):
    a, b = await region.pair()
    video = await running_at(region, a)
    owner = b.core.gateways.address_of(a.name, a.core.owner.incarnation)
    async with aio.insecure_channel(owner) as channel:
        stub = PeerServiceStub(channel)

        async def refused(**identity):
            request = pb.GetPeerVideoRequest(
                identity=pb.PeerIdentity(**identity), video_id=video.id
            )
            with pytest.raises(aio.AioRpcError) as error:
                await stub.GetPeerVideo(request, timeout=5)
            return error.value.code()

        assert await refused(hops=2) is grpc.StatusCode.INVALID_ARGUMENT
        assert await refused(tenant="acme") is grpc.StatusCode.INVALID_ARGUMENT
        assert await refused(tenant="acme", hops=3) is grpc.StatusCode.INVALID_ARGUMENT
        assert await refused(tenant="globex", hops=2) is grpc.StatusCode.NOT_FOUND
        assert await refused(tenant="globex", hops=1) is grpc.StatusCode.NOT_FOUND


async def test_a_gateway_that_is_asked_as_the_owner_asks_nobody_else(region):
    a, b = await region.pair()
    video = await running_at(region, a)
    for asked, code in ((a, grpc.StatusCode.OK), (b, grpc.StatusCode.NOT_FOUND)):
        peer = a.core.gateways.address_of(asked.name, asked.core.owner.incarnation)
        async with aio.insecure_channel(peer) as channel:
            request = pb.GetPeerVideoRequest(
                identity=pb.PeerIdentity(tenant="acme", hops=2), video_id=video.id
            )
            call = PeerServiceStub(channel).GetPeerVideo(request, timeout=5)
            assert await call.code() is code
