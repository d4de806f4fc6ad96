"""What the store holds of a node and a gateway, made from what they report."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf import timestamp_pb2
from google.protobuf.message import DecodeError
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import node_pb2, registry_pb2

from control_plane.errors import RecordTooLargeError
from control_plane.health.assess import Assessment
from control_plane.keys import Keys
from control_plane.store.port import MAX_VALUE_BYTES, Put
from control_plane.validation import MAX_REASON_CHARS

# A measured speed wavers; a record is rewritten for it only beyond this share.
SPEED_TOLERANCE = 0.2


def node_record(
    hello: cp.NodeHello,
    status: node_pb2.NodeStatus,
    *,
    judged: Assessment,
    since: timestamp_pb2.Timestamp | None = None,
) -> cp.NodeRecord:
    """The slow-moving part of a node: what routing needs to know of it.

    Args:
        hello: Who it is.
        status: Its newest report.
        judged: Its state as all the evidence has it.
        since: When it came into that state.
    """
    return cp.NodeRecord(
        node_id=hello.node_id,
        region=hello.region,
        address=hello.address,
        incarnation=hello.incarnation,
        state=judged.state,
        reason=_shortened(judged.reason),
        models=status.models,
        worker_count=len(status.workers),
        pid=hello.pid,
        units_per_second=status.units_per_second,
        state_since=since,
        weights=held_weights(status),
    )


def held_weights(status: node_pb2.NodeStatus) -> list[registry_pb2.WeightsStatus]:
    """What the fleet should know of the versions a node was told to have: not their progress."""
    return [
        registry_pb2.WeightsStatus(manifest_sha256=each.manifest_sha256, state=each.state)
        for each in status.weights
    ]


def departed_record(record: cp.NodeRecord, *, reason: str) -> bytes:
    """What is left of a node that said goodbye; its state stays DRAINING."""
    left = cp.NodeRecord()
    left.CopyFrom(record)
    left.reason = reason
    return encode_node(left)


def decoded_node(value: bytes) -> cp.NodeRecord | None:
    """A stored record, or None for one that cannot be read: it must not stop the others."""
    try:
        return cp.NodeRecord.FromString(value)
    except DecodeError:
        return None


def routed_alike(one: node_pb2.NodeStatus, other: node_pb2.NodeStatus) -> bool:
    """Whether two reports say the same of what a record is made from, but for the state."""
    return (
        one.units_per_second == other.units_per_second
        and len(one.workers) == len(other.workers)
        and one.models == other.models
        and held_weights(one) == held_weights(other)
    )


def worth_writing(old: cp.NodeRecord, new: cp.NodeRecord) -> bool:
    """Whether the store should hear of the change: anything but a wavering speed."""
    calm = cp.NodeRecord()
    calm.CopyFrom(new)
    calm.units_per_second = old.units_per_second
    if calm != old:
        return True
    difference = abs(new.units_per_second - old.units_per_second)
    return difference > SPEED_TOLERANCE * max(old.units_per_second, new.units_per_second)


def model_puts(hello: cp.NodeHello, keys: Keys) -> Sequence[Put]:
    """Writes of the node's model infos, each once for the whole region."""
    return [
        Put(keys.model(model.manifest_sha256), model.SerializeToString(deterministic=True))
        for model in hello.models
    ]


def encode_node(record: cp.NodeRecord) -> bytes:
    """The record as stored; raises RecordTooLargeError beyond the limit."""
    return _within_limit("node record", record.SerializeToString(deterministic=True))


def encode_gateway(hello: cp.GatewayHello) -> bytes:
    """The gateway's hello as stored, without the lease it asked for."""
    stored = cp.GatewayHello()
    stored.CopyFrom(hello)
    stored.lease_id = 0
    return _within_limit("gateway record", stored.SerializeToString(deterministic=True))


def _within_limit(field: str, value: bytes) -> bytes:
    if len(value) > MAX_VALUE_BYTES:
        raise RecordTooLargeError(field, size_bytes=len(value), limit_bytes=MAX_VALUE_BYTES)
    return value


def _shortened(reason: str) -> str:
    """A reason is for people: its beginning says enough."""
    return reason if len(reason) <= MAX_REASON_CHARS else reason[: MAX_REASON_CHARS - 1] + "…"
