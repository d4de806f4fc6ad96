"""Addresses that come without a token that holds, at both edges."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from reelmesh.v1 import video_service_pb2

from gateway.auth.config import StrangerConfig
from tests.support.edges import serve_edges

BURST = 5
NO_TOKEN = "nonsense"


@pytest.fixture
async def edges(tmp_path):
    config = StrangerConfig(refusals_per_s=0.5, burst=BURST, trusted_proxies=("127.0.0.1/32",))
    async with serve_edges(tmp_path, strangers=config) as found, asyncio.timeout(30):
        yield found


async def asked(edges, *, token=NO_TOKEN, client="203.0.113.9", path="/v1/videos"):
    headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": client}
    async with edges.http.get(path, headers=headers) as answer:
        body = await answer.json()
        return answer.status, body.get("code", ""), answer.headers.get("Retry-After")


async def called(edges, *, token=NO_TOKEN, client="203.0.113.9"):
    metadata = (("authorization", f"Bearer {token}"), ("x-forwarded-for", client))
    await edges.videos.ListVideos(video_service_pb2.ListVideosRequest(), metadata=metadata)


async def test_beyond_its_burst_an_address_waits_and_the_others_do_not(edges):
    for _ in range(BURST):
        assert (await asked(edges))[:2] == (401, "malformed_token")
    status, code, retry_after = await asked(edges)
    assert (status, code) == (429, "too_many_refusals")
    assert int(retry_after) >= 1
    assert (await asked(edges, client="203.0.113.10"))[0] == 401


async def test_both_edges_count_together_and_tell_when_to_come_back(edges):
    for _ in range(BURST):
        with pytest.raises(aio.AioRpcError) as raised:
            await called(edges)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(aio.AioRpcError) as raised:
        await called(edges)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = error_details_pb2.RetryInfo()
    details = rpc_status.from_call(raised.value).details
    assert any(detail.Unpack(retry) for detail in details)
    assert 0 < retry.retry_delay.ToTimedelta().total_seconds() <= 2
    assert (await asked(edges))[0] == 429


async def test_a_token_that_is_known_to_hold_passes_and_a_new_one_waits(edges):
    known, fresh = edges.issuer.issue(jti="known"), edges.issuer.issue(jti="fresh")
    assert (await asked(edges, token=known))[0] == 200
    for _ in range(BURST):
        await asked(edges)
    assert (await asked(edges, token=known))[0] == 200
    await called(edges, token=known)
    assert (await asked(edges, token=fresh))[0] == 429
    # It was not looked at; after the wait it is.
    await asyncio.sleep(2.1)
    assert (await asked(edges, token=fresh))[0] == 200


async def test_whoever_looks_for_what_there_is_not_is_counted_too(edges):
    for number in range(BURST):
        assert (await asked(edges, path=f"/wp-admin/{number}"))[0] == 404
    assert (await asked(edges, path="/wp-admin/x"))[:2] == (429, "too_many_refusals")
    # Probes of its own proxy and balancer are answered all the same.
    async with edges.http.get("/healthz") as answer:
        assert answer.status == 200


async def test_a_call_that_its_token_does_not_allow_is_no_stranger(edges):
    token = edges.issuer.issue(scope="fleet:read")
    for _ in range(2 * BURST):
        assert (await asked(edges, token=token))[0] == 403
