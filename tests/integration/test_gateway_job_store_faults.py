"""A job store that fails or takes its time: jobs still end, and the gateway goes on."""

import asyncio

import pytest
from reelmesh.v1 import video_pb2

from gateway import errors
from gateway.jobs.memory import MemoryJobStore
from gateway.jobs.store import copied
from tests.support import fakenode
from tests.support.fakenode import FakeNode, serve_node
from tests.support.gateways import ME, kinds, open_gateway

CANCELLED = video_pb2.VIDEO_STATUS_CANCELLED


class Faulty(MemoryJobStore):
    """Fails its next terminal writes, and holds creates while the test says so."""

    def __init__(self):
        super().__init__(max_records=2000)
        self.failures = 0
        self.finishes = 0
        self.creating = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def create(self, record, *, over_assignment=False):
        self.creating.set()
        await self.go.wait()
        return await super().create(record, over_assignment=over_assignment)

    async def finish(self, record):
        self.finishes += 1
        if self.failures:
            self.failures -= 1
            raise ConnectionError("scripted")
        return await super().finish(record)


@pytest.fixture
async def jobs():
    return Faulty()


async def test_a_deadline_holds_though_the_store_failed_at_it(tmp_path, jobs):
    node = FakeNode("n0")
    node.default = fakenode.held()
    async with serve_node(node), open_gateway(tmp_path, jobs=jobs) as gateway:
        await gateway.know(node)
        jobs.failures = 1
        video = await gateway.create(deadline_s=0.2)
        assert (await gateway.watched(video.id))[-1].failed.code == "deadline_exceeded"
        await node.until(lambda: node.cancels)
        await gateway.until(lambda: gateway.metric("jobs_live") == 0)


async def test_a_client_that_left_is_missed_though_the_store_failed_at_it(tmp_path, jobs):
    node = FakeNode("n0")
    node.default = fakenode.held()
    opened = open_gateway(tmp_path, jobs=jobs, runs={"client_grace_s": 0.1})
    async with serve_node(node), opened as gateway:
        await gateway.know(node)
        jobs.failures = 1
        video = await gateway.create(streamed=True)
        await node.until(lambda: node.cancels)
        assert (await gateway.videos.get(ME, video.id)).status == CANCELLED


async def test_a_job_whose_end_was_not_written_ends_as_soon_as_it_can_be(tmp_path, jobs):
    node = FakeNode("n0")
    async with serve_node(node), open_gateway(tmp_path, jobs=jobs) as gateway:
        await gateway.know(node)
        # The commit, and the failure that follows from that.
        jobs.failures = 2
        video = await gateway.create()
        assert (await gateway.watched(video.id))[-1].failed.retryable
        again = await gateway.create()
        assert kinds(await gateway.watched(again.id))[-1] == "completed"


async def test_a_drain_gives_up_every_job_whatever_the_store_says(tmp_path, jobs):
    node = FakeNode("n0")
    node.default = fakenode.held()
    async with serve_node(node), open_gateway(tmp_path, jobs=jobs) as gateway:
        await gateway.know(node)
        for _ in range(2):
            await gateway.create()
        await node.run_at(1)
        jobs.failures = 1
        await gateway.core.lifetimes.drain(0.05)
        await gateway.until(lambda: gateway.metric("jobs_live") == 0)
        assert len(node.cancels) == 2


class SlowNotes(MemoryJobStore):
    """Holds its first note while the test says so."""

    def __init__(self):
        super().__init__(max_records=10)
        self.go = asyncio.Event()
        self.noting = asyncio.Event()
        self.noted = 0

    async def update(self, record):
        as_told = copied(record)
        if not self.noting.is_set():
            self.noting.set()
            await self.go.wait()
        await super().update(as_told)
        self.noted += 1


async def test_an_older_note_never_undoes_a_newer_one(tmp_path):
    jobs = SlowNotes()
    node, other = FakeNode("n0"), FakeNode("n1")
    for each in (node, other):
        each.default = fakenode.held()
    async with serve_node(node), serve_node(other), open_gateway(tmp_path, jobs=jobs) as gateway:
        await gateway.know(node, other)
        video = await gateway.create(streamed=True, idempotency_key="k")
        await gateway.until(lambda: node.runs or other.runs)
        first = node if node.runs else other
        await gateway.create(idempotency_key="k")
        await jobs.noting.wait()
        # Its worker dies, which the record must hold whatever becomes of the note before.
        first.runs[0].die.set()
        second = other if first is node else node
        await second.run_at(0)
        jobs.go.set()
        await gateway.until(lambda: jobs.noted >= 2)
        causes = [attempt.cause for attempt in jobs._records[video.id].attempts]
        assert causes == ["worker_died", ""]
        second.runs[0].go.set()
        assert kinds(await gateway.watched(video.id))[-1] == "completed"


# --- clients that leave while their video begins ---


async def leave_while_it_is_recorded(gateway, jobs, **fields):
    jobs.go.clear()
    creating = asyncio.ensure_future(gateway.create(**fields))
    await jobs.creating.wait()
    creating.cancel()
    await asyncio.wait([creating])
    assert creating.cancelled()
    jobs.go.set()


async def test_a_client_that_leaves_while_its_video_is_recorded_leaves_one_that_runs(
    tmp_path, jobs
):
    node = FakeNode("n0")
    async with serve_node(node), open_gateway(tmp_path, jobs=jobs) as gateway:
        await gateway.know(node)
        await leave_while_it_is_recorded(gateway, jobs, idempotency_key="k")
        await node.run_at(0)
        video = await gateway.create(idempotency_key="k")
        assert kinds(await gateway.watched(video.id))[-1] == "completed"
        assert len(node.runs) == 1


async def test_one_that_was_streamed_is_given_up_as_ever(tmp_path, jobs):
    node = FakeNode("n0")
    node.default = fakenode.held()
    opened = open_gateway(tmp_path, jobs=jobs, runs={"client_grace_s": 0.1})
    async with serve_node(node), opened as gateway:
        await gateway.know(node)
        await leave_while_it_is_recorded(gateway, jobs, streamed=True)
        await node.until(lambda: node.cancels)
        await gateway.until(lambda: gateway.metric("jobs_live") == 0)
        videos, _ = await gateway.videos.list_page(ME, page_size=0, page_token="")
        assert [video.status for video in videos] == [CANCELLED]


async def test_creates_that_are_being_recorded_count_for_the_lines_bound(tmp_path, jobs):
    node = FakeNode("n0", slots=0)
    opened = open_gateway(tmp_path, jobs=jobs, runs={"max_waiting": 3})
    async with serve_node(node), opened as gateway:
        await gateway.know(node)
        jobs.go.clear()
        creates = [asyncio.ensure_future(gateway.create()) for _ in range(5)]
        await jobs.creating.wait()
        jobs.go.set()
        found = await asyncio.gather(*creates, return_exceptions=True)
        refused = [error for error in found if isinstance(error, errors.ResourceExhausted)]
        assert len(refused) == 2
        assert gateway.metric("jobs_waiting") == 3


# --- what has ended ---


async def test_ended_jobs_are_forgotten_though_nobody_asks(tmp_path, jobs):
    node = FakeNode("n0")
    opened = open_gateway(tmp_path, jobs=jobs, runs={"linger_s": 0.1})
    async with serve_node(node), opened as gateway:
        await gateway.know(node)
        for _ in range(2):
            video = await gateway.create()
            await gateway.watched(video.id)
            await gateway.until(lambda: not gateway.core.lifetimes.held)
