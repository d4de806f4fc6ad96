"""Asking the edges wrongly, and reading what they answer."""

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from reelmesh.v1 import video_pb2, video_service_pb2


async def refused(edges, *, status=400, headers=None, **kwargs):
    """Posts a wrong request; answers its problem after checking the shape."""
    sent = {**edges.bearer(), **(headers or {})}
    async with edges.http.post("/v1/videos", headers=sent, **kwargs) as answer:
        problem = await answer.json(content_type="application/problem+json")
        assert answer.status == status, problem
    assert problem["status"] == status
    assert problem["instance"] == "/v1/videos"
    assert problem["type"] == f"urn:reelmesh:problem:{problem['code']}"
    assert problem["error"].keys() == {"message", "type", "code", "param"}
    assert answer.headers["x-should-retry"] == "false"
    return problem


async def refused_by_grpc(edges, spec, *, code=grpc.StatusCode.INVALID_ARGUMENT):
    """The (ErrorInfo, BadRequest) of a refused create."""
    request = video_service_pb2.CreateVideoRequest(spec=spec)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await edges.videos.CreateVideo(request, metadata=edges.metadata(), timeout=10)
    assert raised.value.code() is code
    return details_of(raised.value)


def details_of(error):
    status = rpc_status.from_call(error)
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad_request)
    assert info.domain == "reelmesh"
    return info, bad_request


def spec_of(field, value):
    return video_pb2.VideoSpec(**{"prompt": "x", field: value})
