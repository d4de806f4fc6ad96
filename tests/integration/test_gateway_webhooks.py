"""Webhooks from a region's gateways to a real server, over a real etcd."""

import asyncio
import base64
import json
import re
import secrets
from pathlib import Path

import pytest
import standardwebhooks
from aiohttp import web
from openai import OpenAI
from reelmesh.v1 import video_pb2, video_service_pb2

from gateway.errors import InvalidRequest
from gateway.webhooks import deliveries, schedule
from tests.support import fakenode
from tests.support.batch_clients import BatchClient
from tests.support.etcd import EtcdProcess
from tests.support.gateway_region import gateway_region
from tests.support.gateways import ME

SECRET = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


class Receiver:
    """A server that takes webhooks, and fails as it is told."""

    def __init__(self):
        self.taken = []
        """(headers, body) of each request."""
        self.answers = []
        """Statuses of the next answers; 200 without."""
        self.hold = None
        self.url = ""

    @property
    def ids(self):
        return [headers["Webhook-Id"] for headers, _ in self.taken]

    async def take(self, request):
        self.taken.append((dict(request.headers), await request.text()))
        if self.hold is not None:
            await self.hold.wait()
        status = self.answers.pop(0) if self.answers else 200
        headers = {"Location": self.url + "/elsewhere"} if status in (301, 307) else {}
        return web.Response(status=status, headers=headers, text="x" * 100_000)

    async def until(self, count):
        async with asyncio.timeout(30):
            while len(self.taken) < count:  # noqa: ASYNC110 - of a server
                await asyncio.sleep(0.02)


@pytest.fixture
async def receiver():
    found, app = Receiver(), web.Application()
    app.router.add_post("/{any:.*}", found.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://localhost:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """Tries follow one another within a test's patience."""
    monkeypatch.setattr(schedule, "DELAYS_S", (0.05,))
    monkeypatch.setattr(schedule, "_FIRST_PAUSE_S", 0.05)


@pytest.fixture
async def region(tmp_path):
    etcd = EtcdProcess(tmp_path / "etcd")
    await etcd.start()
    async with gateway_region(tmp_path, etcd.endpoint) as region:
        yield region
    etcd.kill()


def on(tmp_path, **changes):
    file = tmp_path / "webhook-secret"
    file.write_text(SECRET)
    rules = {"allow_http": True, "allow_private": True, "ports": [], "timeout_s": 1.0}
    return {
        "webhooks": {"enabled": True, "secret_files": [str(file)], **rules, **changes},
        "batches": {"checkpoint_s": 0.05},
    }


async def create(member, url, **options):
    wished = video_service_pb2.CreateOptions(webhook_url=url, **options)
    spec = video_pb2.VideoSpec(prompt="a ball")
    return await member.videos.create(ME, spec, wished, streamed=False)


async def pending(member):
    owned = await member.jobs.owned(member.core.owner, prefix=deliveries.PREFIX)
    return [each.job_id for each in owned]


async def until_none(member):
    async with asyncio.timeout(30):
        while await pending(member):  # noqa: ASYNC110 - of a store
            await asyncio.sleep(0.02)


def verified(receiver, number=0):
    headers, body = receiver.taken[number]
    return standardwebhooks.Webhook(SECRET).verify(body, headers)


async def test_the_end_of_a_video_is_told_signed_and_once(region, receiver, tmp_path):
    a = await region.start("a", **on(tmp_path))
    video = await create(a, receiver.url + "/hook")
    await receiver.until(1)
    event = verified(receiver)
    assert (event["type"], event["data"]["id"]) == ("video.completed", video.id)
    assert event["data"]["object"] == "video"
    assert receiver.ids == [f"evt_{video.id}"]
    headers, body = receiver.taken[0]
    assert headers["Content-Type"] == "application/json"
    # OpenAI's own client takes it for one of its webhooks.
    client = OpenAI(api_key="none", webhook_secret=SECRET)
    client.webhooks.verify_signature(body, headers)
    await until_none(a)
    assert len(receiver.taken) == 1


async def test_failed_and_cancelled_ones_are_told_too(region, receiver, tmp_path):
    a = await region.start("a", **on(tmp_path))
    for node in region.nodes:
        node.default = fakenode.fail("out_of_memory")
    await create(a, receiver.url)
    await receiver.until(1)
    for node in region.nodes:
        node.default = fakenode.held(before=1)
    video = await create(a, receiver.url)
    await a.videos.cancel(ME, video.id)
    await receiver.until(2)
    assert [verified(receiver, n)["type"] for n in (0, 1)] == ["video.failed", "video.cancelled"]


async def test_a_video_that_is_there_already_is_told_like_another(region, receiver, tmp_path):
    a = await region.start("a", cache={"enabled": True}, **on(tmp_path))
    spec = video_pb2.VideoSpec(prompt="a ball", seed=7)
    wished = video_service_pb2.CreateOptions(webhook_url=receiver.url)
    made = []
    for count in (1, 2):
        made.append(await a.videos.create(ME, spec, wished, streamed=False))
        await receiver.until(count)
    assert made[1].cache == video_pb2.CACHE_STATUS_HIT
    assert receiver.ids == [f"evt_{video.id}" for video in made]
    await until_none(a)


async def test_the_end_of_a_batch_is_told(region, receiver, tmp_path):
    a = await region.start("a", **on(tmp_path))
    client = BatchClient(region, a)
    body = {"items": [{"prompt": "one"}, {"prompt": "two"}], "webhook_url": receiver.url}
    batch = await client.submit(body)
    await receiver.until(1)
    event = verified(receiver)
    assert (event["type"], event["data"]["id"]) == ("batch.completed", batch["id"])
    assert event["data"]["counts"]["completed"] == 2
    await until_none(a)
    assert len(receiver.taken) == 1, "the items have no webhooks of their own"


async def test_a_receiver_that_fails_is_tried_again_with_the_same_id(region, receiver, tmp_path):
    a = await region.start("a", **on(tmp_path))
    receiver.answers = [500, 503, 404, 302]
    video = await create(a, receiver.url)
    await receiver.until(5)
    assert set(receiver.ids) == {f"evt_{video.id}"}
    await until_none(a)
    assert len(receiver.taken) == 5


async def test_a_redirect_is_not_followed(region, receiver, tmp_path):
    a = await region.start("a", **on(tmp_path))
    receiver.answers = [307, 301]
    await create(a, receiver.url + "/hook")
    await receiver.until(3)
    await until_none(a)
    assert len(receiver.taken) == 3


async def test_a_receiver_that_hangs_holds_up_nobody_else(region, receiver, tmp_path):
    a = await region.start("a", **on(tmp_path, timeout_s=0.3, max_parallel_per_host=1))
    over = asyncio.Event()

    async def say_nothing(_reader, writer):
        await over.wait()
        writer.close()

    hanging = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = hanging.sockets[0].getsockname()[1]
    try:
        await create(a, f"http://localhost:{port}/")
        await create(a, receiver.url)
        await receiver.until(1)
        async with asyncio.timeout(30):
            # Its video may end after the other one.
            while not await pending(a):  # noqa: ASYNC110 - of a store
                await asyncio.sleep(0.02)
    finally:
        over.set()
        hanging.close()


async def test_one_that_wants_no_more_is_asked_no_more(region, receiver, tmp_path):
    a = await region.start("a", **on(tmp_path))
    receiver.answers = [410]
    await create(a, receiver.url)
    await receiver.until(1)
    await until_none(a)
    assert len(receiver.taken) == 1


async def test_what_is_not_delivered_in_its_time_is_given_up(region, receiver, tmp_path):
    a = await region.start("a", **on(tmp_path, give_up_after_s=0.5))
    receiver.answers = [500] * 1_000
    await create(a, receiver.url)
    await receiver.until(1)
    await until_none(a)


async def test_another_gateway_delivers_what_a_dead_one_left(region, receiver, tmp_path):
    a, b = await region.pair(**on(tmp_path))
    receiver.answers = [500] * 1_000
    video = await create(a, receiver.url)
    await receiver.until(1)
    await a.crash()
    receiver.answers = []
    count = len(receiver.taken)
    await receiver.until(count + 1)
    assert set(receiver.ids) == {f"evt_{video.id}"}
    await until_none(b)


async def test_one_whose_gateway_died_with_the_end_written_is_delivered(region, receiver, tmp_path):
    a, b = await region.pair(**on(tmp_path))
    a.jobs.after_finish.shut()
    video = await create(a, receiver.url)
    await a.jobs.after_finish.until_reached()
    assert receiver.taken == []
    await a.crash()
    await receiver.until(1)
    assert receiver.ids == [f"evt_{video.id}"]
    await until_none(b)


async def test_one_that_its_owner_missed_is_found_by_a_look(region, receiver, tmp_path):
    a = await region.start("a", **on(tmp_path))
    a.core.committer.on_end = lambda _record: None
    await create(a, receiver.url)
    async with asyncio.timeout(20):
        while not await pending(a):  # noqa: ASYNC110 - of a store
            await asyncio.sleep(0.02)
    assert receiver.taken == []
    await a.app.webhooks.look()
    await receiver.until(1)


async def test_a_deleted_video_is_told_of_no_more(region, receiver, tmp_path):
    a = await region.start("a", **on(tmp_path))
    receiver.answers = [500] * 1_000
    video = await create(a, receiver.url)
    await receiver.until(1)
    await a.videos.delete(ME, video.id)
    await until_none(a)
    await asyncio.sleep(0.3)
    count = len(receiver.taken)
    await asyncio.sleep(0.3)
    assert len(receiver.taken) == count


async def test_off_or_private_it_is_refused_by_name(region, receiver, tmp_path):
    off = await region.start("a")
    strict = await region.start("b", **on(tmp_path, allow_private=False))
    for member, url in ((off, "https://example.com/"), (strict, "http://127.0.0.1:1/")):
        with pytest.raises(InvalidRequest) as caught:
            await create(member, url)
        assert [v.field for v in caught.value.violations] == ["webhook_url"]
        client = BatchClient(region, member)
        body = {"items": [{"prompt": "x"}], "webhook_url": url}
        problem = await client.submit(body, status=400)
        assert problem["errors"][0]["field"] == "webhook_url"
        problem = await client.ask(
            "POST", "/v1/videos", json={"prompt": "x", "webhook_url": url}, status=400
        )
        assert problem["errors"][0]["field"] == "webhook_url"
    # A name is looked up when it is called.
    await create(strict, receiver.url)
    await asyncio.sleep(0.5)
    assert receiver.taken == []


async def test_the_snippet_of_the_documentation_verifies_them(region, receiver, tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    a = await region.start("a", **on(tmp_path))
    video = await create(a, receiver.url)
    await receiver.until(1)
    names = {}
    exec(snippet, names)  # noqa: S102 - what the documentation says is what is tested
    headers, body = receiver.taken[0]
    event = names["verified"](SECRET, headers, body.encode())
    assert event["data"]["id"] == video.id
    with pytest.raises(ValueError, match="signature"):
        names["verified"](SECRET, headers, body.encode() + b" ")
    late = {**headers, "Webhook-Timestamp": "1"}
    with pytest.raises(ValueError, match="old"):
        names["verified"](SECRET, late, json.dumps(event).encode())
