"""Content over HTTP: sent by the kernel, copied under TLS, or streamed from elsewhere."""

import asyncio
import contextlib
import dataclasses
import hashlib
import json

import aiohttp
import pytest
import uvloop

from gateway import errors
from gateway.edge.config import EdgeConfig
from tests.support.certs import Authority
from tests.support.edges import serve_edges

GOOD = {"prompt": "a red ball", "num_frames": 9, "seed": 7}
IN_FLIGHT = "reelmesh_gateway_requests_in_flight"
CONTENT = {"protocol": "http", "route": "/v1/videos/{video_id}/content", "method": "GET"}


def settings_of(how, tmp_path):
    """Arguments of serve_edges: where the bytes come from and how they leave."""
    tls = Authority(tmp_path / "ca").issue("gateway") if how == "tls" else None
    return {"files": how in ("file", "tls"), "tls": tls}


@pytest.fixture(params=["chunks", "file", "tls"])
def how(request, tmp_path):
    return settings_of(request.param, tmp_path)


@pytest.fixture
async def edges(tmp_path, how):
    async with serve_edges(tmp_path, **how) as found, asyncio.timeout(30):
        yield found


async def create(edges, **fields):
    async with edges.http.post(
        "/v1/videos", json={**GOOD, **fields}, headers=edges.bearer()
    ) as answer:
        created = await answer.json()
        assert answer.status == 200, created
        return created


async def content_path(edges, **fields):
    return f"/v1/videos/{(await create(edges, **fields))['id']}/content"


async def call(edges, method, path, *, headers=None, **kwargs):
    """Status, headers and body (parsed where it is JSON)."""
    headers = {**edges.bearer(), **(headers or {})}
    async with edges.http.request(method, path, headers=headers, **kwargs) as answer:
        data = await answer.read()
        if data and "json" in answer.headers.get("Content-Type", ""):
            data = json.loads(data)
        return answer.status, answer.headers, data


async def test_a_whole_video_and_the_next_request_on_its_connection(edges):
    edges.application.video_bytes = 9_000_001
    path = await content_path(edges)
    for _ in range(2):
        status, headers, whole = await call(edges, "GET", path)
        assert (status, len(whole), headers["Content-Type"]) == (200, 9_000_001, "video/mp4")
        assert headers["ETag"] == f'"{hashlib.sha256(whole).hexdigest()}"'
    assert (await call(edges, "GET", "/healthz"))[0] == 200


async def test_ranges_of_the_content(edges):
    path = await content_path(edges)
    _s, headers, whole = await call(edges, "GET", path)
    assert headers["Accept-Ranges"] == "bytes"
    total = len(whole)
    for asked, start, stop in (
        ("bytes=0-0", 0, 1),
        ("bytes=4000-4999", 4000, 5000),
        ("bytes=9990-", 9990, total),
        ("bytes=-10", total - 10, total),
        ("bytes=-99999999", 0, total),
        ("bytes=9000-99999999", 9000, total),
    ):
        status, headers, part = await call(edges, "GET", path, headers={"Range": asked})
        expected = 200 if (start, stop) == (0, total) else 206
        assert (status, part) == (expected, whole[start:stop]), asked
        if expected == 206:
            assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{total}"
    for ignored in ("bytes=0-1,5-6", "bytes=5-1", "pages=1-2", "bytes=", "bytes=-", "bytes=a-b"):
        status, _headers, part = await call(edges, "GET", path, headers={"Range": ignored})
        assert (status, part) == (200, whole), ignored


@pytest.mark.parametrize("asked", ["bytes=10000-", "bytes=999999-1000000", "bytes=-0"])
async def test_a_range_outside_is_416(edges, asked):
    path = await content_path(edges)
    status, headers, problem = await call(edges, "GET", path, headers={"Range": asked})
    assert (status, problem["code"]) == (416, "range_not_satisfiable")
    assert headers["Content-Range"] == "bytes */10000"


async def test_etags_save_bytes_and_guard_ranges(edges):
    path = await content_path(edges)
    _s, headers, whole = await call(edges, "GET", path)
    etag = headers["ETag"]
    status, _h, data = await call(edges, "GET", path, headers={"If-None-Match": f'"x", W/{etag}'})
    assert (status, data) == (304, b"")
    ranged = {"Range": "bytes=1-2", "If-Range": etag}
    status, _h, data = await call(edges, "GET", path, headers=ranged)
    assert (status, data) == (206, whole[1:3])
    status, _h, data = await call(edges, "GET", path, headers={**ranged, "If-Range": '"old"'})
    assert (status, data) == (200, whole)


async def test_head_tells_the_length_without_the_bytes(edges):
    path = await content_path(edges)
    status, headers, data = await call(edges, "HEAD", path)
    assert (status, headers["Content-Length"], data) == (200, "10000", b"")
    # The connection is still good for the next request.
    assert (await call(edges, "GET", path))[0] == 200


@pytest.mark.parametrize("variant", ["thumbnail", "spritesheet"])
async def test_pictures_are_variants_with_etags_of_their_own(edges, variant):
    path = await content_path(edges)
    _s, headers, video = await call(edges, "GET", f"{path}?variant=video")
    etag = headers["ETag"]
    status, headers, picture = await call(edges, "GET", f"{path}?variant={variant}")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert picture[:3] == b"\xff\xd8\xff"
    assert picture != video
    assert headers["ETag"] not in ("", etag)
    assert f'-{variant}.jpg"' in headers["Content-Disposition"]
    headers = {"If-None-Match": headers["ETag"]}
    assert (await call(edges, "GET", f"{path}?variant={variant}", headers=headers))[0] == 304
    headers = {"Range": "bytes=3-6"}
    status, _h, part = await call(edges, "GET", f"{path}?variant={variant}", headers=headers)
    assert (status, part) == (206, picture[3:7])


async def test_a_variant_that_there_is_not_is_refused_by_name(edges):
    path = await content_path(edges)
    status, _headers, problem = await call(edges, "GET", f"{path}?variant=gif")
    assert (status, problem["error"]["param"]) == (400, "variant")
    assert problem["errors"][0]["nearest"] == ["video", "thumbnail", "spritesheet"]


def test_the_loop_of_production_sends_the_same(tmp_path):
    async def whole_and_part():
        async with serve_edges(tmp_path, files=True) as edges, asyncio.timeout(30):
            edges.application.video_bytes = 9_000_001
            path = await content_path(edges)
            whole = (await call(edges, "GET", path))[2]
            headers = {"Range": "bytes=4000000-8000000"}
            status, headers, part = await call(edges, "GET", path, headers=headers)
            assert (status, part) == (206, whole[4_000_000:8_000_001])
            reader, writer = await open_raw(edges, "GET", path, "Connection: close")
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.read(-1) == whole
            writer.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole_and_part())


# --- what is cut ---


async def open_raw(edges, method, path, *more):
    """A connection of our own, with a request's head sent."""
    host, port = edges.http_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1_000)
    token = edges.bearer()["Authorization"]
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: {token}", *more, "", ""]
    writer.write("\r\n".join(lines).encode())
    return reader, writer


async def until_answered(edges):
    while edges.registry.get_sample_value(IN_FLIGHT, CONTENT):  # noqa: ASYNC110 - a gauge tells nobody
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("files", [False, True])
async def test_a_reader_that_takes_nothing_is_cut_off(tmp_path, files):
    config = EdgeConfig(write_timeout_s=0.1)
    async with serve_edges(tmp_path, config=config, files=files) as edges, asyncio.timeout(30):
        edges.application.video_bytes = size = 30_000_000
        reader, writer = await open_raw(edges, "GET", await content_path(edges))
        total = len(await reader.read(1))
        await until_answered(edges)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1_000_000):
                total += len(data)
        assert total < size
        writer.transport.abort()


@pytest.mark.parametrize("files", [False, True])
async def test_a_slow_reader_gets_everything(tmp_path, files):
    config = EdgeConfig(write_timeout_s=5)
    async with serve_edges(tmp_path, config=config, files=files) as edges, asyncio.timeout(30):
        edges.application.video_bytes = size = 12_000_000
        path = await content_path(edges)
        reader, writer = await open_raw(edges, "GET", path, "Connection: close")
        total = 0
        while data := await reader.read(1_000_000):
            total += len(data)
            # Its buffers, and ours, are full meanwhile.
            await asyncio.sleep(0.01)
        assert size < total < size + 2_000
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_leaves_frees_file_and_handler(tmp_path):
    async with serve_edges(tmp_path, files=True) as edges, asyncio.timeout(30):
        edges.application.video_bytes = 30_000_000
        closed = []
        whole = edges.application.download

        async def noted(*args, **kwargs):
            download = await whole(*args, **kwargs)
            close = download.file.close
            download.file.close = lambda: (closed.append(True), close())
            return download

        edges.application.download = noted
        reader, writer = await open_raw(edges, "GET", await content_path(edges))
        await reader.read(1)
        writer.transport.abort()
        await until_answered(edges)
        assert closed == [True]


async def test_a_file_that_ends_early_breaks_the_answer(tmp_path, how):
    async with serve_edges(tmp_path, **how) as edges, asyncio.timeout(30):
        path = await content_path(edges)
        whole = edges.application.download

        async def short(caller, video_id, *, offset, **more):
            download = await whole(caller, video_id, offset=offset, **more)
            chunks = (await whole(caller, video_id, offset=offset + 5_000)).chunks
            return dataclasses.replace(download, total_bytes=15_000, chunks=chunks)

        edges.application.download = short
        with pytest.raises(aiohttp.ClientError):
            await call(edges, "GET", path)


@pytest.mark.parametrize("error", [OSError("the disk is gone"), TimeoutError()])
async def test_a_file_that_cannot_be_read_breaks_the_answer(tmp_path, how, error):
    if not how["files"]:
        pytest.skip("there is no file")
    async with serve_edges(tmp_path, **how) as edges, asyncio.timeout(30):
        path = await content_path(edges)
        whole = edges.application.download

        async def broken(*_args):
            raise error

        async def breaking(*args, **kwargs):
            download = await whole(*args, **kwargs)
            download.file.send = download.file.read = broken
            return download

        edges.application.download = breaking
        with pytest.raises(aiohttp.ClientError):
            await call(edges, "GET", path)


async def test_an_artifact_that_cannot_be_read_in_the_middle_breaks_the_answer(tmp_path):
    async with serve_edges(tmp_path) as edges, asyncio.timeout(30):
        path = await content_path(edges)
        whole = edges.application.download

        async def breaking(*args, **kwargs):
            download = await whole(*args, **kwargs)

            async def chunks():
                yield await anext(download.chunks)
                raise errors.VideoDamaged("the stored video is damaged")

            return dataclasses.replace(download, chunks=chunks())

        edges.application.download = breaking
        with pytest.raises(aiohttp.ClientError):
            await call(edges, "GET", path)


# --- links ---


async def test_a_client_that_asks_for_it_is_told_where_the_store_has_it(tmp_path):
    async with serve_edges(tmp_path) as edges, asyncio.timeout(30):
        edges.application.links = "https://store.example/bucket"
        path = await content_path(edges)
        status, headers, link = await call(edges, "GET", f"{path}?link=1&variant=thumbnail")
        assert (status, headers["Cache-Control"]) == (200, "no-store")
        assert link["url"].startswith("https://store.example/bucket/")
        assert link["expires_at"] > 1e9
        picture = (await call(edges, "GET", f"{path}?variant=thumbnail"))[2]
        assert link["sha256"] == hashlib.sha256(picture).hexdigest()
        assert link["size_bytes"] == len(picture)
        status, headers, data = await call(
            edges, "GET", f"{path}?redirect=1", allow_redirects=False
        )
        assert (status, data) == (302, b"")
        assert headers["Location"].startswith("https://store.example/bucket/")
        assert headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("query", "param"),
    [("link=1", "link"), ("redirect=1", "redirect"), ("link=1&redirect=1", "redirect")],
)
async def test_where_there_are_no_links_the_parameter_is_refused(tmp_path, query, param):
    async with serve_edges(tmp_path) as edges, asyncio.timeout(30):
        path = await content_path(edges)
        status, _h, problem = await call(edges, "GET", f"{path}?{query}")
        assert (status, problem["error"]["param"]) == (400, param)


# --- follow=1 ---


@pytest.fixture
async def held(tmp_path):
    async with serve_edges(tmp_path, hold=True) as found, asyncio.timeout(30):
        yield found


async def followed(edges, created):
    """The answer's first bytes, and the answer, which is to be closed."""
    path = f"/v1/videos/{created['id']}/content?follow=1"
    answer = await edges.http.get(path, headers=edges.bearer())
    assert answer.status == 200
    assert answer.headers["Transfer-Encoding"] == "chunked"
    return answer


async def test_an_unfinished_video_is_followed_to_its_end(held):
    app, created = held.application, await create(held)
    app.progress(created["id"], 1)
    app.send(created["id"], until=5_000)
    async with await followed(held, created) as answer:
        assert answer.headers["Content-Type"] == "video/mp4"
        first = await answer.content.readexactly(5_000)
        app.finish(created["id"])
        data = first + await answer.read()
    _s, headers, whole = await call(held, "GET", f"/v1/videos/{created['id']}/content?follow=1")
    assert data == whole
    # It is finished now, and answered as ever.
    assert headers["Content-Length"] == str(len(whole))


async def test_a_restart_before_the_first_byte_is_no_break(held):
    app, created = held.application, await create(held)
    app.progress(created["id"], 1)
    asking = asyncio.ensure_future(followed(held, created))
    while not app.watchers(created["id"]):  # noqa: ASYNC110 - the fake tells nobody
        await asyncio.sleep(0.01)
    app.restart(created["id"])
    app.finish(created["id"])
    async with await asking as answer:
        assert len(await answer.read()) == 10_000


async def broken_by(held, created, what):
    """Whether what happens in the middle resets the connection."""
    held.application.progress(created["id"], 1)
    held.application.send(created["id"], until=5_000)
    async with await followed(held, created) as answer:
        await answer.content.readexactly(5_000)
        what(held.application, created["id"])
        with pytest.raises(aiohttp.ClientError):
            await answer.read()


@pytest.mark.parametrize("what", ["restart", "fail", "cancel", "wrong digest"])
async def test_what_makes_the_bytes_void_resets_the_connection(held, what):
    created = await create(held)

    def happen(app, video_id):
        match what:
            case "restart":
                app.restart(video_id)
                app.finish(video_id)
            case "fail":
                app.fail(video_id, code="worker_died", message="it died")
            case "cancel":
                app._cancel(app._jobs[video_id], "client")
            case "wrong digest":
                app._jobs[video_id].data = bytes(5_000) + app._jobs[video_id].data[5_000:]
                app.finish(video_id)

    await broken_by(held, created, happen)


async def test_a_break_is_a_reset_and_not_an_orderly_end(held):
    created = await create(held)
    held.application.progress(created["id"], 1)
    held.application.send(created["id"], until=5_000)
    reader, writer = await open_raw(held, "GET", f"/v1/videos/{created['id']}/content?follow=1")
    await reader.readuntil(b"\r\n\r\n")
    held.application.restart(created["id"])
    with pytest.raises(ConnectionResetError):
        await reader.read(-1)
    writer.close()


async def test_one_that_ends_before_its_first_byte_is_an_error_like_any_other(held):
    created = await create(held)
    path = f"/v1/videos/{created['id']}/content?follow=1"
    asking = asyncio.ensure_future(call(held, "GET", path))
    while not held.application.watchers(created["id"]):  # noqa: ASYNC110 - the fake tells nobody
        await asyncio.sleep(0.01)
    held.application.fail(created["id"], code="worker_died", message="it died")
    status, _headers, problem = await asking
    assert (status, problem["code"]) == (409, "video_failed")
    assert (await call(held, "GET", path))[2]["code"] == "video_failed"


async def test_what_cannot_be_followed_is_refused_by_name(held):
    created = await create(held)
    path = f"/v1/videos/{created['id']}/content"
    for query in ("follow=yes", "follow=1&variant=thumbnail"):
        status, _h, problem = await call(held, "GET", f"{path}?{query}")
        assert (status, problem["error"]["param"]) == (400, "follow")
    # Over HTTP/1.0 a break would look like the end.
    reader, writer = await open_raw(held, "GET", f"{path}?follow=1", "Connection: close")
    writer.transport.abort()
    host, port = held.http_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    token = held.bearer()["Authorization"]
    writer.write(f"GET {path}?follow=1 HTTP/1.0\r\nAuthorization: {token}\r\n\r\n".encode())
    answer = await reader.read()
    assert b" 400 " in answer.split(b"\r\n")[0]
    assert b"HTTP/1.1, whose bodies have an end" in answer
    writer.close()
    assert (await call(held, "HEAD", f"{path}?follow=1"))[0] == 409
