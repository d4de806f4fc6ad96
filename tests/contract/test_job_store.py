"""What every JobStore promises; see tests/support/jobs.py for those it runs on."""

import asyncio

import pytest
from reelmesh.v1 import job_service_pb2, tenant_pb2, video_pb2

from gateway.errors import (
    ConcurrentJobsQuota,
    GpuSecondsQuota,
    IdempotencyConflict,
    NotFinished,
    QuotaTooSmall,
    ResourceExhausted,
)
from gateway.jobs.quota import reservation
from gateway.jobs.store import KeyElsewhere, Owner
from tests.support.jobs import JOB_STORES, memory_jobs

ME, OTHER = Owner("g0", "life-1"), Owner("g1", "life-1")


@pytest.fixture(params=JOB_STORES)
async def store(request):
    async with request.param() as found:
        yield found


def job(job_id, *, tenant="acme", key="", digest="d", epoch=1, owner=ME):
    return job_service_pb2.JobRecord(
        owner_gateway=owner.gateway_id,
        owner_incarnation=owner.incarnation,
        video=video_pb2.Video(id=job_id, status=video_pb2.VIDEO_STATUS_QUEUED),
        tenant=tenant,
        idempotency_key=key,
        request_digest=digest,
        epoch=epoch,
    )


def ended(record, status=video_pb2.VIDEO_STATUS_COMPLETED, *, artifact="", expires_s=100):
    copy = job_service_pb2.JobRecord()
    copy.CopyFrom(record)
    copy.video.status = status
    copy.artifact_key = artifact
    copy.video.expires_at.FromSeconds(expires_s)
    return copy


async def test_a_record_is_there_once_created(store):
    record = job("ap-1")
    assert await store.create(record) == (record, True)
    assert await store.get("acme", "ap-1") == record
    assert await store.get("other", "ap-1") is None
    assert await store.get("acme", "ap-2") is None


async def test_what_is_given_and_taken_are_copies(store):
    record = job("ap-1")
    created, _ = await store.create(record)
    record.tenant = created.tenant = "changed"
    read = await store.get("acme", "ap-1")
    read.tenant = "changed"
    assert (await store.get("acme", "ap-1")).tenant == "acme"


async def test_one_key_makes_one_record(store):
    first = job("ap-1", key="k")
    await store.create(first)
    assert await store.create(job("ap-2", key="k")) == (first, False)
    assert await store.find_key("acme", "k") == first
    assert await store.get("acme", "ap-2") is None


async def test_a_key_with_another_request_is_a_conflict(store):
    await store.create(job("ap-1", key="k"))
    with pytest.raises(IdempotencyConflict):
        await store.create(job("ap-2", key="k", digest="other"))


async def test_keys_are_scoped_to_the_tenant(store):
    await store.create(job("ap-1", key="k"))
    _, created = await store.create(job("ap-2", tenant="other", key="k", digest="other"))
    assert created
    assert await store.find_key("third", "k") is None


async def test_of_many_creates_with_one_key_one_wins(store):
    answers = await asyncio.gather(*(store.create(job(f"ap-{i}", key="k")) for i in range(20)))
    assert sum(created for _, created in answers) == 1
    assert len({record.video.id for record, _ in answers}) == 1


async def test_a_key_is_assigned_once_to_another_region(store):
    async def assign(key, region, over=""):
        return await store.assign_key("acme", key, region=region, over_region=over, keep_s=60)

    assert await assign("k", "eu") == "eu"
    assert await assign("k", "us") == "eu"
    with pytest.raises(KeyElsewhere, match="eu"):
        await store.find_key("acme", "k")
    with pytest.raises(KeyElsewhere, match="eu"):
        await store.create(job("ap-1", key="k"))
    assert await store.get("acme", "ap-1") is None
    assert await store.find_key("other", "k") is None
    # Only who knows what stands replaces it.
    assert await assign("k", "us", over="sa") == "eu"
    assert await assign("k", "us", over="eu") == "us"


async def test_a_key_that_was_assigned_may_be_used_here_after_all(store):
    await store.assign_key("acme", "k", region="eu", over_region="", keep_s=60)
    made, created = await store.create(job("ap-1", key="k"), over_assignment=True)
    assert created
    assert await store.find_key("acme", "k") == made
    answer = await store.assign_key("acme", "k", region="eu", over_region="eu", keep_s=60)
    assert answer is None


async def test_of_many_assignments_and_creates_one_wins(store):
    async def create(number):
        try:
            return (await store.create(job(f"ap-{number}", key="k")))[0].video.id
        except KeyElsewhere as elsewhere:
            return elsewhere.region

    async def assign(number):
        region = await store.assign_key("acme", "k", region=f"r{number}", over_region="", keep_s=60)
        return region or (await store.find_key("acme", "k")).video.id

    answers = await asyncio.gather(
        *(each(number) for number in range(10) for each in (assign, create))
    )
    assert len(set(answers)) == 1


async def test_the_first_terminal_write_wins(store):
    record = job("ap-1")
    await store.create(record)
    won = ended(record, artifact="a")
    assert await store.finish(won) == won
    lost = ended(record, video_pb2.VIDEO_STATUS_CANCELLED)
    assert await store.finish(lost) == won
    assert await store.get("acme", "ap-1") == won


async def test_of_many_terminal_writes_one_wins(store):
    record = job("ap-1")
    await store.create(record)
    answers = await asyncio.gather(
        *(store.finish(ended(record, artifact=str(i))) for i in range(20))
    )
    assert len({answer.artifact_key for answer in answers}) == 1


async def test_an_owner_of_an_older_epoch_finishes_nothing(store):
    await store.create(job("ap-1", epoch=3))
    stale = ended(job("ap-1", epoch=2))
    standing = await store.finish(stale)
    assert standing.video.status == video_pb2.VIDEO_STATUS_QUEUED


async def test_a_deleted_record_is_not_brought_back(store):
    record = job("ap-1", key="k")
    await store.create(record)
    assert await store.delete("other", "ap-1") is None
    with pytest.raises(NotFinished):
        await store.delete("acme", "ap-1")
    done = await store.finish(ended(record))
    assert await store.delete("acme", "ap-1") == done
    assert await store.delete("acme", "ap-1") is None
    assert await store.finish(ended(record)) is None
    assert await store.get("acme", "ap-1") is None
    assert await store.find_key("acme", "k") is None
    _, created = await store.create(job("ap-2", key="k", digest="another"))
    assert created


async def test_pages_cover_a_tenants_records_in_either_order(store):
    ids = [f"ap-{i:02}" for i in range(7)]
    for job_id in ids:
        await store.create(job(job_id))
        await store.create(job(f"other-{job_id}", tenant="other"))
    for oldest_first in (False, True):
        seen, after, more = [], "", True
        while more:
            page, more = await store.list_page(
                "acme", limit=3, after=after, oldest_first=oldest_first
            )
            seen.extend(record.video.id for record in page)
            after = seen[-1]
        assert seen == (ids if oldest_first else ids[::-1])


async def test_a_page_goes_on_after_an_id_that_is_gone(store):
    for index in range(5):
        await store.create(job(f"ap-{index}"))
    await store.finish(ended(job("ap-2")))
    await store.delete("acme", "ap-2")
    page, more = await store.list_page("acme", limit=10, after="ap-2", oldest_first=False)
    assert [record.video.id for record in page] == ["ap-1", "ap-0"]
    assert not more
    assert await store.list_page("nobody", limit=10, after="", oldest_first=False) == ([], False)


async def test_only_ended_records_expire(store):
    for index in range(4):
        await store.create(job(f"ap-{index}"))
    await store.finish(ended(job("ap-1"), expires_s=100))
    await store.finish(ended(job("ap-2"), expires_s=200))
    await store.finish(ended(job("ap-3"), expires_s=100))
    assert {r.video.id for r in await store.expired(150, limit=10)} == {"ap-1", "ap-3"}
    assert len(await store.expired(150, limit=1)) == 1
    assert await store.expired(50, limit=10) == []


async def test_known_names_those_that_have_a_record(store):
    await store.create(job("ap-1"))
    assert await store.known({"ap-1", "ap-2"}) == {"ap-1"}


async def test_a_claim_moves_a_job_and_shuts_its_owner_out(store):
    await store.create(job("ap-1"))
    record, claimed = await store.claim("ap-1", epoch=1, owner=OTHER)
    assert claimed
    assert (record.owner_gateway, record.epoch) == ("g1", 2)
    # Once more, since its answer was lost; and another that is too late.
    assert await store.claim("ap-1", epoch=1, owner=OTHER) == (record, True)
    assert await store.claim("ap-1", epoch=1, owner=Owner("g2", "life-1")) == (record, False)
    # The same gateway in another life is another owner.
    assert await store.claim("ap-1", epoch=1, owner=Owner("g1", "life-2")) == (record, False)
    assert (await store.finish(ended(job("ap-1")))).video.status == video_pb2.VIDEO_STATUS_QUEUED
    done = await store.finish(ended(record))
    assert done.video.status == video_pb2.VIDEO_STATUS_COMPLETED
    assert await store.claim("ap-1", epoch=2, owner=ME) == (done, False)
    assert await store.claim("ap-2", epoch=1, owner=ME) == (None, False)


async def test_its_owner_alone_updates_a_job_that_goes_on(store):
    record = job("ap-1")
    await store.create(record)
    record.attempts.add(attempt=1, node_id="n", cause="worker_died")
    await store.update(record)
    assert await store.get("acme", "ap-1") == record
    stranger = job("ap-1", owner=OTHER)
    await store.update(stranger)
    assert await store.get("acme", "ap-1") == record
    done = await store.finish(ended(record))
    await store.update(record)
    assert await store.get("acme", "ap-1") == done
    await store.update(job("ap-none"))
    assert await store.get("acme", "ap-none") is None


async def test_records_in_memory_are_bounded():
    async with memory_jobs() as store:

        async def fill():
            for index in range(10_000):
                await store.create(job(f"ap-{index}"))

        with pytest.raises(ResourceExhausted):
            await fill()


class Limits:
    """The policies that a store under test holds its tenants to."""

    def __init__(self, **fields):
        self.policy = tenant_pb2.TenantPolicy(tenant="acme", **fields)

    def of(self, tenant):
        return self.policy if tenant == "acme" else tenant_pb2.TenantPolicy()


def reserving(job_id, gpu_s, **fields):
    record = job(job_id, **fields)
    record.reservation.CopyFrom(reservation(gpu_s, now_s=1_000_000.0))
    record.video.created_at.FromSeconds(1_000_000)
    return record


def took(record, gpu_s):
    done = ended(record)
    done.video.result.gpu_seconds = gpu_s
    return done


@pytest.mark.parametrize("stores", JOB_STORES)
async def test_a_tenants_jobs_at_once_are_bounded(stores):
    async with stores(Limits(concurrent_jobs=2)) as store:
        await store.create(job("ap-1"))
        await store.create(job("ap-2", key="k"))
        with pytest.raises(ConcurrentJobsQuota, match="2 of the tenant's videos") as raised:
            await store.create(job("ap-3"))
        assert raised.value.retry_after_s >= 1
        assert raised.value.tenant == "acme"
        # What stands already is found, and another tenant is another matter.
        assert not (await store.create(job("ap-4", key="k")))[1]
        assert (await store.create(job("ap-5", tenant="other")))[1]
        await store.claim("ap-1", epoch=1, owner=OTHER)
        with pytest.raises(ConcurrentJobsQuota):
            await store.create(job("ap-3"))
        await store.finish(ended(job("ap-1", epoch=2, owner=OTHER)))
        await store.create(job("ap-3"))


@pytest.mark.parametrize("stores", JOB_STORES)
async def test_a_tenants_gpu_seconds_of_a_day_are_bounded(stores):
    async with stores(Limits(gpu_seconds_per_day=25.0)) as store:
        await store.create(reserving("ap-1", 10.0))
        await store.create(reserving("ap-2", 10.0))
        with pytest.raises(GpuSecondsQuota) as raised:
            await store.create(reserving("ap-3", 10.0))
        assert 0 < raised.value.retry_after_s <= 86_400
        with pytest.raises(QuotaTooSmall):
            await store.create(reserving("ap-3", 26.0))
        for _ in range(2):
            await store.finish(took(reserving("ap-1", 10.0), 4.0))
        await store.create(reserving("ap-3", 11.0))
        with pytest.raises(GpuSecondsQuota):
            await store.create(reserving("ap-4", 0.5))
        failed = ended(reserving("ap-3", 11.0), video_pb2.VIDEO_STATUS_FAILED)
        await store.finish(failed)
        await store.finish(took(reserving("ap-2", 10.0), 99.0))
        await store.create(reserving("ap-4", 11.0))


# --- a job that has ended when it is made ---


async def test_a_record_may_begin_with_its_end(store):
    record = ended(job("ap-1", key="k"), artifact="videos/ap-1/1.mp4", expires_s=100)
    assert await store.create(record) == (record, True)
    assert await store.get("acme", "ap-1") == record
    assert await store.find_key("acme", "k") == record
    assert (await store.list_page("acme", limit=10, after="", oldest_first=False))[0] == [record]
    # Nobody ends it otherwise, owns it, or is done with it before its time.
    assert await store.finish(ended(record, video_pb2.VIDEO_STATUS_CANCELLED)) == record
    assert (await store.claim("ap-1", epoch=1, owner=OTHER))[1] is False
    assert await store.expired(99.0, limit=10) == []
    assert await store.expired(101.0, limit=10) == [record]
    assert await store.delete("acme", "ap-1") == record
    assert await store.expired(101.0, limit=10) == []


async def test_one_that_is_made_twice_with_its_end_is_one(store):
    record = ended(job("ap-1", key="k"), artifact="a", expires_s=100)
    assert await store.create(record) == (record, True)
    standing, _ = await store.create(record)
    assert standing == record
    other = ended(job("ap-2", key="k"), artifact="b", expires_s=100)
    assert await store.create(other) == (record, False)
    assert await store.get("acme", "ap-2") is None
