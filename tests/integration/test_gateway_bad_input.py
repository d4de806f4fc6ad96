"""Every way to ask wrongly, over HTTP and gRPC: a clear error, and the gateway goes on."""

import asyncio
import json

import aiohttp
import grpc
import pytest
from grpc import aio
from reelmesh.v1 import video_pb2, video_service_pb2

from gateway.edge.config import EdgeConfig
from tests.support.edges import serve_edges
from tests.support.refusals import details_of, refused, refused_by_grpc, spec_of
from wan_t2v_sdk.errors import InvalidRequestError
from wan_t2v_sdk.rpc_status import error_of

# Field as HTTP says it, JSON value, field as gRPC says it.
WRONG_VALUES = [
    ("prompt", "", "prompt"),
    ("prompt", "   ", "prompt"),
    ("prompt", "x" * 2_001, "prompt"),
    ("prompt", "a\x00b", "prompt"),
    ("negative_prompt", "x" * 2_001, "negative_prompt"),
    ("num_frames", 10, "num_frames"),
    ("num_frames", 0, "num_frames"),
    ("num_frames", 1_000_001, "num_frames"),
    ("num_inference_steps", 0, "steps"),
    ("num_inference_steps", 10**9, "steps"),
    ("model", "unknown", "model"),
    ("model", "fake-t2v@9.9.9", "model"),
    ("model", "x" * 30_000, "model"),
    ("resolution", "8k", "resolution"),
    ("seconds", 1_000, "seconds"),
    ("seconds", -1, "seconds"),
    ("fps", 9, "fps"),
    ("guidance_scale", 1e9, "guidance_scale"),
    ("flow_shift", -1, "flow_shift"),
]
NOT_FINITE = ["guidance_scale", "flow_shift", "seconds", "fps"]


@pytest.fixture
async def edges(tmp_path):
    async with serve_edges(tmp_path) as found, asyncio.timeout(30):
        yield found
        # Whatever was asked, it goes on and has made nothing.
        headers = found.bearer()
        async with found.http.get("/v1/videos", headers=headers) as answer:
            assert (await answer.json())["data"] == []
        good = {"prompt": "a red ball"}
        async with found.http.post("/v1/videos", json=good, headers=headers) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(("name", "value", "grpc_name"), WRONG_VALUES)
async def test_a_value_that_breaks_a_rule_is_named(edges, name, value, grpc_name):
    problem = await refused(edges, json={"prompt": "x", name: value})
    assert problem["error"]["param"] == name
    assert [e["field"] for e in problem["errors"]] == [name]
    info, bad_request = await refused_by_grpc(edges, spec_of(grpc_name, value))
    assert info.reason == problem["code"] == "invalid_request"
    assert [v.field for v in bad_request.field_violations] == [grpc_name]


async def test_sizes_off_the_grid_name_the_nearest(edges):
    problem = await refused(edges, json={"prompt": "x", "width": 127, "height": 96})
    assert problem["errors"][0]["nearest"][0] == "128x96"
    _info, bad = await refused_by_grpc(edges, video_pb2.VideoSpec(prompt="x", width=127, height=96))
    assert "128x96" in bad.field_violations[0].description


@pytest.mark.parametrize("name", NOT_FINITE)
async def test_what_is_not_finite_is_refused(edges, name):
    for text in ("NaN", "Infinity", "-Infinity", "1e999"):
        problem = await refused(
            edges,
            data=f'{{"prompt": "x", "{name}": {text}}}',
            headers={"Content-Type": "application/json"},
        )
        assert problem["code"] == "invalid_request"
        assert problem["error"]["param"] == name
        _info, bad = await refused_by_grpc(edges, spec_of(name, float(text)))
        assert problem["errors"][0]["message"] in bad.field_violations[0].description
    for value in (float("nan"), float("inf")):
        _info, bad = await refused_by_grpc(edges, spec_of(name, value))
        assert bad.field_violations[0].field == name
    for text in ("nan", "inf", "1e999", "Infinity", "0x10", "1_0", " 1", "１", ""):
        form = aiohttp.FormData(default_to_multipart=True)
        form.add_field("prompt", "x")
        form.add_field(name, text)
        problem = await refused(edges, data=form)
        assert problem["error"]["param"] == name


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("promt", "prompt"),
        ("steps", "num_inference_steps"),
        ("num_frame", "num_frames"),
        ("cfg_scale", "guidance_scale"),
        ("length_sec", "seconds"),
        ("Seed", "seed"),
    ],
)
async def test_an_unknown_field_is_named_with_the_closest_known(edges, name, closest):
    problem = await refused(edges, json={"prompt": "x", name: 5})
    assert problem["error"]["param"] == name
    assert problem["errors"][0]["nearest"][0] == closest
    assert closest in problem["detail"]


async def test_an_image_is_refused_by_name(edges):
    form = aiohttp.FormData()
    form.add_field("prompt", "x")
    form.add_field("input_reference", b"\x89PNG", filename="a.png", content_type="image/png")
    bracketed = aiohttp.FormData(default_to_multipart=True)
    bracketed.add_field("prompt", "x")
    bracketed.add_field("input_reference[file_id]", "file-1")
    for asked in (
        {"data": form},
        {"data": bracketed},
        {"json": {"prompt": "x", "input_reference": {"image_url": "https://example.com/a.png"}}},
    ):
        problem = await refused(edges, **asked)
        assert problem["error"]["param"] == "input_reference"
        assert "text" in problem["detail"]


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("prompt", 5, "string"),
        ("prompt", ["x"], "string"),
        ("prompt", {"a": 1}, "string"),
        ("width", "128", "whole number"),
        ("width", 128.0, "whole number"),
        ("width", True, "whole number"),
        ("width", -1, "nearest are 96, 128"),
        ("width", 2**32, "nearest are 128, 96"),
        ("seed", 2**64, "must be 0 to 9223372036854775807"),
        ("seed", 1.5, "whole number"),
        ("guidance_scale", "5", "a number"),
        ("guidance_scale", False, "a number"),
        ("guidance_scale", [5], "a number"),
        ("guidance_scale", 10**400, "finite"),
        ("seconds", "four", "number"),
        ("seconds", "4s", "number"),
        ("seconds", True, "number"),
        ("prompt", "\ud800", "Unicode"),
    ],
)
async def test_a_wrong_type_is_named(edges, name, value, rule):
    problem = await refused(edges, json={"prompt": "x", name: value})
    assert problem["error"]["param"] == name
    assert rule in problem["detail"]


async def test_every_wrong_field_is_named_at_once(edges):
    problem = await refused(edges, json={"prompt": 1, "width": "x", "nonsense": 1})
    assert {e["field"] for e in problem["errors"]} == {"prompt", "width", "nonsense"}


async def test_size_and_resolution_exclude_each_other(edges):
    problem = await refused(edges, json={"prompt": "x", "size": "480p", "resolution": "480p"})
    assert problem["error"]["param"] == "size"


async def test_an_unknown_size_is_called_as_the_client_called_it(edges):
    problem = await refused(edges, json={"prompt": "x", "size": "100x100"})
    assert problem["error"]["param"] == "size"
    # The true sizes come first, whatever the spelling of an alias.
    assert problem["errors"][0]["nearest"][:2] == ["128x96", "96x128"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"prompt"',
        b"null",
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b'{"prompt": "x"} trailing',
        b'{"prompt": "x", "seed": ' + b"9" * 5_000 + b"}",
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"prompt": "x\x01"}',
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(edges, body):
    problem = await refused(edges, data=body, headers={"Content-Type": "application/json"})
    assert problem["code"] == "malformed_body"


async def test_a_duplicate_is_refused(edges):
    data = '{"prompt": "x", "prompt": "y"}'
    problem = await refused(edges, data=data, headers={"Content-Type": "application/json"})
    assert problem["error"]["param"] == "prompt"
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("prompt", "x")
    form.add_field("prompt", "y")
    problem = await refused(edges, data=form)
    assert problem["error"]["param"] == "prompt"


@pytest.mark.parametrize("many", [65, 300])
async def test_a_form_of_many_parts_is_refused(edges, many):
    form = aiohttp.FormData(default_to_multipart=True)
    for number in range(many):
        form.add_field(f"f{number}", "x")
    problem = await refused(edges, data=form)
    assert problem["code"] == "malformed_body"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=" + "b" * 100, b"x"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"nothing"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx"),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--",
        ),
        ("multipart/form-data; boundary=b", b"--b\r\nno header\r\n\r\nx\r\n--b--"),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"A: " + b"x" * 40_000),
        (
            "multipart/form-data; boundary=b",
            (
                b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n'
                b"Content-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n--b--"
            ),
        ),
        (
            "multipart/form-data; boundary=b",
            (
                b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n'
                b"Content-Transfer-Encoding: strange\r\n\r\nx\r\n--b--"
            ),
        ),
        (
            "multipart/form-data; boundary=b",
            (b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b'),
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\xfe\r\n--b--',
        ),
    ],
)
async def test_a_malformed_form_is_refused(edges, content_type, body):
    await refused(edges, data=body, headers={"Content-Type": content_type})


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "nonsense"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": "application/json", "Content-Encoding": "br"},
    ],
)
async def test_another_type_is_415(edges, headers):
    problem = await refused(edges, status=415, data=b'{"prompt": "x"}', headers=headers)
    assert problem["code"] == "unsupported_media_type"


async def test_a_body_over_the_limit_is_413(edges):
    problem = await refused(edges, status=413, json={"prompt": "x" * 70_000})
    assert problem["code"] == "payload_too_large"


async def test_an_endless_body_is_413_too(edges):
    async def endless():
        for _ in range(200):
            yield b"x" * 1_000

    problem = await refused(
        edges, status=413, data=endless(), headers={"Content-Type": "application/json"}
    )
    assert problem["code"] == "payload_too_large"


async def test_a_large_form_is_413(edges):
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("prompt", "x" * 70_000)
    problem = await refused(edges, status=413, data=form)
    assert problem["code"] == "payload_too_large"


async def test_a_message_over_the_limit_is_refused_with_the_limit(edges):
    info, _bad = await refused_by_grpc(edges, video_pb2.VideoSpec(prompt="x" * 70_000))
    assert info.reason == "payload_too_large"


async def test_a_message_that_grpc_itself_cuts_off_is_told_by_its_size(edges):
    # Four times our limit and more: no handler of ours ever sees it.
    request = video_service_pb2.CreateVideoRequest(spec=video_pb2.VideoSpec(prompt="x" * 6_000_000))
    with pytest.raises(aio.AioRpcError) as caught:
        await edges.videos.CreateVideo(request, metadata=edges.metadata())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    told = error_of(caught.value, endpoint="ap=h:1")
    assert (type(told), told.code) == (InvalidRequestError, "payload_too_large")
    assert "6000" in told.message


async def test_a_message_far_over_the_limit_is_cut_off(edges):
    request = video_service_pb2.CreateVideoRequest(spec=video_pb2.VideoSpec(prompt="x" * 5_000_000))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await edges.videos.CreateVideo(request, metadata=edges.metadata(), timeout=10)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("data", "field"),
    [
        # spec.prompt and options.idempotency_key of bytes that are not UTF-8.
        (b"\x0a\x04\x0a\x02\xff\xfe", "prompt"),
        (b"\x12\x04\x0a\x02\xff\xfe", "idempotency_key"),
        (b"\x0a\xff", "message"),
        (b"\xff\xff\xff\xff", "message"),
        (b"\x0a\x02\x0a\x05", "message"),
    ],
)
async def test_bytes_that_are_no_message_are_the_clients_mistake(edges, data, field):
    for method, call in (("CreateVideo", raw_unary), ("GenerateVideo", raw_stream)):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(edges, f"/reelmesh.v1.VideoService/{method}", data)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        info, bad_request = details_of(raised.value)
        assert info.reason == "malformed_message"
        assert [v.field for v in bad_request.field_violations] == [field]


async def raw_unary(edges, path, data):
    return await edges.channel.unary_unary(path)(data, metadata=edges.metadata(), timeout=10)


async def raw_stream(edges, path, data):
    call = edges.channel.unary_stream(path)(data, metadata=edges.metadata(), timeout=10)
    return [message async for message in call]


async def test_bytes_that_are_no_message_need_a_token_first(edges):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await edges.channel.unary_unary("/reelmesh.v1.VideoService/CreateVideo")(b"\xff")
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "route_not_found"),
        ("GET", "/v1", 404, "route_not_found"),
        ("GET", "/v1/videos/", 404, "route_not_found"),
        ("GET", "/v1/videos/a/b", 404, "route_not_found"),
        ("POST", "/v1/chat/completions", 404, "route_not_found"),
        ("PUT", "/v1/videos", 405, "method_not_allowed"),
        ("PATCH", "/v1/videos/x", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("GET", "/v1/videos/ap-nothing", 404, "video_not_found"),
        ("GET", "/v1/videos/%FF", 404, "video_not_found"),
        ("GET", "/v1/videos/%00", 404, "video_not_found"),
        ("GET", "/v1/videos/a%2Fb", 404, "video_not_found"),
        ("GET", "/v1/videos/..%2F..%2Fetc", 404, "video_not_found"),
        ("DELETE", "/v1/videos/" + "x" * 3_000, 404, "video_not_found"),
        ("POST", "/v1/videos/ap-nothing/cancel", 404, "video_not_found"),
        ("GET", "/v1/videos/ap-nothing/content", 404, "video_not_found"),
        ("GET", "/v1/videos/ap-nothing/events", 404, "video_not_found"),
    ],
)
async def test_unknown_routes_methods_and_ids_read_alike(edges, method, path, status, code):
    url = aiohttp.client.URL(edges.http_url + path, encoded=True)
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers=edges.bearer()) as answer,
    ):
        problem = json.loads(await answer.read())
        assert (answer.status, problem["code"]) == (status, code)
        assert problem["error"]["code"] == code
    if status == 405:
        assert answer.headers["Allow"]


@pytest.mark.parametrize(
    "request_head",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"s" * 30_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n",
    ],
)
async def test_what_is_no_http_reads_like_every_error_and_echoes_nothing(
    edges, request_head, caplog
):
    host, port = edges.http_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request_head)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    problem = json.loads(await reader.readexactly(length))
    writer.close()
    await writer.wait_closed()
    assert problem["status"] in (400, 417)
    assert b"application/problem+json" in head
    assert "sssss" not in json.dumps(problem)
    assert "sssss" not in caplog.text


async def test_a_client_may_wait_for_100_continue(edges):
    async with edges.http.post(
        "/v1/videos", json={"prompt": ""}, headers=edges.bearer(), expect100=True
    ) as answer:
        assert answer.status == 400


async def test_limits_are_configurable(tmp_path):
    config = EdgeConfig(max_body_bytes=2_000)
    async with serve_edges(tmp_path, config=config) as edges, asyncio.timeout(30):
        problem = await refused(edges, status=413, json={"prompt": "x" * 2_000})
        assert "2000" in problem["detail"]
