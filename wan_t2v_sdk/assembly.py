"""Events in, one video out: what was seen of a video so far, however many streams it took."""

from __future__ import annotations

from reelmesh.v1 import video_pb2

from wan_t2v_sdk.buffer import VideoBuffer
from wan_t2v_sdk.errors import (
    CancelledVideoError,
    DeadlineError,
    GenerationFailedError,
    ReelmeshError,
)

_NONE = -1


class Assembly:
    """Puts the bytes of the attempt that counts together; throws those of others away.

    Invariant: :attr:`buffer` holds bytes of :attr:`attempt` alone, from offset 0 on.
    """

    def __init__(self, buffer: VideoBuffer) -> None:
        self.buffer = buffer
        self.video_id = ""
        self.last_seq = 0
        self.attempt = _NONE
        self.restarts = 0
        self.region = ""
        self.node = ""
        self.spec: video_pb2.ResolvedSpec | None = None
        self.completed: video_pb2.CompletedEvent | None = None
        self.error: ReelmeshError | None = None

    @property
    def over(self) -> bool:
        """Whether the terminal event has been seen."""
        return self.completed is not None or self.error is not None

    def accept(self, event: video_pb2.VideoEvent) -> None:
        """Takes one event in. Whether the bytes are those that were made is not judged here.

        Raises:
            ServerError: The bytes leave a gap.
        """
        if event.video_id and event.video_id != self.video_id:
            # Another video under the same key: the first is gone from where it was asked for.
            self.forget()
            self.video_id = event.video_id
        self.last_seq = max(self.last_seq, event.seq)
        match event.WhichOneof("event"):
            case "queued":
                if event.queued.HasField("spec"):
                    self.spec = event.queued.spec
            case "started":
                self.region, self.node = event.started.region, event.started.node
                self._enter(event.started.attempt)
            case "restarted":
                self._enter(event.restarted.attempt)
            case "chunk":
                self._add(event.chunk)
            case "completed":
                self.completed = event.completed
            case "failed":
                self.error = GenerationFailedError(
                    event.failed.message, code=event.failed.code, retryable=event.failed.retryable
                )
            case "cancelled":
                self.error = _cancelled(event.cancelled.reason)

    def forget(self) -> None:
        """Starts from nothing, for a video that has to be made anew."""
        self.buffer.reset()
        self.video_id = ""
        self.last_seq = 0
        self.attempt = _NONE
        self.spec = self.completed = self.error = None

    def rewind(self) -> None:
        """Throws the bytes away, to receive the same video again from its start."""
        self.buffer.reset()
        self.last_seq = 0
        self.completed = None

    def _enter(self, attempt: int) -> None:
        if attempt <= self.attempt:
            return
        if self.attempt != _NONE:
            self.restarts += 1
        self.buffer.reset()
        self.attempt = attempt

    def _add(self, chunk: video_pb2.ChunkEvent) -> None:
        if chunk.attempt < self.attempt:
            return
        self._enter(chunk.attempt)
        self.buffer.append(chunk.offset, chunk.data)


def _cancelled(reason: str) -> ReelmeshError:
    if reason == "deadline":
        return DeadlineError("the video was dropped: its deadline passed before it was done")
    return CancelledVideoError(
        f"the video was cancelled ({reason or 'no reason given'})", reason=reason
    )
