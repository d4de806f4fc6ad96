"""A node agent in the test's own process, with fake workers and a client of its service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpc import aio
from reelmesh.v1 import node_pb2
from reelmesh.v1.node_pb2 import NodeStatus
from reelmesh.v1.node_service_pb2 import (
    CancelRequest,
    NodeEvent,
    ReleaseRequest,
    RunRequest,
    RunResponse,
    WatchStatusRequest,
)
from reelmesh.v1.node_service_pb2_grpc import NodeServiceStub

from node_agent.app import NodeApp, build_app
from node_agent.config import NodeConfig
from node_agent.device_figures import Gpus
from node_agent.worker_life import Launcher
from reelkit.rpc import internal_channel
from tests.support.fakeworker import FakeLauncher, fake_spec, write_fake_model

DEADLINE_S = 60.0


def node_config(tmp_path: Path, **changes: Any) -> NodeConfig:
    """Settings of a node with the fake model and short waits."""
    folder = tmp_path / "model"
    if not folder.exists():
        write_fake_model(folder)
    values: dict[str, Any] = {
        "node_id": "ap-node-0",
        "region": "ap",
        "model": {"source": str(folder)},
        "workers": {"respawn_first_s": 0.05, "respawn_max_s": 0.2},
        **changes,
    }
    return NodeConfig.model_validate(values)


def run_request(job_id: str = "job-1", **changes: Any) -> RunRequest:
    """A run of the fake model; ``prompt`` goes into its spec."""
    spec = changes.pop("spec", None) or fake_spec(changes.pop("prompt", "a red ball"))
    fields = {"epoch": 1, "try": 1, "attempt": 1, "job_id": job_id, "spec": spec, **changes}
    return RunRequest(**fields)


def kind_of(event: NodeEvent) -> str:
    """The name of the event's kind."""
    return event.WhichOneof("event") or ""


@dataclass
class Node:
    """A running agent and a stub of its service."""

    app: NodeApp
    launcher: Launcher
    stub: Any

    async def until(self, holds: Callable[[NodeStatus], bool]) -> NodeStatus:
        """The first pushed status that ``holds``; fails after the deadline."""
        async with asyncio.timeout(DEADLINE_S):
            async for response in self.stub.WatchStatus(WatchStatusRequest()):
                if holds(response.status):
                    return response.status
        raise AssertionError("the status stream ended")

    async def until_ready(self) -> NodeStatus:
        return await self.until(lambda s: s.state == node_pb2.NODE_STATE_READY)

    async def responses(self, request: RunRequest) -> list[RunResponse]:
        """The whole answer to a run."""
        async with asyncio.timeout(DEADLINE_S):
            return [response async for response in self.stub.Run(request)]

    async def events(self, request: RunRequest) -> list[NodeEvent]:
        """The numbered events of a run, to its end."""
        return [r.event for r in await self.responses(request) if r.event.n > 0]

    async def read_until(self, call: Any, kind: str) -> list[NodeEvent]:
        """Reads a stream up to the first event of a kind."""
        events: list[NodeEvent] = []
        async with asyncio.timeout(DEADLINE_S):
            while True:
                response = await call.read()
                assert response is not aio.EOF, [kind_of(event) for event in events]
                events.append(response.event)
                if kind_of(response.event) == kind:
                    return events

    async def cancel(self, job_id: str, *, epoch: int = 1, reason: str = "client") -> bool:
        request = CancelRequest(job_id=job_id, epoch=epoch, reason=reason)
        return (await self.stub.Cancel(request, timeout=DEADLINE_S)).found

    async def release(self, job_id: str, *, epoch: int = 1) -> None:
        await self.stub.Release(ReleaseRequest(job_id=job_id, epoch=epoch), timeout=DEADLINE_S)


@contextlib.asynccontextmanager
async def running_node(
    config: NodeConfig, *, launcher: Launcher | None = None, gpus: Gpus | None = None
) -> AsyncIterator[Node]:
    """A node on a free port, and its client; both are stopped at the end."""
    launcher = launcher or FakeLauncher()
    async with (
        build_app(config, launcher=launcher, gpus=gpus) as app,
        internal_channel(app.address) as channel,
    ):
        yield Node(app, launcher, NodeServiceStub(channel))
