"""The tail of a run: encoding and sending, in a thread beside the device's.

The device thread puts groups of frames; it waits only when this thread is more than
a few groups behind. Every run that began on the device ends here, so its terminal
event comes after its last chunk, and the device may be at the next run by then.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from opentelemetry import trace

from node_agent.engine.decode import FrameGroup
from node_agent.engine.encode import ChunkSink, Mp4Encoder
from node_agent.engine.failures import (
    Failure,
    PoisonedOutputError,
    RunCancelledError,
    classify,
)
from node_agent.engine.run import Run

_log = structlog.get_logger("node_agent.engine.tail")
_tracer = trace.get_tracer("reelmesh.worker")

# Groups of frames that may wait: 11 MB each at 1280x704. Few, since each one also lets
# the device run ahead of a cancellation.
_MAX_WAITING_GROUPS = 3

OpenEncoder = Callable[[Run, ChunkSink], Mp4Encoder]


@dataclass(frozen=True)
class _Finish:
    """All frames were put."""


class _Output:
    """What the tail keeps of the run whose groups arrive."""

    def __init__(self, run: Run, open_encoder: OpenEncoder) -> None:
        self.sink = ChunkSink(run.chunk)
        self.encoder = open_encoder(run, self.sink)
        context = trace.set_span_in_context(run.span)
        self.span = _tracer.start_span("worker.encode_video", context=context)


class Tail:
    """The encoder thread; :meth:`put`, :meth:`finish` and :meth:`fail` feed it in order."""

    def __init__(self, open_encoder: OpenEncoder) -> None:
        self._open_encoder = open_encoder
        self._inbox: queue.Queue[tuple[Run, FrameGroup | _Finish | Exception] | None] = queue.Queue(
            _MAX_WAITING_GROUPS
        )
        self._output: _Output | None = None
        self._thread = threading.Thread(target=self._serve, name="tail", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Lets it finish what was put, then ends it."""
        self._inbox.put(None)
        self._thread.join(timeout_s)

    def put(self, run: Run, group: FrameGroup) -> None:
        """Takes the next frames of the run; blocks while the tail is behind."""
        self._inbox.put((run, group))

    def finish(self, run: Run) -> None:
        """All frames of the run were put: its video is closed and COMPLETED sent."""
        self._inbox.put((run, _Finish()))

    def fail(self, run: Run, error: Exception) -> None:
        """The run ended on the device: what was encoded is dropped, the reason sent."""
        self._inbox.put((run, error))

    def _serve(self) -> None:
        while (item := self._inbox.get()) is not None:
            run, work = item
            if run.ended:
                # Cancelled or failed in here; the device thread was still putting.
                continue
            try:
                self._take(run, work)
            except Exception as error:  # noqa: BLE001 - the thread's boundary; logged
                self._abandon(run, error)

    def _take(self, run: Run, work: FrameGroup | _Finish | Exception) -> None:
        if isinstance(work, Exception):
            raise work
        run.check()
        began_s = time.monotonic()
        if self._output is None:
            self._output = _Output(run, self._open_encoder)
        output = self._output
        if isinstance(work, FrameGroup):
            frames = work.wait()
            if frames is None:
                raise PoisonedOutputError
            # The wait is the device's time, not the encoder's.
            began_s = time.monotonic()
            output.encoder.write(frames)
            run.timings.encode_video_s += time.monotonic() - began_s
            return
        output.encoder.close()
        run.timings.encode_video_s += time.monotonic() - began_s
        self._output = None
        output.span.end()
        run.end_completed(
            sha256=output.sink.sha256_hex(),
            size_bytes=output.sink.size_bytes,
            num_frames=output.encoder.num_frames,
        )

    def _abandon(self, run: Run, error: Exception) -> None:
        """Drops the run's output and sends how it ended; the tail goes on."""
        output, self._output = self._output, None
        if output is not None:
            output.encoder.abort()
            output.span.end()
        if isinstance(error, RunCancelledError):
            run.end_cancelled(error.reason)
            return
        failure: Failure = classify(error)
        _log.error("run failed", run_id=run.run_id, code=failure.code, exc_info=error)
        run.end_failed(failure)
