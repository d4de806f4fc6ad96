"""Whatever bytes and messages come over gRPC: a status of ours, and the gateway goes on."""

import asyncio
import math
import random

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc import aio
from reelmesh.v1 import video_pb2, video_service_pb2

from gateway.auth.access import ACCESS, PUBLIC
from gateway.auth.config import StrangerConfig
from tests.support.edges import serve_edges

# Whatever the access table guards: a new service or method is tried by itself.
METHODS = [
    descriptor_pool.Default().FindMethodByName(endpoint[1:].replace("/", "."))
    for endpoint, scope in ACCESS.items()
    if scope is not PUBLIC and " " not in endpoint
]
A_VIDEO = video_service_pb2.CreateVideoRequest(spec=video_pb2.VideoSpec(prompt="a ball"))
CASES = 150
CALL_S = 5.0
# What a client's own doing may be answered with; nothing here is the gateway's failure.
FINE = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    # A stream that nobody ends, given up by this test.
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
TEXTS = [
    "",
    " ",
    "a ball",
    "x" * 3000,
    "a\x00b",
    "‮",
    "\ufeff",
    "../../etc",
    "480p",
    "%s",
    "😀" * 700,
]
FLOATS = [0.0, -0.0, -1.0, 1e-300, 1e300, math.inf, -math.inf, math.nan, 2.5, 6.0]


def number(rng, bits, *, signed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return rng.choice([low, high, 0, 1, 17, min(max(rng.getrandbits(bits), low), high)])


def scalar(rng, field):
    kinds = FieldDescriptor
    match field.cpp_type:
        case kinds.CPPTYPE_STRING:
            text = rng.choice(TEXTS)
            return text.encode() if field.type == kinds.TYPE_BYTES else text
        case kinds.CPPTYPE_DOUBLE | kinds.CPPTYPE_FLOAT:
            return rng.choice(FLOATS)
        case kinds.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case kinds.CPPTYPE_INT32:
            return number(rng, 32, signed=True)
        case kinds.CPPTYPE_INT64:
            return number(rng, 64, signed=True)
        case kinds.CPPTYPE_UINT32:
            return number(rng, 32, signed=False)
        case kinds.CPPTYPE_UINT64:
            return number(rng, 64, signed=False)
        case _:
            return rng.randrange(0, 9)


def fill(rng, message, depth=0):
    """Sets fields of a message at random."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.5:
            continue
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            if depth < 3 and not field.is_repeated:
                fill(rng, getattr(message, field.name), depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(scalar(rng, field) for _ in range(3))
        else:
            setattr(message, field.name, scalar(rng, field))
    return message


def request_of(rng, method, known):
    """A message of the method's type, perhaps damaged, or bytes of any kind.

    Half of those that name a video name one that there is.
    """
    if rng.random() < 0.3:
        return rng.randbytes(rng.choice([0, 1, 7, 300]))
    message = fill(rng, GetMessageClass(method.input_type)())
    if "video_id" in message.DESCRIPTOR.fields_by_name and rng.random() < 0.5:
        message.video_id = known
    data = bytearray(message.SerializeToString())
    if data and rng.random() < 0.4:
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


@pytest.fixture
async def edges(tmp_path):
    async with serve_edges(tmp_path, strangers=StrangerConfig(burst=100_000)) as found:
        yield found


def test_every_method_of_a_public_service_is_tried():
    services = {method.containing_service for method in METHODS}
    assert {m.full_name for service in services for m in service.methods} == {
        method.full_name for method in METHODS
    }


@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
async def test_no_request_makes_the_gateway_fail(edges, method):
    rng = random.Random(method.full_name)
    path = f"/{method.containing_service.full_name}/{method.name}"
    metadata = edges.metadata()
    made = await edges.videos.CreateVideo(A_VIDEO, metadata=metadata)
    known = made.video.id

    async def ask(data):
        if method.server_streaming:
            call = edges.channel.unary_stream(path)(data, metadata=metadata, timeout=CALL_S)
            try:
                # The first few say enough; some streams go on.
                for _ in range(3):
                    if await call.read() is aio.EOF:
                        break
            finally:
                call.cancel()
        else:
            await edges.channel.unary_unary(path)(data, metadata=metadata, timeout=CALL_S)

    for _ in range(CASES):
        data = request_of(rng, method, known)
        try:
            await ask(data)
        except aio.AioRpcError as error:
            if error.code() not in FINE:
                raise AssertionError(f"{error.code()} {error.details()}: {data!r}") from None
    async with asyncio.timeout(5), edges.http.get("/healthz") as answer:
        assert answer.status == 200
