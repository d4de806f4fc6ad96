"""What a mesh says of batches, and what is asked of it, as plain frozen values."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from google.protobuf import timestamp_pb2
from reelmesh.v1 import batch_pb2, batch_service_pb2, video_pb2

from wan_t2v_sdk.arguments import VideoSettings, request_of
from wan_t2v_sdk.records import VideoStatus

BatchStatus = Literal[
    "queued",
    "in_progress",
    "completed",
    "failed",
    "cancelling",
    "cancelled",
    "expired",
    "unknown",
]

_STATUSES: dict[int, BatchStatus] = {
    batch_pb2.BATCH_STATUS_QUEUED: "queued",
    batch_pb2.BATCH_STATUS_IN_PROGRESS: "in_progress",
    batch_pb2.BATCH_STATUS_COMPLETED: "completed",
    batch_pb2.BATCH_STATUS_FAILED: "failed",
    batch_pb2.BATCH_STATUS_CANCELLING: "cancelling",
    batch_pb2.BATCH_STATUS_CANCELLED: "cancelled",
    batch_pb2.BATCH_STATUS_EXPIRED: "expired",
}
_ITEM_STATUSES: dict[int, VideoStatus] = {
    video_pb2.VIDEO_STATUS_QUEUED: "queued",
    video_pb2.VIDEO_STATUS_RUNNING: "running",
    video_pb2.VIDEO_STATUS_COMPLETED: "completed",
    video_pb2.VIDEO_STATUS_FAILED: "failed",
    video_pb2.VIDEO_STATUS_CANCELLED: "cancelled",
}
_CUSTOM_ID = "custom_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """One row of a batch to submit."""

    prompt: str = ""
    """Empty where the batch has a template."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """What the template's names stand for."""
    custom_id: str = ""
    """The caller's own name of it, unique in its batch."""
    settings: VideoSettings = field(default_factory=VideoSettings)
    """What this row says over the batch's own settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """A batch as the mesh keeps it."""

    id: str
    status: BatchStatus
    region: str
    total: int
    queued: int
    running: int
    completed: int
    failed: int
    cancelled: int
    metadata: dict[str, str]
    created_at: dt.datetime | None
    completed_at: dt.datetime | None
    expires_at: dt.datetime | None
    error_code: str
    error_message: str

    @property
    def finished(self) -> bool:
        """Whether its state can change no more."""
        return self.status in ("completed", "failed", "cancelled", "expired")

    @property
    def ended(self) -> int:
        """Items that have ended."""
        return self.completed + self.failed + self.cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchItemRecord:
    """One video of a batch."""

    index: int
    custom_id: str
    prompt: str
    status: VideoStatus
    video_id: str
    """Empty before it is begun."""
    error_code: str
    error_message: str
    sha256: str
    size_bytes: int

    @property
    def finished(self) -> bool:
        """Whether its state can change no more."""
        return self.status in ("completed", "failed", "cancelled")


def row_of(row: BatchRow | str | Mapping[str, str]) -> batch_service_pb2.BatchRow:
    """The message of a row: a prompt, a template's variables by name, or both in full.

    Raises:
        InvalidRequestError: A setting has the wrong type or does not fit its field.
    """
    if isinstance(row, str):
        row = BatchRow(prompt=row)
    elif not isinstance(row, BatchRow):
        variables = {name: value for name, value in row.items() if name != _CUSTOM_ID}
        row = BatchRow(variables=variables, custom_id=row.get(_CUSTOM_ID, ""))
    return batch_service_pb2.BatchRow(
        spec=request_of(row.prompt, row.settings, default_model=None).to_spec(),
        custom_id=row.custom_id,
        variables=row.variables,
    )


def batch_of(batch: batch_pb2.Batch) -> BatchRecord:
    """The plain form of a batch."""
    counts = batch.counts
    return BatchRecord(
        id=batch.id,
        status=_STATUSES.get(batch.status, "unknown"),
        region=batch.region,
        total=counts.total,
        queued=counts.queued,
        running=counts.running,
        completed=counts.completed,
        failed=counts.failed,
        cancelled=counts.cancelled,
        metadata=dict(batch.metadata),
        created_at=_time(batch.created_at) if batch.HasField("created_at") else None,
        completed_at=_time(batch.completed_at) if batch.HasField("completed_at") else None,
        expires_at=_time(batch.expires_at) if batch.HasField("expires_at") else None,
        error_code=batch.error.code,
        error_message=batch.error.message,
    )


def item_of(item: batch_pb2.BatchItem) -> BatchItemRecord:
    """The plain form of an item."""
    return BatchItemRecord(
        index=item.index,
        custom_id=item.custom_id,
        prompt=item.prompt,
        status=_ITEM_STATUSES.get(item.status, "unknown"),
        video_id=item.video_id,
        error_code=item.error.code,
        error_message=item.error.message,
        sha256=item.sha256,
        size_bytes=item.size_bytes,
    )


def _time(stamp: timestamp_pb2.Timestamp) -> dt.datetime:
    return stamp.ToDatetime(tzinfo=dt.UTC)
