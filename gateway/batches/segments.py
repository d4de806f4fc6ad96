"""The items and outcomes of a batch as files: cut into segments, named, put together. Pure."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from typing import Final

from reelmesh.v1 import batch_pb2, tenant_pb2, video_pb2
from reelmesh.v1 import batch_record_service_pb2 as pb

FOLDER: Final = "batches"
ITEMS_PER_SEGMENT: Final = 100

ENDED: Final = frozenset(
    (
        video_pb2.VIDEO_STATUS_COMPLETED,
        video_pb2.VIDEO_STATUS_FAILED,
        video_pb2.VIDEO_STATUS_CANCELLED,
    )
)


def new_token() -> str:
    """What makes a file's key one that nobody else will write."""
    return secrets.token_hex(4)


def input_key(batch_id: str, token: str) -> str:
    """Where a batch's items lie."""
    return f"{FOLDER}/{batch_id}/items-{token}"


def outcomes_key(batch_id: str, segment: int, token: str) -> str:
    """Where the outcomes of a segment lie, as they were when it was written."""
    return f"{FOLDER}/{batch_id}/outcomes-{segment}-{token}"


def cut(items: Sequence[pb.BatchInput]) -> tuple[bytes, list[int]]:
    """The items in one file, and the size of each segment in it."""
    parts = [
        pb.BatchInputSegment(items=items[at : at + ITEMS_PER_SEGMENT]).SerializeToString()
        for at in range(0, len(items), ITEMS_PER_SEGMENT)
    ]
    return b"".join(parts), [len(part) for part in parts]


def where(record: pb.BatchRecord, segment: int) -> tuple[int, int]:
    """Offset and length of a segment in the file of items."""
    sizes = record.segment_bytes
    return sum(sizes[:segment]), sizes[segment]


def digest(
    items: Iterable[pb.BatchInput],
    *,
    priority: tenant_pb2.Priority.ValueType,
    webhook_url: str,
    metadata: Iterable[tuple[str, str]],
) -> str:
    """What two submissions under one idempotency key must agree in."""
    found = hashlib.sha256(f"{priority}\0{webhook_url}\0{sorted(metadata)}".encode())
    for item in items:
        data = item.SerializeToString(deterministic=True)
        found.update(len(data).to_bytes(4, "big"))
        found.update(data)
    return found.hexdigest()


def item_key(batch_id: str, index: int) -> str:
    """The idempotency key of an item's video: whoever makes it, it is made once."""
    return f"{batch_id}/{index}"


def outcome_of(index: int, video: video_pb2.Video) -> pb.BatchOutcome:
    """How an item ended, from its ended video."""
    outcome = pb.BatchOutcome(index=index, video_id=video.id, status=video.status)
    if video.status == video_pb2.VIDEO_STATUS_COMPLETED:
        outcome.sha256, outcome.size_bytes = video.result.sha256, video.result.size_bytes
    else:
        outcome.error.CopyFrom(video.error)
    return outcome


def failed_outcome(index: int, code: str, message: str, *, video_id: str = "") -> pb.BatchOutcome:
    """Of an item without a video to tell of."""
    return pb.BatchOutcome(
        index=index,
        video_id=video_id,
        status=video_pb2.VIDEO_STATUS_FAILED,
        error=video_pb2.FailedEvent(code=code, message=message),
    )


def items_of(
    record: pb.BatchRecord,
    segment: int,
    inputs: pb.BatchInputSegment,
    outcomes: pb.BatchOutcomeSegment,
    *,
    over: bool,
) -> list[batch_pb2.BatchItem]:
    """A segment's items as a client sees them.

    Args:
        record: The batch's.
        segment: Its number.
        inputs: What was asked for.
        outcomes: What has ended.
        over: The batch has ended: what has no outcome was never begun.
    """
    ended = {outcome.index: outcome for outcome in outcomes.outcomes}
    flying = {each.index: each for each in record.in_flight}
    first = segment * record.items_per_segment
    made = []
    for index, given in enumerate(inputs.items, start=first):
        item = batch_pb2.BatchItem(index=index, custom_id=given.custom_id, prompt=given.spec.prompt)
        outcome, flight = ended.get(index), flying.get(index)
        if outcome is not None:
            item.video_id, item.status = outcome.video_id, outcome.status
            item.sha256, item.size_bytes = outcome.sha256, outcome.size_bytes
            if outcome.HasField("error"):
                item.error.CopyFrom(outcome.error)
        elif over:
            item.status = video_pb2.VIDEO_STATUS_CANCELLED
        elif flight is not None:
            item.video_id, item.status = flight.video_id, flight.status
        else:
            item.status = video_pb2.VIDEO_STATUS_QUEUED
        made.append(item)
    return made
