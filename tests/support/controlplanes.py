"""Control planes under test, and the agents and gateways that call them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import model_pb2, node_pb2, registry_pb2
from reelmesh.v1.control_plane_service_pb2_grpc import ControlPlaneServiceStub

from control_plane.app import ControlPlaneApp, build_app
from control_plane.config import ControlPlaneConfig
from reelkit import rpc

DEADLINE_S = 20.0
REGION = "ap"


def config_for(*endpoints: str, **fields: Any) -> ControlPlaneConfig:
    """A configuration for tests: a free port, short times."""
    data = {
        "listen": "127.0.0.1:0",
        "region": REGION,
        "replica_id": "r0",
        "etcd": {"endpoints": list(endpoints)} if endpoints else {},
        "lease_ttl_s": 2,
        "reflection": False,
        "drain_s": 1,
        "fleet": {"heartbeat_s": 0.2},
        # Agents of these tests listen nowhere.
        "health": {"probe": {"enabled": False}, "canary": {"enabled": False}},
        "election": {"ttl_s": 2},
    }
    return ControlPlaneConfig.model_validate({**data, **fields})


@contextlib.asynccontextmanager
async def running(
    *endpoints: str, store: Any = None, **fields: Any
) -> AsyncIterator[ControlPlaneApp]:
    """A control plane in this process that is ready."""
    async with build_app(config_for(*endpoints, **fields), store=store) as app:
        async with asyncio.timeout(DEADLINE_S):
            await app.ready.wait()
        yield app


def model_info(number: int = 0, **fields: Any) -> model_pb2.ModelInfo:
    """What some model version can do."""
    defaults = {"name": "demo", "version": f"v{number}", "manifest_sha256": f"{number:064x}"}
    return model_pb2.ModelInfo(**{**defaults, **fields})


def node_hello(node_id: str = "ap-node-0", **fields: Any) -> cp.NodeHello:
    """A hello that breaks no rule."""
    defaults: dict[str, Any] = {
        "region": REGION,
        "address": "127.0.0.1:7070",
        "incarnation": "life-1",
        "pid": 4711,
        "models": [model_info()],
        "status": node_status(),
    }
    return cp.NodeHello(node_id=node_id, **{**defaults, **fields})


def node_status(state: int = node_pb2.NODE_STATE_READY, **fields: Any) -> node_pb2.NodeStatus:
    """A report that breaks no rule."""
    defaults: dict[str, Any] = {
        "workers": [node_pb2.WorkerStatus(id="ap-node-0/worker-0")],
        "models": [node_pb2.ModelVersion(name="demo", version="v0", manifest_sha256="0" * 64)],
        "units_per_second": 2.0,
    }
    return node_pb2.NodeStatus(state=state, **{**defaults, **fields})


class Agent:
    """A node agent's stream, as far as the control plane sees it."""

    def __init__(self, address: str, hello: cp.NodeHello) -> None:
        self.hello = hello
        self.welcomes: list[cp.AttachWelcome] = []
        self.desired: list[cp.DesiredNodeState] = []
        self.weights: list[registry_pb2.NodeWeights] = []
        self.error: BaseException | None = None
        self.ended = asyncio.Event()
        self._news = asyncio.Event()
        self._channel = rpc.internal_channel(address)
        self._call: Any = ControlPlaneServiceStub(self._channel).Attach()
        self._status = hello.status
        self._tasks: list[asyncio.Task[None]] = []

    async def attach(self) -> cp.AttachWelcome:
        """Says hello and returns the welcome; raises what the stream ended with."""
        await self._call.write(cp.AttachRequest(hello=self.hello))
        self._tasks.append(asyncio.ensure_future(self._receive()))
        await self.until(lambda: bool(self.welcomes) or self.ended.is_set())
        if self.error is not None:
            raise self.error
        return self.welcomes[0]

    def keep_reporting(self, every_s: float = 0.5) -> None:
        """Reports from now on, as agents do."""
        self._tasks.append(asyncio.ensure_future(self._report_on(every_s)))

    async def report(self, status: node_pb2.NodeStatus | None = None) -> None:
        """Sends one report."""
        self._status = status or self._status
        await self._call.write(cp.AttachRequest(status=self._status))

    async def half_close(self) -> None:
        """Ends the requests in good order and waits for the end of the stream."""
        await self._stop_reporting()
        await self._call.done_writing()
        async with asyncio.timeout(DEADLINE_S):
            await self.ended.wait()

    async def crash(self) -> None:
        """Breaks the connection."""
        await self._stop_reporting()
        await self._channel.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something to come down the stream."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def _receive(self) -> None:
        try:
            async for response in self._call:
                if response.HasField("welcome"):
                    self.welcomes.append(response.welcome)
                elif response.HasField("weights"):
                    self.weights.append(response.weights)
                else:
                    self.desired.append(response.desired)
                self._news.set()
        except (grpc.RpcError, asyncio.CancelledError) as error:
            self.error = error
        finally:
            self.ended.set()
            self._news.set()

    async def _report_on(self, every_s: float) -> None:
        # A stream that ended takes no more reports; the test looks at self.error.
        with contextlib.suppress(Exception):
            while not self.ended.is_set():
                await self.report()
                await asyncio.sleep(every_s)

    async def _stop_reporting(self) -> None:
        for task in self._tasks[1:]:
            task.cancel()
            await asyncio.wait([task])
        del self._tasks[1:]

    async def close(self) -> None:
        """Leaves nothing behind."""
        await self._channel.close()
        for task in self._tasks:
            task.cancel()
            await asyncio.wait([task])


@contextlib.asynccontextmanager
async def agent(address: str, hello: cp.NodeHello | None = None) -> AsyncIterator[Agent]:
    """An agent that has not said hello yet."""
    made = Agent(address, hello or node_hello())
    try:
        yield made
    finally:
        await made.close()


class Watcher:
    """A gateway's view of the fleet through WatchFleet."""

    def __init__(self, address: str, *, after_version: int = 0) -> None:
        self.nodes: dict[str, cp.NodeRecord] = {}
        self.models: dict[str, model_pb2.ModelInfo] = {}
        self.responses: list[cp.WatchFleetResponse] = []
        self.removed: list[str] = []
        self.error: BaseException | None = None
        self._news = asyncio.Event()
        self._channel = rpc.internal_channel(address)
        self._call: Any = ControlPlaneServiceStub(self._channel).WatchFleet(
            cp.WatchFleetRequest(after_version=after_version)
        )
        self._task = asyncio.ensure_future(self._follow())

    @property
    def kinds(self) -> list[str]:
        """The kinds of responses so far, heartbeats left out."""
        kinds = [str(response.WhichOneof("message")) for response in self.responses]
        return [kind for kind in kinds if kind != "heartbeat"]

    @property
    def version(self) -> int:
        """Of the last response."""
        return self.responses[-1].version

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something to come down the stream."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                if self.error is not None:
                    raise self.error
                self._news.clear()
                await self._news.wait()

    async def heartbeats(self, count: int = 1) -> None:
        """Waits for that many more heartbeats."""

        def beats() -> int:
            return sum(response.HasField("heartbeat") for response in self.responses)

        goal = beats() + count
        await self.until(lambda: beats() >= goal)

    async def _follow(self) -> None:
        try:
            async for response in self._call:
                self._take(response)
                self._news.set()
        except (grpc.RpcError, asyncio.CancelledError) as error:
            self.error = error
        finally:
            self._news.set()

    def _take(self, response: cp.WatchFleetResponse) -> None:
        self.responses.append(response)
        if response.HasField("snapshot"):
            self.nodes = {node.node_id: node for node in response.snapshot.nodes}
            self.models = {model.manifest_sha256: model for model in response.snapshot.models}
        elif response.HasField("delta"):
            self.nodes |= {node.node_id: node for node in response.delta.upserted_nodes}
            self.models |= {m.manifest_sha256: m for m in response.delta.upserted_models}
            for node_id in response.delta.removed_node_ids:
                self.removed.append(node_id)
                self.nodes.pop(node_id, None)

    async def close(self) -> None:
        """Leaves nothing behind."""
        await self._channel.close()
        self._task.cancel()
        await asyncio.wait([self._task])


@contextlib.asynccontextmanager
async def watcher(address: str, *, after_version: int = 0) -> AsyncIterator[Watcher]:
    """A watch that has begun."""
    made = Watcher(address, after_version=after_version)
    try:
        yield made
    finally:
        await made.close()
