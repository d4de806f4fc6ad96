"""NodeService over gRPC: runs, cancels, releases, and the status.

Events leave as the bytes that the event log keeps: they are serialised once, whatever
the number of readers, and never parsed here.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import grpc
import structlog
from grpc import aio
from grpc_status import rpc_status
from opentelemetry import trace
from reelmesh.v1.node_service_pb2 import (
    Accepted,
    Busy,
    CancelRequest,
    CancelResponse,
    NodeEvent,
    ReleaseRequest,
    ReleaseResponse,
    RunRequest,
    RunResponse,
    TicketsRequest,
    TicketsResponse,
    WatchStatusRequest,
)

from node_agent.errors import CallError, InvalidRunError, ModelNotLoadedError, to_status
from node_agent.executions import ExecutionTable, NotAdmittedError
from node_agent.manifest import Manifest, SpecRefusedError
from node_agent.slots import Execution
from node_agent.status import StatusBoard
from node_agent.ticket_desk import TicketDesk
from reelkit.clock import Clock
from reelkit.tracing import context_from_metadata, current_traceparent

SERVICE_NAME = "reelmesh.v1.NodeService"

_log = structlog.get_logger("node_agent.service")
_tracer = trace.get_tracer("node_agent")

_MAX_ID_CHARS = 128
# What a node that takes nothing now says at least, so that nobody asks in a tight loop.
_NOT_NOW_S = 1.0

Context = aio.ServicerContext[Any, Any]


class NodeService:
    """The handlers; one instance per agent."""

    def __init__(
        self,
        *,
        table: ExecutionTable,
        board: StatusBoard,
        manifest: Callable[[], Manifest | None],
        desk: TicketDesk,
        clock: Clock,
    ) -> None:
        self._table = table
        self._board = board
        self._manifest = manifest
        self._desk = desk
        self._clock = clock

    def add_to(self, server: aio.Server) -> None:
        """Registers the handlers; streams carry ready-made bytes."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Run": grpc.unary_stream_rpc_method_handler(
                self.run, request_deserializer=RunRequest.FromString
            ),
            "Cancel": grpc.unary_unary_rpc_method_handler(
                self.cancel,
                request_deserializer=CancelRequest.FromString,
                response_serializer=CancelResponse.SerializeToString,
            ),
            "Release": grpc.unary_unary_rpc_method_handler(
                self.release,
                request_deserializer=ReleaseRequest.FromString,
                response_serializer=ReleaseResponse.SerializeToString,
            ),
            "WatchStatus": grpc.unary_stream_rpc_method_handler(
                self.watch_status, request_deserializer=WatchStatusRequest.FromString
            ),
            "Tickets": grpc.stream_stream_rpc_method_handler(
                self._desk.serve,
                request_deserializer=TicketsRequest.FromString,
                response_serializer=TicketsResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),)
        )

    async def run(self, request: RunRequest, context: Context) -> AsyncIterator[bytes]:
        """Answers with the events of the run; see the proto for who may attach."""
        parent = context_from_metadata(context.invocation_metadata())
        attributes: dict[str, str | int] = {
            "job.id": request.job_id,
            "job.attempt": request.attempt,
        }
        # Never the current span across a yield: grpc closes the generator of a client that
        # left in another context, where the former span cannot be made current again.
        span = _tracer.start_span(
            "node.run", context=parent, kind=trace.SpanKind.SERVER, attributes=attributes
        )
        try:
            execution = await self._admit(request, context, span)
            if isinstance(execution, NotAdmittedError):
                yield self._busy(execution)
                return
            claim = execution.claim
            self._table.attach(execution)
            try:
                yield self._accepted(execution)
                after_n = request.after_n if request.attempt == execution.attempt else 0
                async for frame in self._follow(execution, claim, after_n, context):
                    yield frame
            finally:
                self._table.detach(execution, claim, now_s=self._clock.monotonic())
        finally:
            span.end()

    async def _admit(
        self, request: RunRequest, context: Context, span: trace.Span
    ) -> Execution | NotAdmittedError:
        """The execution that the run attaches to; ends the call where it may not."""
        with trace.use_span(span):
            try:
                self._check(request)
                execution = self._table.run(
                    request, now_s=self._clock.monotonic(), traceparent=current_traceparent()
                )
            except NotAdmittedError as busy:
                return busy
            except CallError as error:
                await _abort(context, error)
            _log.info(
                "run",
                job_id=execution.job_id,
                attempt=execution.attempt,
                epoch=execution.claim[0],
                try_number=execution.claim[1],
                phase=execution.phase.value,
                worker=execution.worker_id,
            )
            return execution

    async def _follow(
        self, execution: Execution, claim: tuple[int, int], after_n: int, context: Context
    ) -> AsyncIterator[bytes]:
        log = execution.log
        sent = after_n
        while True:
            try:
                self._table.check_claim(execution, claim)
            except CallError as error:
                await _abort(context, error)
            for frame in log.frames_after(sent):
                yield frame
                sent += 1
            if sent < log.last_n:
                continue
            if log.ended:
                return
            await log.changed()

    async def cancel(self, request: CancelRequest, context: Context) -> CancelResponse:
        """Stops the live run of the job within a step."""
        try:
            found = self._table.cancel(
                request.job_id,
                epoch=request.epoch,
                reason=request.reason or "client",
                now_s=self._clock.monotonic(),
            )
        except CallError as error:
            await _abort(context, error)
        return CancelResponse(found=found)

    async def release(self, request: ReleaseRequest, context: Context) -> ReleaseResponse:
        """Forgets the bytes of a finished run."""
        try:
            self._table.release(request.job_id, epoch=request.epoch)
        except CallError as error:
            await _abort(context, error)
        return ReleaseResponse()

    async def watch_status(
        self, _request: WatchStatusRequest, _context: Context
    ) -> AsyncIterator[bytes]:
        """The status at once and after every change; changes close together share one."""
        async for frame in self._board.frames():
            yield frame

    def _check(self, request: RunRequest) -> None:
        if not 1 <= len(request.job_id) <= _MAX_ID_CHARS:
            raise InvalidRunError("job_id", f"must have 1 to {_MAX_ID_CHARS} characters")
        if request.epoch < 1:
            raise InvalidRunError("epoch", "must be 1 or more")
        if request.HasField("deadline_s") and not math.isfinite(request.deadline_s):
            raise InvalidRunError("deadline_s", "must be a finite number of seconds, or absent")
        if request.HasField("max_wait_s") and not math.isfinite(request.max_wait_s):
            raise InvalidRunError("max_wait_s", "must be a finite number of seconds, or absent")
        manifest = self._manifest()
        if manifest is None:
            return  # Nothing is loaded: there is no slot either, and busy says it.
        spec = request.spec
        if (spec.model, spec.model_version) != (manifest.name, manifest.version):
            raise ModelNotLoadedError(
                f"this node serves {manifest.name}@{manifest.version}, "
                f"not {spec.model}@{spec.model_version}"
            )
        try:
            manifest.check_spec(spec)
        except SpecRefusedError as error:
            fields, _, rule = str(error).partition(": ")
            # "width, height": the first one stands for the pair.
            raise InvalidRunError(f"spec.{fields.partition(',')[0]}", rule) from None

    def _busy(self, busy: NotAdmittedError) -> bytes:
        remaining_s = busy.remaining_work_s
        if not self._table.admitting or not any(True for _ in self._table.slots()):
            remaining_s = max(remaining_s, _NOT_NOW_S)
        answer = Busy(
            remaining_work_s=remaining_s,
            status_version=self._board.current.version,
            too_long=busy.too_long,
        )
        return RunResponse(busy=answer).SerializeToString()

    def _accepted(self, execution: Execution) -> bytes:
        accepted = Accepted(remaining_work_s=self._table.remaining_work_s())
        event = NodeEvent(attempt=execution.attempt, accepted=accepted)
        return RunResponse(event=event).SerializeToString()


async def _abort(context: Context, error: CallError) -> NoReturn:
    _log.info("call refused", code=error.code, error=str(error))
    await context.abort_with_status(rpc_status.to_status(to_status(error)))
    raise AssertionError("abort_with_status always raises")
