"""OpenAI's video objects made of ours, with this service's own fields beside theirs."""

from __future__ import annotations

import math
from typing import Any

from reelmesh.v1 import fleet_service_pb2, model_pb2, video_pb2

from gateway.edge_http.json_values import finite, to_json
from gateway.errors import ModelNotFound
from gateway.priority import NAMES

# OpenAI knows no cancelled video: it reads as failed, with a code that says so.
_STATUS = {
    video_pb2.VIDEO_STATUS_QUEUED: "queued",
    video_pb2.VIDEO_STATUS_RUNNING: "in_progress",
    video_pb2.VIDEO_STATUS_COMPLETED: "completed",
    video_pb2.VIDEO_STATUS_FAILED: "failed",
    video_pb2.VIDEO_STATUS_CANCELLED: "failed",
}


_CACHE = {
    video_pb2.CACHE_STATUS_MISS: "miss",
    video_pb2.CACHE_STATUS_HIT: "hit",
    video_pb2.CACHE_STATUS_SHARED: "shared",
    video_pb2.CACHE_STATUS_REFRESHED: "refreshed",
    video_pb2.CACHE_STATUS_BYPASSED: "bypassed",
}


def video_object(video: video_pb2.Video) -> dict[str, Any]:
    """A video as ``openai.types.Video`` reads it, and more.

    ``seconds`` is the length of what is or will be made, as a string; what was asked for
    is in ``requested``. Times are whole seconds since the epoch or null.
    """
    spec = video.spec
    return {
        "id": video.id,
        "object": "video",
        "model": spec.model,
        "status": _STATUS.get(video.status, "queued"),
        "progress": video.progress_percent,
        "prompt": spec.prompt,
        "created_at": video.created_at.seconds,
        "completed_at": _time_or_none(video, "completed_at"),
        "expires_at": _time_or_none(video, "expires_at"),
        "seconds": _seconds(spec),
        "size": f"{spec.width}x{spec.height}",
        "error": _error(video),
        "remixed_from_video_id": video.remixed_from_video_id or None,
        **_own_fields(video),
    }


def _own_fields(video: video_pb2.Video) -> dict[str, Any]:
    spec = video.spec
    wished = finite(spec.requested_seconds) if spec.HasField("requested_seconds") else None
    return {
        "model_version": spec.model_version,
        "width": spec.width,
        "height": spec.height,
        "num_frames": spec.num_frames,
        "fps": finite(spec.fps),
        "negative_prompt": spec.negative_prompt,
        "num_inference_steps": spec.steps,
        "guidance_scale": finite(spec.guidance_scale),
        "flow_shift": finite(spec.flow_shift),
        "cache": _CACHE.get(video.cache),
        "seed": spec.seed,
        "quality": spec.quality or None,
        "priority": NAMES.get(video.priority),
        "brown_out": (
            {"steps": spec.steps, "unloaded_steps": spec.unloaded_steps}
            if spec.unloaded_steps
            else None
        ),
        "requested": {"resolution": spec.requested_resolution or None, "seconds": wished},
        "region": video.region,
        "attempts": video.attempts,
        "durable": video.durable,
        "result": to_json(video.result) if video.HasField("result") else None,
    }


def video_list(videos: list[video_pb2.Video], *, has_more: bool) -> dict[str, Any]:
    """A page of videos as OpenAI's cursor pages read it."""
    return {
        "object": "list",
        "data": [video_object(video) for video in videos],
        "first_id": videos[0].id if videos else None,
        "last_id": videos[-1].id if videos else None,
        "has_more": has_more,
    }


def deleted_object(video_id: str) -> dict[str, Any]:
    """The answer to a delete."""
    return {"id": video_id, "object": "video.deleted", "deleted": True}


def model_list(models: list[model_pb2.ModelInfo], *, default: str) -> dict[str, Any]:
    """The models as OpenAI lists them, each with what it can do.

    While two versions of a model are served, each is listed by its pinned id; a model
    with one version is listed by its name, which follows rollouts.
    """
    versions: dict[str, int] = {}
    for model in models:
        versions[model.name] = versions.get(model.name, 0) + 1
    return {
        "object": "list",
        "data": [
            _model_object(
                model,
                model_id=model.name if versions[model.name] == 1 else _pinned_id(model),
                default=default,
            )
            for model in models
        ],
    }


def model_object(wanted: str, models: list[model_pb2.ModelInfo], *, default: str) -> dict[str, Any]:
    """One model by its name or its pinned id, under the id that it was asked by.

    Of several versions of a name this is the first: the one that a request for the name gets.

    Raises:
        ModelNotFound: None of ``models`` is it.
    """
    for model in models:
        if wanted in (model.name, _pinned_id(model)):
            return _model_object(model, model_id=wanted, default=default)
    names = ", ".join(dict.fromkeys(model.name for model in models)) or "no model now"
    raise ModelNotFound(f"there is no such model here; this region serves {names}")


def _pinned_id(model: model_pb2.ModelInfo) -> str:
    return f"{model.name}@{model.version}"


def _model_object(model: model_pb2.ModelInfo, *, model_id: str, default: str) -> dict[str, Any]:
    return {
        "id": model_id,
        "object": "model",
        # Manifests carry no date; OpenAI's clients want a number here.
        "created": 0,
        "owned_by": "reelmesh",
        "default": model.name == default,
        "pinned_id": _pinned_id(model),
        **to_json(model),
    }


def region_list(regions: list[fleet_service_pb2.Region]) -> dict[str, Any]:
    """The regions as this gateway knows them."""
    return {
        "object": "list",
        "data": [{"object": "region", **to_json(region)} for region in regions],
    }


def _time_or_none(video: video_pb2.Video, name: str) -> int | None:
    return getattr(video, name).seconds if video.HasField(name) else None  # type: ignore[arg-type]


def _seconds(spec: video_pb2.ResolvedSpec) -> str:
    if not 0 < spec.fps < math.inf or spec.num_frames == 0:
        return "0"
    # The first frame stands at 0 s: n frames last (n - 1) / fps, as SecondsRule has it.
    return f"{round((spec.num_frames - 1) / spec.fps, 3):g}"


def _error(video: video_pb2.Video) -> dict[str, Any] | None:
    if video.status == video_pb2.VIDEO_STATUS_CANCELLED:
        message = video.error.message or "the video was cancelled"
        return {"code": "cancelled", "message": message}
    if video.status != video_pb2.VIDEO_STATUS_FAILED:
        return None
    return {
        "code": video.error.code or "failed",
        "message": video.error.message,
        "retryable": video.error.retryable,
    }
