"""A tenant's videos at once and its GPU-seconds of a day, over gateways and control planes."""

import asyncio
import json

import pytest
from reelmesh.v1 import video_pb2

from control_plane.reelctl.app import run as reelctl
from gateway.application import Caller
from gateway.errors import (
    ConcurrentJobsQuota,
    GpuSecondsQuota,
    JobStoreAway,
    QuotaExceeded,
    QuotaTooSmall,
)
from tests.support import fakenode
from tests.support.controlplanes import running
from tests.support.stores import running_etcd
from tests.support.tenants import operated_region

pytestmark = pytest.mark.timeout(120)

COMPLETED = video_pb2.VIDEO_STATUS_COMPLETED
OTHERS = Caller("globex", "them", frozenset({"video:generate", "video:read"}))
# Of every video that the fake nodes make.
TOOK_S = 0.5


@pytest.fixture
async def etcd(tmp_path):
    async with running_etcd(tmp_path / "etcd") as process:
        yield process


@pytest.fixture
async def region(tmp_path):
    script = fakenode.held(before=3)
    async with operated_region(tmp_path, script=script) as (region, operators):
        region.operators = operators
        yield region


async def limited(region, *members, **fields):
    """Sets a policy and waits until every gateway has heard of it."""
    made = await region.operators.set(**fields)
    for member in members:
        await member.until(lambda m=member: m.policy("acme").revision == made.revision)


async def live_jobs(region):
    return {g.gateway_id: g.live_jobs for g in (await region.operators.usage()).gateways}


async def test_over_two_gateways_and_two_control_planes_no_limit_is_passed(tmp_path, etcd):
    script = fakenode.held(before=3)
    async with (
        operated_region(tmp_path, etcd.endpoint, script=script) as (region, operators),
        running(etcd.endpoint, replica_id="r1") as second,
    ):
        region.operators = operators
        a = await region.start("a")
        b = await region.start("b", records=second.address)
        await limited(region, a, b, concurrent_jobs=5)

        async def create(number):
            try:
                return await (a, b)[number % 2].create()
            except ConcurrentJobsQuota:
                return None

        made = [video for video in await asyncio.gather(*map(create, range(16))) if video]
        assert len(made) == 5
        assert sum((await live_jobs(region)).values()) == 5
        # A limit that is set live holds for what is already there.
        await limited(region, a, b, concurrent_jobs=1)
        with pytest.raises(ConcurrentJobsQuota):
            await a.create()
        for video in made:
            await a.videos.cancel(Caller("acme", "me", frozenset()), video.id)
        assert await live_jobs(region) == {}
        assert await b.create()


async def test_an_adopted_job_still_counts_and_is_charged_once(region):
    a, b = await region.pair()
    await limited(region, a, b, concurrent_jobs=1, gpu_seconds_per_day=1_000_000.0)
    video = await a.create()
    await region.until(lambda: region.node_of(video.id))
    await a.crash()
    with pytest.raises(ConcurrentJobsQuota):
        await b.create()
    watching = asyncio.ensure_future(b.watched(video.id))
    await b.until(lambda: b.execution(video.id))
    assert await live_jobs(region) == {"b": 1}
    with pytest.raises(ConcurrentJobsQuota):
        await b.create()
    region.run_of(video.id).go.set()
    await watching
    (record,) = [await region.until_record(video.id, lambda r: r.video.status == COMPLETED)]
    assert record.reservation.gpu_seconds > 0
    # Its end once more, as a gateway that heard no answer would write it.
    await region.records.finish(record)
    (figures,) = (await region.operators.usage()).gateways
    assert figures.live_jobs == 0
    assert figures.gateway_id == "b"
    assert figures.spent_gpu_seconds == pytest.approx(min(TOOK_S, record.reservation.gpu_seconds))


async def test_gpu_seconds_of_a_day_are_reserved_and_refunded(region):
    a, b = await region.pair()
    first = await a.create()
    reserved_s = (await region.record(first.id)).reservation.gpu_seconds
    await limited(region, a, b, gpu_seconds_per_day=reserved_s * 2.5)
    second = await b.create()
    with pytest.raises(GpuSecondsQuota) as raised:
        await a.create()
    assert 0 < raised.value.retry_after_s <= 86_400
    assert raised.value.tenant == "acme"
    await b.videos.cancel(Caller("acme", "me", frozenset()), second.id)
    assert await a.create()
    await limited(region, a, b, gpu_seconds_per_day=reserved_s / 2)
    with pytest.raises(QuotaTooSmall):
        await b.create()
    # Others are not held to it.
    assert await b.create(caller=OTHERS)


async def test_a_limited_tenant_gets_nothing_without_a_record(region):
    a = await region.start("a", jobs={"patience_s": 0.5, "admit_patience_s": 0.2})
    await limited(region, a, concurrent_jobs=3)
    runs = sum(len(node.runs) for node in region.nodes)
    await region.control.drain()
    with pytest.raises(JobStoreAway):
        await a.create(streamed=True)
    # It was not begun either: whether there is room for it nobody could say.
    assert sum(len(node.runs) for node in region.nodes) == runs
    assert (await a.create(streamed=True, caller=OTHERS)).durable is False


async def test_a_refused_video_reaches_no_node(region):
    a = await region.start("a")
    await limited(region, a, concurrent_jobs=1)
    await a.create()
    await region.until(lambda: sum(len(node.runs) for node in region.nodes) == 1)
    for streamed in (True, False):
        with pytest.raises(QuotaExceeded):
            await a.create(streamed=streamed)
    assert sum(len(node.runs) for node in region.nodes) == 1


async def test_operators_see_use_beside_limits(region, tmp_path, capfd):
    a = await region.start("a")
    await limited(region, a, concurrent_jobs=4, gpu_seconds_per_day=3600.0)
    video = await a.create()
    reserved_s = (await region.record(video.id)).reservation.gpu_seconds
    capfd.readouterr()
    arguments = ["tenant", "usage", "acme", "--mesh", str(tmp_path)]
    assert await asyncio.to_thread(reelctl, arguments) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines() if "[info" not in line]
    assert ["ap", "a", "-", "1", f"{reserved_s:.1f}", "0.0"] in rows
    assert ["ap", "may", "have", "1.00", "100%", "100%"] in rows
    assert ["limit", "-/s", "4", "3600"] in rows
    assert await asyncio.to_thread(reelctl, [*arguments, "-o", "json"]) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if "[info" not in line]
    document = json.loads("\n".join(lines))
    assert document["limits"]["concurrent_jobs"] == 4
    (usage,) = document["regions"]
    assert usage["gateways"][0]["live_jobs"] == 1
