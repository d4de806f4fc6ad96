"""What a refused request reads, where people look: field, rule and nearest in the message."""

import asyncio
import json

import aiohttp
import grpc
import pytest
from reelmesh.v1 import video_pb2, video_service_pb2

from tests.support.edges import serve_edges
from tests.support.refusals import refused


@pytest.fixture
async def edges(tmp_path):
    async with serve_edges(tmp_path) as found, asyncio.timeout(30):
        yield found


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "[NaN]", '{"a": Infinity}'])
@pytest.mark.parametrize("name", ["prompt", "width", "seed", "deadline_s", "promt"])
async def test_what_is_not_finite_is_named_wherever_it_stands(edges, name, text):
    data = f'{{"prompt": "x", "{name}": {text}}}' if name != "prompt" else f'{{"prompt": {text}}}'
    problem = await refused(edges, data=data, headers={"Content-Type": "application/json"})
    assert problem["code"] == "invalid_request"
    assert [e["field"] for e in problem["errors"]] == [name]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_frames", -1, "it must be 5 to 97 in steps of 4; the nearest are 5, 9"),
        ("num_frames", 10**30, "it must be 5 to 97 in steps of 4; the nearest is 97"),
        ("num_inference_steps", -3, "must be 1 to 100, not -3; the nearest is 1"),
        ("num_inference_steps", 2**32, "must be 1 to 100, not 4294967296; the nearest is 100"),
        ("seed", -1, "must be 0 to 9223372036854775807, not -1; the nearest is 0"),
    ],
)
async def test_a_number_outside_the_field_is_told_the_models_rule(edges, name, value, said):
    problem = await refused(edges, json={"prompt": "x", name: value})
    assert problem["error"]["param"] == name
    assert problem["errors"][0]["nearest"]
    assert said in problem["detail"]
    # A form says the same, as far as it takes that many digits.
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("prompt", "x")
    form.add_field(name, str(value))
    assert (await refused(edges, data=form))["error"]["param"] == name


async def test_a_negative_side_is_told_the_nearest_sizes(edges):
    problem = await refused(edges, json={"prompt": "x", "width": -1, "height": 96, "seed": -1})
    assert [e["field"] for e in problem["errors"]] == ["width", "seed"]
    assert problem["errors"][0]["nearest"] == ["96x128", "128x96"]


async def test_the_message_says_the_field_and_the_nearest_everywhere(edges):
    wanted = (
        "width: 130x97 is not a size of fake-t2v (sizes are never rounded); "
        "the nearest are 128x96, 96x128"
    )
    problem = await refused(edges, json={"prompt": "x", "width": 130, "height": 97})
    assert problem["detail"] == problem["error"]["message"] == wanted
    request = video_service_pb2.CreateVideoRequest(
        spec=video_pb2.VideoSpec(prompt="x", width=130, height=97)
    )
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await edges.videos.CreateVideo(request, metadata=edges.metadata(), timeout=10)
    assert raised.value.details() == wanted


async def test_thousands_of_wrong_fields_make_a_short_answer(edges):
    body = {"prompt": "x", **{f"f{n}": 1 for n in range(5_000)}}
    problem = await refused(edges, json=body)
    assert len(json.dumps(problem)) < 10_000
    assert "more" in problem["error"]["message"]


async def test_a_doubled_name_that_is_no_text_is_refused(edges):
    data = b'{"\\ud800": 1, "\\ud800": 2}'
    await refused(edges, data=data, headers={"Content-Type": "application/json"})
