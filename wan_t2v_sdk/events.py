"""What happens to a video on its way, as one flat type that is easy to print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reelmesh.v1 import video_pb2

EventKind = Literal[
    "queued",
    "started",
    "progress",
    "preview",
    "chunk",
    "restarted",
    "completed",
    "failed",
    "cancelled",
    "reconnecting",
]
Stage = Literal["", "encode_text", "denoise", "decode"]

_STAGES: dict[int, Stage] = {
    video_pb2.STAGE_ENCODE_TEXT: "encode_text",
    video_pb2.STAGE_DENOISE: "denoise",
    video_pb2.STAGE_DECODE: "decode",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoEvent:
    """One event of a video's life. Fields that do not belong to its kind keep their default.

    ``reconnecting`` is the library's own: the stream broke and is being taken up again,
    here or in the next region.
    """

    kind: EventKind
    video_id: str = ""
    seq: int = 0
    """Pass it to ``watch(after_seq=…)`` to go on after this event; 0: unnumbered."""
    position: int = 0
    """queued: jobs ahead of this one."""
    eta_s: float = 0.0
    """queued: until it starts; progress: until it is done. Seconds, an estimate; 0 where
    there is none, as while no node serves the model."""
    region: str = ""
    node: str = ""
    attempt: int = 0
    stage: Stage = ""
    step: int = 0
    """progress: denoising steps that the device has finished."""
    total_steps: int = 0
    bytes_received: int = 0
    """chunk: size of the video so far."""
    data: bytes = b""
    """preview: a JPEG; chunk (in ``watch`` only): bytes of the MP4 at ``offset``."""
    offset: int = 0
    code: str = ""
    """failed: the job's own code."""
    message: str = ""
    """Why: failed, restarted, cancelled, reconnecting."""
    retryable: bool = False

    @property
    def terminal(self) -> bool:
        """Whether this is the last event of the video."""
        return self.kind in ("completed", "failed", "cancelled")


def event_of(event: video_pb2.VideoEvent, *, with_data: bool) -> VideoEvent:
    """The flat form of a wire event.

    Args:
        event: What a gateway sent.
        with_data: Whether a chunk's bytes are carried along.
    """
    kind = event.WhichOneof("event")
    base = _Base(event.video_id, event.seq)
    match kind:
        case "queued":
            queued = event.queued
            return base.make("queued", position=queued.position, eta_s=queued.eta_s)
        case "started":
            started = event.started
            return base.make(
                "started", region=started.region, node=started.node, attempt=started.attempt
            )
        case "progress":
            return _progress(base, event.progress)
        case "preview":
            return base.make("preview", data=event.preview.jpeg, step=event.preview.step)
        case "chunk":
            return _chunk(base, event.chunk, with_data=with_data)
        case "restarted":
            restarted = event.restarted
            return base.make("restarted", attempt=restarted.attempt, message=restarted.reason)
        case "completed":
            completed = event.completed
            return base.make(
                "completed", attempt=completed.attempt, bytes_received=completed.size_bytes
            )
        case "failed":
            failed = event.failed
            return base.make(
                "failed", code=failed.code, message=failed.message, retryable=failed.retryable
            )
        case _:
            return base.make("cancelled", message=event.cancelled.reason)


@dataclass(frozen=True, slots=True)
class _Base:
    video_id: str
    seq: int

    def make(self, kind: EventKind, **values: object) -> VideoEvent:
        # The callers above name fields of VideoEvent alone.
        return VideoEvent(kind=kind, video_id=self.video_id, seq=self.seq, **values)  # type: ignore[arg-type]


def _progress(base: _Base, progress: video_pb2.ProgressEvent) -> VideoEvent:
    return base.make(
        "progress",
        step=progress.step,
        total_steps=progress.total_steps,
        eta_s=progress.eta_s,
        stage=_STAGES.get(progress.stage, ""),
    )


def _chunk(base: _Base, chunk: video_pb2.ChunkEvent, *, with_data: bool) -> VideoEvent:
    return base.make(
        "chunk",
        attempt=chunk.attempt,
        offset=chunk.offset,
        bytes_received=chunk.offset + len(chunk.data),
        data=chunk.data if with_data else b"",
    )
