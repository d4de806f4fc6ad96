"""Texts that a record has no room for are refused in the words of their field, on both edges."""

import aiohttp
import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from reelmesh.v1 import video_pb2, video_service_pb2
from reelmesh.v1.video_service_pb2_grpc import VideoServiceStub

from gateway import errors
from tests.support.fakenode import MODEL
from tests.support.gateway_region import gateway_region
from tests.support.gateways import kinds

# One sign for the model's limit, four bytes for the record's.
FILM = "\N{CLAPPER BOARD}"
LONG = FILM * MODEL.max_prompt_chars


@pytest.fixture
async def gateway(tmp_path):
    async with gateway_region(tmp_path, nodes=1) as region:
        gateway = await region.start("a")
        gateway.token = f"Bearer {region.issuer.issue()}"
        yield gateway


async def test_one_long_text_of_four_bytes_a_sign_has_room(gateway):
    video = await gateway.create(prompt=LONG)
    events = await gateway.watched(video.id)
    assert kinds(events)[-1] == "completed"


async def test_two_have_none_and_the_longer_one_is_named(gateway):
    for field, other in (("prompt", "negative_prompt"), ("negative_prompt", "prompt")):
        with pytest.raises(errors.InvalidRequest) as refused:
            await gateway.create(**{field: LONG, other: LONG[:-1]})
        (violation,) = refused.value.violations
        assert violation.field == field
        assert f"takes {len(LONG.encode())} bytes" in violation.message
        nearest = int(violation.nearest[0].removesuffix(" bytes"))
        assert 0 < nearest < len(LONG.encode())
        # What is called nearest is taken.
        fit = FILM * (nearest // 4 - 4)
        assert (await gateway.create(**{field: fit, other: LONG[:-1]})).id


async def test_http_says_so(gateway):
    async with aiohttp.ClientSession(f"http://{gateway.app.http_address}") as http:
        body = {"prompt": LONG, "negative_prompt": LONG[:-1]}
        answer = await http.post("/v1/videos", json=body, headers={"Authorization": gateway.token})
        problem = await answer.json()
    assert (answer.status, problem["code"]) == (400, "invalid_request")
    assert problem["errors"][0]["field"] == "prompt"
    assert "bytes" in problem["detail"]
    assert FILM not in await answer.text()


async def test_grpc_says_so(gateway):
    spec = video_pb2.VideoSpec(prompt=LONG, negative_prompt=LONG[:-1])
    async with aio.insecure_channel(gateway.app.grpc_address) as channel:
        request = video_service_pb2.CreateVideoRequest(spec=spec)
        call = VideoServiceStub(channel).CreateVideo(
            request, metadata=(("authorization", gateway.token),), timeout=5
        )
        with pytest.raises(aio.AioRpcError) as refused:
            await call
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in rpc_status.from_call(refused.value).details)
    assert [violation.field for violation in bad.field_violations] == ["prompt"]
