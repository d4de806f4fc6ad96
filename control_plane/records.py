"""What the store holds of a node and a gateway, made from what they report."""

from __future__ import annotations

from collections.abc import Sequence

from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import node_pb2

from control_plane.errors import RecordTooLargeError
from control_plane.keys import Keys
from control_plane.store.port import MAX_VALUE_BYTES, Put
from control_plane.validation import MAX_REASON_CHARS

# A measured speed wavers; a record is rewritten for it only beyond this share.
SPEED_TOLERANCE = 0.2


def node_record(hello: cp.NodeHello, status: node_pb2.NodeStatus) -> cp.NodeRecord:
    """The slow-moving part of a node: what routing needs to know of it."""
    return cp.NodeRecord(
        node_id=hello.node_id,
        region=hello.region,
        address=hello.address,
        incarnation=hello.incarnation,
        state=status.state or node_pb2.NODE_STATE_STARTING,
        reason=_shortened(status.reason),
        models=status.models,
        worker_count=len(status.workers),
        pid=hello.pid,
        units_per_second=status.units_per_second,
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
