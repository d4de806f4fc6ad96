"""What a webhook says: an event around the video or batch as the HTTP API has it."""

from __future__ import annotations

import datetime as dt
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from reelmesh.v1 import batch_pb2, video_pb2

from gateway.edge_http.batch_objects import batch_object
from gateway.edge_http.json_values import dumps
from gateway.edge_http.openai_objects import video_object


def video_event(video: video_pb2.Video) -> bytes:
    """``video.completed``, ``video.failed`` or ``video.cancelled``, with the video object."""
    state = video_pb2.VideoStatus.Name(video.status).removeprefix("VIDEO_STATUS_").lower()
    return _event(video.id, f"video.{state}", video.completed_at, video_object(video))


def batch_event(batch: batch_pb2.Batch) -> bytes:
    """``batch.completed`` and so on, with the batch object."""
    state = batch_pb2.BatchStatus.Name(batch.status).removeprefix("BATCH_STATUS_").lower()
    return _event(batch.id, f"batch.{state}", batch.completed_at, batch_object(batch))


def _event(of: str, kind: str, at: Timestamp, data: dict[str, Any]) -> bytes:
    # The specification's fields, and beside them those by which OpenAI's client reads an event.
    return dumps(
        {
            "type": kind,
            "timestamp": dt.datetime.fromtimestamp(at.seconds, tz=dt.UTC).isoformat(),
            "data": data,
            "id": f"evt_{of}",
            "object": "event",
            "created_at": at.seconds,
        }
    )
