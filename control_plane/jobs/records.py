"""What is kept of a job, and which writes of it are one and the same. Pure."""

from __future__ import annotations

from typing import Final

from reelmesh.v1 import job_service_pb2 as pb
from reelmesh.v1 import video_pb2

from control_plane.errors import InvalidRequestError, RecordTooLargeError
from control_plane.jobs.quota import check_reservation
from control_plane.store.port import MAX_VALUE_BYTES

MAX_ATTEMPTS_KEPT: Final = 16
MAX_ID_CHARS: Final = 128
TERMINAL: Final = frozenset(
    (
        video_pb2.VIDEO_STATUS_COMPLETED,
        video_pb2.VIDEO_STATUS_FAILED,
        video_pb2.VIDEO_STATUS_CANCELLED,
    )
)


def ended(record: pb.JobRecord) -> bool:
    """Whether the job is over."""
    return record.video.status in TERMINAL


def same_owner(one: pb.JobRecord, other: pb.JobRecord) -> bool:
    """Whether one process made both, at the same claim."""
    return (one.owner_gateway, one.owner_incarnation, one.epoch) == (
        other.owner_gateway,
        other.owner_incarnation,
        other.epoch,
    )


def same_end(standing: pb.JobRecord, asked: pb.JobRecord) -> bool:
    """Whether the end that stands is the one that is asked for: an earlier try wrote it."""
    return (
        same_owner(standing, asked)
        and standing.video.status == asked.video.status
        and standing.artifact_key == asked.artifact_key
        and standing.video.completed_at == asked.video.completed_at
    )


def check(record: pb.JobRecord) -> None:
    """What every write of a record must be.

    Raises:
        InvalidRequestError: Names the field.
    """
    for field, text in (
        ("job.video.id", record.video.id),
        ("job.tenant", record.tenant),
        ("job.owner_gateway", record.owner_gateway),
        ("job.owner_incarnation", record.owner_incarnation),
    ):
        if not 1 <= len(text) <= MAX_ID_CHARS:
            raise InvalidRequestError(field, f"must have 1 to {MAX_ID_CHARS} characters")
    if "/" in record.video.id:
        raise InvalidRequestError("job.video.id", "must hold no '/'")
    check_reservation(record.reservation)
    if record.epoch < 1:
        raise InvalidRequestError("job.epoch", "must be 1 or more")


def encode(record: pb.JobRecord) -> bytes:
    """The record as stored: the newest attempts alone, no revision.

    Raises:
        RecordTooLargeError: It passes the store's limit.
    """
    stored = pb.JobRecord()
    stored.CopyFrom(record)
    stored.revision = 0
    del stored.attempts[: max(len(stored.attempts) - MAX_ATTEMPTS_KEPT, 0)]
    value = stored.SerializeToString(deterministic=True)
    if len(value) > MAX_VALUE_BYTES:
        raise RecordTooLargeError("job", size_bytes=len(value), limit_bytes=MAX_VALUE_BYTES)
    return value


def decode(value: bytes, *, revision: int) -> pb.JobRecord:
    """A record as it was stored at a revision."""
    record = pb.JobRecord.FromString(value)
    record.revision = revision
    return record


def encode_live(record: pb.JobRecord) -> bytes:
    """Who owns a live job and what it reserves, as stored beside its record."""
    live = pb.JobRecord(
        tenant=record.tenant,
        owner_gateway=record.owner_gateway,
        owner_incarnation=record.owner_incarnation,
        epoch=record.epoch,
        reservation=record.reservation if record.HasField("reservation") else None,
        follows=record.follows,
    )
    return live.SerializeToString(deterministic=True)


def expires_at_ms(record: pb.JobRecord) -> int:
    """When an ended job's time is over; 0 where it has none, and so at once."""
    return max(record.video.expires_at.ToMilliseconds(), 0)
