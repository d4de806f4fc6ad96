"""What the end-to-end tests share: one mesh, and a look into its videos."""

import http.client
import io
import json
from dataclasses import dataclass
from urllib.parse import urlsplit

import av
import grpc
import numpy as np
import pytest
from reelmesh.v1 import fleet_service_pb2_grpc, video_service_pb2_grpc

from tests.support.mesh import RunningMesh, mesh  # noqa: F401 - a fixture, used by its name


@dataclass(frozen=True)
class Clip:
    """What is really in an MP4."""

    codec: str
    width: int
    height: int
    fps: float
    frames: np.ndarray
    """uint8, [T, H, W, 3]."""


@pytest.fixture(scope="session")
def look():
    """Decodes an MP4."""

    def decode(data: bytes) -> Clip:
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
            return Clip(
                codec=stream.codec_context.name,
                width=stream.codec_context.width,
                height=stream.codec_context.height,
                fps=float(stream.average_rate),
                frames=frames,
            )

    return decode


@dataclass(frozen=True)
class Stubs:
    """The public gRPC services of one region, and the metadata of a user."""

    videos: video_service_pb2_grpc.VideoServiceStub
    fleet: fleet_service_pb2_grpc.FleetServiceStub
    channel: grpc.Channel
    metadata: tuple[tuple[str, str], ...]


@pytest.fixture
def ap(mesh: RunningMesh):  # noqa: F811 - the fixture
    """Region ap by plain gRPC, as any client in any language would use it."""
    with grpc.insecure_channel(mesh.grpc("ap")) as channel:
        yield Stubs(
            videos=video_service_pb2_grpc.VideoServiceStub(channel),
            fleet=fleet_service_pb2_grpc.FleetServiceStub(channel),
            channel=channel,
            metadata=(("authorization", f"Bearer {mesh.token}"),),
        )


@dataclass(frozen=True)
class HttpAnswer:
    """A whole HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)


@pytest.fixture
def http_call(mesh: RunningMesh):  # noqa: F811 - the fixture
    """Sends one request to region ap's gateway with the user's token, unless told otherwise."""

    def call(method: str, path: str, body: object = None, **headers: str) -> HttpAnswer:
        parts = urlsplit(mesh.http("ap"))
        sent = {"authorization": f"Bearer {mesh.token}", **headers}
        data = body
        if body is not None and not isinstance(body, bytes):
            data = json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        try:
            connection.request(method, path, body=data, headers=sent)
            answer = connection.getresponse()
            lowered = {name.lower(): value for name, value in answer.getheaders()}
            return HttpAnswer(answer.status, lowered, answer.read())
        finally:
            connection.close()

    return call
