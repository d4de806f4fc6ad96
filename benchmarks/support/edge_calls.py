"""Calls of benchmarks/edge.py, as benchmarks/support/edge_client.py takes them."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.message import Message
from reelmesh.v1 import video_pb2, video_service_pb2

Call = dict[str, Any]

# The instant node's video has as many bytes as its prompt says.
SMALL = "1024"
ANY_ADDRESS = "@ADDRESS@"


def http(
    address: str,
    method: str,
    path: str,
    *,
    token: str | None = None,
    body: dict[str, Any] | str | None = None,
    from_address: str | None = None,
) -> Call:
    """A call over HTTP/1.1 on a connection that stays open."""
    text = body if isinstance(body, str) else json.dumps(body) if body is not None else ""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address}", "Accept: */*"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if from_address is not None:
        lines.append(f"X-Forwarded-For: {from_address}")
    if text:
        # @N@ becomes a number of eight digits.
        length = len(text.replace("@N@", "0" * 8))
        lines += ["Content-Type: application/json", f"Content-Length: {length}"]
    return {"way": "http", "address": address, "request": "\r\n".join([*lines, "", text])}


def create(address: str, token: str, *, model: str = "") -> Call:
    """A create over HTTP of a video that no other request asks for."""
    named = f'"model": "{model}", ' if model else ""
    # The seed tells one from the other, where the backend knows seeds.
    seed = "" if model else ', "seed": @N@'
    return http(
        address,
        "POST",
        "/v1/videos",
        token=token,
        body=f'{{{named}"prompt": "{SMALL}"{seed}}}',
    )


def rpc(
    address: str,
    method: str,
    message: Message,
    *,
    token: str | None = None,
    from_address: str | None = None,
) -> Call:
    """A unary call of VideoService."""
    metadata = []
    if token is not None:
        metadata.append(("authorization", f"Bearer {token}"))
    if from_address is not None:
        metadata.append(("x-forwarded-for", from_address))
    return {
        "way": "grpc",
        "address": address,
        "method": method,
        "message": message.SerializeToString().hex(),
        "metadata": metadata,
    }


def rpc_create(address: str, token: str) -> Call:
    """A create over gRPC, likewise."""
    spec = video_pb2.VideoSpec(prompt=SMALL, seed=1)
    request = video_service_pb2.CreateVideoRequest(spec=spec)
    return rpc(address, "CreateVideo", request, token=token)


def forged(token: str) -> str:
    """A token whose signature does not verify, and has to be checked to find out."""
    head, _, signature = token.rpartition(".")
    turned = "B" if signature[0] == "A" else "A"
    return f"{head}.{turned}{signature[1:]}"
