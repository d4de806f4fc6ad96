"""A control plane made up: WatchFleet and AttachGateway on a free port, told by the test."""
# ruff: noqa: N802, ARG002 - methods are named and called as the service says

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from grpc import aio
from reelmesh.v1 import control_plane_service_pb2, model_pb2
from reelmesh.v1.control_plane_service_pb2_grpc import (
    ControlPlaneServiceServicer,
    add_ControlPlaneServiceServicer_to_server,
)

from reelkit.rpc import listen, server_options
from tests.support.fakenode import MODEL


class FakeControl(ControlPlaneServiceServicer):
    """Tells gateways of :attr:`nodes`; notes their hellos and beats."""

    def __init__(self, *, lease_ttl_s: float = 3.0, heartbeat_s: float | None = None) -> None:
        self.address = ""
        self.heartbeat_s = heartbeat_s
        """None: it says nothing while nothing changes, as one that hangs."""
        self.lease_ttl_s = lease_ttl_s
        self.hellos: list[control_plane_service_pb2.GatewayHello] = []
        self.beats = 0
        self.watches: list[int] = []
        """after_version of each WatchFleet call."""
        self.changed = asyncio.Condition()
        self._nodes: dict[str, control_plane_service_pb2.NodeRecord] = {}
        self._models: list[model_pb2.ModelInfo] = [MODEL]
        self._version = 1
        self._removed: list[str] = []
        self._upserted: list[control_plane_service_pb2.NodeRecord] = []
        self._server: aio.Server | None = None

    # --- the service ---

    async def WatchFleet(
        self,
        request: control_plane_service_pb2.WatchFleetRequest,
        context: aio.ServicerContext,
    ) -> AsyncIterator[control_plane_service_pb2.WatchFleetResponse]:
        async with self.changed:
            self.watches.append(request.after_version)
            self.changed.notify_all()
        told = self._version
        yield control_plane_service_pb2.WatchFleetResponse(
            version=told,
            snapshot=control_plane_service_pb2.FleetSnapshot(
                nodes=self._nodes.values(), models=self._models
            ),
        )
        while True:
            if not await self._changes_soon(told):
                heartbeat = control_plane_service_pb2.FleetHeartbeat()
                yield control_plane_service_pb2.WatchFleetResponse(
                    version=told, heartbeat=heartbeat
                )
                continue
            told = self._version
            yield control_plane_service_pb2.WatchFleetResponse(
                version=told,
                delta=control_plane_service_pb2.FleetDelta(
                    upserted_nodes=self._upserted,
                    removed_node_ids=self._removed,
                    upserted_models=self._models,
                ),
            )

    async def WatchRegions(
        self,
        request: control_plane_service_pb2.WatchRegionsRequest,
        context: aio.ServicerContext,
    ) -> AsyncIterator[control_plane_service_pb2.WatchRegionsResponse]:
        while True:
            yield control_plane_service_pb2.WatchRegionsResponse()
            await asyncio.sleep(1.0)

    async def _changes_soon(self, told: int) -> bool:
        """Waits for another version than the one told; False: a heartbeat is due."""
        try:
            async with asyncio.timeout(self.heartbeat_s), self.changed:
                await self.changed.wait_for(lambda: told != self._version)
        except TimeoutError:
            return False
        return True

    async def AttachGateway(
        self,
        request_iterator: AsyncIterator[control_plane_service_pb2.AttachGatewayRequest],
        context: aio.ServicerContext,
    ) -> AsyncIterator[control_plane_service_pb2.AttachGatewayResponse]:
        async for request in request_iterator:
            async with self.changed:
                if request.HasField("hello"):
                    self.hellos.append(request.hello)
                else:
                    self.beats += 1
                self.changed.notify_all()
            if request.HasField("hello"):
                yield control_plane_service_pb2.AttachGatewayResponse(
                    lease_id=request.hello.lease_id or 4711,
                    lease_ttl_s=self.lease_ttl_s,
                    replica_id="fake",
                )

    # --- what tests steer and ask ---

    async def tell(
        self,
        *upserted: control_plane_service_pb2.NodeRecord,
        removed: tuple[str, ...] = (),
    ) -> None:
        """A change of the fleet, as one delta to whoever watches."""
        for record in upserted:
            self._nodes[record.node_id] = record
        for node_id in removed:
            self._nodes.pop(node_id, None)
        async with self.changed:
            self._upserted, self._removed = list(upserted), list(removed)
            self._version += 1
            self.changed.notify_all()

    async def until(self, condition: Callable[[], object], *, within_s: float = 10.0) -> None:
        """Waits until something holds that only gateways' calls change."""
        async with asyncio.timeout(within_s), self.changed:
            await self.changed.wait_for(lambda: bool(condition()))

    async def start(self) -> None:
        """Listens; on the port it had where it was stopped before."""
        self._server = aio.server(options=server_options())
        add_ControlPlaneServiceServicer_to_server(self, self._server)
        port = listen(self._server, self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def kill(self) -> None:
        """Cuts every stream and stops listening."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(0)


@contextlib.asynccontextmanager
async def serve_control(control: FakeControl) -> AsyncIterator[FakeControl]:
    """Serves until the block is left."""
    await control.start()
    try:
        yield control
    finally:
        await control.kill()
