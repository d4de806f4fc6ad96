"""One run, from the command that asks for it to its terminal event."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from opentelemetry import trace
from reelmesh.v1 import node_service_pb2, video_pb2, worker_pb2

from node_agent.engine.failures import Failure, RunCancelledError
from reelkit.tracing import context_from

SendEvent = Callable[[worker_pb2.WorkerEvent], None]

_tracer = trace.get_tracer("reelmesh.worker")


@dataclass
class Timings:
    """Seconds of each stage; written by the thread that does it."""

    queue_s: float = 0.0
    encode_text_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    encode_video_s: float = 0.0
    first_chunk_s: float = 0.0
    total_s: float = 0.0

    @property
    def device_s(self) -> float:
        """Seconds that the device was held for this run."""
        return self.encode_text_s + self.denoise_s + self.decode_s

    def to_proto(self) -> video_pb2.StageTimings:
        """The same as a message."""
        return video_pb2.StageTimings(**vars(self))


@dataclass
class Run:
    """A generation that this worker holds.

    Three threads touch it: the reader cancels it, the device thread draws, the tail
    thread encodes and ends it. Its events are numbered and sent under one lock, so their
    order on the wire is their numbers' order, and nothing follows a terminal event.
    """

    run_id: str
    attempt: int
    spec: video_pb2.ResolvedSpec
    traceparent: str
    send: SendEvent
    deadline_s: float | None = None
    """From receipt; the agent cancels it too, but may be slow or stopped."""
    received_s: float = field(default_factory=time.monotonic)
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        # Re-entrant, so that whoever receives an event may cancel on the spot.
        self._lock = threading.RLock()
        self._last_n = 0
        self._begun = False
        self._ended = False
        self._cancel_reason: str | None = None
        self.span = _tracer.start_span(
            "worker.run",
            context=context_from({"traceparent": self.traceparent}),
            attributes={"reelmesh.run_id": self.run_id, "reelmesh.attempt": self.attempt},
        )

    @property
    def ended(self) -> bool:
        """Whether its terminal event was sent."""
        return self._ended

    @property
    def overdue(self) -> bool:
        """Whether its deadline has passed."""
        waited_s = time.monotonic() - self.received_s
        return self.deadline_s is not None and waited_s >= self.deadline_s

    def begin(self) -> bool:
        """Takes it to the device; False where it was cancelled while it waited, or too late."""
        if self.overdue:
            self.end_cancelled("deadline")
        with self._lock:
            if self._ended:
                return False
            self._begun = True
        self.timings.queue_s = time.monotonic() - self.received_s
        return True

    def cancel(self, reason: str) -> None:
        """Ends a waiting run at once; one that has begun stops at its next check."""
        with self._lock:
            self._cancel_reason = reason
            waiting = not self._begun
        if waiting:
            self.end_cancelled(reason)

    def check(self) -> None:
        """Returns while the run is wanted.

        Raises:
            RunCancelledError: It was cancelled, is past its deadline, or was ended by
                another thread's failure.
        """
        if self._cancel_reason is not None:
            raise RunCancelledError(self._cancel_reason)
        if self._ended:
            raise RunCancelledError("ended")
        if self.overdue:
            raise RunCancelledError("deadline")

    def progress(
        self, stage: video_pb2.Stage.ValueType, step: int, total_steps: int, eta_s: float
    ) -> None:
        """Says how far a stage is; the device has finished what is said."""
        event = video_pb2.ProgressEvent(
            stage=stage, step=step, total_steps=total_steps, eta_s=eta_s
        )
        self._emit(node_service_pb2.NodeEvent(progress=event))

    def started(self, *, region: str, node: str) -> None:
        """Says that the device works on it."""
        event = video_pb2.StartedEvent(
            region=region,
            node=node,
            attempt=self.attempt,
            model_version=self.spec.model_version,
        )
        self._emit(node_service_pb2.NodeEvent(started=event))

    def chunk(self, offset: int, data: bytes) -> None:
        """Hands on bytes of the video; the first chunk's time is kept."""
        if offset == 0:
            self.timings.first_chunk_s = time.monotonic() - self.received_s
        event = video_pb2.ChunkEvent(attempt=self.attempt, offset=offset, data=data)
        self._emit(node_service_pb2.NodeEvent(chunk=event))

    def end_completed(self, *, sha256: str, size_bytes: int, num_frames: int) -> None:
        """The terminal event of a run whose bytes have all been handed on."""
        self.timings.total_s = time.monotonic() - self.received_s
        event = video_pb2.CompletedEvent(
            sha256=sha256,
            size_bytes=size_bytes,
            num_frames=num_frames,
            fps=self.spec.fps,
            width=self.spec.width,
            height=self.spec.height,
            seed=self.spec.seed,
            model=self.spec.model,
            model_version=self.spec.model_version,
            cache=video_pb2.CACHE_STATUS_MISS,
            timings=self.timings.to_proto(),
            gpu_seconds=self.timings.device_s,
            attempt=self.attempt,
        )
        self._end(node_service_pb2.NodeEvent(completed=event))

    def end_failed(self, failure: Failure) -> None:
        """The terminal event of a run that went wrong."""
        event = video_pb2.FailedEvent(
            code=failure.code, message=failure.message, retryable=failure.retryable
        )
        self.span.set_status(trace.StatusCode.ERROR, failure.code)
        self._end(node_service_pb2.NodeEvent(failed=event))

    def end_cancelled(self, reason: str) -> None:
        """The terminal event of a run that was told to stop."""
        event = video_pb2.CancelledEvent(reason=reason)
        self._end(node_service_pb2.NodeEvent(cancelled=event))

    def _end(self, event: node_service_pb2.NodeEvent) -> None:
        if self._emit(event, terminal=True):
            self.span.end()

    def _emit(self, event: node_service_pb2.NodeEvent, *, terminal: bool = False) -> bool:
        """Sends the next event; False, and nothing is sent, where the run has ended."""
        with self._lock:
            if self._ended:
                return False
            self._ended = terminal
            self._last_n += 1
            event.attempt = self.attempt
            event.n = self._last_n
            run_event = worker_pb2.WorkerRunEvent(run_id=self.run_id, event=event)
            self.send(worker_pb2.WorkerEvent(run=run_event))
            return True
