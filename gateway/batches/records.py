"""How a batch's record is made, goes on and ends. Pure: times are passed in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from reelmesh.v1 import batch_pb2, tenant_pb2, video_pb2
from reelmesh.v1 import batch_record_service_pb2 as pb

from gateway.application import Caller
from gateway.batches.application import Submission
from gateway.batches.segments import ITEMS_PER_SEGMENT
from gateway.jobs.store import Owner

TERMINAL: Final = frozenset(
    (
        batch_pb2.BATCH_STATUS_COMPLETED,
        batch_pb2.BATCH_STATUS_FAILED,
        batch_pb2.BATCH_STATUS_CANCELLED,
        batch_pb2.BATCH_STATUS_EXPIRED,
    )
)

# Of one whose client was told that it was not accepted.
REFUSED: Final = batch_pb2.BATCH_STATUS_CANCELLED


@dataclass(slots=True)
class Ends:
    """How many items have ended, and how."""

    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    def add(self, status: video_pb2.VideoStatus.ValueType) -> None:
        """Counts one."""
        if status == video_pb2.VIDEO_STATUS_COMPLETED:
            self.completed += 1
        elif status == video_pb2.VIDEO_STATUS_CANCELLED:
            self.cancelled += 1
        else:
            self.failed += 1

    @property
    def total(self) -> int:
        """All of them."""
        return self.completed + self.failed + self.cancelled


def ended(record: pb.BatchRecord) -> bool:
    """Whether the batch is over."""
    return record.batch.status in TERMINAL


def new_record(
    *,
    batch_id: str,
    region: str,
    caller: Caller,
    submission: Submission,
    digest: str,
    input_key: str,
    segment_bytes: Sequence[int],
    owner: Owner,
    durable: bool,
    now_s: float,
    lifetime_s: float,
    retention_s: float,
) -> pb.BatchRecord:
    """The record of a batch that is accepted now."""
    total = len(submission.rows)
    record = pb.BatchRecord(
        batch=batch_pb2.Batch(
            id=batch_id,
            status=batch_pb2.BATCH_STATUS_QUEUED,
            counts=batch_pb2.BatchCounts(total=total, queued=total),
            metadata=submission.metadata,
            region=region,
            priority=submission.priority or tenant_pb2.PRIORITY_BATCH,
            durable=durable,
        ),
        tenant=caller.tenant,
        subject=caller.subject,
        scopes=sorted(caller.scopes),
        owner_gateway=owner.gateway_id,
        owner_incarnation=owner.incarnation,
        epoch=1,
        idempotency_key=submission.idempotency_key,
        request_digest=digest,
        input_key=input_key,
        segment_bytes=segment_bytes,
        items_per_segment=ITEMS_PER_SEGMENT,
        outcome_tokens=[""] * len(segment_bytes),
        webhook_url=submission.webhook_url,
        max_in_flight=submission.max_in_flight,
    )
    _set_time(record.batch.created_at, now_s)
    _set_time(record.deadline, now_s + lifetime_s)
    _set_time(record.batch.expires_at, now_s + lifetime_s + retention_s)
    return record


def caller_of(record: pb.BatchRecord) -> Caller:
    """On whose behalf the items are made."""
    return Caller(
        tenant=record.tenant,
        subject=record.subject,
        scopes=frozenset(record.scopes),
        batch_id=record.batch.id,
        batch_keep_until_s=seconds(record.batch.expires_at),
    )


def seconds(timestamp: Timestamp) -> float:
    """A time as seconds since 1970."""
    return timestamp.ToNanoseconds() / 1e9


def progress(
    record: pb.BatchRecord,
    ends: Ends,
    in_flight: Iterable[pb.BatchInFlight],
    *,
    begun_until: int,
) -> pb.BatchRecord:
    """The record with what its owner knows now."""
    made = pb.BatchRecord()
    made.CopyFrom(record)
    del made.in_flight[:]
    made.in_flight.extend(in_flight)
    made.begun_until = begun_until
    counts = made.batch.counts
    counts.completed, counts.failed, counts.cancelled = ends.completed, ends.failed, ends.cancelled
    running = video_pb2.VIDEO_STATUS_RUNNING
    counts.running = sum(each.status == running for each in made.in_flight)
    counts.queued = max(counts.total - ends.total - counts.running, 0)
    begun = ends.total or made.in_flight
    if begun and made.batch.status == batch_pb2.BATCH_STATUS_QUEUED:
        made.batch.status = batch_pb2.BATCH_STATUS_IN_PROGRESS
    return made


def finished(
    record: pb.BatchRecord,
    status: batch_pb2.BatchStatus.ValueType,
    *,
    now_s: float,
    retention_s: float,
    error: video_pb2.FailedEvent | None = None,
) -> pb.BatchRecord:
    """The record at its end; what was never begun counts as cancelled."""
    made = pb.BatchRecord()
    made.CopyFrom(record)
    del made.in_flight[:]
    made.batch.status = status
    counts = made.batch.counts
    counts.cancelled = counts.total - counts.completed - counts.failed
    counts.queued = counts.running = 0
    if error is not None:
        made.batch.error.CopyFrom(error)
    _set_time(made.batch.completed_at, now_s)
    _set_time(made.batch.expires_at, now_s + retention_s)
    return made


def _set_time(timestamp: Timestamp, at_s: float) -> None:
    timestamp.FromNanoseconds(int(at_s * 1e9))
