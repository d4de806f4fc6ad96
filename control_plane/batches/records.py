"""What is kept of a batch, and which writes of it are one and the same. Pure."""

from __future__ import annotations

from typing import Final

from reelmesh.v1 import batch_pb2, job_service_pb2
from reelmesh.v1 import batch_record_service_pb2 as pb

from control_plane.errors import InvalidRequestError, RecordTooLargeError
from control_plane.store.port import MAX_VALUE_BYTES

MAX_ID_CHARS: Final = 128
# What tells a batch among the live jobs.
ID_PREFIX: Final = "batch_"
TERMINAL: Final = frozenset(
    (
        batch_pb2.BATCH_STATUS_COMPLETED,
        batch_pb2.BATCH_STATUS_FAILED,
        batch_pb2.BATCH_STATUS_CANCELLED,
        batch_pb2.BATCH_STATUS_EXPIRED,
    )
)


def ended(record: pb.BatchRecord) -> bool:
    """Whether the batch is over."""
    return record.batch.status in TERMINAL


def same_owner(one: pb.BatchRecord, other: pb.BatchRecord) -> bool:
    """Whether one process made both, at the same claim."""
    return (one.owner_gateway, one.owner_incarnation, one.epoch) == (
        other.owner_gateway,
        other.owner_incarnation,
        other.epoch,
    )


def same_end(standing: pb.BatchRecord, asked: pb.BatchRecord) -> bool:
    """Whether the end that stands is the one that is asked for: an earlier try wrote it."""
    return (
        same_owner(standing, asked)
        and standing.batch.status == asked.batch.status
        and standing.batch.completed_at == asked.batch.completed_at
    )


def merged(standing: pb.BatchRecord, written: pb.BatchRecord) -> pb.BatchRecord:
    """The owner's write with what others have asked for meanwhile: a cancel is not lost."""
    made = pb.BatchRecord()
    made.CopyFrom(written)
    made.cancel_requested = standing.cancel_requested or written.cancel_requested
    if made.cancel_requested and not ended(made):
        made.batch.status = batch_pb2.BATCH_STATUS_CANCELLING
    return made


def check(record: pb.BatchRecord) -> None:
    """What every write of a record must be.

    Raises:
        InvalidRequestError: Names the field.
    """
    for field, text in (
        ("record.batch.id", record.batch.id),
        ("record.tenant", record.tenant),
        ("record.owner_gateway", record.owner_gateway),
        ("record.owner_incarnation", record.owner_incarnation),
    ):
        if not 1 <= len(text) <= MAX_ID_CHARS:
            raise InvalidRequestError(field, f"must have 1 to {MAX_ID_CHARS} characters")
    if "/" in record.batch.id or not record.batch.id.startswith(ID_PREFIX):
        raise InvalidRequestError("record.batch.id", f"must begin with {ID_PREFIX}, without '/'")
    if record.epoch < 1:
        raise InvalidRequestError("record.epoch", "must be 1 or more")


def encode(record: pb.BatchRecord) -> bytes:
    """The record as stored.

    Raises:
        RecordTooLargeError: It passes the store's limit.
    """
    stored = pb.BatchRecord()
    stored.CopyFrom(record)
    stored.revision = 0
    value = stored.SerializeToString(deterministic=True)
    if len(value) > MAX_VALUE_BYTES:
        raise RecordTooLargeError("record", size_bytes=len(value), limit_bytes=MAX_VALUE_BYTES)
    return value


def decode(value: bytes, *, revision: int) -> pb.BatchRecord:
    """A record as it was stored at a revision."""
    record = pb.BatchRecord.FromString(value)
    record.revision = revision
    return record


def encode_live(record: pb.BatchRecord) -> bytes:
    """Who owns a live batch, as a live job's owner is stored."""
    live = job_service_pb2.JobRecord(
        tenant=record.tenant,
        owner_gateway=record.owner_gateway,
        owner_incarnation=record.owner_incarnation,
        epoch=record.epoch,
    )
    return live.SerializeToString(deterministic=True)


def expires_at_ms(record: pb.BatchRecord) -> int:
    """When an ended batch's time is over; 0, and so at once, for a deleted one."""
    return 0 if record.deleted else max(record.batch.expires_at.ToMilliseconds(), 0)
