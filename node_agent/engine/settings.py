"""What the agent hands to a worker process at its start."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from reelkit.settings import Settings
from reelkit.tracing import TracingSettings


class WorkerSettings(Settings):
    """What a worker process needs to know before it is told what to load."""

    region: str = Field(default="", description="Said in the started event of each run.")
    node_id: str = Field(default="", description="Likewise.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that reaches stderr."
    )
    log_format: Literal["console", "json"] = Field(
        default="json", description="console for people, json for collectors."
    )
    tracing: TracingSettings = Field(
        default_factory=TracingSettings, description="Where the spans of each stage go."
    )
    heartbeat_s: float = Field(
        default=0.5, gt=0, description="Seconds between heartbeats; the agent allows four."
    )
    video_quality_crf: int = Field(
        default=18,
        ge=0,
        le=40,
        description="x264's constant rate factor; 18 is visually near lossless.",
    )
    latent_frames_per_fragment: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Latent frames (four video frames each) in one MP4 fragment: one shows "
        "the video soonest, more save about 100 bytes of header each.",
    )
