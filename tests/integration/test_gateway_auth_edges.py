"""Tokens at the door of every route and every RPC, over real servers."""

import asyncio
import re

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gateway.auth.access import ACCESS, PUBLIC
from tests.support.edges import serve_edges
from tests.support.tokens import TokenIssuer

GUARDED_ROUTES = [
    endpoint.split(" ") for endpoint, scope in ACCESS.items() if scope and " " in endpoint
]
GUARDED_RPCS = [e for e, scope in ACCESS.items() if scope is not PUBLIC and " " not in e]
STREAMED = ("GenerateVideo", "WatchVideo", "DownloadVideo")


@pytest.fixture
async def edges(tmp_path):
    async with serve_edges(tmp_path) as found, asyncio.timeout(30):
        yield found


async def http_status(edges, method, path, headers, **request):
    async with edges.http.request(method, path, headers=headers, **request) as answer:
        problem = await answer.json(content_type="application/problem+json")
        return answer.status, problem["code"], answer.headers


async def rpc_refusal(edges, rpc, metadata):
    """(status code, reason) that an RPC with an empty request is refused with."""
    streamed = rpc.endswith(STREAMED)
    make = edges.channel.unary_stream if streamed else edges.channel.unary_unary
    call = make(rpc)(b"", metadata=metadata, timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await (call.read() if streamed else call)
    info = error_details_pb2.ErrorInfo()
    for detail in rpc_status.from_call(raised.value).details:
        detail.Unpack(info)
    return raised.value.code(), info.reason


def bad_tokens(edges):
    """(token, code), one of each kind that an attacker tries first."""
    stranger = TokenIssuer()
    good = edges.issuer.issue()
    return [
        ("", "missing_token"),
        ("nonsense", "malformed_token"),
        (good[:-3] + "AAA", "bad_signature"),
        (good.rsplit(".", 1)[0] + ".", "bad_signature"),
        (stranger.issue(), "bad_signature"),
        (edges.issuer.issue(exp=1), "token_expired"),
        (edges.issuer.issue(aud="other"), "wrong_audience"),
        (edges.issuer.issue(iss="other"), "unknown_issuer"),
        (edges.issuer.issue(headers={"kid": "other"}), "unknown_key"),
        (edges.issuer.issue(tenant=None), "bad_claims"),
        (edges.issuer.issue(padding="x" * 7_000), "token_too_large"),
    ]


@pytest.mark.parametrize(("method", "template"), GUARDED_ROUTES)
async def test_no_route_opens_without_a_token(edges, method, template):
    path = template.format(video_id="ap-x", batch_id="batch_ap-x", name="any")
    status, code, headers = await http_status(edges, method, path, {})
    assert (status, code) == (401, "missing_token")
    assert headers["WWW-Authenticate"] == 'Bearer realm="reelmesh"'


@pytest.mark.parametrize("rpc", GUARDED_RPCS)
async def test_no_rpc_opens_without_a_token(edges, rpc):
    refusal = await rpc_refusal(edges, rpc, ())
    assert refusal == (grpc.StatusCode.UNAUTHENTICATED, "missing_token")


@pytest.mark.parametrize(("method", "template"), GUARDED_ROUTES)
async def test_no_route_opens_without_its_scope(edges, method, template):
    needed = ACCESS[f"{method} {template}"].value
    others = " ".join({"video:generate", "video:read", "fleet:read"} - {needed})
    path = template.format(video_id="ap-x", batch_id="batch_ap-x", name="any")
    status, code, headers = await http_status(edges, method, path, edges.bearer(scope=others))
    assert (status, code) == (403, "permission_denied")
    assert f'scope="{needed}"' in headers["WWW-Authenticate"]


@pytest.mark.parametrize("rpc", GUARDED_RPCS)
async def test_no_rpc_opens_without_its_scope(edges, rpc):
    others = " ".join({"video:generate", "video:read", "fleet:read"} - {ACCESS[rpc].value})
    refusal = await rpc_refusal(edges, rpc, edges.metadata(scope=others))
    assert refusal == (grpc.StatusCode.PERMISSION_DENIED, "permission_denied")


async def test_bad_tokens_are_told_apart_on_both_edges_and_never_echoed(edges, caplog):
    for token, code in bad_tokens(edges):
        header = f"Bearer {token}"
        status, told, headers = await http_status(
            edges, "GET", "/v1/videos", {"Authorization": header}
        )
        assert (status, told) == (401, code)
        if code != "missing_token":
            assert 'error="invalid_token"' in headers["WWW-Authenticate"]
            assert token not in str(headers)
        metadata = (("authorization", header.strip()),)
        refusal = await rpc_refusal(edges, "/reelmesh.v1.VideoService/ListVideos", metadata)
        assert refusal == (grpc.StatusCode.UNAUTHENTICATED, code)
        if token:
            assert token not in caplog.text


async def test_two_tokens_are_not_better_than_one(edges):
    good = edges.bearer()["Authorization"]
    several = [("Authorization", good), ("Authorization", good)]
    status, code, _headers = await http_status(edges, "GET", "/v1/videos", several)
    assert (status, code) == (401, "malformed_token")
    metadata = (("authorization", good), ("authorization", good))
    refusal = await rpc_refusal(edges, "/reelmesh.v1.VideoService/ListVideos", metadata)
    assert refusal == (grpc.StatusCode.UNAUTHENTICATED, "malformed_token")


async def test_a_token_in_the_query_is_no_token(edges):
    token = edges.issuer.issue()
    status, code, _headers = await http_status(edges, "GET", f"/v1/videos?token={token}", {})
    assert (status, code) == (401, "missing_token")


async def test_a_long_good_token_passes_both_edges(edges):
    long = {"padding": "x" * 5_600}
    async with edges.http.get("/v1/videos", headers=edges.bearer(**long)) as answer:
        assert answer.status == 200
    path = "/reelmesh.v1.VideoService/ListVideos"
    await edges.channel.unary_unary(path)(b"", metadata=edges.metadata(**long), timeout=10)


async def test_another_tenants_video_is_404_on_every_route(edges):
    body = {"prompt": "a red ball"}
    async with edges.http.post("/v1/videos", json=body, headers=edges.bearer()) as answer:
        video_id = (await answer.json())["id"]
    stranger = edges.bearer(tenant="other")
    for method, template in GUARDED_ROUTES:
        if "video_id" in template:
            path = template.format(video_id=video_id)
            remix = {"json": body} if path.endswith("/remix") else {}
            status, code, _headers = await http_status(edges, method, path, stranger, **remix)
            assert (status, code) == (404, "video_not_found"), path
    async with edges.http.get(f"/v1/videos/{video_id}", headers=edges.bearer()) as answer:
        assert answer.status == 200


async def test_what_is_said_of_another_tenants_video_is_what_is_said_of_none(edges):
    body = {"prompt": "a red ball"}
    async with edges.http.post("/v1/videos", json=body, headers=edges.bearer()) as answer:
        theirs = (await answer.json())["id"]
    none = re.sub(r"-.*", "-00000000000000000000000000", theirs)
    told = []
    for video_id in (theirs, none):
        path = f"/v1/videos/{video_id}"
        async with edges.http.get(path, headers=edges.bearer(tenant="other")) as answer:
            told.append((await answer.text()).replace(video_id, "ID"))
    assert told[0] == told[1]
