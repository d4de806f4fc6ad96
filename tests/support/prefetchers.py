"""A node's prefetcher with its real child processes, and peers that serve well or badly."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from grpc import aio
from reelmesh.v1 import registry_pb2 as reg
from reelmesh.v1.weights_service_pb2 import ReadFileResponse
from reelmesh.v1.weights_service_pb2_grpc import (
    WeightsServiceServicer,
    add_WeightsServiceServicer_to_server,
)

from node_agent.config import ModelSettings, RegistrySettings
from node_agent.content import ContentStore
from node_agent.prefetch import Prefetcher
from node_agent.weights_service import WeightsService
from reelkit.clock import SystemClock
from reelkit.rpc import listen, server_options
from reelkit.tasks import TaskScope

DEADLINE_S = 60.0
VERIFIED, FAILED = reg.WEIGHTS_STATE_VERIFIED, reg.WEIGHTS_STATE_FAILED


class Node:
    """A prefetcher that runs, and what it told of itself."""

    def __init__(self, folder: Path, scope: TaskScope, **changes: Any) -> None:
        registry = {
            name: changes.pop(name)
            for name in list(changes)
            if name in RegistrySettings.model_fields
        }
        node_id = changes.pop("node_id", "n0")
        model = {"source": "unused", "cache_dir": folder, **changes}
        self._news = asyncio.Event()
        self.prefetcher = Prefetcher(
            node_id=node_id,
            region="ap",
            model=ModelSettings.model_validate(model),
            registry=RegistrySettings.model_validate(registry),
            mtls=None,
            clock=SystemClock(),
            on_change=lambda _urgent: self._changed(),
        )
        self.history: list[reg.WeightsStatus] = []
        self.on_status: Callable[[reg.WeightsStatus], None] = lambda _status: None
        self._task = scope.spawn(self.prefetcher.run(), name="prefetch")

    @property
    def store(self) -> ContentStore:
        return self.prefetcher.store

    def _changed(self) -> None:
        for status in self.prefetcher.statuses():
            kept = reg.WeightsStatus()
            kept.CopyFrom(status)
            self.history.append(kept)
            self.on_status(kept)
        self._news.set()

    def want(self, *models: reg.RegisteredModel, peers: Any = (), origin: bool = True) -> None:
        self.prefetcher.want(
            reg.NodeWeights(
                wanted=[
                    reg.WantedWeights(model=model, peers=peers, may_use_origin=origin)
                    for model in models
                ]
            )
        )

    async def until(self, state: int, model: reg.RegisteredModel | None = None) -> Any:
        """The status once it is so."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for status in self.prefetcher.statuses():
                    named = model is None or status.version == model.version
                    if named and status.state == state:
                        return status
                self._news.clear()
                await self._news.wait()

    async def refusal(self) -> str:
        """Why it failed."""
        said: str = (await self.until(FAILED)).reason
        assert "\n" not in said
        return said

    async def stop(self) -> None:
        """As a kill of the agent: its child goes with it."""
        self._task.cancel()
        await asyncio.wait([self._task])


@contextlib.asynccontextmanager
async def running(folder: Path, **changes: Any) -> AsyncIterator[Node]:
    async with TaskScope("test") as scope:
        yield Node(folder, scope, **changes)


@contextlib.asynccontextmanager
async def serving(servicer: Any) -> AsyncIterator[str]:
    """The address of a server of WeightsService."""
    server = aio.server(options=server_options())
    if isinstance(servicer, WeightsService):
        servicer.add_to(server)
    else:
        add_WeightsServiceServicer_to_server(servicer, server)
    port = listen(server, "127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def peer_of(
    node: Node, *, max_streams: int = 8, bytes_per_s: float | None = None
) -> WeightsService:
    """The service as a node offers it."""
    return WeightsService(
        store=node.store, max_streams=max_streams, bytes_per_s=bytes_per_s, clock=SystemClock()
    )


class BadPeer(WeightsServiceServicer):
    """Sends whatever it is told to for any file."""

    def __init__(self, *blocks: bytes, then_hang: bool = False) -> None:
        self.blocks = blocks
        self.then_hang = then_hang
        self.asked = 0

    async def ReadFile(  # noqa: N802
        self, _request: Any, _context: Any
    ) -> AsyncIterator[ReadFileResponse]:
        self.asked += 1
        for block in self.blocks:
            yield ReadFileResponse(data=block)
        if self.then_hang:
            await asyncio.Event().wait()
