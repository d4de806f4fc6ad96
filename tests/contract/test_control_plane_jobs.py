"""What the job records promise, over the in-memory store and a real etcd alike."""

import asyncio
import contextlib
import random

import pytest
from reelmesh.v1 import job_service_pb2 as pb
from reelmesh.v1 import video_pb2

from control_plane.errors import (
    NotFinishedError,
    NotFoundError,
    RecordTooLargeError,
    StoreError,
)
from control_plane.jobs.assignments import KeyElsewhere
from control_plane.jobs.book import JobBook
from control_plane.jobs.records import MAX_ATTEMPTS_KEPT
from control_plane.keys import Keys
from control_plane.store.mirror import list_all
from control_plane.store.writer import FencedWriter
from reelkit.clock import SystemClock
from tests.support.stores import answers, etcd_bench, eventually, memory_bench

KEYS = Keys(prefix="/test", region="ap")


@pytest.fixture(autouse=True)
def short_rests(monkeypatch):
    monkeypatch.setattr("control_plane.store.etcd.connection.FIRST_BACKOFF_S", 0.2)


@pytest.fixture(params=["memory", "etcd"])
async def bench(request, tmp_path):
    context = memory_bench() if request.param == "memory" else etcd_bench(tmp_path)
    async with context as made:
        yield made


@pytest.fixture
def book(bench) -> JobBook:
    return book_of(bench.store, "r0")


def book_of(store, replica: str) -> JobBook:
    writer = FencedWriter(store, prefix=KEYS.writer_slots(replica), clock=SystemClock())
    return JobBook(store=store, writer=writer, keys=KEYS, clock=SystemClock())


def job(number: int = 1, *, owner: str = "g0", tenant: str = "t", key: str = "", epoch: int = 1):
    record = pb.JobRecord(
        tenant=tenant,
        owner_gateway=owner,
        owner_incarnation=f"{owner}-life",
        epoch=epoch,
        idempotency_key=key,
        request_digest="d" * 64,
    )
    record.video.id = f"ap-{number:026d}"
    record.video.status = video_pb2.VIDEO_STATUS_QUEUED
    return record


def ended(record, status=video_pb2.VIDEO_STATUS_COMPLETED, *, artifact: str = "a", at_s: int = 5):
    done = pb.JobRecord()
    done.CopyFrom(record)
    done.video.status = status
    done.artifact_key = artifact
    done.video.completed_at.FromSeconds(at_s)
    done.video.expires_at.FromSeconds(at_s + 100)
    return done


async def keys_under(store, prefix):
    return [item.key.removeprefix(prefix) for item in (await list_all(store, prefix))[0]]


async def test_a_record_is_created_once(book):
    made, created = await book.create(job())
    assert created
    assert made.revision > 0
    # The same call again: its answer was lost.
    again, created = await book.create(job())
    assert created
    assert again == made
    # Another gateway's job of the same id is not the first's.
    standing, created = await book.create(job(owner="g1"))
    assert not created
    assert standing == made
    assert await book.get("t", made.video.id) == made


async def test_an_assigned_key_is_forgotten_in_time(bench, book, monkeypatch):
    monkeypatch.setattr("control_plane.passing._BUCKET_S", 1.0)

    async def assign(key):
        return await book.assign_key("t", key, region="eu", over_region="", keep_s=1)

    assert await assign("k") == "eu"
    with pytest.raises(KeyElsewhere):
        await book.find_key("t", "k")
    entry = KEYS.job_key("t", "k")

    async def forgotten():
        return await bench.store.get(entry) is None

    await bench.pass_time(0.5)
    assert not await forgotten()
    await bench.pass_time(5.0)
    await eventually(forgotten)
    with pytest.raises(NotFoundError):
        await book.find_key("t", "k")


async def test_an_assignment_outlives_the_loss_of_its_shared_lease(bench, book):
    await book.assign_key("t", "k1", region="eu", over_region="", keep_s=60)
    (entry,) = (await list_all(bench.store, KEYS.job_key("t", "k1")))[0]
    await bench.store.revoke(entry.lease_id)
    assert await book.assign_key("t", "k2", region="eu", over_region="", keep_s=60) == "eu"
    with pytest.raises(KeyElsewhere):
        await book.find_key("t", "k2")


async def test_a_key_makes_one_job_for_its_tenant(book):
    first, _ = await book.create(job(1, key="k"))
    second, created = await book.create(job(2, key="k", owner="g1"))
    assert not created
    assert second.video.id == first.video.id
    assert await book.find_key("t", "k") == first
    other, created = await book.create(job(3, key="k", tenant="u"))
    assert created
    assert (await book.find_key("u", "k")).video.id == other.video.id
    with pytest.raises(NotFoundError):
        await book.find_key("t", "never")
    # Tenants and keys that look alike when joined are not alike.
    _, created = await book.create(job(4, tenant="t\0k", key=""))
    assert created


async def test_a_tenant_sees_its_own_jobs_alone(book):
    made, _ = await book.create(job())
    with pytest.raises(NotFoundError):
        await book.get("other", made.video.id)
    with pytest.raises(NotFoundError):
        await book.delete("other", made.video.id)
    with pytest.raises(NotFoundError):
        await book.update(ended(job(tenant="other")))


async def test_a_claim_takes_a_job_over_and_shuts_its_owner_out(book, bench):
    made, _ = await book.create(job())
    claim = {"epoch": 1, "gateway_id": "g1", "incarnation": "g1-life"}
    taken, claimed = await book.claim(made.video.id, **claim)
    assert claimed
    assert (taken.owner_gateway, taken.epoch) == ("g1", 2)
    # Repeated, it is still the claimant's; another's of the same epoch is too late.
    again, claimed = await book.claim(made.video.id, **claim)
    assert claimed
    assert again == taken
    standing, claimed = await book.claim(
        made.video.id, epoch=1, gateway_id="g2", incarnation="g2-life"
    )
    assert not claimed
    assert standing == taken
    standing, written = await book.update(ended(job()))
    assert not written
    assert standing == taken
    done, written = await book.update(ended(job(owner="g1", epoch=2)))
    assert written
    assert await keys_under(bench.store, KEYS.live_jobs) == []
    standing, claimed = await book.claim(
        made.video.id, epoch=2, gateway_id="g2", incarnation="g2-life"
    )
    assert not claimed
    assert standing == done
    with pytest.raises(NotFoundError):
        await book.claim("ap-none", **claim)


async def test_the_first_end_wins_and_its_own_repetition_is_told_so(book):
    await book.create(job())
    done, written = await book.update(ended(job()))
    assert written
    again, written = await book.update(ended(job()))
    assert written
    assert again == done
    standing, written = await book.update(ended(job(), video_pb2.VIDEO_STATUS_CANCELLED))
    assert not written
    assert standing == done
    # Another artifact is another end, though it completes too.
    standing, written = await book.update(ended(job(), artifact="b"))
    assert not written


async def test_attempts_are_kept_up_to_a_bound(book):
    record = job()
    await book.create(record)
    for number in range(1, MAX_ATTEMPTS_KEPT + 5):
        record.attempts.add(attempt=number, node_id="n", cause="worker_died")
    written, _ = await book.update(record)
    kept = await book.get("t", record.video.id)
    assert len(kept.attempts) == MAX_ATTEMPTS_KEPT
    assert kept.attempts[-1].attempt == MAX_ATTEMPTS_KEPT + 4
    assert written.video.id == kept.video.id


async def test_a_record_over_the_limit_is_refused_whole(book, bench):
    record = job()
    record.video.spec.prompt = "x" * 20_000
    with pytest.raises(RecordTooLargeError):
        await book.create(record)
    assert await keys_under(bench.store, "/test/ap/jobs/") == []


async def test_deleting_leaves_nothing(book, bench):
    record = job(key="k")
    await book.create(record)
    with pytest.raises(NotFinishedError):
        await book.delete("t", record.video.id)
    await book.update(ended(record))
    removed = await book.delete("t", record.video.id)
    assert removed.artifact_key == "a"
    assert await keys_under(bench.store, "/test/ap/jobs/") == []
    with pytest.raises(NotFoundError):
        await book.delete("t", record.video.id)
    # The key is free again.
    _, created = await book.create(job(2, key="k"))
    assert created


async def test_listing_goes_both_ways_and_past_what_is_gone(book):
    for number in (1, 2, 3, 4):
        await book.create(job(number))
    await book.create(job(5, tenant="other"))
    await book.update(ended(job(3)))
    await book.delete("t", job(3).video.id)

    async def ids(**asked):
        records, more = await book.list_page(
            "t", **{"limit": 10, "after": "", "oldest_first": False, **asked}
        )
        return [int(record.video.id.removeprefix("ap-")) for record in records], more

    assert await ids() == ([4, 2, 1], False)
    assert await ids(oldest_first=True) == ([1, 2, 4], False)
    assert await ids(limit=2) == ([4, 2], True)
    assert await ids(limit=2, after=job(3).video.id) == ([2, 1], False)
    assert await ids(after=job(1).video.id) == ([], False)


async def test_what_has_expired_is_found_in_the_order_of_time(book):
    for number, at_s in ((1, 30), (2, 10), (3, 20)):
        await book.create(job(number))
        await book.update(ended(job(number), at_s=at_s))
    await book.create(job(4))

    async def expired(now_s, limit=10):
        return [
            int(record.video.id.removeprefix("ap-"))
            for record in await book.expired(now_s * 1000, limit=limit)
        ]

    assert await expired(109) == []
    assert await expired(110) == [2]
    assert await expired(200) == [2, 3, 1]
    assert await expired(200, limit=1) == [2]
    assert await book.known([job(n).video.id for n in (1, 4, 9)]) == [
        job(1).video.id,
        job(4).video.id,
    ]
    assert await book.known([]) == []


@pytest.mark.parametrize("seed", range(3))
async def test_of_many_who_want_a_job_one_ends_it(bench, seed):
    """Replicas that claim, end and cancel at once: epochs rise by one, one end stands."""
    rng = random.Random(seed)
    books = [book_of(bench.store, f"r{number}") for number in range(3)]
    await books[0].create(job())
    job_id = job().video.id
    claims: list[int] = []
    ends: list[tuple[str, int]] = []

    async def gateway(number: int) -> None:
        book, name = books[number], f"g{number}"
        for _ in range(8):
            await asyncio.sleep(rng.uniform(0, 0.01))
            standing = await book.get("t", job_id)
            taken, claimed = await book.claim(
                job_id, epoch=standing.epoch, gateway_id=name, incarnation=f"{name}-life"
            )
            if not claimed:
                continue
            claims.append(taken.epoch)
            if rng.random() < 0.4:
                status = rng.choice(
                    [video_pb2.VIDEO_STATUS_COMPLETED, video_pb2.VIDEO_STATUS_CANCELLED]
                )
                _, written = await book.update(ended(taken, status, artifact=name))
                if written:
                    ends.append((name, taken.epoch))

    await asyncio.gather(*map(gateway, range(3)))
    assert sorted(claims) == list(range(2, 2 + len(claims))), "an epoch has one owner"
    assert len(ends) <= 1
    if ends:
        final = await books[0].get("t", job_id)
        assert (final.artifact_key, final.epoch) == ends[0]


async def test_nothing_that_was_acknowledged_is_lost_in_an_outage(bench):
    """Creates and ends while the store fails and comes back; each is retried till answered."""
    books = [book_of(bench.store, f"r{number}") for number in range(4)]
    acknowledged: list[int] = []
    failed = 0

    async def insist(work):
        nonlocal failed
        while True:
            try:
                return await work()
            except StoreError as error:
                if not error.retryable:
                    raise
                failed += 1
                await asyncio.sleep(0.05)

    async def gateway(number: int) -> None:
        book = books[number]
        for count in range(6):
            record = job(100 * number + count, owner=f"g{number}", key=f"{number}/{count}")
            _, created = await insist(lambda record=record: book.create(record))
            assert created, "its own earlier try is no other's"
            _, written = await insist(lambda record=record: book.update(ended(record)))
            assert written
            acknowledged.append(100 * number + count)

    async def outages() -> None:
        for _ in range(2):
            await asyncio.sleep(0.02)
            await bench.fail()
            await asyncio.sleep(0.1)
            await bench.recover()
            await answers(bench.store)

    await asyncio.gather(outages(), *map(gateway, range(4)))
    with contextlib.suppress(StoreError):
        await answers(bench.store)
    for number in acknowledged:
        record = await books[0].get("t", job(number).video.id)
        assert record.video.status == video_pb2.VIDEO_STATUS_COMPLETED
    assert len(acknowledged) == 24
    assert await keys_under(bench.store, KEYS.live_jobs) == []
