"""Requests answered with videos that are finished already, and those that are not."""

import asyncio
import contextlib
import hashlib

import pytest
from reelmesh.v1 import tenant_pb2, video_pb2, video_service_pb2

from gateway import errors
from gateway.application import Caller
from gateway.errors import JobStoreAway
from gateway.jobs.ids import region_of
from gateway.jobs.memory import MemoryJobStore
from gateway.output.artifacts import open_store
from gateway.tenants import TenantPolicies
from tests.support import fakenode
from tests.support.artifacts import listed
from tests.support.edges import serve_edges
from tests.support.fakenode import VIDEO, FakeNode, serve_node
from tests.support.gateway_region import gateway_region
from tests.support.gateways import ME, data_of, kinds, open_gateway
from tests.support.regions import open_region
from wan_t2v_sdk import AsyncTextToVideoGenerator

COMPLETED = video_pb2.VIDEO_STATUS_COMPLETED
MISS, HIT = video_pb2.CACHE_STATUS_MISS, video_pb2.CACHE_STATUS_HIT
REFRESHED = video_pb2.CACHE_STATUS_REFRESHED
OTHERS = Caller("globex", "them", ME.scopes)
SHARED, TENANT, OFF, UNSET = (
    tenant_pb2.CACHE_SHARING_SHARED,
    tenant_pb2.CACHE_SHARING_TENANT,
    tenant_pb2.CACHE_SHARING_OFF,
    tenant_pb2.CACHE_SHARING_UNSPECIFIED,
)
ON = {"enabled": True}


def sharing(**tenants):
    found = TenantPolicies()
    found.replace(
        tenant_pb2.TenantPolicy(tenant=tenant, cache_sharing=kind)
        for tenant, kind in tenants.items()
    )
    return found


@contextlib.asynccontextmanager
async def mesh(tmp_path, node, **changes):
    changes.setdefault("cache", ON)
    async with serve_node(node), open_gateway(tmp_path, **changes) as gateway:
        await gateway.know(node)
        yield gateway


async def made(gateway, **fields):
    """A finished video."""
    video = await gateway.create(**fields)
    await gateway.watched(video.id, caller=fields.get("caller", ME))
    return await gateway.videos.get(fields.get("caller", ME), video.id)


async def content(gateway, video_id, caller=ME):
    found = await gateway.videos.download(caller, video_id, offset=0)
    return b"".join([data async for data in found.chunks])


# --- hits ---


async def test_the_same_request_is_answered_at_once_with_the_same_video(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node) as gateway:
        first = await made(gateway)
        second = await gateway.create(prompt=" a\tball ")
        assert len(node.runs) == 1
        assert (first.cache, second.cache) == (MISS, HIT)
        assert second.id != first.id
        assert second.status == COMPLETED
        assert second.spec.seed == first.spec.seed
        assert second.spec.prompt == " a\tball "
        assert second.result.cache == HIT
        assert second.result.gpu_seconds == 0
        assert second.expires_at.ToNanoseconds() > first.expires_at.ToNanoseconds()
        events = await gateway.watched(second.id)
        assert kinds(events)[0] == "queued"
        assert kinds(events)[-1] == "completed"
        assert data_of(events) == VIDEO
        assert await content(gateway, second.id) == VIDEO
        half = next(event for event in events if event.HasField("chunk"))
        assert kinds(await gateway.watched(second.id, after_seq=half.seq)) == [
            "queued",
            "completed",
        ]
        assert gateway.metric("cache_requests_total", outcome="hit") == 1
        assert gateway.metric("cache_requests_total", outcome="miss") == 1
        assert gateway.metric("cache_entries") == 1
        assert gateway.metric("cache_bytes") == len(VIDEO)
        assert gateway.metric("jobs_live") == 0


async def test_streamed_and_keyed_it_is_the_same(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node) as gateway:
        await made(gateway)
        streamed = await gateway.create(streamed=True)
        assert data_of(await gateway.watched(streamed.id)) == VIDEO
        keyed = await gateway.create(idempotency_key="k")
        assert keyed.cache == HIT
        assert (await gateway.create(idempotency_key="k")).id == keyed.id
        with pytest.raises(errors.IdempotencyConflict):
            await gateway.create(idempotency_key="k", prompt="another")
        # Every artifact that is there is some record's.
        store = open_store(str(tmp_path / "gateway" / "artifacts"))
        assert len(await listed(store)) == 3
        assert len(node.runs) == 1


async def test_a_seed_is_answered_with_that_seed_alone(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node) as gateway:
        seeded = await made(gateway, seed=7)
        assert (await gateway.create(seed=8)).cache == MISS
        assert (await gateway.create(seed=7)).cache == HIT
        anyone = await gateway.create()
        assert anyone.cache == HIT
        assert anyone.spec.seed in (7, 8)
        unseeded = await made(gateway, prompt="another")
        again = await gateway.create(prompt="another", seed=unseeded.spec.seed)
        assert again.cache == HIT
        assert seeded.cache == MISS


async def test_no_cache_draws_anew_and_takes_its_place(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node) as gateway:
        first = await made(gateway)
        fresh = await made(gateway, no_cache=True)
        assert fresh.cache == fresh.result.cache == REFRESHED
        assert fresh.spec.seed != first.spec.seed
        assert len(node.runs) == 2
        assert (await gateway.create()).spec.seed == fresh.spec.seed
        # The other is there still, for whoever wants that seed.
        assert (await gateway.create(seed=first.spec.seed)).cache == HIT


async def test_a_hit_needs_no_node(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node) as gateway:
        await made(gateway)
        await node.kill()
        await gateway.until(lambda: not gateway.ready(node))
        assert (await gateway.create()).cache == HIT
        with pytest.raises(errors.Unavailable):
            await gateway.create(prompt="another")


async def test_what_load_made_worse_answers_nobody_who_asks_for_more(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node) as gateway:
        await made(gateway, steps=2)
        assert (await gateway.create(steps=4)).cache == MISS


# --- whose artifact ---


async def test_a_deletion_is_that_of_one_job(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node) as gateway:
        first = await made(gateway)
        second = await gateway.create()
        await gateway.videos.delete(ME, first.id)
        with pytest.raises(errors.VideoNotFound):
            await content(gateway, first.id)
        assert await content(gateway, second.id) == VIDEO
        third = await gateway.create()
        assert third.cache == HIT
        for video in (second, third):
            await gateway.videos.delete(ME, video.id)
        store = open_store(str(tmp_path / "gateway" / "artifacts"))
        await asyncio.sleep(0.05)
        assert await listed(store) == []
        # With the last of them the bytes are gone: that is a miss and no error.
        fourth = await made(gateway)
        assert fourth.cache == MISS
        assert len(node.runs) == 2


async def test_what_is_damaged_answers_nobody(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node) as gateway:
        first = await made(gateway)
        (file,) = (tmp_path / "gateway" / "artifacts" / "videos" / first.id).iterdir()
        file.write_bytes(VIDEO[:-1] + b"x")
        again = await made(gateway)
        assert again.cache == MISS
        assert await content(gateway, again.id) == VIDEO


async def test_a_hit_expires_for_itself(tmp_path):
    async with gateway_region(tmp_path, script=fakenode.finish()) as region:
        a = await region.start("a", cache=ON, artifacts={"retention_s": 1.0})
        first = await made(a)
        await asyncio.sleep(0.6)
        second = await a.create()
        assert second.cache == HIT
        await asyncio.sleep(0.6)
        await a.core.sweeper.sweep()
        assert await region.records.get("acme", first.id) is None
        assert await content(a, second.id) == VIDEO


async def test_an_object_store_copies_by_itself(tmp_path):
    node = FakeNode("n0")
    artifacts = open_store("memory:///")
    async with mesh(tmp_path, node, artifacts=artifacts) as gateway:
        first = await made(gateway)
        second = await gateway.create()
        assert second.cache == HIT
        await gateway.videos.delete(ME, first.id)
        assert await content(gateway, second.id) == VIDEO
    await artifacts.close()


# --- bounds ---


async def test_what_is_asked_for_more_often_stays(tmp_path):
    node = FakeNode("n0", slots=50)
    cache = {"enabled": True, "max_bytes": 1024 * 1024, "max_entries": 100}
    async with mesh(tmp_path, node, cache=cache) as gateway:
        await made(gateway, prompt="hot")
        for _ in range(5):
            assert (await gateway.create(prompt="hot")).cache == HIT
        for number in range(120):
            await made(gateway, prompt=f"cold {number}")
            assert gateway.metric("cache_bytes") <= 1024 * 1024
        assert (await gateway.create(prompt="hot")).cache == HIT
        assert gateway.metric("cache_evictions_total", cache="index") > 0
        assert 0 < gateway.metric("cache_entries") <= 100


async def test_a_rollback_purges_what_a_version_drew(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node) as gateway:
        first = await made(gateway)
        assert gateway.core.caching.index.purge("fake-wan", "2") == 0
        assert gateway.core.caching.index.purge("fake-wan", first.spec.model_version) == 1
        assert gateway.metric("cache_bytes") == 0
        assert (await gateway.create()).cache == MISS


# --- who by whose ---


@pytest.mark.parametrize(
    ("mine", "theirs", "answered"),
    [
        (SHARED, SHARED, True),
        (SHARED, TENANT, False),
        (TENANT, SHARED, False),
        (UNSET, UNSET, False),
        (TENANT, TENANT, False),
        (OFF, SHARED, False),
        (SHARED, OFF, False),
        (OFF, OFF, False),
    ],
)
async def test_tenants_are_answered_with_anothers_only_where_both_say_so(
    tmp_path, mine, theirs, answered
):
    node = FakeNode("n0")
    policies = sharing(acme=mine, globex=theirs)
    async with mesh(tmp_path, node, policies=policies) as gateway:
        first = await made(gateway)
        second = await made(gateway, caller=OTHERS)
        assert (second.cache == HIT) == answered
        assert len(node.runs) == (1 if answered else 2)
        assert await content(gateway, second.id, OTHERS) == VIDEO
        # The job is one's own: of the other's nothing can be seen.
        with pytest.raises(errors.VideoNotFound):
            await gateway.videos.get(OTHERS, first.id)
        again = await made(gateway, caller=OTHERS)
        assert (again.cache == HIT) == (theirs != OFF)


async def test_a_tenant_that_shares_no_more_answers_nobody_else(tmp_path):
    node = FakeNode("n0")
    policies = sharing(acme=SHARED, globex=SHARED)
    async with mesh(tmp_path, node, policies=policies) as gateway:
        await made(gateway)
        policies.replace([tenant_pb2.TenantPolicy(tenant="globex", cache_sharing=SHARED)])
        assert (await made(gateway, caller=OTHERS)).cache == MISS


async def test_a_tenant_that_switches_it_off_is_answered_with_nothing(tmp_path):
    node = FakeNode("n0")
    policies = sharing()
    async with mesh(tmp_path, node, policies=policies) as gateway:
        await made(gateway)
        policies.replace([tenant_pb2.TenantPolicy(tenant="acme", cache_sharing=OFF)])
        again = await made(gateway)
        assert again.cache == again.result.cache == video_pb2.CACHE_STATUS_BYPASSED
        policies.replace([])
        # What it had drawn while it was off answers nothing; what was there before does.
        hit = await gateway.create()
        assert hit.cache == HIT
        assert hit.spec.seed != again.spec.seed


async def test_a_hit_holds_nothing_of_a_tenants_limits(tmp_path):
    node = FakeNode("n0")
    node.script.append(fakenode.finish())
    policies = TenantPolicies()
    limited = tenant_pb2.TenantPolicy(tenant="acme", concurrent_jobs=1)
    policies.replace([limited])
    jobs = MemoryJobStore(max_records=100, policies=policies)
    async with mesh(tmp_path, node, policies=policies, jobs=jobs) as gateway:
        await made(gateway)
        node.default = fakenode.held()
        await gateway.create(prompt="another")
        with pytest.raises(errors.QuotaExceeded):
            await gateway.create(prompt="a third")
        for _ in range(3):
            assert (await gateway.create()).cache == HIT


@pytest.mark.parametrize("limits", [{}, {"concurrent_jobs": 50}, {"queued_jobs": 50}])
async def test_of_many_that_come_at_once_one_is_drawn(tmp_path, limits):
    """Also where a record must stand before anything begins."""
    node = FakeNode("n0")
    policies = TenantPolicies()
    policies.replace([tenant_pb2.TenantPolicy(tenant="acme", **limits)])
    async with mesh(tmp_path, node, policies=policies) as gateway:
        videos = await asyncio.gather(
            *(gateway.create(idempotency_key=f"k{n}" if n % 2 else "") for n in range(20))
        )
        for video in videos:
            assert data_of(await gateway.watched(video.id)) == VIDEO
        assert len({video.id for video in videos}) == 20
        assert len(node.runs) == 1


# --- where records or the store fail ---


class Away(MemoryJobStore):
    """Records that are away when the test says so."""

    def __init__(self):
        super().__init__(max_records=100)
        self.gone = False

    async def create(self, record, *, over_assignment=False):
        if self.gone:
            raise JobStoreAway("scripted", retry_after_s=1)
        return await super().create(record, over_assignment=over_assignment)


async def test_while_records_are_away_a_stream_is_answered_without(tmp_path):
    node = FakeNode("n0")
    jobs = Away()
    async with mesh(tmp_path, node, jobs=jobs) as gateway:
        await made(gateway)
        jobs.gone = True
        for fields in ({}, {"idempotency_key": "k"}, {"durable": True, "streamed": True}):
            with pytest.raises(JobStoreAway):
                await gateway.create(**fields)
        streamed = await gateway.create(streamed=True)
        assert streamed.cache == HIT
        assert not streamed.durable
        assert data_of(await gateway.watched(streamed.id)) == VIDEO
        jobs.gone = False
        async with asyncio.timeout(20):
            while await jobs.get("acme", streamed.id) is None:  # noqa: ASYNC110 - of a store
                await asyncio.sleep(0.02)
        assert data_of(await gateway.watched(streamed.id)) == VIDEO
        assert (await gateway.create(idempotency_key="k")).cache == HIT


async def test_a_hit_outlives_its_gateway(tmp_path):
    async with gateway_region(tmp_path, script=fakenode.finish()) as region:
        a, b = await region.pair(cache=ON)
        first = await a.create()
        await a.watched(first.id)
        hit = await a.create()
        assert hit.cache == HIT
        assert hit.durable
        await a.crash()
        assert data_of(await b.watched(hit.id)) == VIDEO
        assert (await region.record(hit.id)).video.cache == HIT
        # The other's index is its own: it has drawn nothing yet.
        assert (await b.create()).cache == MISS


# --- over regions ---


async def test_what_is_here_is_not_sent_for_elsewhere(tmp_path):
    async with (
        open_region(tmp_path, "ap", cache=ON) as ap,
        open_region(tmp_path, "eu") as eu,
        serve_node(FakeNode("ap-node-0")) as node,
        serve_node(FakeNode("eu-node-0")) as other,
    ):
        await ap.gateway.know(node)
        await eu.gateway.know(other)
        ap.regions.take([eu.view()])
        await ap.gateway.until(lambda: ap.regions.link("eu").load is not None)

        async def create(**options):
            return await ap.application.create(
                ME,
                video_pb2.VideoSpec(prompt=options.pop("prompt", "a ball")),
                video_service_pb2.CreateOptions(**options),
                streamed=False,
            )

        await ap.gateway.watched((await create()).id)
        node.remaining_work_s = 500.0
        await node.push()
        await ap.gateway.until(lambda: (ap.gateway.videos.predicted_wait_s() or 0) > 100)
        assert region_of((await create(prompt="another")).id) == "eu"
        for options in ({}, {"idempotency_key": "k"}):
            hit = await create(**options)
            assert (region_of(hit.id), hit.cache) == ("ap", HIT)
        assert region_of((await create(no_cache=True)).id) == "eu"


async def test_the_client_library_takes_a_hit_for_a_video(tmp_path):
    node = FakeNode("n0")
    async with (
        mesh(tmp_path, node) as gateway,
        serve_edges(tmp_path, application=gateway.videos) as edges,
        AsyncTextToVideoGenerator(
            endpoints=[edges.grpc_address], token=edges.issuer.issue()
        ) as client,
    ):
        results = [await client.generate("a ball", progress=False) for _ in range(2)]
        fresh = await client.generate("a ball", progress=False, no_cache=True)
        assert [result["cache"] for result in (*results, fresh)] == ["miss", "hit", "refreshed"]
        assert {result["sha256"] for result in results} == {hashlib.sha256(VIDEO).hexdigest()}
        assert (await client.create("a ball", no_cache=True)).id
