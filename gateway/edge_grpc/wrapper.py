"""What surrounds every RPC of ours: trace, metrics, token, scope, and rich errors.

A plain wrapper around each handler, not an interceptor: an interceptor of a streaming
RPC would touch every message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self
from urllib.parse import unquote

import grpc
import structlog
from google.protobuf.message import Message
from grpc import aio
from opentelemetry import trace

from gateway import errors
from gateway.application import Caller
from gateway.auth import access
from gateway.auth.door import Door
from gateway.auth.errors import MalformedToken
from gateway.auth.rates import Allowance
from gateway.edge.metrics import EdgeMetrics
from gateway.edge_grpc.decode import Undecodable, deserializer
from gateway.edge_grpc.status import RichStatus, internal_status, rich_status
from gateway.edge_grpc.writing import TimedWrites, Write
from reelkit.clock import Clock
from reelkit.tracing import context_from_metadata

# A status leaves at once where the client reads.
_ABORT_S = 1.0

_log = structlog.get_logger("gateway.grpc")
_tracer = trace.get_tracer("gateway.grpc")

Context = Any  # aio.ServicerContext is generic in the stubs and not at run time
Unary = Callable[[Caller, Any], Awaitable[Message]]
Streaming = Callable[[Caller, Any, Write], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC: its full name, what it reads and who answers it."""

    endpoint: str
    request: type[Message]
    unary: Unary | None = None
    streaming: Streaming | None = None
    max_bytes: int | None = None
    """Largest request, where that is not as the others'."""


class GrpcEdge:
    """Makes guarded grpc handlers of application calls."""

    def __init__(
        self,
        *,
        door: Door,
        metrics: EdgeMetrics,
        clock: Clock,
        max_message_bytes: int,
        write_timeout_s: float,
    ) -> None:
        self._door = door
        self._metrics = metrics
        self._clock = clock
        self._max_message_bytes = max_message_bytes
        self._write_timeout_s = write_timeout_s

    def handler(self, rpc: Rpc) -> grpc.RpcMethodHandler[Any, Any]:
        """The guarded handler of an RPC.

        Raises:
            UnlistedEndpoint: The access table does not name it.
        """
        scope = access.required_scope(rpc.endpoint)
        if scope is None:
            raise access.UnlistedEndpoint(f"{rpc.endpoint} needs a scope in the access table")
        decode = deserializer(rpc.request, max_bytes=rpc.max_bytes or self._max_message_bytes)
        if rpc.streaming is not None:
            return grpc.unary_stream_rpc_method_handler(
                self._guarded(rpc.endpoint, scope, self._answer_stream(rpc.streaming)),
                request_deserializer=decode,
                response_serializer=_serialize,
            )
        if rpc.unary is None:
            raise TypeError(f"{rpc.endpoint} has no handler")
        return grpc.unary_unary_rpc_method_handler(
            self._guarded(rpc.endpoint, scope, _answer_unary(rpc.unary)),
            request_deserializer=decode,
            response_serializer=_serialize,
        )

    def _guarded(
        self,
        endpoint: str,
        scope: access.Scope,
        answer: Callable[[Caller, Any, Context], Awaitable[Message | None]],
    ) -> Callable[[Any, Context], Awaitable[Message | None]]:
        async def guarded(request: Any, context: Context) -> Message | None:
            metadata = context.invocation_metadata()
            span = _tracer.start_as_current_span(
                endpoint[1:],
                context=context_from_metadata(metadata),
                kind=trace.SpanKind.SERVER,
                attributes={"rpc.system": "grpc"},
                record_exception=False,
            )
            with span as current, self._measured(endpoint) as outcome:
                try:
                    address = self._door.address_of(_host_of(context.peer()), _forwarded(metadata))
                    caller = await self._door.enter(_authorization(metadata), address)
                    allowance = await self._door.charge(caller)
                    if allowance is not None:
                        context.set_trailing_metadata(_told(allowance))
                    access.require(caller, scope)
                    if isinstance(request, Undecodable):
                        raise request.error
                    answered = await answer(caller, request, context)
                except errors.GatewayError as error:
                    if isinstance(error, errors.QuotaExceeded):
                        self._metrics.quota_refused(error.quota)
                    status = rich_status(error)
                except Exception:  # noqa: BLE001 - the process's boundary: logged, told bare
                    _log.exception("unexpected error", rpc=endpoint)
                    status = internal_status()
                else:
                    outcome.code = grpc.StatusCode.OK.name
                    return answered
                outcome.code = status.code.name
                current.set_attribute("rpc.grpc.status_code", status.code.value[0])
                await _abort(context, status)
                return None

        return guarded

    def _answer_stream(
        self, streaming: Streaming
    ) -> Callable[[Caller, Any, Context], Awaitable[Message | None]]:
        async def answer(caller: Caller, request: Any, context: Context) -> Message | None:
            # H.264 does not get smaller, and the CPU is the gateway's scarcest good.
            context.set_compression(grpc.Compression.NoCompression)
            writes = TimedWrites(context.write, timeout_s=self._write_timeout_s)
            await writes.run(partial(streaming, caller, request))
            return None

        return answer

    def _measured(self, endpoint: str) -> _Measured:
        return _Measured(self._metrics, self._clock, endpoint)


class _Measured:
    """Counts one call; what ends without a status was cancelled by its client."""

    def __init__(self, metrics: EdgeMetrics, clock: Clock, endpoint: str) -> None:
        self.code = grpc.StatusCode.CANCELLED.name
        self._metrics = metrics
        self._clock = clock
        self._labels = {"protocol": "grpc", "route": endpoint, "method": "POST"}
        self._started_s = clock.monotonic()

    def __enter__(self) -> Self:
        self._metrics.started(**self._labels)
        return self

    def __exit__(self, *_exc: object) -> None:
        seconds = self._clock.monotonic() - self._started_s
        self._metrics.ended(**self._labels, code=self.code, seconds=seconds)


def _answer_unary(
    unary: Unary,
) -> Callable[[Caller, Any, Context], Awaitable[Message | None]]:
    async def answer(caller: Caller, request: Any, _context: Context) -> Message | None:
        return await unary(caller, request)

    return answer


async def _abort(context: Context, status: RichStatus) -> None:
    """Ends the call with a status, which waits behind what the client has not read yet."""
    try:
        async with asyncio.timeout(_ABORT_S):
            await context.abort(status.code, status.details, status.trailing_metadata)
    except TimeoutError:
        # It is under way and will be read if the client ever reads again; nobody need
        # wait for that. Returning instead would have grpc complain of the abort.
        raise asyncio.CancelledError from None


def _told(allowance: Allowance) -> tuple[tuple[str, str], ...]:
    """As over HTTP."""
    return tuple((name.lower(), value) for name, value in allowance.headers.items())


def _serialize(message: Message | bytes) -> bytes:
    # Events come encoded; see VideoApplication.watch_encoded.
    return message if isinstance(message, bytes) else message.SerializeToString()


def _authorization(metadata: aio.Metadata | tuple[tuple[str, Any], ...] | None) -> str | None:
    values = [value for key, value in metadata or () if key == "authorization"]
    if len(values) > 1:
        raise MalformedToken("send one authorization entry, not several")
    return str(values[0]) if values else None


def _forwarded(metadata: aio.Metadata | tuple[tuple[str, Any], ...] | None) -> list[str]:
    return [str(value) for key, value in metadata or () if key == "x-forwarded-for"]


def _host_of(peer: str) -> str:
    """The address in a peer as grpc writes it: ``ipv4:10.0.0.7:5031``, ``ipv6:[::1]:5031``."""
    _, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]")
