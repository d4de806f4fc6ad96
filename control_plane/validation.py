"""What a hello and a report must look like; each refusal names the field and the rule."""

from __future__ import annotations

import ipaddress
import math
import re

from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import model_pb2, node_pb2

from control_plane.errors import InvalidRequestError, RecordTooLargeError
from control_plane.store.port import MAX_VALUE_BYTES

_ID = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_STATES = frozenset(node_pb2.NodeState.values())
MAX_MODELS = 32
MAX_WORKERS = 256
MAX_WEIGHTS = 64
MAX_INCARNATION_CHARS = 64
MAX_REASON_CHARS = 512


def check_id(field: str, value: str) -> None:
    """Raises InvalidRequestError unless the id can be a part of a key and of a host name."""
    if not _ID.fullmatch(value):
        raise InvalidRequestError(
            field,
            f"{value[:80]!r} is no id; use 1 to 63 of a-z, 0-9, '.', '_' and '-', "
            "with a letter or digit at both ends",
        )


def check_region(field: str, value: str, *, region: str) -> None:
    """Raises InvalidRequestError where the caller belongs to another region."""
    if value != region:
        raise InvalidRequestError(
            field,
            f"is {value[:80]!r}, but this control plane serves {region!r}; "
            "correct the region or the control plane's address",
        )


def check_address(field: str, value: str) -> None:
    """Raises InvalidRequestError unless others can connect to ``host:port``."""
    host, colon, port = value.rpartition(":")
    if not colon or not host:
        raise InvalidRequestError(field, f"{value[:80]!r} is not host:port, such as 10.0.0.7:7070")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        raise InvalidRequestError(field, f"port {port[:20]!r} is not a number from 1 to 65535")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        ip = ipaddress.ip_address(bare)
    except ValueError:
        if not _HOST.fullmatch(host):
            raise InvalidRequestError(
                field, f"host {host[:80]!r} is neither a name nor an IP address"
            ) from None
        return
    if ip.version == 6 and bare == host:
        raise InvalidRequestError(field, f"write the IPv6 address in brackets: [{host}]:{port}")
    if ip.is_unspecified:
        raise InvalidRequestError(
            field, f"{host} is an address to listen on; give one that gateways can reach"
        )


def check_incarnation(field: str, value: str) -> None:
    """Raises InvalidRequestError unless it can tell one life of a process from the next."""
    if not value or len(value) > MAX_INCARNATION_CHARS or not value.isprintable():
        raise InvalidRequestError(
            field, f"must be 1 to {MAX_INCARNATION_CHARS} printable characters, random per start"
        )


def check_node_hello(hello: cp.NodeHello, *, region: str) -> None:
    """Raises InvalidRequestError for the first field that breaks a rule."""
    check_id("hello.node_id", hello.node_id)
    check_region("hello.region", hello.region, region=region)
    check_address("hello.address", hello.address)
    check_incarnation("hello.incarnation", hello.incarnation)
    _check_count("hello.models", len(hello.models), MAX_MODELS)
    digests = set()
    for index, model in enumerate(hello.models):
        field = f"hello.models[{index}]"
        _check_model(field, model)
        if model.manifest_sha256 in digests:
            raise InvalidRequestError(f"{field}.manifest_sha256", "is listed twice; list it once")
        digests.add(model.manifest_sha256)
    check_node_status(hello.status, hello=hello, field="hello.status")


def check_node_status(
    status: node_pb2.NodeStatus, *, hello: cp.NodeHello, field: str = "status"
) -> None:
    """Raises InvalidRequestError where a report does not fit the hello before it."""
    if status.node_id not in ("", hello.node_id):
        raise InvalidRequestError(
            f"{field}.node_id", f"is {status.node_id[:80]!r}, the hello said {hello.node_id!r}"
        )
    if status.incarnation not in ("", hello.incarnation):
        raise InvalidRequestError(
            f"{field}.incarnation", "differs from the hello's; a new life needs a new stream"
        )
    if status.state not in _STATES:
        raise InvalidRequestError(f"{field}.state", f"{status.state} is no known state")
    _check_count(f"{field}.models", len(status.models), MAX_MODELS)
    _check_count(f"{field}.workers", len(status.workers), MAX_WORKERS)
    _check_count(f"{field}.weights", len(status.weights), MAX_WEIGHTS)
    for index, weights in enumerate(status.weights):
        if not _SHA256.fullmatch(weights.manifest_sha256):
            raise InvalidRequestError(
                f"{field}.weights[{index}].manifest_sha256",
                "must be the 64 lower-case hex digits of a sha256",
            )
    if not (math.isfinite(status.units_per_second) and status.units_per_second >= 0):
        raise InvalidRequestError(f"{field}.units_per_second", "must be a finite number from 0")


def check_gateway_hello(hello: cp.GatewayHello, *, region: str) -> None:
    """Raises InvalidRequestError for the first field that breaks a rule."""
    check_id("hello.gateway_id", hello.gateway_id)
    check_region("hello.region", hello.region, region=region)
    check_address("hello.grpc_address", hello.grpc_address)
    check_address("hello.http_address", hello.http_address)
    if hello.peer_address:
        check_address("hello.peer_address", hello.peer_address)
    check_incarnation("hello.incarnation", hello.incarnation)


def _check_model(field: str, model: model_pb2.ModelInfo) -> None:
    if not model.name or not model.version:
        raise InvalidRequestError(f"{field}.name", "name and version must not be empty")
    if not _SHA256.fullmatch(model.manifest_sha256):
        raise InvalidRequestError(
            f"{field}.manifest_sha256", "must be the 64 lower-case hex digits of a sha256"
        )
    size = model.ByteSize()
    if size > MAX_VALUE_BYTES:
        raise RecordTooLargeError(field, size_bytes=size, limit_bytes=MAX_VALUE_BYTES)


def _check_count(field: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidRequestError(field, f"has {count} entries, at most {most} are allowed")
