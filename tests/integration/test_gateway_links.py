"""Signed URLs of a real object store: they work, expire, and end with their video."""

import asyncio
import contextlib
import hashlib
import time
import uuid

import aiohttp
import pytest
from reelmesh.v1 import video_service_pb2

from gateway import errors
from gateway.output.artifacts import ArtifactError, open_store
from reelkit.settings import ConfigError
from tests.support import fakenode
from tests.support.artifacts import listed
from tests.support.fakenode import FakeNode, serve_node
from tests.support.gateways import ME, kinds, open_gateway
from tests.support.mp4s import graded_mp4
from tests.support.regions import open_region
from tests.support.s3 import BUCKET

THUMBNAIL = video_service_pb2.VIDEO_VARIANT_THUMBNAIL
VIDEO = graded_mp4()


@pytest.fixture
def url(s3_access):
    return f"s3://{BUCKET}/links/{uuid.uuid4().hex}"


@contextlib.asynccontextmanager
async def gateway_with_a_video(tmp_path, url, **settings):
    node = FakeNode("n0")
    node.default = fakenode.finish(VIDEO)
    storage = {"url": url, "links": True, **settings}
    async with (
        serve_node(node),
        open_gateway(tmp_path, storage=storage) as gateway,
        asyncio.timeout(60),
    ):
        await gateway.know(node)
        video = await gateway.create()
        assert kinds(await gateway.watched(video.id))[-1] == "completed"
        yield gateway, video


async def fetched(link_url):
    """Status, type and bytes, without a word of who asks."""
    async with aiohttp.ClientSession() as http, http.get(link_url) as answer:
        return answer.status, answer.content_type, await answer.read()


async def test_a_link_gives_the_bytes_to_whoever_has_it_until_the_video_is_deleted(tmp_path, url):
    async with gateway_with_a_video(tmp_path, url) as (gateway, video):
        link = await gateway.videos.link(ME, video.id)
        assert await fetched(link.url) == (200, "video/mp4", VIDEO)
        assert (link.total_bytes, link.sha256) == (len(VIDEO), hashlib.sha256(VIDEO).hexdigest())
        assert 0 < link.expires_at_s - time.time() <= 301
        picture = await gateway.videos.link(ME, video.id, variant=THUMBNAIL)
        status, content_type, data = await fetched(picture.url)
        assert (status, content_type, data[:3]) == (200, "image/jpeg", b"\xff\xd8\xff")
        assert (picture.total_bytes, picture.sha256) == (
            len(data),
            hashlib.sha256(data).hexdigest(),
        )
        # It reads this artifact, and does nothing else.
        other = link.url.replace(video.id, f"{video.id}x")
        assert (await fetched(other))[0] == 403
        async with aiohttp.ClientSession() as http, http.delete(link.url) as answer:
            assert answer.status == 403
        await gateway.videos.delete(ME, video.id)
        store = open_store(url)
        async with asyncio.timeout(10):
            while await listed(store):  # noqa: ASYNC110 - told to nobody
                await asyncio.sleep(0.01)
        assert (await fetched(link.url))[0] == 404
        assert (await fetched(picture.url))[0] == 404
        with pytest.raises(errors.VideoNotFound):
            await gateway.videos.link(ME, video.id)


async def test_a_link_expires(tmp_path, url):
    async with gateway_with_a_video(tmp_path, url, link_s=1) as (gateway, video):
        link = await gateway.videos.link(ME, video.id)
        assert (await fetched(link.url))[0] == 200
        async with asyncio.timeout(20):
            # Its clock is whole seconds.
            while (await fetched(link.url))[0] == 200:  # noqa: ASYNC110 - the store's, not ours
                await asyncio.sleep(0.2)
        assert (await fetched(link.url))[0] == 403


async def test_a_folder_that_is_to_give_links_stops_the_start(tmp_path):
    with pytest.raises(ConfigError, match=r"artifacts\.links.*cannot sign URLs"):
        async with gateway_with_a_video(tmp_path, str(tmp_path / "a")):
            pass


async def test_a_store_that_cannot_sign_says_so(tmp_path):
    for where in (str(tmp_path / "a"), "memory:///"):
        store = open_store(where)
        assert not store.can_sign
        with pytest.raises(ArtifactError, match="cannot sign"):
            await store.sign("videos/x/1.mp4", expires_s=60)


async def test_a_link_of_another_regions_video_is_its_homes(tmp_path, url):
    storage = {"url": url, "links": True}
    node = FakeNode("eu-node-0")
    node.default = fakenode.finish(VIDEO)
    async with (
        open_region(tmp_path, "ap") as ap,
        open_region(tmp_path, "eu", storage=storage) as eu,
        serve_node(node),
        asyncio.timeout(60),
    ):
        await eu.gateway.know(node)
        ap.regions.take([eu.view()])
        await ap.gateway.until(lambda: ap.regions.link("eu").load is not None)
        video = await eu.gateway.create()
        await eu.gateway.watched(video.id)
        link = await ap.application.link(ME, video.id)
        assert await fetched(link.url) == (200, "video/mp4", VIDEO)
        assert link.sha256 == hashlib.sha256(VIDEO).hexdigest()
        # Its own videos have none there: a folder has no URLs.
        with pytest.raises(errors.VideoNotFound):
            await ap.application.link(ME, video.id.replace("eu-", "ap-"))
