"""Attacks on the door of both edges, over real connections."""

import asyncio
import contextlib
import json

import grpc
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from reelmesh.v1 import video_service_pb2

from gateway.auth.config import StrangerConfig
from gateway.edge_http.jwks import MAX_BYTES, open_jwks_loaders
from tests.support.edges import serve_edges
from tests.support.forgeries import FORGERIES
from tests.support.tokens import TokenIssuer

pytestmark = pytest.mark.timeout(60)

# One address tries everything here.
PATIENT = StrangerConfig(burst=100_000, refusals_per_s=10_000)
# What no client library would send: aiohttp and grpc refuse it before it leaves.
UNSENDABLE = ("\n", "\r", "\x00")


@pytest.fixture
async def edges(tmp_path):
    async with serve_edges(tmp_path, strangers=PATIENT) as found, asyncio.timeout(50):
        yield found


async def by_http(edges, headers, path="/v1/videos"):
    """(status, code)"""
    async with edges.http.get(path, headers=headers) as answer:
        body = await answer.json(content_type=None)
        return answer.status, body.get("code", "")


async def by_grpc(edges, *metadata):
    """(status, reason)"""
    request = video_service_pb2.ListVideosRequest()
    try:
        await edges.videos.ListVideos(request, metadata=metadata, timeout=10)
    except grpc.aio.AioRpcError as error:
        info = error_details_pb2.ErrorInfo()
        status = rpc_status.from_call(error)
        for detail in status.details if status is not None else ():
            detail.Unpack(info)
        return error.code(), info.reason
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize("attack", FORGERIES, ids=lambda attack: attack.name)
async def test_no_forgery_passes_either_edge(edges, attack, caplog):
    token = attack.make(edges.issuer)
    assert not any(each in token for each in UNSENDABLE)
    assert await by_http(edges, {"Authorization": f"Bearer {token}"}) == (401, attack.code)
    # A trailing space is no part of a value in gRPC's metadata.
    value = f"Bearer {token}".strip()
    refusal = await by_grpc(edges, ("authorization", value))
    assert refusal == (grpc.StatusCode.UNAUTHENTICATED, attack.code)
    assert not token or token not in caplog.text


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"params": "token"},
        {"params": "access_token"},
        {"headers": "X-Authorization"},
        {"headers": "Proxy-Authorization"},
        {"headers": "X-Access-Token"},
        {"headers": "Authorization-Bin"},
        {"headers": "Cookie"},
        {"json": "access_token"},
    ],
    ids=str,
)
async def test_a_token_counts_in_its_header_alone(edges, elsewhere):
    token = edges.issuer.issue()
    (place, name), *_ = elsewhere.items()
    value = f"Bearer {token}" if "uthorization" in name else token
    value = f"access_token={token}" if name == "Cookie" else value
    for method in ("GET", "POST"):
        async with edges.http.request(method, "/v1/videos", **{place: {name: value}}) as answer:
            assert (answer.status, (await answer.json())["code"]) == (401, "missing_token")


@pytest.mark.parametrize("name", ["x-tenant", "x-reelmesh-tenant", "reelmesh-tenant", "tenant"])
async def test_who_calls_is_what_the_token_says_and_no_header(edges, name):
    body = {"prompt": "a red ball"}
    async with edges.http.post("/v1/videos", json=body, headers=edges.bearer()) as answer:
        video_id = (await answer.json())["id"]
    stranger = {**edges.bearer(tenant="other"), name: "acme"}
    assert await by_http(edges, stranger, f"/v1/videos/{video_id}") == (404, "video_not_found")
    metadata = (*edges.metadata(tenant="other"), (name, "acme"))
    request = video_service_pb2.GetVideoRequest(video_id=video_id)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await edges.videos.GetVideo(request, metadata=metadata, timeout=10)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_good_token_beside_a_bad_one_is_no_token(edges):
    good, bad = (f"Bearer {issuer.issue()}" for issuer in (edges.issuer, TokenIssuer()))
    for pair in ((good, bad), (bad, good), (good, "")):
        headers = [("Authorization", each) for each in pair]
        assert (await by_http(edges, headers))[0] == 401
        metadata = [("authorization", each) for each in pair]
        assert (await by_grpc(edges, *metadata))[0] is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    "method", ["PUT", "PATCH", "TRACE", "CONNECT", "PROPFIND", "get", "OPTIONS"]
)
async def test_no_method_opens_a_route_without_a_token(edges, method):
    async with edges.http.request(method, "/v1/videos") as answer:
        assert answer.status in {400, 401, 404, 405}
    headers = {"X-HTTP-Method-Override": "DELETE", "X-Original-URL": "/healthz"}
    assert (await by_http(edges, headers))[0] == 401


@pytest.mark.parametrize(
    "path",
    [
        "/v1/videos/../videos",
        "//v1/videos",
        "/v1//videos",
        "/v1/videos/",
        "/V1/videos",
        "/v1/videos%2f",
        "/healthz/../v1/videos",
        "/healthz/..%2fv1/videos",
        "/healthz;/v1/videos",
        "/v1/videos%00",
        "/v1/videos?/healthz",
    ],
)
async def test_no_spelling_of_a_path_goes_around_the_door(edges, path):
    # The client must not tidy the path up: it is written by hand.
    host, _, port = edges.http_url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    head = (await reader.readline()).decode()
    writer.close()
    assert head.split()[1] in {"400", "401", "404"}, head


# --- the issuer's server ---


class Keys:
    """An issuer's server that says what the test wants, and counts."""

    def __init__(self):
        self.asked = 0
        self.body = b""
        self.wait = asyncio.Event()
        self.wait.set()

    async def serve(self, _request):
        self.asked += 1
        await self.wait.wait()
        return web.Response(body=self.body, content_type="application/json")


@contextlib.asynccontextmanager
async def fetching(tmp_path):
    """Edges whose issuer's keys come from a server."""
    keys, app = Keys(), web.Application()
    app.router.add_get("/jwks.json", keys.serve)
    async with TestServer(app) as server, open_jwks_loaders() as loader_of:
        url = str(server.make_url("/jwks.json"))
        served = serve_edges(tmp_path, strangers=PATIENT, jwks_url=url, loader_of=loader_of)
        async with served as edges, asyncio.timeout(50):
            keys.body = json.dumps({"keys": [edges.issuer.public_jwk()]}).encode()
            yield edges, keys


async def test_a_flood_of_unknown_kids_makes_one_fetch(tmp_path):
    async with fetching(tmp_path) as (edges, keys):
        assert await by_http(edges, edges.bearer()) == (200, "")
        tokens = [TokenIssuer().issue(headers={"kid": f"forged-{n}"}) for n in range(60)]
        answers = await asyncio.gather(
            *(by_http(edges, {"Authorization": f"Bearer {token}"}) for token in tokens[:30]),
            *(by_grpc(edges, ("authorization", f"Bearer {token}")) for token in tokens[30:]),
        )
        assert {code for _status, code in answers} == {"unknown_key"}
        # The keys were fetched for the first token; its cooldown is not over.
        assert keys.asked == 1
        # And a flood of issuers that are not configured fetches nothing at all.
        for number in range(20):
            token = TokenIssuer(issuer=f"https://evil-{number}.test").issue()
            told = await by_http(edges, {"Authorization": f"Bearer {token}"})
            assert told == (401, "unknown_issuer")
        assert keys.asked == 1


@pytest.mark.parametrize(
    "body",
    [
        b" " * (10 << 20),
        b'{"keys": [' + b",".join(b'{"kty":"x"}' for _ in range(10_000)) + b"]}",
        b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "test-1"}]}',
        b'{"keys": [{"kty": "OKP", "alg": "none", "kid": "test-1"}]}',
        b'{"keys": [{"kty": "oct"}]}',
        b'{"keys": [{"kty": "OKP", "kid": ["test-1"]}]}',
        b"[" * 200_000,
        b"\xff\xfe",
        b"",
    ],
    ids=[
        "10 MB",
        "10,000 keys",
        "a secret",
        "none",
        "empty oct",
        "kid",
        "nesting",
        "binary",
        "empty",
    ],
)
async def test_a_key_set_that_is_none_takes_nobody_in_and_ends_nothing(tmp_path, body):
    async with fetching(tmp_path) as (edges, keys):
        keys.body = body
        for _ in range(3):
            assert await by_http(edges, edges.bearer()) == (503, "keys_unavailable")
            metadata = edges.metadata()
            assert await by_grpc(edges, *metadata) == (
                grpc.StatusCode.UNAVAILABLE,
                "keys_unavailable",
            )
        assert keys.asked == 1
        async with edges.http.get("/healthz") as answer:
            assert answer.status == 200
    assert len(b" " * MAX_BYTES) < 10 << 20


async def test_a_slow_key_server_holds_up_those_alone_who_need_it(tmp_path):
    async with fetching(tmp_path) as (edges, keys):
        keys.wait.clear()
        waiting = asyncio.ensure_future(by_http(edges, edges.bearer()))
        while not keys.asked:  # noqa: ASYNC110 - of the server
            await asyncio.sleep(0.01)
        # Others are answered meanwhile.
        assert await by_http(edges, {}) == (401, "missing_token")
        async with edges.http.get("/healthz") as answer:
            assert answer.status == 200
        assert not waiting.done()
        keys.wait.set()
        assert await waiting == (200, "")
        assert keys.asked == 1
