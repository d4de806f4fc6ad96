"""Gateways as far as the control plane can tell: WatchFleet and AttachGateway streams.

Run by benchmarks/fleet.py.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence

from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1.control_plane_service_pb2_grpc import ControlPlaneServiceStub

from benchmarks.machine import LoopDelay
from benchmarks.support.fleet_agents import REGION
from benchmarks.support.talk import Answer, answer_questions
from reelkit import rpc

BEAT_S = 3.0


class SimGateway:
    """One gateway's two streams on a connection of its own."""

    def __init__(self, gateway_id: str, control_plane: str, board: Board) -> None:
        self.nodes: set[str] = set()
        self._id = gateway_id
        self._stub = ControlPlaneServiceStub(rpc.internal_channel(control_plane))
        self._board = board

    async def watch(self) -> None:
        """Follows the fleet until cancelled."""
        async for response in self._stub.WatchFleet(cp.WatchFleetRequest()):
            kind = response.WhichOneof("message")
            if kind == "snapshot":
                self.nodes = {node.node_id for node in response.snapshot.nodes}
                self._board.snapshots += 1
            elif kind == "delta":
                self.nodes.update(node.node_id for node in response.delta.upserted_nodes)
                self.nodes.difference_update(response.delta.removed_node_ids)
                self._board.deltas += 1
                self._board.marks(response.delta.upserted_nodes)
            self._board.counted()

    async def attach(self) -> None:
        """Says hello and beats until cancelled."""
        async for _ in self._stub.AttachGateway(self._beats()):
            pass

    async def _beats(self) -> AsyncIterator[cp.AttachGatewayRequest]:
        hello = cp.GatewayHello(
            gateway_id=self._id,
            region=REGION,
            grpc_address="127.0.0.1:1",
            http_address="127.0.0.1:2",
            incarnation="life-1",
        )
        yield cp.AttachGatewayRequest(hello=hello)
        while True:
            await asyncio.sleep(BEAT_S)
            yield cp.AttachGatewayRequest(beat=cp.GatewayBeat())


class Board:
    """What all gateways of this process have seen."""

    def __init__(self) -> None:
        self.gateways: Sequence[SimGateway] = ()
        self.deltas = 0
        self.snapshots = 0
        self._seen: dict[str, int] = {}
        self._last_s: list[float] = []
        self._first_s: list[float] = []
        self._changed = asyncio.Event()

    def marks(self, nodes: Iterable[cp.NodeRecord]) -> None:
        """Notes which marks came, and how old each was at the first and the last gateway."""
        for node in nodes:
            if not node.reason.startswith("mark "):
                continue
            age_s = time.monotonic() - float(node.reason.removeprefix("mark "))
            mark = f"{node.node_id} {node.reason}"
            seen = self._seen[mark] = self._seen.get(mark, 0) + 1
            if seen == 1:
                self._first_s.append(age_s)
            if seen == len(self.gateways):
                self._last_s.append(age_s)

    def counted(self) -> None:
        """Some gateway may know another number of nodes now."""
        self._changed.set()

    async def until(self, least: int, most: int, within_s: float) -> Answer:
        """Answers when every gateway knows that many nodes, or the time is over."""
        reached = True
        try:
            async with asyncio.timeout(within_s):
                while not all(least <= len(each.nodes) <= most for each in self.gateways):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            reached = False
        return {"at": time.monotonic(), "reached": reached, **await self.count()}

    async def count(self) -> Answer:
        """How many nodes they know, and what came so far."""
        counts = [len(each.nodes) for each in self.gateways]
        return {
            "least": min(counts),
            "most": max(counts),
            "deltas": self.deltas,
            "snapshots": self.snapshots,
        }

    async def latencies(self, expected: int, within_s: float) -> Answer:
        """Ages of the marks at the first and last gateway, once all of them have come."""
        async with LoopDelay() as loop:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    while len(self._last_s) < expected:
                        self._changed.clear()
                        await self._changed.wait()
        answer = {
            "last_s": self._last_s,
            "first_s": self._first_s,
            "loop_p99_s": loop.delay.p99_s,
        }
        self._seen, self._last_s, self._first_s = {}, [], []
        return answer


async def serve(args: argparse.Namespace) -> None:
    """Runs the gateways until the parent closes our input."""
    board = Board()
    board.gateways = [
        SimGateway(f"gateway-{number}", args.control_plane, board) for number in range(args.count)
    ]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(stream, name=name)
            for each in board.gateways
            for name, stream in (("watch", each.watch()), ("attach", each.attach()))
        ]
        await answer_questions(
            {"until": board.until, "count": board.count, "latencies": board.latencies}
        )
        for task in tasks:
            task.cancel()


def main() -> None:
    """Starts as a child of benchmarks/fleet.py."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control-plane", required=True)
    parser.add_argument("--count", type=int, required=True)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
