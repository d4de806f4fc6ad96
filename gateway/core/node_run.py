"""One run of a job at one node: its stream into the job's log, and what ended it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from reelmesh.v1 import node_service_pb2, video_pb2

from gateway.core.execution import OWNER_LOST, Execution
from gateway.fleet.node_link import NodeLink
from gateway.output.spool import ByteGap
from gateway.output.spool_budget import SpoolFull
from gateway.output.wire import NodeChunk
from gateway.tenants import opaque
from reelkit.clock import Clock
from reelkit.tracing import trace_metadata

if TYPE_CHECKING:
    # grpc's classes are generic in the stubs alone.
    RunStream = aio.UnaryStreamCall[
        node_service_pb2.RunRequest, node_service_pb2.RunResponse | NodeChunk
    ]


@dataclass(frozen=True, slots=True)
class Busy:
    """The node did not admit the job: it is full, or the job would wait there for too long."""

    answer: node_service_pb2.Busy


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a run brought no video."""

    code: str
    """Stable; clients read it in RESTARTED and FAILED."""
    message: str
    retryable: bool = True
    """Another node may do better."""
    of_node: bool = True
    """Counts against the node."""
    client_may_retry: bool = False
    """Where it is not retried here: whether the client may."""
    runs_on: bool = False
    """The node may not know of it, and must be told to stop."""


OWN_DISK = Fault(
    "spool_failed",
    "the gateway could not keep the video's bytes",
    retryable=False,
    of_node=False,
    client_may_retry=True,
)

# The job's own mistake, in a node's eyes.
_OF_THE_JOB = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)

# The timer is moved at most this often: moving it for each event costs more than reading it.
_SILENCE_SLACK_S = 1.0

_CLOSED = Fault("node_lost", "the node left the fleet")

# Another gateway has the job: nothing that is done here counts any more.
STALE_OWNER = Fault(
    "stale_owner", "another gateway has taken the job over", retryable=False, of_node=False
)
PAST_DEADLINE = Fault(
    "deadline_exceeded",
    "the job's deadline passed",
    retryable=False,
    of_node=False,
    client_may_retry=True,
)
_STALE_OWNER_REASON = "STALE_OWNER"


class NodeRun:
    """Calls ``NodeService.Run`` and feeds what comes to the execution's log.

    Args:
        clock: For the rest of a job's deadline.
        accept_timeout_s: A sound node answers at once, with BUSY or by accepting.
        silence_timeout_s: After that; a backstop behind the node's own watchdogs.
    """

    def __init__(self, *, clock: Clock, accept_timeout_s: float, silence_timeout_s: float) -> None:
        self._clock = clock
        self._accept_timeout_s = accept_timeout_s
        self._silence_timeout_s = silence_timeout_s

    async def run(
        self, execution: Execution, link: NodeLink, try_: int, attempt: int
    ) -> node_service_pb2.NodeEvent | Busy | Fault:
        """Runs to the end; a ``NodeEvent`` is a ``completed`` whose bytes are all in the log.

        Cancellation gives up the stream; the node keeps the run for its grace time.
        """
        execution.told_deadline_at_s = execution.run_deadline_at_s
        request = node_service_pb2.RunRequest(
            job_id=execution.video_id,
            epoch=execution.epoch,
            attempt=attempt,
            spec=execution.spec,
            tenant=opaque(execution.record.tenant),
            deadline_s=max(execution.told_deadline_at_s - self._clock.monotonic(), 0.001),
            canary=False,
            alone=execution.ticket.ask.alone,
            **{"try": try_},
        )
        most_wait_s = execution.ticket.most_wait_s
        if most_wait_s is not None:
            request.max_wait_s = most_wait_s
        try:
            call = link.run(request, metadata=trace_metadata())
        except aio.UsageError:
            # The node left the fleet between placing and calling.
            return _CLOSED
        limit = asyncio.timeout(self._accept_timeout_s)
        try:
            return await self._follow(call, execution, limit)
        except aio.AioRpcError as error:
            return _fault_of(error)
        except asyncio.CancelledError:
            # A closed channel cancels its calls too, and that is no cancel of this task.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return _CLOSED
        except ByteGap:
            return Fault("corrupt_stream", "the node's stream had a gap", runs_on=True)
        except SpoolFull as error:
            return replace(OWN_DISK, code="spool_full", message=str(error), runs_on=True)
        except OSError:
            if limit.expired():
                return Fault("node_silent", "the node stopped answering", runs_on=True)
            # A TimeoutError of a disk's own (ETIMEDOUT) too.
            return replace(OWN_DISK, runs_on=True)
        finally:
            call.cancel()

    async def _follow(
        self,
        call: RunStream,
        execution: Execution,
        limit: asyncio.Timeout,
    ) -> node_service_pb2.NodeEvent | Busy | Fault:
        now = asyncio.get_running_loop().time
        log = execution.log
        async with limit:
            silent_from = 0.0
            while True:
                response = await call.read()
                if now() - silent_from > _SILENCE_SLACK_S:
                    silent_from = now()
                    limit.reschedule(silent_from + self._silence_timeout_s)
                if isinstance(response, NodeChunk):
                    self._enter_attempt(execution, response.attempt)
                    log.append_chunk(response)
                    if log.spooled.behind:
                        # The disk may be slower than the node; that silence is ours.
                        limit.reschedule(None)
                        silent_from = 0.0
                        await log.spooled.room()
                    continue
                if not isinstance(response, node_service_pb2.RunResponse):
                    return Fault("stream_ended", "the node ended its stream before the video")
                if response.HasField("busy"):
                    return Busy(response.busy)
                event = response.event
                kind = event.WhichOneof("event")
                if kind == "completed":
                    return event
                if kind == "failed":
                    return _fault_of_event(event.failed)
                if kind == "cancelled":
                    return _fault_of_cancel(event.cancelled)
                if kind is not None and kind != "accepted":
                    self._take(execution, event, kind)

    def _take(self, execution: Execution, event: node_service_pb2.NodeEvent, kind: str) -> None:
        self._enter_attempt(execution, event.attempt)
        if kind == "started":
            execution.set_status(video_pb2.VIDEO_STATUS_RUNNING)
        elif kind == "progress":
            execution.note_progress(_percent(event.progress))
        execution.log.append(event, kind)

    def _enter_attempt(self, execution: Execution, attempt: int) -> None:
        # The run's, whose leader's own log may have ended.
        run = execution.log.run
        if attempt != run.attempt:
            if attempt < run.attempt:
                raise ByteGap(f"attempt {attempt} after {run.attempt}")
            former = execution.epoch > 1 and not run.attempt
            run.begin(attempt, OWNER_LOST if former else "reattached")


def _percent(progress: video_pb2.ProgressEvent) -> int:
    """0 to 99: only a committed video is at 100. Decoding is taken to be the last tenth."""
    done = progress.step / progress.total_steps if progress.total_steps else 0.0
    if progress.stage == video_pb2.STAGE_DENOISE:
        return int(done * 90)
    if progress.stage == video_pb2.STAGE_DECODE:
        return 90 + int(done * 9)
    return 0


def _fault_of(error: aio.AioRpcError) -> Fault:
    code = error.code()
    if code in _OF_THE_JOB:
        return Fault(
            "rejected_by_node",
            "the node does not take this request",
            retryable=False,
            of_node=False,
        )
    if code is grpc.StatusCode.FAILED_PRECONDITION and _reason(error) == _STALE_OWNER_REASON:
        return STALE_OWNER
    if code is grpc.StatusCode.UNAVAILABLE:
        return Fault("node_lost", "the connection to the node broke")
    return Fault("node_error", f"the node answered {code.name}")


def _reason(error: aio.AioRpcError) -> str:
    """The reason of the error's ErrorInfo, "" where it has none."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    return ""


def _fault_of_event(failed: video_pb2.FailedEvent) -> Fault:
    # What a node calls retryable is its own doing; the rest is the request's.
    return Fault(
        failed.code or "node_error",
        failed.message or "the node reported a failure",
        retryable=failed.retryable,
        of_node=failed.retryable,
    )


def _fault_of_cancel(cancelled: video_pb2.CancelledEvent) -> Fault:
    if cancelled.reason == "deadline":
        return PAST_DEADLINE
    return Fault("node_cancelled", "the node gave the run up", of_node=False)
