"""Jobs whose clients went on in another region end, whoever owns them when that is heard."""

import pytest
from reelmesh.v1 import control_plane_service_pb2, video_pb2

from tests.support.fakenode import held
from tests.support.gateway_region import gateway_region


@pytest.fixture
async def region(tmp_path):
    async with gateway_region(tmp_path, script=held(before=2), lease_ttl_s=2) as found:
        yield found


async def running(region, member):
    video = await member.create(durable=True)
    await region.until(lambda: region.node_of(video.id) is not None)
    return video


def is_cancelled(record):
    return record.video.status == video_pb2.VIDEO_STATUS_CANCELLED


async def supersede(region, video, *, tenant="acme"):
    await region.records.supersede(tenant, video.id, keep_s=60)


async def test_its_owner_cancels_it_and_the_gpu_is_free(region):
    owner = await region.start("a")
    video = await running(region, owner)
    await supersede(region, video)
    await region.until_record(video.id, is_cancelled)
    await region.until(lambda: region.node_of(video.id) is None)


async def test_another_tenants_word_counts_nothing(region):
    owner = await region.start("a")
    video = await running(region, owner)
    await supersede(region, video, tenant="other")
    await owner.until(lambda: owner.core.superseded.holds("other", video.id))
    assert not owner.execution(video.id).ended
    region.run_of(video.id).go.set()
    record = await region.until_record(video.id, lambda record: record.video.HasField("result"))
    assert record.video.status == video_pb2.VIDEO_STATUS_COMPLETED


async def test_one_that_nobody_owns_is_not_begun_again(region):
    owner = await region.start("a")
    video = await running(region, owner)
    await owner.crash()
    await supersede(region, video)
    heir = await region.start("b")
    await heir.until(lambda: heir.core.superseded.holds("acme", video.id))
    record = await region.until_record(video.id, is_cancelled)
    assert record.owner_gateway == "b"


async def test_it_is_not_resumed_by_whoever_asks_for_it_either(region):
    owner = await region.start("a")
    video = await running(region, owner)
    other = await region.start(
        "b", control="127.0.0.1:1", records=region.control.address, ready=False
    )
    await owner.crash()
    other.core.superseded.take([control_plane_word(video)])
    assert await other.core.adoption.adopt(await region.record(video.id)) is None
    assert is_cancelled(await region.record(video.id))


def control_plane_word(video):
    return control_plane_service_pb2.SupersededJob(job_id=video.id, tenant="acme")
