"""Harnesses of the tickets' contract suite: the real agent with a fake worker, and the fake."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from reelmesh.v1 import node_pb2, node_service_pb2, video_pb2
from reelmesh.v1.node_service_pb2_grpc import NodeServiceStub

from node_agent.tickets import TicketBook
from reelkit.rpc import internal_channel
from tests.support.fakenode import FakeNode, held, serve_node
from tests.support.fakeworker import FakeLauncher, Script, fake_spec
from tests.support.nodes import Node, node_config, run_request, running_node


class _Harness:
    """Runs are jobs that go on until they are told to end."""

    def __init__(self, stub: Any, book: TicketBook) -> None:
        self.stub = stub
        self.book = book
        self._runs: dict[str, Any] = {}
        self._numbers = 0

    def spec(self) -> video_pb2.ResolvedSpec:
        raise NotImplementedError

    async def run(self, job_id: str) -> node_service_pb2.RunResponse:
        """The node's first answer to a run of the job, which goes on."""
        call = self.stub.Run(run_request(job_id, spec=self.spec()))
        answer: node_service_pb2.RunResponse = await call.read()
        if not answer.HasField("busy"):
            self._runs[job_id] = call
        return answer

    async def fill(self) -> None:
        """Takes both slots."""
        for _ in range(2):
            self._numbers += 1
            answer = await self.run(f"filler-{self._numbers}")
            assert not answer.HasField("busy")

    async def free(self) -> None:
        """Ends the oldest run."""
        job_id = next(iter(self._runs))
        call = self._runs.pop(job_id)
        await self.stub.Cancel(node_service_pb2.CancelRequest(job_id=job_id, epoch=1))
        while isinstance(await call.read(), node_service_pb2.RunResponse):
            pass


class RealHarness(_Harness):
    """The agent."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.stub, node.app.table.tickets)
        self._node = node

    def spec(self) -> video_pb2.ResolvedSpec:
        return fake_spec("slow")

    async def drain(self) -> None:
        self._node.app.board.wish(draining=True)


class FakeHarness(_Harness):
    """The fake."""

    def __init__(self, node: FakeNode, stub: Any) -> None:
        super().__init__(stub, node.tickets)
        self._node = node

    def spec(self) -> video_pb2.ResolvedSpec:
        return video_pb2.ResolvedSpec(prompt="x")

    async def drain(self) -> None:
        self._node.state = node_pb2.NODE_STATE_DRAINING
        await self._node.push()


@contextlib.asynccontextmanager
async def real_node(tmp_path: Path) -> AsyncIterator[RealHarness]:
    launcher = FakeLauncher([Script(step_s=1.0)])
    async with running_node(node_config(tmp_path), launcher=launcher) as node:
        await node.until_ready()
        yield RealHarness(node)


@contextlib.asynccontextmanager
async def fake_node(_tmp_path: Path) -> AsyncIterator[FakeHarness]:
    node = FakeNode("n0", slots=2)
    node.default = held()
    async with serve_node(node), internal_channel(node.address) as channel:
        yield FakeHarness(node, NodeServiceStub(channel))


HARNESSES = [real_node, fake_node]
