"""Idempotency keys, and copies left behind, where two regions know one another."""

import asyncio
from unittest.mock import AsyncMock

import pytest
from reelmesh.v1 import region_pb2, video_pb2, video_service_pb2

from gateway.errors import IdempotencyConflict, ResourceExhausted, Unavailable
from gateway.peers.client import PeerFailed
from gateway.regions.choice import RegionState
from tests.support.fakenode import FakeNode, held, serve_node
from tests.support.gateways import ME
from tests.support.regions import open_region


@pytest.fixture
async def pair(tmp_path):
    """Two regions with a node each, that have heard of one another."""
    async with (
        open_region(tmp_path, "ap") as ap,
        open_region(tmp_path, "eu") as eu,
        serve_node(FakeNode("ap-node-0")) as here,
        serve_node(FakeNode("eu-node-0")) as there,
    ):
        await ap.gateway.know(here)
        await eu.gateway.know(there)
        ap.regions.take([eu.view()])
        eu.regions.take([ap.view()])
        await until(ap, lambda: ap.regions.link("eu").load is not None)
        await until(eu, lambda: eu.regions.link("ap").load is not None)
        yield ap, eu, there


async def until(region, holds):
    await region.gateway.until(holds)


async def create(region, *, prompt="a ball", **options):
    spec = video_pb2.VideoSpec(prompt=prompt)
    return await region.application.create(
        ME, spec, video_service_pb2.CreateOptions(**options), streamed=False
    )


def drained(ap, eu, *, draining=True):
    ap.regions.take([eu.view(), ap.view(draining=draining)])


async def lost(ap, eu):
    """eu answers nobody, and its summary is gone."""
    await eu.vanish()
    ap.regions.take([region_pb2.RegionView(region="eu")])
    await until(ap, lambda: ap.regions.state_of("eu") is RegionState.DOWN)


async def test_a_key_whose_video_was_made_elsewhere_finds_it_from_everywhere(pair):
    ap, eu, _ = pair
    drained(ap, eu)
    made = await create(ap, idempotency_key="k")
    assert made.id.startswith("eu-")
    # ap serves again, and the key stays what it was.
    drained(ap, eu, draining=False)
    assert (await create(ap, idempotency_key="k")).id == made.id
    assert (await create(eu, idempotency_key="k")).id == made.id
    assert (await create(ap, idempotency_key="another")).id.startswith("ap-")
    with pytest.raises(IdempotencyConflict):
        await create(ap, idempotency_key="k", prompt="another ball")


async def test_a_key_leaves_a_region_that_can_serve_for_one_that_is_done_earlier(pair):
    ap, _, _ = pair
    stayed = await create(ap, idempotency_key="first")
    assert stayed.id.startswith("ap-")
    # As if each video were done a minute earlier there.
    ap.regions.margin_s = -60.0
    moved = await create(ap, idempotency_key="second")
    assert moved.id.startswith("eu-")
    assert (await create(ap, idempotency_key="first")).id == stayed.id
    assert (await create(ap, idempotency_key="second")).id == moved.id


async def test_of_many_requests_with_one_key_one_makes_a_video(pair):
    ap, eu, _ = pair
    ap.regions.margin_s = -60.0
    made = await asyncio.gather(
        *(create(region, idempotency_key="k") for region in (ap, eu) for _ in range(8))
    )
    # eu has heard of it by itself or by ap; nobody else has a video of that key.
    assert {each.id[:2] for each in made} == {"eu"}
    assert len({each.id for each in made}) == 1


async def test_the_key_of_a_region_that_is_away_waits_for_it(pair):
    ap, eu, _ = pair
    drained(ap, eu)
    made = await create(ap, idempotency_key="k")
    drained(ap, eu, draining=False)
    address = eu.address
    await eu.vanish()
    with pytest.raises(Unavailable, match="same key"):
        await create(ap, idempotency_key="k")
    await eu.listen(address)
    await until(ap, lambda: ap.regions.link("eu").load is not None)
    assert (await create(ap, idempotency_key="k")).id == made.id


async def test_the_key_of_a_region_that_is_down_is_taken_back(pair):
    ap, eu, _ = pair
    drained(ap, eu)
    await create(ap, idempotency_key="k")
    drained(ap, eu, draining=False)
    await lost(ap, eu)
    again = await create(ap, idempotency_key="k")
    assert again.id.startswith("ap-")
    assert (await create(ap, idempotency_key="k")).id == again.id


async def test_a_region_that_is_sent_a_key_makes_it_whatever_it_had_said_of_it(pair):
    ap, eu, _ = pair
    # Each says that the other makes it: eu did, for a client of its own, and then lost it.
    await eu.application._home.assign_key(ME, "k", region="ap", over_region="", keep_s=60)
    drained(ap, eu)
    assert (await create(ap, idempotency_key="k")).id.startswith("eu-")


async def test_a_copy_left_in_a_region_that_was_lost_is_cancelled_when_it_is_back(
    pair, monkeypatch
):
    monkeypatch.setattr("gateway.core.new_videos.SUPERSEDE_EVERY_S", 0.1)
    ap, eu, node = pair
    node.default = held()
    lost = await create(eu)
    await until(eu, lambda: node.runs)
    address = eu.address
    await eu.vanish()
    await create(ap, idempotency_key="again", supersedes=lost.id)
    await eu.listen(address)
    await until(eu, lambda: eu.gateway.core.lifetimes.get(lost.id).ended)
    cancelled = await eu.application.get(ME, lost.id)
    assert cancelled.status == video_pb2.VIDEO_STATUS_CANCELLED


async def test_a_client_that_gave_a_region_up_has_its_video_here_at_once(pair):
    ap, eu, _ = pair
    drained(ap, eu)
    made = await create(ap, idempotency_key="k")
    drained(ap, eu, draining=False)
    await eu.vanish()
    # Nobody knows yet whether eu is down; the client need not.
    again = await create(ap, idempotency_key="k", supersedes=made.id)
    assert again.id.startswith("ap-")
    assert (await create(ap, idempotency_key="k")).id == again.id


async def test_a_video_never_supersedes_itself(pair):
    ap, eu, node = pair
    node.default = held()
    drained(ap, eu)
    made = await create(ap, idempotency_key="k")
    assert made.id.startswith("eu-")
    # Its client lost ap, which it had asked, and comes to the region where it is made.
    assert (await create(eu, idempotency_key="k", supersedes=made.id)).id == made.id
    await asyncio.sleep(0.3)
    assert not eu.gateway.core.lifetimes.get(made.id).ended


async def test_a_key_stays_where_a_region_failed_after_it_may_have_made_the_video(
    pair, monkeypatch
):
    ap, eu, _ = pair
    drained(ap, eu)
    made = await create(ap, idempotency_key="k")
    drained(ap, eu, draining=False)
    broken = AsyncMock(side_effect=RuntimeError("a bug of eu's"))
    with monkeypatch.context() as patched:
        patched.setattr(eu.gateway.videos, "create", broken)
        with pytest.raises(PeerFailed):
            await create(ap, idempotency_key="k")
    assert (await create(ap, idempotency_key="k")).id == made.id


async def test_a_key_that_a_region_refuses_is_taken_back(pair, monkeypatch):
    ap, eu, _ = pair
    drained(ap, eu)
    full = AsyncMock(side_effect=ResourceExhausted("full", retry_after_s=1.0))
    with monkeypatch.context() as patched:
        patched.setattr(eu.gateway.videos, "create", full)
        with pytest.raises(ResourceExhausted):
            await create(ap, idempotency_key="k")
        drained(ap, eu, draining=False)
        assert (await create(ap, idempotency_key="k")).id.startswith("ap-")
