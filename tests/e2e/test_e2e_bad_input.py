"""Bad input is refused with the field and a stable code, and the mesh goes on."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from reelmesh.v1 import video_pb2, video_service_pb2

from tests.support.mesh import RunningMesh
from wan_t2v_sdk import AuthenticationError, InvalidRequestError, TextToVideoGenerator

GENERATE = "/reelmesh.v1.VideoService/GenerateVideo"

# (name, what is wrong in JSON, the field that must be named)
BAD_BODIES = [
    ("empty prompt", {"prompt": ""}, "prompt"),
    ("no prompt", {}, "prompt"),
    ("over-long prompt", {"prompt": "x" * 2001}, "prompt"),
    ("frames that are not 4k+1", {"prompt": "x", "num_frames": 16}, "num_frames"),
    ("size off the grid", {"prompt": "x", "width": 97, "height": 128}, "width"),
    ("size of another model", {"prompt": "x", "width": 1280, "height": 704}, "width"),
    ("unknown alias", {"prompt": "x", "size": "999x999"}, "size"),
    (
        "guidance that is no number",
        {"prompt": "x", "guidance_scale": float("nan")},
        "guidance_scale",
    ),
    ("negative frames", {"prompt": "x", "num_frames": -1}, "num_frames"),
    ("no steps", {"prompt": "x", "num_inference_steps": 0}, "num_inference_steps"),
    ("too many steps", {"prompt": "x", "num_inference_steps": 10**9}, "num_inference_steps"),
    ("unknown model", {"prompt": "x", "model": "sora-9"}, "model"),
    ("unknown field", {"prompt": "x", "promt": "y"}, "promt"),
]


def still_serves(http_call) -> None:
    assert http_call("GET", "/readyz").status == 200


@pytest.mark.parametrize(
    ("body", "field"), [row[1:] for row in BAD_BODIES], ids=[row[0] for row in BAD_BODIES]
)
def test_http_refuses_with_the_field(http_call, body, field):
    answer = http_call("POST", "/v1/videos", body)
    assert answer.status == 400, answer.body
    assert answer.headers["content-type"].startswith("application/problem+json")
    problem = answer.json()
    error = problem["error"]
    assert error["code"], problem
    assert error["message"], problem
    assert field in (error["param"] or ""), problem
    still_serves(http_call)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"prompt": "x", ', {}, 400),
        (b'{"prompt": "\xff\xfe"}', {}, 400),
        (b'{"prompt": "' + b"x" * 100_000 + b'"}', {}, 413),
        (b'{"prompt": "x"}', {"authorization": ""}, 401),
        (b'{"prompt": "x"}', {"authorization": "Bearer not.a.token"}, 401),
    ],
    ids=["no JSON", "not UTF-8", "body over the limit", "no token", "bad token"],
)
def test_http_refuses_what_it_cannot_read_or_trust(http_call, body, headers, status):
    sent = {"content-type": "application/json", **headers}
    answer = http_call("POST", "/v1/videos", body, **sent)
    assert answer.status == status, answer.body
    assert answer.json()["error"]["code"]
    still_serves(http_call)


def field_violations(error: grpc.RpcError) -> dict[str, str]:
    found = {}
    for key, value in error.trailing_metadata():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                bad = error_details_pb2.BadRequest()
                if detail.Unpack(bad):
                    found.update({v.field: v.description for v in bad.field_violations})
    return found


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (video_pb2.VideoSpec(prompt=""), "prompt"),
        (video_pb2.VideoSpec(prompt="x" * 2001), "prompt"),
        (video_pb2.VideoSpec(prompt="x", num_frames=16), "num_frames"),
        (video_pb2.VideoSpec(prompt="x", width=97, height=128), "width"),
        (video_pb2.VideoSpec(prompt="x", width=1280, height=704), "width"),
        (video_pb2.VideoSpec(prompt="x", guidance_scale=float("nan")), "guidance_scale"),
        (video_pb2.VideoSpec(prompt="x", steps=0), "steps"),
        (video_pb2.VideoSpec(prompt="x", steps=10**9), "steps"),
        (video_pb2.VideoSpec(prompt="x", model="sora-9"), "model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_grpc_refuses_with_the_field(ap, http_call, spec, field):
    call = ap.videos.GenerateVideo(
        video_service_pb2.GenerateVideoRequest(spec=spec), metadata=ap.metadata, timeout=20
    )
    with pytest.raises(grpc.RpcError) as caught:
        next(iter(call))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    assert field in field_violations(caught.value)
    still_serves(http_call)


def test_grpc_refuses_a_prompt_that_is_not_utf8(ap, http_call):
    # Field 1 of the request: a spec whose field 1, the prompt, holds an invalid byte.
    raw = b"\x0a\x03\x0a\x01\xff"
    call = ap.channel.unary_stream(GENERATE)(raw, metadata=ap.metadata, timeout=20)
    with pytest.raises(grpc.RpcError) as caught:
        next(iter(call))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    still_serves(http_call)


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer not.a.token"),)])
def test_grpc_refuses_without_a_good_token(ap, http_call, metadata):
    request = video_service_pb2.ListVideosRequest()
    with pytest.raises(grpc.RpcError) as caught:
        ap.videos.ListVideos(request, metadata=metadata, timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    still_serves(http_call)


def test_the_sdk_names_the_nearest_values(mesh: RunningMesh):
    with TextToVideoGenerator.from_mesh(mesh.file) as model:
        with pytest.raises(InvalidRequestError) as caught:
            model.generate("x", num_frames=16, steps=0, progress=False)
        nearest = {each.field: each.nearest for each in caught.value.violations}
        assert nearest["num_frames"] == ("17", "13")
        assert nearest["steps"] == ("1",)
        assert "num_frames: 16 is not allowed" in str(caught.value)
        assert "the nearest are 17, 13" in str(caught.value)
    with (
        TextToVideoGenerator(endpoints=mesh.grpc(), token="not.a.token") as model,
        pytest.raises(AuthenticationError),
    ):
        model.generate("x", progress=False)
