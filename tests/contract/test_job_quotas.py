"""What a tenant's jobs count as, over the in-memory store and a real etcd alike."""

import asyncio
import time

import pytest
from reelmesh.v1 import job_service_pb2 as pb
from reelmesh.v1 import video_pb2

from control_plane.errors import ConcurrentJobsError, GpuSecondsError, QuotaTooSmallError
from control_plane.jobs.book import JobBook
from control_plane.jobs.quota import Limits, day_of
from control_plane.keys import Keys
from control_plane.store.writer import FencedWriter
from reelkit.clock import SystemClock
from tests.support.stores import etcd_bench, memory_bench

KEYS = Keys(prefix="/test", region="ap")
DAY = day_of(time.time())
COMPLETED = video_pb2.VIDEO_STATUS_COMPLETED


@pytest.fixture(params=["memory", "etcd"])
async def bench(request, tmp_path):
    context = memory_bench() if request.param == "memory" else etcd_bench(tmp_path)
    async with context as made:
        yield made


@pytest.fixture
def book(bench):
    return book_of(bench.store, "r0")


def book_of(store, replica):
    writer = FencedWriter(store, prefix=KEYS.writer_slots(replica), clock=SystemClock())
    return JobBook(store=store, writer=writer, keys=KEYS, clock=SystemClock())


def job(number, *, owner="g0", gpu_s=10.0, key="", day=DAY):
    record = pb.JobRecord(
        tenant="t", owner_gateway=owner, owner_incarnation="1", epoch=1, idempotency_key=key
    )
    record.video.id = f"ap-{number:026d}"
    record.video.status = video_pb2.VIDEO_STATUS_QUEUED
    if gpu_s is not None:
        record.reservation.day, record.reservation.gpu_seconds = day, gpu_s
    return record


def ended(record, *, gpu_s=0.0, status=COMPLETED):
    done = pb.JobRecord()
    done.CopyFrom(record)
    done.video.status = status
    done.video.result.gpu_seconds = gpu_s
    done.video.completed_at.FromSeconds(5)
    return done


async def used(book, day=DAY):
    usage = await book.ledger.usage("t", day)
    return usage.live_jobs, usage.gpu_seconds


async def test_jobs_at_once_are_bounded_and_an_end_makes_room(book):
    limits = Limits(concurrent_jobs=2)
    await book.create(job(1), limits=limits)
    await book.create(job(2), limits=limits)
    with pytest.raises(ConcurrentJobsError, match="2 of the tenant's videos") as raised:
        await book.create(job(3), limits=limits)
    assert raised.value.retry_after_s >= 1
    # Its own call again is no other job.
    assert (await book.create(job(2), limits=limits))[1]
    await book.update(ended(job(1), status=video_pb2.VIDEO_STATUS_FAILED))
    await book.create(job(3), limits=limits)
    assert (await used(book))[0] == 2


async def test_a_key_that_has_made_a_job_finds_it_however_full_it_is(book):
    limits = Limits(concurrent_jobs=1)
    made, _ = await book.create(job(1, key="k"), limits=limits)
    standing, created = await book.create(job(2, key="k"), limits=limits)
    assert (standing, created) == (made, False)


async def test_gpu_seconds_are_reserved_then_charged_at_what_it_took(book):
    limits = Limits(gpu_seconds_per_day=25.0)
    await book.create(job(1), limits=limits)
    await book.create(job(2), limits=limits)
    with pytest.raises(GpuSecondsError, match=r"5\.0 of the tenant's 25") as raised:
        await book.create(job(3), limits=limits)
    assert 0 < raised.value.retry_after_s <= 86_400
    await book.update(ended(job(1), gpu_s=4.0))
    assert await used(book) == (1, 14.0)
    # Ended twice, charged once.
    await book.update(ended(job(1), gpu_s=4.0))
    assert await used(book) == (1, 14.0)
    await book.create(job(3), limits=limits)
    # Never more than was reserved, nothing for what failed, was cancelled or lies.
    await book.update(ended(job(2), gpu_s=99.0))
    assert await used(book) == (1, 24.0)
    await book.update(ended(job(3), gpu_s=3.0, status=video_pb2.VIDEO_STATUS_CANCELLED))
    assert await used(book) == (0, 14.0)
    await book.create(job(4), limits=limits)
    await book.update(ended(job(4), gpu_s=-5.0))
    assert await used(book) == (0, 14.0)


async def test_a_job_counts_to_the_day_on_which_it_was_admitted(book):
    limits = Limits(gpu_seconds_per_day=10.0)
    await book.create(job(1, day="2026-11-24"), limits=limits)
    await book.create(job(2, day="2026-11-25"), limits=limits)
    await book.update(ended(job(1, day="2026-11-24"), gpu_s=7.0))
    assert await used(book, "2026-11-24") == (1, 7.0)
    assert await used(book, "2026-11-25") == (1, 10.0)


async def test_what_can_never_fit_is_told_apart(book):
    with pytest.raises(QuotaTooSmallError, match="more than the 5"):
        await book.create(job(1), limits=Limits(gpu_seconds_per_day=5.0))
    with pytest.raises(QuotaTooSmallError, match="no videos"):
        await book.create(job(1), limits=Limits(concurrent_jobs=0))


async def test_an_adopted_job_still_counts_and_its_new_owner_ends_it(book):
    limits = Limits(concurrent_jobs=1, gpu_seconds_per_day=100.0)
    made, _ = await book.create(job(1), limits=limits)
    taken, claimed = await book.claim(made.video.id, epoch=1, gateway_id="g1", incarnation="1")
    assert claimed
    assert await used(book) == (1, 10.0)
    with pytest.raises(ConcurrentJobsError):
        await book.create(job(2), limits=limits)
    # The former owner ends nothing and charges nothing.
    assert not (await book.update(ended(job(1), gpu_s=9.0)))[1]
    assert await used(book) == (1, 10.0)
    await book.update(ended(taken, gpu_s=6.0))
    usage = await book.ledger.usage("t", DAY)
    assert (usage.live_jobs, dict(usage.spent_gpu_seconds)) == (0, {"g1": 6.0})


async def test_an_owner_cannot_change_what_was_reserved(book):
    await book.create(job(1), limits=Limits())
    await book.update(ended(job(1, gpu_s=500.0), gpu_s=400.0))
    assert await used(book) == (0, 10.0)
    await book.create(job(2), limits=Limits())
    await book.update(ended(job(2, gpu_s=None), gpu_s=7.0))
    assert await used(book) == (0, 17.0)


async def test_deleting_an_ended_job_changes_nothing(book):
    await book.create(job(1))
    await book.update(ended(job(1), gpu_s=4.0))
    await book.delete("t", job(1).video.id)
    assert await used(book) == (0, 4.0)


async def test_what_was_used_before_a_limit_was_set_counts(book):
    for number in range(3):
        await book.create(job(number))
    with pytest.raises(ConcurrentJobsError):
        await book.create(job(4), limits=Limits(concurrent_jobs=3))
    with pytest.raises(GpuSecondsError):
        await book.create(job(4), limits=Limits(gpu_seconds_per_day=39.0))


async def test_many_at_once_by_several_replicas_never_pass_a_limit(bench):
    books = [book_of(bench.store, f"r{number}") for number in range(3)]
    limits = Limits(concurrent_jobs=7, gpu_seconds_per_day=1000.0)

    async def create(number):
        book = books[number % 3]
        try:
            return (await book.create(job(number, owner=f"g{number % 2}"), limits=limits))[1]
        except ConcurrentJobsError:
            return False

    made = await asyncio.gather(*(create(number) for number in range(40)))
    assert sum(made) == 7
    live = [number for number, one in enumerate(made) if one]

    async def end(number, book):
        await book.update(ended(job(number, owner=f"g{number % 2}"), gpu_s=1.0))

    # Each twice, by different replicas.
    await asyncio.gather(*(end(number, book) for number in live for book in books[:2]))
    assert await used(books[2]) == (0, 7.0)
