"""A tenant's requests a second, over gateways and control planes, whatever dies."""

import asyncio
import time

import aiohttp
import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from reelmesh.v1 import video_service_pb2
from reelmesh.v1.video_service_pb2_grpc import VideoServiceStub

from gateway.quotas.parts import Mode
from tests.support import fakenode
from tests.support.controlplanes import running
from tests.support.stores import eventually, running_etcd
from tests.support.tenants import operated_region

pytestmark = pytest.mark.timeout(120)

# Of which nothing is brought back while a test runs.
SLOW = 0.001
QUOTAS = {"share_ttl_s": 2, "max_gateways": 4, "safe_percent": 100}


@pytest.fixture
async def region(tmp_path):
    async with operated_region(tmp_path, quotas=QUOTAS) as (region, operators):
        region.operators = operators
        async with aiohttp.ClientSession() as http:
            region.http = http
            yield region


async def limited(region, *members, **fields):
    made = await region.operators.set(**fields)
    for member in members:
        await member.until(lambda m=member: m.policy("acme").revision == made.revision)


class Answer:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body


async def ask(region, member, tenant="acme", path="/v1/models"):
    token = region.issuer.issue(tenant=tenant)
    url = f"http://{member.app.http_address}{path}"
    async with region.http.get(url, headers={"Authorization": f"Bearer {token}"}) as answer:
        return Answer(answer.status, answer.headers, await answer.json())


async def taken(region, member, count):
    """How many of so many requests one after the other are taken."""
    return sum([(await ask(region, member)).status == 200 for _ in range(count)])


async def mode(region, member):
    url = f"http://{member.app.http_address}/metrics"
    async with region.http.get(url) as answer:
        lines = (await answer.text()).splitlines()
    found = [line for line in lines if line.startswith("reelmesh_gateway_quota_mode{")]
    return [line.split('"')[1] for line in found if line.endswith(" 1.0")]


async def test_one_gateway_has_the_whole_burst_and_tells_what_is_left(region):
    a = await region.start("a")
    assert "RateLimit" not in (await ask(region, a)).headers
    await limited(region, a, requests_per_second=SLOW, burst=5)
    for left in (4, 3, 2, 1, 0):
        answer = await ask(region, a)
        assert answer.status == 200
        assert answer.headers["RateLimit-Policy"] == '"requests";q=5;w=5000'
        assert answer.headers["RateLimit"].startswith(f'"requests";r={left};t=')
    refused = await ask(region, a)
    assert refused.status == 429
    assert refused.body["code"] == "quota_requests"
    assert refused.body["type"].endswith(":quota_requests")
    assert refused.body["quota"] == "requests_per_second"
    assert refused.body["retryable"] is True
    assert 900 <= int(refused.headers["Retry-After"]) <= 1000
    assert refused.headers["RateLimit"].startswith('"requests";r=0;t=')
    # Every answer counts and tells, that of a mistake too; another tenant is another matter.
    assert (await ask(region, a, path="/v1/videos")).status == 429
    assert (await ask(region, a, tenant="globex")).status == 200
    assert await mode(region, a) == ["leased"]
    assert "reelmesh_gateway_quota_refusals_total" in await metrics_of(region, a)


async def metrics_of(region, member):
    async with region.http.get(f"http://{member.app.http_address}/metrics") as answer:
        return await answer.text()


async def test_over_grpc_a_refusal_names_the_quota_and_when_to_come_back(region):
    a = await region.start("a")
    await limited(region, a, requests_per_second=SLOW, burst=1)
    metadata = (("authorization", f"Bearer {region.issuer.issue()}"),)
    async with aio.insecure_channel(a.app.grpc_address) as channel:
        stub = VideoServiceStub(channel)
        call = stub.ListVideos(video_service_pb2.ListVideosRequest(), metadata=metadata)
        await call
        trailing = dict(await call.trailing_metadata())
        assert trailing["ratelimit"].startswith('"requests";r=0;')
        with pytest.raises(aio.AioRpcError) as raised:
            await stub.ListVideos(video_service_pb2.ListVideosRequest(), metadata=metadata)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    details = {}
    for packed in rpc_status.from_call(raised.value).details:
        name = packed.type_url.rpartition(".")[2]
        details[name] = getattr(error_details_pb2, name)()
        packed.Unpack(details[name])
    assert details["ErrorInfo"].reason == "quota_requests"
    (violation,) = details["QuotaFailure"].violations
    assert (violation.subject, violation.quota_id) == ("tenant:acme", "requests_per_second")
    assert 900 <= details["RetryInfo"].retry_delay.seconds <= 1000


async def test_over_two_gateways_and_two_control_planes_the_burst_is_one(tmp_path):
    async with (
        running_etcd(tmp_path / "etcd") as etcd,
        operated_region(tmp_path, etcd.endpoint, quotas=QUOTAS) as (region, operators),
        running(etcd.endpoint, replica_id="r1", quotas=QUOTAS) as second,
        aiohttp.ClientSession() as http,
    ):
        region.operators, region.http = operators, http
        a = await region.start("a")
        b = await region.start("b", control=second.address)
        await limited(region, a, b, requests_per_second=SLOW, burst=20)
        answers = await asyncio.gather(*(taken(region, m, 25) for m in (a, b) for _ in range(2)))
        assert sum(answers) <= 20 + 1
        # What one has is not lost to the other for ever: parts follow demand.
        await limited(region, a, b, requests_per_second=40.0, burst=40)

        async def rate(member, seconds=2.0):
            until_s, count = time.monotonic() + seconds, 0
            while time.monotonic() < until_s:
                count += (await ask(region, member)).status == 200
                await asyncio.sleep(0.01)
            return count / seconds

        await rate(a)
        assert await rate(a) > 40 * 0.75 * 0.8
        both = await asyncio.gather(rate(a), rate(b))
        assert sum(both) <= 40 + 40 / 2.0 + 2
        # Its leader is killed: no part is lost, and none is given twice.
        await region.control.drain()
        answers = await asyncio.gather(rate(a), rate(b))
        assert 5 <= sum(answers) <= 40 + 40 / 2.0 + 2


async def test_a_limit_set_live_holds_within_a_second(region):
    a = await region.start("a")
    assert await taken(region, a, 20) == 20
    began_s = time.monotonic()
    await region.operators.set(requests_per_second=SLOW, burst=1)

    async def refused():
        return (await ask(region, a)).status == 429

    await eventually(refused)
    assert time.monotonic() - began_s < 1.0
    await region.operators.unset()

    async def unlimited():
        return "RateLimit" not in (await ask(region, a)).headers

    await eventually(unlimited)


async def test_with_the_control_plane_away_the_safe_part_holds_until_it_is_back(tmp_path):
    async with (
        running_etcd(tmp_path / "etcd") as etcd,
        operated_region(tmp_path, etcd.endpoint, quotas=QUOTAS) as (region, operators),
        aiohttp.ClientSession() as http,
    ):
        region.operators, region.http = operators, http
        a = await region.start("a")
        await limited(region, a, requests_per_second=100.0, burst=8)
        assert await taken(region, a, 8) == 8
        assert await mode(region, a) == ["leased"]
        etcd.kill()
        await a.until(lambda: a.shares.mode is Mode.SAFE)
        assert await mode(region, a) == ["safe"]
        # A quarter of the burst, and of the rate: there may be four gateways.
        await asyncio.sleep(0.5)
        answer = await ask(region, a)
        assert answer.headers["RateLimit"].startswith('"requests";r=1;')
        # Of a tenant that it never saw before too.
        assert (await ask(region, a, tenant="globex")).status == 200
        await etcd.start()
        await a.until(lambda: a.shares.part("acme") == 1.0)
        # Its bucket grows from here on.
        await ask(region, a)
        await asyncio.sleep(0.3)
        assert await taken(region, a, 5) == 5


async def test_a_gateway_that_never_had_a_place_has_no_part(region):
    members = [await region.start(name) for name in "abcd"]
    await limited(region, *members, requests_per_second=1000.0)
    for member in members:
        await member.until(lambda m=member: m.shares.mode is Mode.LEASED)
    e = await region.start("e")
    await limited(region, e, requests_per_second=1000.0)
    answer = await ask(region, e)
    assert (answer.status, answer.body["code"]) == (503, "quota_unknown")
    assert answer.headers["Retry-After"]
    assert await mode(region, e) == ["none"]
    # A gateway that stops in good order leaves its place to it.
    await members[0].drain()
    await e.until(lambda: e.shares.mode is Mode.LEASED)
    assert (await ask(region, e)).status == 200


async def test_videos_that_wait_are_bounded_over_gateways(tmp_path):
    script = fakenode.held(before=3)
    async with operated_region(tmp_path, quotas=QUOTAS, script=script) as (region, operators):
        region.operators = operators
        a, b = await region.pair()
        await limited(region, a, b, queued_jobs=6)
        for node in region.nodes:
            node.slots = 0
            await node.push()
        model = (fakenode.MODEL.name, fakenode.MODEL.version)
        for member in (a, b):
            await member.until(lambda m=member: m.core.waiting.must_wait(model))

        async def create(member):
            try:
                await member.create()
            except Exception as error:  # noqa: BLE001 - its code is looked at
                return error.code
            return ""

        codes = await asyncio.gather(*(create(m) for m in (a, b) for _ in range(12)))
        assert set(codes) == {"", "quota_queued_jobs"}
        waiting = len(a.core.waiting) + len(b.core.waiting)
        assert waiting == codes.count("") <= 6
        # Whoever has to wait for nothing is not counted.
        for node in region.nodes:
            node.slots = 100
            await node.push()
        await a.until(lambda: not len(a.core.waiting) and not len(b.core.waiting))
        assert await create(a) == ""
