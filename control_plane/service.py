"""The gRPC face of the control plane: calls in, errors out by the one table."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import structlog
from grpc import aio
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import control_plane_service_pb2_grpc as cp_grpc

from control_plane.attach import NodeAttachment
from control_plane.attach_gateway import GatewayAttachment
from control_plane.errors import ControlPlaneError, abort
from control_plane.regions.watch import RegionWatchers
from control_plane.watch_fleet import FleetWatchers

_log = structlog.get_logger("control_plane.service")


class ControlPlaneService(cp_grpc.ControlPlaneServiceServicer):
    """Attach, AttachGateway, WatchFleet and WatchRegions."""

    def __init__(
        self,
        *,
        nodes: NodeAttachment,
        gateways: GatewayAttachment,
        watchers: FleetWatchers,
        regions: RegionWatchers,
    ) -> None:
        self._nodes = nodes
        self._gateways = gateways
        self._watchers = watchers
        self._regions = regions

    async def Attach(  # type: ignore[override]  # noqa: N802  # grpc.aio also takes coroutines that write
        self, request_iterator: AsyncIterator[cp.AttachRequest], context: Any
    ) -> None:
        """See control_plane_service.proto."""
        await _pump(self._nodes.serve(request_iterator), context)

    async def AttachGateway(  # type: ignore[override]  # noqa: N802  # as above
        self, request_iterator: AsyncIterator[cp.AttachGatewayRequest], context: Any
    ) -> None:
        """See control_plane_service.proto."""
        await _pump(self._gateways.serve(request_iterator), context)

    async def WatchFleet(  # type: ignore[override]  # noqa: N802  # as above
        self, request: cp.WatchFleetRequest, context: Any
    ) -> None:
        """See control_plane_service.proto."""
        await _pump(self._watchers.serve(request), context)

    async def WatchRegions(  # type: ignore[override]  # noqa: N802  # as above
        self, request: cp.WatchRegionsRequest, context: Any
    ) -> None:
        """See control_plane_service.proto."""
        await _pump(self._regions.serve(request), context)


async def _pump(responses: AsyncGenerator[Any, None], context: Any) -> None:
    """Writes the responses; a known error ends the call with its status.

    A coroutine that writes, not a generator: gRPC leaves a generator whose call was
    cancelled in a write to the garbage collector, and its tasks with it.
    """
    try:
        async with contextlib.aclosing(responses):
            async for response in responses:
                await context.write(response)
    except aio.AbortError:
        # It was refused on its way here, and told so.
        raise
    except ControlPlaneError as error:
        _log.info("call ended", code=error.code, error=str(error))
        await abort(context, error)
    except Exception:  # noqa: BLE001  # the process boundary, and it logs
        # The process boundary: a client reads no stack, the log keeps it.
        _log.exception("call failed")
        await abort(context, ControlPlaneError())
