"""Made-up nodes with a health service, attached to a control plane, and what it makes of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from grpc import aio
from grpc_health.v1 import health, health_pb2_grpc
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1.node_service_pb2_grpc import add_NodeServiceServicer_to_server

from reelkit.rpc import listen, server_options
from tests.support.controlplanes import Agent, agent
from tests.support.fakenode import FakeNode

QUICK = {
    "probe": {"interval_s": 0.1, "timeout_s": 0.3, "failures": 3, "successes": 2},
    "canary": {"enabled": False},
}


def quick_canary(**fields: Any) -> dict[str, Any]:
    """Health settings under which an idle node is tried at once."""
    canary = {"idle_s": 0.2, "retry_s": 0.1, "min_deadline_s": 1.0, **fields}
    return {**QUICK, "canary": {"enabled": True, **canary}}


class HealthNode(FakeNode):
    """A fake node that answers ``grpc.health.v1`` too, on one port for its whole life."""

    async def start(self) -> None:
        self._server = aio.server(options=server_options())
        add_NodeServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), self._server)
        port = listen(self._server, self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    def hello(self, address: str | None = None) -> cp.NodeHello:
        return cp.NodeHello(
            node_id=self.node_id,
            region="ap",
            address=address or self.address,
            incarnation="1",
            models=self.models,
            pid=1,
            status=self.status(),
        )


@contextlib.asynccontextmanager
async def attached(
    control: str, node: HealthNode, *, address: str | None = None
) -> AsyncIterator[Agent]:
    """The node, serving and reporting its status as it changes."""
    await node.start()
    try:
        async with agent(control, node.hello(address)) as stream:
            await stream.attach()
            telling = asyncio.ensure_future(_tell(node, stream))
            try:
                yield stream
            finally:
                telling.cancel()
                await asyncio.wait([telling])
    finally:
        await node.kill()


async def _tell(node: HealthNode, stream: Agent) -> None:
    while not stream.ended.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2), node.changed:
                await node.changed.wait()
        if not stream.ended.is_set():
            await stream.report(node.status())
