"""Two regions that know one another: where new videos go, and who answers for which."""

import asyncio
import contextlib

import pytest
from reelmesh.v1 import fleet_service_pb2, node_pb2, tenant_pb2, video_pb2, video_service_pb2

from gateway.application import Caller
from gateway.errors import OtherRegion, Unavailable, VideoNotFound
from tests.support.fakenode import VIDEO, FakeNode, finish, held, serve_node
from tests.support.gateways import DEADLINE_S, ME, data_of, kinds
from tests.support.mp4s import graded_mp4
from tests.support.regions import open_region

STRANGER = Caller("stranger", "s", frozenset())


@pytest.fixture
async def pair(tmp_path):
    """ap without a node, eu with one, and each has heard of the other."""
    async with (
        open_region(tmp_path, "ap") as ap,
        open_region(tmp_path, "eu") as eu,
        serve_node(FakeNode("eu-node-0")) as node,
    ):
        await eu.gateway.know(node)
        ap.regions.take([eu.view()])
        eu.regions.take([ap.view()])
        await until(ap, lambda: ap.regions.link("eu").load is not None)
        yield ap, eu, node


@pytest.fixture
async def spare():
    async with serve_node(FakeNode("eu-node-1")) as node:
        yield node


async def until(region, holds):
    await region.gateway.until(holds)


async def create(region, *, caller=ME, streamed=False, **options):
    spec = video_pb2.VideoSpec(prompt="a ball")
    return await region.application.create(
        caller, spec, video_service_pb2.CreateOptions(**options), streamed=streamed
    )


async def watched(region, video_id, *, after_seq=0, caller=ME):
    async with asyncio.timeout(DEADLINE_S):
        events = region.application.watch(caller, video_id, after_seq=after_seq)
        return [event async for event in events]


async def test_a_picture_is_drawn_in_the_home_of_its_video(pair):
    ap, eu, node = pair
    node.default = finish(graded_mp4())
    video = await create(eu)
    await watched(eu, video.id)
    thumbnail = video_service_pb2.VIDEO_VARIANT_THUMBNAIL
    for region in (ap, eu):
        download = await region.application.download(ME, video.id, offset=0, variant=thumbnail)
        assert download.content_type == "image/jpeg"
        picture = b"".join([piece async for piece in download.chunks])
        assert (picture[:3], len(picture)) == (b"\xff\xd8\xff", download.total_bytes)
    with pytest.raises(VideoNotFound):
        await ap.application.download(STRANGER, video.id, offset=0, variant=thumbnail)


async def test_a_video_of_one_region_is_remixed_in_another(pair):
    ap, eu, _node = pair
    original = await create(eu)
    async with serve_node(FakeNode("ap-node-0")) as node:
        await ap.gateway.know(node)
        await until(ap, lambda: ap.gateway.core.fleet.ready_workers)
        options = video_service_pb2.CreateOptions(remixed_from_video_id=original.id)
        spec = video_pb2.VideoSpec(prompt="a blue ball")
        remix = await ap.application.create(ME, spec, options, streamed=False)
        assert remix.remixed_from_video_id == original.id
        assert (remix.spec.prompt, remix.spec.seed) == ("a blue ball", original.spec.seed)
        with pytest.raises(VideoNotFound):
            await ap.application.create(STRANGER, spec, options, streamed=False)


async def test_a_region_without_a_ready_node_has_its_videos_made_elsewhere(pair, spare):
    ap, eu, node = pair
    # ap has heard of the model, and has nobody to draw it.
    await ap.gateway.know(node)
    node.state = node_pb2.NODE_STATE_LOADING
    await node.push()
    await until(ap, lambda: not ap.gateway.core.fleet.ready_workers)
    # eu has another node of that model by the time.
    await eu.gateway.know(spare)
    await until(ap, lambda: ap.regions.link("eu").load.models)
    video = await create(ap, streamed=True, priority=tenant_pb2.PRIORITY_BATCH)
    assert video.id.startswith("eu-")
    assert video.priority == tenant_pb2.PRIORITY_BATCH
    events = await watched(ap, video.id)
    assert kinds(events)[-1] == "completed"
    assert data_of(events) == VIDEO
    assert (await eu.application.get(ME, video.id)).status == video_pb2.VIDEO_STATUS_COMPLETED


async def test_any_gateway_answers_for_a_video_of_any_region(pair):
    ap, eu, _ = pair
    video = await create(eu)
    events = await watched(ap, video.id)
    assert data_of(events) == VIDEO
    assert (await ap.application.get(ME, video.id)).result.sha256 == events[-1].completed.sha256
    download = await ap.application.download(ME, video.id, offset=7)
    assert b"".join([piece async for piece in download.chunks]) == VIDEO[7:]
    assert download.total_bytes == len(VIDEO)
    assert (download.content_type, download.file) == ("video/mp4", None)
    # A resume goes on after its seq.
    cut = next(i for i, event in enumerate(events) if event.HasField("chunk"))
    rest = await watched(ap, video.id, after_seq=events[cut].seq)
    numbered = [event.seq for event in rest if event.seq]
    assert min(numbered) > events[cut].seq
    await ap.application.delete(ME, video.id)
    with pytest.raises(VideoNotFound):
        await ap.application.get(ME, video.id)
    with pytest.raises(VideoNotFound):
        await eu.application.get(ME, video.id)


async def test_a_cancel_reaches_a_video_of_another_region(pair):
    ap, eu, node = pair
    node.default = held(before=2)
    video = await create(eu)
    await until(eu, lambda: node.runs)
    cancelled = await ap.application.cancel(ME, video.id)
    assert cancelled.status == video_pb2.VIDEO_STATUS_CANCELLED


async def test_another_tenant_finds_nothing_through_any_gateway(pair):
    ap, eu, _ = pair
    video = await create(eu)
    for region in (ap, eu):
        for ask in (
            lambda region=region: region.application.get(STRANGER, video.id),
            lambda region=region: region.application.cancel(STRANGER, video.id),
            lambda region=region: region.application.delete(STRANGER, video.id),
            lambda region=region: region.application.download(STRANGER, video.id, offset=0),
            lambda region=region: watched(region, video.id, caller=STRANGER),
        ):
            with pytest.raises(VideoNotFound):
                await ask()


async def test_a_home_that_is_away_is_no_missing_video(pair):
    ap, eu, _ = pair
    video = await create(eu)
    await watched(eu, video.id)
    await eu.vanish()
    with pytest.raises(Unavailable, match="eu"):
        await ap.application.get(ME, video.id)
    with pytest.raises(Unavailable, match="eu"):
        await watched(ap, video.id)
    # A region that nobody has told of is named, as it ever was.
    with pytest.raises(OtherRegion):
        await ap.application.get(ME, "us" + video.id[2:])


async def test_a_stream_outlives_a_break_between_the_regions(pair):
    ap, eu, node = pair
    node.default = held(before=2)
    video = await create(eu)
    reading = asyncio.ensure_future(watched(ap, video.id))
    await until(eu, lambda: node.runs)
    address = eu.address
    await eu.vanish()
    await eu.listen(address)
    node.runs[0].go.set()
    events = await reading
    assert data_of(events) == VIDEO
    seqs = [event.seq for event in events if event.seq]
    assert seqs == sorted(set(seqs))


async def test_a_drained_region_gives_its_work_away_or_refuses_it(pair):
    ap, eu, node = pair
    ap.regions.take([eu.view(), ap.view(draining=True)])
    await ap.gateway.know(node)
    assert (await create(ap)).id.startswith("eu-")
    assert ap.application.ready() == (False, "drained by an operator")
    states = {each.name: each.state for each in ap.application.regions()}
    assert states["ap"] == fleet_service_pb2.REGION_STATE_DRAINING
    assert states["eu"] == fleet_service_pb2.REGION_STATE_SERVING
    ap.regions.take([eu.view(draining=True), ap.view(draining=True)])
    with pytest.raises(Unavailable, match="drained"):
        await create(ap)
    ap.regions.take([eu.view(), ap.view()])
    assert (await create(ap)).id.startswith("ap-")


async def test_a_call_from_a_region_goes_no_further(pair):
    ap, eu, _ = pair
    from_region = Caller(ME.tenant, ME.subject, ME.scopes, hops=1)
    video = await create(eu)
    with pytest.raises(OtherRegion):
        await ap.application.get(from_region, video.id)
    # And makes what it was asked for here, or not at all.
    with contextlib.suppress(Unavailable):
        made = await create(ap, caller=from_region)
        raise AssertionError(made.id)
