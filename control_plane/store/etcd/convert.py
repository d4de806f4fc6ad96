"""Between the port's words and etcd's messages."""

from __future__ import annotations

from collections.abc import Sequence

from control_plane.store.etcdpb import reelmesh_etcd_pb2 as pb
from control_plane.store.port import (
    Compare,
    EventKind,
    Get,
    KeyValue,
    Op,
    Operator,
    Put,
    Target,
    WatchEvent,
)

_RESULTS = {
    Operator.EQUAL: pb.Compare.EQUAL,
    Operator.NOT_EQUAL: pb.Compare.NOT_EQUAL,
    Operator.GREATER: pb.Compare.GREATER,
    Operator.LESS: pb.Compare.LESS,
}


def prefix_end(prefix: bytes) -> bytes:
    """The first key behind all keys that start with ``prefix``."""
    stripped = prefix.rstrip(b"\xff")
    # "\0" is etcd's word for no end.
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"


def to_key_value(kv: pb.KeyValue) -> KeyValue:
    """One of etcd's keys and value as the port's."""
    return KeyValue(
        key=kv.key.decode(errors="surrogateescape"),
        value=kv.value,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        version=kv.version,
        lease_id=kv.lease,
    )


def to_event(event: pb.Event) -> WatchEvent:
    """One of etcd's events as the port's."""
    kind = EventKind.DELETE if event.type == pb.Event.DELETE else EventKind.PUT
    return WatchEvent(kind, to_key_value(event.kv))


def from_compare(compare: Compare) -> pb.Compare:
    """The port's comparison as etcd's."""
    message = pb.Compare(key=compare.key.encode(), result=_RESULTS[compare.operator])
    if compare.prefix:
        message.range_end = prefix_end(message.key)
    if isinstance(compare.operand, bytes):
        message.target, message.value = pb.Compare.VALUE, compare.operand
    elif compare.target is Target.VERSION:
        message.target, message.version = pb.Compare.VERSION, compare.operand
    elif compare.target is Target.CREATE_REVISION:
        message.target, message.create_revision = pb.Compare.CREATE, compare.operand
    elif compare.target is Target.MOD_REVISION:
        message.target, message.mod_revision = pb.Compare.MOD, compare.operand
    else:
        message.target, message.lease = pb.Compare.LEASE, compare.operand
    return message


def from_op(op: Op) -> pb.RequestOp:
    """The port's operation as etcd's."""
    key = op.key.encode()
    if isinstance(op, Get):
        return pb.RequestOp(request_range=pb.RangeRequest(key=key))
    if isinstance(op, Put):
        return pb.RequestOp(request_put=pb.PutRequest(key=key, value=op.value, lease=op.lease_id))
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))


def gets_of(responses: Sequence[pb.ResponseOp]) -> tuple[KeyValue | None, ...]:
    """The answers of a transaction's Get operations, in order."""
    return tuple(
        to_key_value(response.response_range.kvs[0]) if response.response_range.kvs else None
        for response in responses
        if response.WhichOneof("response") == "response_range"
    )
