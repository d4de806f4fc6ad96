"""Reelmesh's client library: a sentence in, a video out.

::

    from wan_t2v_sdk import TextToVideoGenerator

    model = TextToVideoGenerator(region="auto")
    result = model.generate(
        text="一只戴着墨镜的熊猫在跳街舞", steps=20, resolution="480p", length_sec=6
    )
    video_tensor = result["tensor"]     # [C, T, H, W]; torch if installed, else numpy
    result.save("panda.mp4")
"""

from wan_t2v_sdk.arguments import VideoSettings
from wan_t2v_sdk.async_client import AsyncTextToVideoGenerator
from wan_t2v_sdk.batch_records import BatchItemRecord, BatchRecord, BatchRow
from wan_t2v_sdk.errors import (
    AuthenticationError,
    CancelledVideoError,
    ConfigurationError,
    ConflictError,
    ConnectionLostError,
    DeadlineError,
    FieldViolation,
    GenerationFailedError,
    IntegrityError,
    InvalidRequestError,
    NotFinishedError,
    OtherRegionError,
    OverloadedError,
    PermissionDeniedError,
    ReelmeshError,
    ServerError,
    UnavailableError,
    VideoNotFoundError,
)
from wan_t2v_sdk.events import VideoEvent
from wan_t2v_sdk.records import ModelRecord, RegionRecord, ResolvedSettings, VideoRecord
from wan_t2v_sdk.result import GenerationResult, VideoFacts
from wan_t2v_sdk.sync_client import TextToVideoGenerator

__all__ = [
    "AsyncTextToVideoGenerator",
    "AuthenticationError",
    "BatchItemRecord",
    "BatchRecord",
    "BatchRow",
    "CancelledVideoError",
    "ConfigurationError",
    "ConflictError",
    "ConnectionLostError",
    "DeadlineError",
    "FieldViolation",
    "GenerationFailedError",
    "GenerationResult",
    "IntegrityError",
    "InvalidRequestError",
    "ModelRecord",
    "NotFinishedError",
    "OtherRegionError",
    "OverloadedError",
    "PermissionDeniedError",
    "ReelmeshError",
    "RegionRecord",
    "ResolvedSettings",
    "ServerError",
    "TextToVideoGenerator",
    "UnavailableError",
    "VideoEvent",
    "VideoFacts",
    "VideoNotFoundError",
    "VideoRecord",
    "VideoSettings",
]
