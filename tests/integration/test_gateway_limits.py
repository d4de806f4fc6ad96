"""What one client may hold open, over raw sockets: heads, bodies, connections, pings."""

import asyncio
import contextlib
import time

import grpc
import pytest
from grpc import aio
from reelmesh.v1 import video_pb2, video_service_pb2
from reelmesh.v1.video_service_pb2_grpc import VideoServiceStub

from gateway.auth.config import StrangerConfig
from gateway.edge.config import EdgeConfig
from tests.support.edges import serve_edges


@pytest.fixture
async def edges(tmp_path):
    config = EdgeConfig(idle_timeout_s=0.5, body_timeout_s=0.3, max_connections_per_address=8)
    async with serve_edges(tmp_path, config=config) as found, asyncio.timeout(30):
        yield found


@contextlib.asynccontextmanager
async def connected(edges):
    host, port = edges.http_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def answered(reader):
    """All that comes until the gateway closes."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            said += data
    return said


async def serves(edges):
    async with edges.http.get("/healthz") as answer:
        return answer.status == 200


# --- heads ---


async def test_a_head_that_dribbles_is_closed_however_often_a_byte_comes(edges):
    async with connected(edges) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        reading = asyncio.ensure_future(answered(reader))
        began = time.monotonic()
        while not reading.done() and time.monotonic() - began < 10:
            with contextlib.suppress(ConnectionError):
                writer.write(b"x")
                await writer.drain()
            await asyncio.sleep(0.02)
        assert reading.done()
    assert await serves(edges)


async def test_so_is_one_after_a_good_request(edges):
    async with connected(edges) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"}")
        for part in (b"GET ", b"/healthz HTTP/1.1\r\n", b"X-Slow: "):
            writer.write(part)
            await asyncio.sleep(0.02)
        assert await answered(reader) == b""


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nX: " + b"x" * 30_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 30_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(1_000)) + b"\r\n",
    ],
    ids=["one field", "the path", "many fields"],
)
async def test_a_head_over_a_limit_is_a_problem_and_the_end(edges, head):
    async with connected(edges) as (reader, writer):
        writer.write(head)
        said = await answered(reader)
        assert said.split(b" ")[1] in (b"400", b"431")
        assert b"application/problem+json" in said
    assert await serves(edges)


async def test_a_head_of_many_large_fields_is_cut_before_it_is_whole(edges):
    sent = 0
    async with connected(edges) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n")
        reading = asyncio.ensure_future(answered(reader))
        for number in range(120):
            if reading.done():
                break
            writer.write(b"X%d: " % number + b"x" * 15_000 + b"\r\n")
            sent += 15_000
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            await asyncio.sleep(0)
        # What is on its way when the gateway closes may cost the client the answer.
        assert (await reading or b"HTTP/1.1 431 ").startswith(b"HTTP/1.1 431 ")
    assert sent < 20 * 15_000
    assert await serves(edges)


# --- bodies ---


async def test_a_body_that_dribbles_is_408(edges):
    token = edges.bearer()["Authorization"]
    head = (
        f"POST /v1/videos HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
    )
    async with connected(edges) as (reader, writer):
        writer.write(head.encode())
        reading = asyncio.ensure_future(reader.readuntil(b"\r\n"))
        while not reading.done():
            writer.write(b" ")
            await asyncio.sleep(0.02)
        assert b" 408 " in await reading


async def test_a_body_over_the_limit_is_413_before_it_came(edges):
    token = edges.bearer()["Authorization"]
    for framing in ("Content-Length: 100000000", "Transfer-Encoding: chunked"):
        head = (
            f"POST /v1/videos HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n"
            f"Content-Type: application/json\r\n{framing}\r\n\r\n"
        )
        async with connected(edges) as (reader, writer):
            writer.write(head.encode())
            reading = asyncio.ensure_future(reader.readuntil(b"\r\n"))
            for _ in range(200):
                if reading.done():
                    break
                chunk = b" " * 1_000
                writer.write(b"3e8\r\n" + chunk + b"\r\n" if "chunked" in framing else chunk)
                await asyncio.sleep(0.001)
            assert b" 413 " in await reading


# --- connections ---


async def test_an_address_holds_so_many_connections_and_no_more(edges):
    async with contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(connected(edges)) for _ in range(8)]
        # Those that are idle end by themselves; these ask again and again.
        for reader, writer in held:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"}")
        reader, writer = await stack.enter_async_context(connected(edges))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await answered(reader) == b""
        refused = "reelmesh_gateway_connections_refused_total"
        assert edges.registry.get_sample_value(refused) == 1
        held[0][1].transport.abort()
        async with asyncio.timeout(10):
            while True:
                async with connected(edges) as (reader, writer):
                    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                    if (await reader.readline()).startswith(b"HTTP/1.1 200"):
                        break


async def test_a_proxy_that_is_trusted_holds_as_many_as_it_wants(tmp_path):
    strangers = StrangerConfig(trusted_proxies=("127.0.0.0/8",))
    config = EdgeConfig(max_connections_per_address=1)
    opened = serve_edges(tmp_path, config=config, strangers=strangers)
    async with opened as edges, asyncio.timeout(30), contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            reader, writer = await stack.enter_async_context(connected(edges))
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")


# --- gRPC ---


async def listed(edges, *options, compression=None):
    channel = aio.insecure_channel(edges.grpc_address, options=options, compression=compression)
    async with channel:
        stub = VideoServiceStub(channel)
        request = video_service_pb2.ListVideosRequest()
        await stub.ListVideos(request, metadata=edges.metadata(), timeout=10)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PING = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + bytes(8)
GOAWAY = 7


async def test_a_client_that_floods_with_pings_is_sent_away(edges):
    host, port = edges.grpc_address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(PREFACE)
    reading = asyncio.ensure_future(answered(reader))
    with contextlib.suppress(ConnectionError):
        for _ in range(50):
            writer.write(PING)
            await writer.drain()
            await asyncio.sleep(0.005)
    assert b"too_many_pings" in await reading
    writer.transport.abort()
    await listed(edges)


async def test_pings_as_the_client_library_sends_them_are_welcome(edges):
    host, port = edges.grpc_address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(PREFACE)
    for _ in range(2):
        writer.write(PING)
        await asyncio.sleep(0.2)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            assert b"too_many_pings" not in await reader.read()
    writer.transport.abort()


async def test_a_grpc_connection_without_a_call_is_closed_in_time(tmp_path):
    config = EdgeConfig(grpc_idle_timeout_s=1)
    async with serve_edges(tmp_path, config=config) as edges, asyncio.timeout(30):
        host, port = edges.grpc_address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(PREFACE)
        # GOAWAY first, and then the end.
        assert GOAWAY in await answered(reader)
        writer.transport.abort()


async def test_videos_are_not_compressed_though_the_client_asks_for_it(edges):
    stub_options = [("grpc.default_compression_algorithm", 2)]
    async with aio.insecure_channel(
        edges.grpc_address, options=stub_options, compression=grpc.Compression.Gzip
    ) as channel:
        request = video_service_pb2.GenerateVideoRequest(spec=video_pb2.VideoSpec(prompt="x"))
        call = VideoServiceStub(channel).GenerateVideo(request, metadata=edges.metadata())
        events = [answer.event async for answer in call]
        assert events[-1].HasField("completed")
        encodings = dict(await call.initial_metadata())
        assert encodings.get("grpc-encoding", "identity") == "identity"
