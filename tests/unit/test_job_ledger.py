"""Whatever is lost, repeated or done at once, a tenant never has more than its limits say."""

import asyncio
import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
from reelmesh.v1 import job_service_pb2 as pb
from reelmesh.v1 import video_pb2

from control_plane.errors import (
    ControlPlaneError,
    NotFinishedError,
    NotFoundError,
    OutcomeUnknownError,
    QuotaExceededError,
)
from control_plane.jobs.book import JobBook
from control_plane.jobs.quota import Limits, Usage, refusal
from control_plane.jobs.records import ended
from control_plane.keys import Keys
from control_plane.store.memory import MemoryStore
from control_plane.store.mirror import list_all
from control_plane.store.writer import FencedWriter
from reelkit.clock import SystemClock

KEYS = Keys(prefix="/p", region="ap")
DAYS = ("2026-11-24", "2026-11-25")
LIMITS = Limits(concurrent_jobs=2, gpu_seconds_per_day=30.0)
STATUSES = (
    video_pb2.VIDEO_STATUS_COMPLETED,
    video_pb2.VIDEO_STATUS_FAILED,
    video_pb2.VIDEO_STATUS_CANCELLED,
)


class Impatient(SystemClock):
    """Who waits for nothing: the writer gives up at the first answer that is lost."""

    async def sleep(self, delay_s):
        del delay_s
        await asyncio.sleep(0)


class LossyStore:
    """A store of which some writes' answers are lost, whether they were applied or not."""

    def __init__(self, store):
        self.store = store
        self.losses = []

    def __getattr__(self, name):
        return getattr(self.store, name)

    async def range(self, prefix, **fields):
        await asyncio.sleep(0)
        page = await self.store.range(prefix, **fields)
        await asyncio.sleep(0)
        return page

    async def txn(self, compares, success, failure=()):
        loss = self.losses.pop(0) if self.losses else ""
        # Others come in between whenever the store is asked.
        await asyncio.sleep(0)
        if loss == "before":
            raise OutcomeUnknownError("lost on the way there")
        result = await self.store.txn(compares, success, failure)
        if loss == "after":
            raise OutcomeUnknownError("lost on the way back")
        return result


@dataclasses.dataclass(frozen=True)
class Step:
    kind: str
    number: int
    replica: int
    gateway: int
    gpu_s: float
    day: str
    status: int
    losses: tuple[str, ...]


steps = st.builds(
    Step,
    kind=st.sampled_from(
        ["create", "create", "create", "create", "end", "end", "claim", "delete", "note"]
    ),
    number=st.integers(0, 7),
    replica=st.integers(0, 1),
    gateway=st.integers(0, 1),
    gpu_s=st.floats(0, 20),
    day=st.sampled_from(DAYS),
    status=st.sampled_from(STATUSES),
    losses=st.lists(st.sampled_from(["", "before", "after"]), max_size=4).map(tuple),
)
# What is in one group is done at once.
histories = st.lists(st.lists(steps, min_size=1, max_size=5), max_size=20)


class Replica:
    """One of a replica's lives, as far as records go."""

    def __init__(self, store, name):
        self.lossy = LossyStore(store)
        writer = FencedWriter(self.lossy, prefix=KEYS.writer_slots(name), clock=Impatient())
        self.book = JobBook(store=self.lossy, writer=writer, keys=KEYS, clock=Impatient())

    async def take(self, step):
        self.lossy.losses = list(step.losses)
        job_id = f"ap-{step.number:026d}"
        if step.kind == "create":
            await self.book.create(new_job(job_id, step), limits=LIMITS)
        elif step.kind == "claim":
            standing = await self.book.get("t", job_id)
            await self.book.claim(
                job_id, epoch=standing.epoch, gateway_id=f"g{step.gateway}", incarnation="1"
            )
        elif step.kind == "delete":
            await self.book.delete("t", job_id)
        else:
            record = await self.book.get("t", job_id)
            if step.kind == "end" and not ended(record):
                record.video.status = step.status
                record.video.result.gpu_seconds = step.gpu_s * 1.5
            await self.book.update(record)


def new_job(job_id, step):
    record = pb.JobRecord(
        tenant="t", owner_gateway=f"g{step.gateway}", owner_incarnation="1", epoch=1
    )
    record.video.id = job_id
    record.video.status = video_pb2.VIDEO_STATUS_QUEUED
    record.reservation.day, record.reservation.gpu_seconds = step.day, step.gpu_s
    return record


async def check(store, spent):
    """The invariants, from the store's own keys."""
    book = JobBook(
        store=store,
        writer=FencedWriter(store, prefix=KEYS.writer_slots("c"), clock=Impatient()),
        keys=KEYS,
        clock=Impatient(),
    )
    records = [
        pb.JobRecord.FromString(kv.value) for kv in (await list_all(store, KEYS.job_records))[0]
    ]
    live = [record for record in records if not ended(record)]
    assert len(live) <= LIMITS.concurrent_jobs
    for day in DAYS:
        usage = await book.ledger.usage("t", day)
        reserved = sum(r.reservation.gpu_seconds for r in live if r.reservation.day == day)
        assert usage.live_jobs == len(live)
        assert abs(usage.reserved_gpu_seconds - reserved) < 1e-6
        assert usage.gpu_seconds <= LIMITS.gpu_seconds_per_day + 1e-3
        now_spent = sum(usage.spent_gpu_seconds.values())
        assert all(value >= 0 for value in usage.spent_gpu_seconds.values())
        # What was charged stays charged.
        assert now_spent >= spent[day] - 1e-9
        spent[day] = now_spent
    return records


@settings(max_examples=150, deadline=None)
@given(histories)
def test_over_lost_answers_and_rivals_limits_hold_and_nothing_leaks(history):
    asyncio.run(_play(history))


async def _play(history):
    async with MemoryStore(clock=SystemClock()) as store:
        replicas = [Replica(store, "r0"), Replica(store, "r1")]
        spent = dict.fromkeys(DAYS, 0.0)
        for number, group in enumerate(history):
            if number % 7 == 6:
                # A replica that dies forgets what it had seen; its successor reads anew.
                replicas[0] = Replica(store, "r0")
            await asyncio.gather(*(_try(replicas[step.replica], step) for step in group))
            await check(store, spent)
        await _end_all(store, spent)


async def _end_all(store, spent):
    """With every job ended nothing is held any more, and each was charged what it took."""
    replica = Replica(store, "r9")
    for record in await check(store, spent):
        if not ended(record):
            before = (
                await replica.book.ledger.usage("t", record.reservation.day)
            ).spent_gpu_seconds
            record.video.status = video_pb2.VIDEO_STATUS_COMPLETED
            record.video.result.gpu_seconds = 1.0
            for _ in range(2):
                await replica.book.update(record)
            after = (await replica.book.ledger.usage("t", record.reservation.day)).spent_gpu_seconds
            charge = sum(after.values()) - sum(before.values())
            assert abs(charge - min(1.0, record.reservation.gpu_seconds)) < 1e-6
    records = await check(store, spent)
    assert all(ended(record) for record in records)
    assert (await list_all(store, KEYS.live_jobs))[0] == []


async def _try(replica, step):
    try:
        await replica.take(step)
    except (NotFoundError, NotFinishedError, QuotaExceededError, OutcomeUnknownError):
        pass
    except ControlPlaneError as error:
        if not error.retryable:
            raise


@given(
    st.none() | st.integers(0, 5),
    st.none() | st.floats(0, 100),
    st.integers(0, 6),
    st.floats(0, 120),
    st.floats(0, 50),
)
def test_one_more_is_let_in_just_where_it_fits(most_jobs, most_s, live, used_s, asked_s):
    limits = Limits(most_jobs, most_s)
    usage = Usage(live, used_s, {}, 1)
    reservation = pb.QuotaReservation(day=DAYS[0], gpu_seconds=asked_s)
    fits = (most_jobs is None or live + 1 <= most_jobs) and (
        most_s is None or used_s + asked_s <= most_s + 1e-6
    )
    assert (refusal(limits, usage, reservation, now_s=1e9) is None) == fits
