"""What a mesh says of videos, models and regions, as plain frozen values."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

from google.protobuf import timestamp_pb2
from reelmesh.v1 import fleet_service_pb2, model_pb2, tenant_pb2, video_pb2

VideoStatus = Literal["queued", "running", "completed", "failed", "cancelled", "unknown"]
RegionState = Literal["serving", "not_serving", "draining", "unknown"]

_STATUSES: dict[int, VideoStatus] = {
    video_pb2.VIDEO_STATUS_QUEUED: "queued",
    video_pb2.VIDEO_STATUS_RUNNING: "running",
    video_pb2.VIDEO_STATUS_COMPLETED: "completed",
    video_pb2.VIDEO_STATUS_FAILED: "failed",
    video_pb2.VIDEO_STATUS_CANCELLED: "cancelled",
}
_PRIORITIES: dict[int, str] = {
    tenant_pb2.PRIORITY_INTERACTIVE: "interactive",
    tenant_pb2.PRIORITY_BATCH: "batch",
}
_REGION_STATES: dict[int, RegionState] = {
    fleet_service_pb2.REGION_STATE_SERVING: "serving",
    fleet_service_pb2.REGION_STATE_NOT_SERVING: "not_serving",
    fleet_service_pb2.REGION_STATE_DRAINING: "draining",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSettings:
    """A request with every choice made, and the wishes that were resolved."""

    prompt: str
    negative_prompt: str
    model: str
    model_version: str
    width: int
    height: int
    num_frames: int
    fps: float
    steps: int
    guidance_scale: float
    flow_shift: float
    seed: int
    unloaded_steps: int | None
    """How many steps it would have had without load; None: as many as it has."""
    requested_resolution: str
    requested_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRecord:
    """A video as the mesh keeps it."""

    id: str
    status: VideoStatus
    region: str
    progress_percent: int
    attempts: int
    durable: bool
    priority: str
    """``interactive`` or ``batch``; "" where the mesh does not say."""
    settings: ResolvedSettings
    created_at: dt.datetime | None
    completed_at: dt.datetime | None
    expires_at: dt.datetime | None
    error_code: str
    error_message: str
    sha256: str
    size_bytes: int

    @property
    def finished(self) -> bool:
        """Whether its state can change no more."""
        return self.status in ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """What a model version can do."""

    name: str
    version: str
    default: bool
    sizes: tuple[tuple[int, int], ...]
    """(width, height) in pixels."""
    size_aliases: dict[str, tuple[int, int]]
    """Named sizes, such as ``480p``."""
    frames: tuple[int, int, int]
    """(min, max, step): allowed frame counts."""
    fps: float
    seconds: tuple[float, float]
    """(min, max) of ``length_sec``."""
    steps: tuple[int, int]
    default_steps: int
    max_prompt_chars: int
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionRecord:
    """A region as its gateways see it and as it was measured from here."""

    name: str
    state: RegionState
    ready_workers: int = 0
    predicted_wait_s: float = 0.0
    endpoint: str | None = None
    """The gateway that was measured; None where no endpoint of the region is known."""
    round_trip_s: float | None = None
    """The least of several round trips; None where it did not answer."""
    error: str = ""
    """Why it did not answer."""


def settings_of(spec: video_pb2.ResolvedSpec) -> ResolvedSettings:
    """The plain form of a resolved spec."""
    return ResolvedSettings(
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        model=spec.model,
        model_version=spec.model_version,
        width=spec.width,
        height=spec.height,
        num_frames=spec.num_frames,
        fps=spec.fps,
        steps=spec.steps,
        unloaded_steps=spec.unloaded_steps or None,
        guidance_scale=spec.guidance_scale,
        flow_shift=spec.flow_shift,
        seed=spec.seed,
        requested_resolution=spec.requested_resolution,
        requested_seconds=(spec.requested_seconds if spec.HasField("requested_seconds") else None),
    )


def video_of(video: video_pb2.Video) -> VideoRecord:
    """The plain form of a video's record."""
    return VideoRecord(
        id=video.id,
        status=_STATUSES.get(video.status, "unknown"),
        region=video.region,
        progress_percent=video.progress_percent,
        attempts=video.attempts,
        durable=video.durable,
        priority=_PRIORITIES.get(video.priority, ""),
        settings=settings_of(video.spec),
        created_at=_time_of(video, "created_at"),
        completed_at=_time_of(video, "completed_at"),
        expires_at=_time_of(video, "expires_at"),
        error_code=video.error.code,
        error_message=video.error.message,
        sha256=video.result.sha256,
        size_bytes=video.result.size_bytes,
    )


def model_of(info: model_pb2.ModelInfo, *, default_model: str) -> ModelRecord:
    """The plain form of what a manifest says."""
    return ModelRecord(
        name=info.name,
        version=info.version,
        default=default_model in (info.name, f"{info.name}@{info.version}"),
        sizes=tuple((size.width_px, size.height_px) for size in info.sizes),
        size_aliases={
            each.alias: (each.size.width_px, each.size.height_px) for each in info.size_aliases
        },
        frames=(info.frames.min, info.frames.max, info.frames.step),
        fps=info.fps,
        seconds=(info.seconds.min_s, info.seconds.max_s),
        steps=(info.steps.min, info.steps.max),
        default_steps=info.defaults.steps,
        max_prompt_chars=info.max_prompt_chars,
        description=info.description,
    )


def region_state_of(state: int) -> RegionState:
    """The name of a region's state."""
    return _REGION_STATES.get(state, "unknown")


def _time_of(video: video_pb2.Video, name: str) -> dt.datetime | None:
    # HasField's overloads want literals; the callers above name timestamp fields alone.
    if not video.HasField(name):  # type: ignore[arg-type]
        return None
    stamp: timestamp_pb2.Timestamp = getattr(video, name)
    return stamp.ToDatetime(tzinfo=dt.UTC)
