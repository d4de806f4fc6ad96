"""Standard gRPC health (grpc.health.v1) that follows the application's readiness."""

from __future__ import annotations

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.application import VideoApplication
from reelkit.clock import Clock

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthFromReadiness(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # untyped base
    """Answers from ``application.ready()`` at the moment of the question.

    Args:
        application: Who knows.
        services: Full names that are answered for, besides "" for the whole server.
        clock: Paces a Watch.
        poll_s: Seconds between two looks of a Watch.
    """

    def __init__(
        self,
        *,
        application: VideoApplication,
        services: tuple[str, ...],
        clock: Clock,
        poll_s: float,
    ) -> None:
        self._application = application
        self._services = frozenset(services) | {""}
        self._clock = clock
        self._poll_s = poll_s

    async def Check(  # noqa: N802 - the name of the RPC
        self,
        request: health_pb2.HealthCheckRequest,
        context: aio.ServicerContext,  # type: ignore[type-arg] # generic in the stubs alone
    ) -> health_pb2.HealthCheckResponse:
        """The status of one service now; NOT_FOUND where it is not known."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def List(  # noqa: N802 - likewise
        self,
        request: health_pb2.HealthListRequest,  # noqa: ARG002 - the RPC's shape
        context: aio.ServicerContext,  # type: ignore[type-arg] # noqa: ARG002
    ) -> health_pb2.HealthListResponse:
        """The status of every service now."""
        return health_pb2.HealthListResponse(
            statuses={
                name: health_pb2.HealthCheckResponse(status=self._status(name))
                for name in sorted(self._services)
            }
        )

    async def Watch(  # noqa: N802 - likewise
        self,
        request: health_pb2.HealthCheckRequest,
        context: aio.ServicerContext,  # type: ignore[type-arg] # likewise
    ) -> None:
        """The status now and each time that it changes, until the client leaves."""
        told = None
        while True:
            status = self._status(request.service)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            await self._clock.sleep(self._poll_s)

    def _status(self, service: str) -> int:
        if service not in self._services:
            return int(_UNKNOWN)
        ready, _reason = self._application.ready()
        return int(_SERVING if ready else _NOT_SERVING)
