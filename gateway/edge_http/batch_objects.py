"""Batches as JSON."""

from __future__ import annotations

from typing import Any, Final

from reelmesh.v1 import batch_pb2, video_pb2

from gateway.edge_http.json_values import to_json
from gateway.priority import NAMES

_STATUS: Final = {
    video_pb2.VIDEO_STATUS_QUEUED: "queued",
    video_pb2.VIDEO_STATUS_RUNNING: "in_progress",
    video_pb2.VIDEO_STATUS_COMPLETED: "completed",
    video_pb2.VIDEO_STATUS_FAILED: "failed",
    video_pb2.VIDEO_STATUS_CANCELLED: "cancelled",
}


def batch_object(batch: batch_pb2.Batch) -> dict[str, Any]:
    """A batch; times are whole seconds since the epoch or null."""
    return {
        "id": batch.id,
        "object": "batch",
        "status": batch_pb2.BatchStatus.Name(batch.status).removeprefix("BATCH_STATUS_").lower(),
        "counts": to_json(batch.counts),
        "created_at": batch.created_at.seconds,
        "completed_at": batch.completed_at.seconds if batch.HasField("completed_at") else None,
        "expires_at": batch.expires_at.seconds,
        "metadata": dict(batch.metadata),
        "region": batch.region,
        "priority": NAMES.get(batch.priority),
        "error": to_json(batch.error) if batch.HasField("error") else None,
        "durable": batch.durable,
    }


def batch_list(batches: list[batch_pb2.Batch], *, has_more: bool) -> dict[str, Any]:
    """A page of batches."""
    return {
        "object": "list",
        "data": [batch_object(batch) for batch in batches],
        "first_id": batches[0].id if batches else None,
        "last_id": batches[-1].id if batches else None,
        "has_more": has_more,
    }


def item_object(item: batch_pb2.BatchItem) -> dict[str, Any]:
    """An item; ``content`` is where its MP4 is, once it is complete."""
    complete = item.status == video_pb2.VIDEO_STATUS_COMPLETED
    return {
        "object": "batch.item",
        "index": item.index,
        "custom_id": item.custom_id or None,
        "prompt": item.prompt,
        "status": _STATUS.get(item.status, "queued"),
        "video_id": item.video_id or None,
        "error": to_json(item.error) if item.HasField("error") else None,
        "content": f"/v1/videos/{item.video_id}/content" if complete else None,
        "sha256": item.sha256 or None,
        "bytes": item.size_bytes if complete else None,
    }


def item_list(items: list[batch_pb2.BatchItem], *, has_more: bool) -> dict[str, Any]:
    """A page of items; the next one is after ``last_index``."""
    return {
        "object": "list",
        "data": [item_object(item) for item in items],
        "last_index": items[-1].index if items else None,
        "has_more": has_more,
    }


def deleted_batch(batch_id: str) -> dict[str, Any]:
    """The answer to a delete."""
    return {"id": batch_id, "object": "batch.deleted", "deleted": True}
