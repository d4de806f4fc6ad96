"""What is over goes: records, their artifacts, and artifacts that nobody refers to."""

import asyncio

import pytest
from reelmesh.v1 import job_service_pb2, video_pb2

from gateway import errors
from gateway.core.sweeper import Sweeper
from gateway.jobs.memory import MemoryJobStore
from gateway.output.artifacts import ArtifactError, open_store
from reelkit.clock import ManualClock, SystemClock
from tests.support.artifacts import listed
from tests.support.fakenode import FakeNode, serve_node
from tests.support.gateways import ME, open_gateway

IDS = [f"ap-01jd3x8z5q0e8m2c4r6t7v9wx{last}" for last in "abcdef"]


class WallClock(SystemClock):
    """The machine's clock, some time ahead."""

    def __init__(self):
        self.ahead_s = 0.0

    def wall(self):
        return super().wall() + self.ahead_s


def sweeper_of(artifacts, jobs, clock, *, retention_s=100.0, interval_s=1.0):
    return Sweeper(
        region="ap",
        jobs=jobs,
        artifacts=artifacts,
        clock=clock,
        retention_s=retention_s,
        interval_s=interval_s,
    )


async def test_record_and_artifact_expire_together(tmp_path):
    node, clock = FakeNode("n0"), WallClock()
    artifacts, jobs = open_store(str(tmp_path / "a")), MemoryJobStore(max_records=10)
    opened = open_gateway(
        tmp_path, jobs=jobs, artifacts=artifacts, clock=clock, runs={"linger_s": 0}
    )
    async with serve_node(node), opened as gateway:
        await gateway.know(node)
        video = await gateway.create()
        await gateway.watched(video.id)
        sweeper = gateway.core.sweeper
        await sweeper.sweep()
        assert len(await listed(artifacts)) == 1
        clock.ahead_s = 24 * 3600 + 60
        await sweeper.sweep()
        assert await listed(artifacts) == []
        with pytest.raises(errors.VideoNotFound):
            await gateway.core.videos.get(ME, video.id)


async def test_an_artifact_without_a_record_goes_only_when_all_of_its_age_have(tmp_path):
    clock, artifacts = WallClock(), open_store(str(tmp_path / "a"))
    sweeper = sweeper_of(artifacts, MemoryJobStore(max_records=10), clock)
    await artifacts.put("videos/ap-01jd3x8z5q0e8m2c4r6t7v9wxy/1-a.mp4", b"x")
    await artifacts.put("videos/not-ours/1-a.mp4", b"x")
    clock.ahead_s = 3601
    await sweeper.sweep()
    assert len(await listed(artifacts)) == 2
    clock.ahead_s = 3601 + 100
    await sweeper.sweep()
    # What is not named as we name things is not ours to delete.
    assert [a.video_id for a in await listed(artifacts)] == ["not-ours"]


async def test_where_records_are_durable_an_hour_is_enough(tmp_path):
    class Durable(MemoryJobStore):
        durable = True

    clock, artifacts = WallClock(), open_store(str(tmp_path / "a"))
    sweeper = sweeper_of(artifacts, Durable(max_records=10), clock, retention_s=1e6)
    await artifacts.put("videos/ap-01jd3x8z5q0e8m2c4r6t7v9wxy/1-a.mp4", b"x")
    await sweeper.sweep()
    assert len(await listed(artifacts)) == 1
    clock.ahead_s = 3601
    await sweeper.sweep()
    assert await listed(artifacts) == []


async def test_a_bucket_may_be_shared_with_other_regions(tmp_path):
    clock, artifacts = WallClock(), open_store(str(tmp_path / "a"))
    sweeper = sweeper_of(artifacts, MemoryJobStore(max_records=10), clock)
    ours, theirs = IDS[0], IDS[0].replace("ap-", "eu-")
    for video_id in (ours, theirs, f"ap-{theirs}"):
        await artifacts.put(f"videos/{video_id}/1-a.mp4", b"x")
    clock.ahead_s = 1e6
    await sweeper.sweep()
    # "ap-eu" is a region too.
    assert {a.video_id for a in await listed(artifacts)} == {theirs, f"ap-{theirs}"}


class Undeletable:
    """A store that keeps what it is told to keep."""

    def __init__(self, inner, clock, *, kept=lambda _key: True, takes_s=0.0):
        self._inner = inner
        self._clock = clock
        self.kept = kept
        self.takes_s = takes_s
        self.asked = 0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def delete(self, key):
        self.asked += 1
        await self._clock.advance(self.takes_s)
        if self.kept(key):
            raise ArtifactError("scripted")
        await self._inner.delete(key)


async def ended_jobs(jobs, artifacts, clock, ids=IDS):
    """Records that are over, each with an artifact."""
    for video_id in ids:
        key = f"videos/{video_id}/1-a.mp4"
        await artifacts.put(key, b"x")
        record = job_service_pb2.JobRecord(
            video=video_pb2.Video(id=video_id, status=video_pb2.VIDEO_STATUS_COMPLETED),
            tenant="acme",
            artifact_key=key,
        )
        record.video.expires_at.FromSeconds(int(clock.wall()) - 1)
        await jobs.create(record)


async def test_an_artifact_that_cannot_be_deleted_holds_up_nothing():
    jobs, clock = MemoryJobStore(max_records=len(IDS)), ManualClock(start_s=1e9)
    inner = open_store("memory:///")
    artifacts = Undeletable(inner, clock, kept=lambda key: IDS[0] in key)
    await ended_jobs(jobs, artifacts, clock)
    sweeper = sweeper_of(artifacts, jobs, clock)
    async with asyncio.timeout(10):
        await sweeper.sweep()
    assert await jobs.known(IDS) == set()
    assert [a.video_id for a in await listed(inner)] == [IDS[0]]
    # Later sweeps find it without a record, and try again.
    await clock.advance(3e9)
    artifacts.kept = lambda _key: False
    await sweeper.sweep()
    assert await listed(inner) == []


async def test_a_store_that_takes_its_time_fills_no_gateway_with_records():
    jobs, clock = MemoryJobStore(max_records=len(IDS)), ManualClock(start_s=1e9)
    artifacts = Undeletable(open_store("memory:///"), clock, takes_s=30.0)
    await ended_jobs(jobs, artifacts, clock)
    sweeper = sweeper_of(artifacts, jobs, clock, interval_s=60.0)
    await sweeper.sweep()
    assert await jobs.known(IDS) == set()
    assert artifacts.asked == 2


async def test_sweeping_goes_on_whatever_a_sweep_raised():
    class Broken(MemoryJobStore):
        asked = 0

        async def expired(self, now_s, *, limit):
            self.asked += 1
            if self.asked == 1:
                raise ConnectionError("scripted")
            return await super().expired(now_s, limit=limit)

    jobs, clock, artifacts = (
        Broken(max_records=9),
        ManualClock(start_s=1e9),
        open_store("memory:///"),
    )
    await ended_jobs(jobs, artifacts, clock)
    running = asyncio.ensure_future(sweeper_of(artifacts, jobs, clock).run())
    async with asyncio.timeout(10):
        while await jobs.known(IDS):
            await clock.advance(1.0)
    running.cancel()
    assert jobs.asked >= 2
