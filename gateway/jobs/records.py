"""How a job's record is made and how it ends. Pure: times are passed in."""

from __future__ import annotations

import hashlib
from typing import Final

from reelmesh.v1 import job_service_pb2, video_pb2, video_service_pb2
from reelmesh.v1.tenant_pb2 import Priority

from gateway.application import Caller
from gateway.errors import (
    FieldViolation,
    InvalidRequest,
    NotFinished,
    VideoCancelled,
    VideoFailed,
)
from gateway.jobs.attempts import TERMINAL_N, seq_of
from gateway.jobs.store import Owner

# 16 KiB is the store's limit; attempts, the result and an error come later.
MAX_RECORD_BYTES: Final = 12 * 1024


def request_digest(spec: video_pb2.VideoSpec) -> str:
    """What two requests under one idempotency key must agree in."""
    return hashlib.sha256(spec.SerializeToString(deterministic=True)).hexdigest()


def new_record(
    *,
    video_id: str,
    region: str,
    caller: Caller,
    spec: video_pb2.ResolvedSpec,
    options: video_service_pb2.CreateOptions,
    priority: Priority.ValueType,
    digest: str,
    owner: Owner,
    durable: bool,
    keep: bool,
    now_s: float,
) -> job_service_pb2.JobRecord:
    """The record of a job that is admitted now."""
    record = job_service_pb2.JobRecord(
        video=video_pb2.Video(
            id=video_id,
            status=video_pb2.VIDEO_STATUS_QUEUED,
            spec=spec,
            region=region,
            durable=durable,
            priority=priority,
            remixed_from_video_id=options.remixed_from_video_id,
            batch_id=caller.batch_id,
        ),
        tenant=caller.tenant,
        subject=caller.subject,
        owner_gateway=owner.gateway_id,
        owner_incarnation=owner.incarnation,
        epoch=1,
        keep=keep,
        idempotency_key=options.idempotency_key,
        request_digest=digest,
        webhook_url=options.webhook_url,
    )
    _set_time(record.video.created_at, now_s)
    if options.HasField("deadline_s"):
        _set_time(record.deadline, now_s + options.deadline_s)
    if caller.batch_keep_until_s:
        _set_time(record.keep_until, caller.batch_keep_until_s)
    return record


def check_size(record: job_service_pb2.JobRecord) -> None:
    """Makes sure that the record, and what is added to it later, fits the store.

    Raises:
        InvalidRequest: Its texts are too long; names the field.
    """
    excess = record.ByteSize() - MAX_RECORD_BYTES
    if excess <= 0:
        return
    spec = record.video.spec
    texts = {"negative_prompt": spec.negative_prompt, "prompt": spec.prompt}
    field = max(texts, key=lambda name: len(texts[name].encode()))
    size = len(texts[field].encode())
    rule = (
        f"takes {size} bytes in UTF-8, and with the rest of the request {excess} bytes more than "
        "a record has room for; shorten it"
    )
    raise InvalidRequest((FieldViolation(field, rule, (f"{max(size - excess, 0)} bytes",)),))


def completed(
    record: job_service_pb2.JobRecord,
    result: video_pb2.CompletedEvent,
    *,
    artifact_key: str,
    now_s: float,
    retention_s: float,
) -> job_service_pb2.JobRecord:
    """The record with its video."""
    ended = _ended(record, video_pb2.VIDEO_STATUS_COMPLETED, now_s, retention_s)
    ended.artifact_key = artifact_key
    ended.video.progress_percent = 100
    ended.video.result.CopyFrom(result)
    return ended


def failed(
    record: job_service_pb2.JobRecord,
    error: video_pb2.FailedEvent,
    *,
    now_s: float,
    retention_s: float,
) -> job_service_pb2.JobRecord:
    """The record with what went wrong."""
    ended = _ended(record, video_pb2.VIDEO_STATUS_FAILED, now_s, retention_s)
    ended.video.error.CopyFrom(error)
    return ended


def cancelled(
    record: job_service_pb2.JobRecord, reason: str, *, now_s: float, retention_s: float
) -> job_service_pb2.JobRecord:
    """The record with who cancelled it, kept as the error's code."""
    ended = _ended(record, video_pb2.VIDEO_STATUS_CANCELLED, now_s, retention_s)
    ended.video.error.code = reason
    ended.video.error.message = _CANCELLED_BY.get(reason, "the video was cancelled")
    return ended


_CANCELLED_BY = {
    "client": "the client cancelled the video",
    "disconnected": "the client left the stream and did not come back in time",
}


def _ended(
    record: job_service_pb2.JobRecord,
    status: video_pb2.VideoStatus.ValueType,
    now_s: float,
    retention_s: float,
) -> job_service_pb2.JobRecord:
    ended = job_service_pb2.JobRecord()
    ended.CopyFrom(record)
    ended.video.status = status
    ended.video.attempts = len(record.attempts)
    _set_time(ended.video.completed_at, now_s)
    keep_until_s = record.keep_until.ToNanoseconds() / 1e9 if record.HasField("keep_until") else 0.0
    _set_time(ended.video.expires_at, max(now_s + retention_s, keep_until_s))
    return ended


def _set_time(timestamp: object, at_s: float) -> None:
    # google.protobuf.Timestamp; its stub hides the well-known type's own methods.
    timestamp.FromNanoseconds(int(at_s * 1e9))  # type: ignore[attr-defined]


def last_attempt(record: job_service_pb2.JobRecord) -> int:
    """Ordinal of the newest attempt; 0 where no node ever ran the job."""
    if record.video.HasField("result"):
        return record.video.result.attempt
    return max((attempt.attempt for attempt in record.attempts), default=0)


def terminal_event(video: video_pb2.Video, attempt: int) -> video_pb2.VideoEvent | None:
    """The last event of a video as its record tells it, or None: it has not ended."""
    event = video_pb2.VideoEvent(seq=seq_of(attempt, TERMINAL_N), video_id=video.id)
    if video.status == video_pb2.VIDEO_STATUS_COMPLETED:
        event.completed.CopyFrom(video.result)
    elif video.status == video_pb2.VIDEO_STATUS_FAILED:
        event.failed.CopyFrom(video.error)
    elif video.status == video_pb2.VIDEO_STATUS_CANCELLED:
        event.cancelled.reason = video.error.code
    else:
        return None
    return event


def no_bytes(video: video_pb2.Video) -> NotFinished:
    """Why a video that is not complete has no bytes, and whether it ever will."""
    if video.status == video_pb2.VIDEO_STATUS_FAILED:
        cause = f": {video.error.message}" if video.error.message else ""
        return VideoFailed(f"the video failed and will have no content{cause}")
    if video.status == video_pb2.VIDEO_STATUS_CANCELLED:
        return VideoCancelled("the video was cancelled and will have no content")
    return NotFinished("the video is not finished yet")
