"""A node whose capacity is known exactly: each run holds one of its slots for a fixed time.

``python -m benchmarks.support.slot_node --control-plane HOST:PORT --ready-file FILE
--name NAME --slots 2 --hold-s 0.5``

Speaks the real NodeService with a node agent's rules of admission: one running and one
waiting job per slot, busy beyond that. A slot that has a job waiting goes on at the moment
at which the one before ended, however late this process is woken, so that the capacity is
slots / hold and nothing else; what is missed of it is the gateways' doing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc import aio
from reelmesh.v1 import node_pb2, node_service_pb2, video_pb2

from benchmarks.support.instant_node import MODEL, STEPS, attach, completed_event
from reelkit import rpc
from reelkit.files import write_json_atomic
from reelkit.tasks import TaskScope

VIDEO = bytes(range(256)) * 16
# What the model's defaults amount to; see gateway.fleet.placement.work_units.
UNITS = 128 * 96 * 17 * STEPS / 1e6
REPORT_S = 1.0


@dataclass(eq=False)
class Run:
    """One job at the node."""

    request: node_service_pb2.RunRequest
    came_s: float
    started_s: float | None = None
    started: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: str = ""


class SlotNode:
    """See the module.

    Args:
        name: Its id.
        slots: Jobs that run at once.
        hold_s: How long each of them does.
    """

    def __init__(self, name: str, *, slots: int, hold_s: float) -> None:
        self.name = name
        self.hold_s = hold_s
        self.completed = 0
        self._slots = slots
        self._waiting: deque[Run] = deque()
        self._running: list[Run] = []
        self._live: dict[str, Run] = {}
        self._version = 0
        self._changed = asyncio.Condition()
        self._arrived = asyncio.Condition()

    # --- the service ---

    async def run(
        self, request: bytes, _context: aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        """NodeService.Run."""
        asked = node_service_pb2.RunRequest.FromString(request)
        run = self._live.get(asked.job_id)
        if run is None:
            busy = self._refusal(asked)
            if busy is not None:
                yield node_service_pb2.RunResponse(busy=busy).SerializeToString()
                return
            run = await self._admitted(asked)
        accepted = node_service_pb2.Accepted(remaining_work_s=self.remaining_work_s())
        yield _event(asked, 0, accepted=accepted)
        await run.started.wait()
        yield _event(asked, 1, started=_started(asked, self.name))
        await run.ended.wait()
        if run.outcome == "cancelled":
            yield _event(asked, 2, cancelled=video_pb2.CancelledEvent())
            return
        chunk = video_pb2.ChunkEvent(attempt=asked.attempt, offset=0, data=VIDEO)
        yield _event(asked, 2, chunk=chunk)
        yield _event(asked, 3, completed=completed_event(VIDEO, attempt=asked.attempt))

    async def cancel(self, request: bytes, _context: aio.ServicerContext[bytes, bytes]) -> bytes:
        """NodeService.Cancel."""
        asked = node_service_pb2.CancelRequest.FromString(request)
        run = self._live.get(asked.job_id)
        if run is not None:
            await self._end(run, "cancelled")
        return node_service_pb2.CancelResponse(found=run is not None).SerializeToString()

    async def release(self, _request: bytes, _context: aio.ServicerContext[bytes, bytes]) -> bytes:
        """NodeService.Release: nothing is kept."""
        return node_service_pb2.ReleaseResponse().SerializeToString()

    async def watch_status(
        self, _request: bytes, _context: aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        """NodeService.WatchStatus."""
        told = -1
        while True:
            if told != self._version:
                told = self._version
                yield node_service_pb2.WatchStatusResponse(status=self.status()).SerializeToString()
            async with self._changed:
                while told == self._version:
                    await self._changed.wait()

    # --- its work ---

    async def work(self) -> None:
        """Serves the slots, for ever."""
        async with TaskScope("slots") as scope:
            for number in range(self._slots):
                scope.spawn(self._slot(), name=f"slot-{number}")
            await asyncio.Event().wait()

    async def _slot(self) -> None:
        free_s = 0.0
        while True:
            async with self._arrived:
                await self._arrived.wait_for(lambda: self._waiting)
                run = self._waiting.popleft()
            run.started_s = max(run.came_s, free_s)
            self._running.append(run)
            run.started.set()
            await self._push()
            free_s = run.started_s + self.hold_s
            try:
                async with asyncio.timeout(max(free_s - time.monotonic(), 0.0)):
                    await run.ended.wait()
                free_s = time.monotonic()
            except TimeoutError:
                self.completed += 1
                await self._end(run, "completed")

    async def _end(self, run: Run, outcome: str) -> None:
        run.outcome = run.outcome or outcome
        self._live.pop(run.request.job_id, None)
        if run in self._running:
            self._running.remove(run)
        elif run in self._waiting:
            self._waiting.remove(run)
        run.started.set()
        run.ended.set()
        await self._push()

    async def _admitted(self, request: node_service_pb2.RunRequest) -> Run:
        run = Run(request, time.monotonic())
        self._live[request.job_id] = run
        self._waiting.append(run)
        await self._push()
        async with self._arrived:
            self._arrived.notify()
        return run

    def _refusal(self, request: node_service_pb2.RunRequest) -> node_service_pb2.Busy | None:
        full = len(self._live) >= 2 * self._slots
        work_s = self.remaining_work_s()
        too_long = request.HasField("max_wait_s") and work_s > request.max_wait_s
        if not full and not too_long:
            return None
        return node_service_pb2.Busy(
            remaining_work_s=work_s, status_version=self._version, too_long=not full
        )

    def remaining_work_s(self) -> float:
        """Seconds until its first slot is out of work."""
        now_s = time.monotonic()
        ends = sorted((run.started_s or now_s) + self.hold_s - now_s for run in self._running)
        ends = [0.0] * (self._slots - len(ends)) + ends
        for _ in self._waiting:
            ends[0] = max(ends[0], 0.0) + self.hold_s
            ends.sort()
        return max(ends[0], 0.0)

    # --- what it tells ---

    async def _push(self) -> None:
        async with self._changed:
            self._version += 1
            self._changed.notify_all()

    def status(self) -> node_pb2.NodeStatus:
        """What it holds now."""
        workers = [
            node_pb2.WorkerStatus(
                id=f"{self.name}/worker-{n}", pid=os.getpid(), state=node_pb2.WORKER_STATE_IDLE
            )
            for n in range(self._slots)
        ]
        return node_pb2.NodeStatus(
            node_id=self.name,
            version=self._version,
            state=node_pb2.NODE_STATE_READY,
            workers=workers,
            executions=[
                node_pb2.Execution(
                    job_id=job_id, epoch=run.request.epoch, running=run in self._running
                )
                for job_id, run in self._live.items()
            ],
            free_slots=max(2 * self._slots - len(self._live), 0),
            remaining_work_s=self.remaining_work_s(),
            units_per_second=UNITS / self.hold_s,
            models=[
                node_pb2.ModelVersion(
                    name=MODEL.name, version=MODEL.version, manifest_sha256=MODEL.manifest_sha256
                )
            ],
            incarnation=self.name,
        )

    def handlers(self) -> grpc.GenericRpcHandler:
        """NodeService, for a server."""
        by_name = {
            "Run": grpc.unary_stream_rpc_method_handler(self.run),
            "WatchStatus": grpc.unary_stream_rpc_method_handler(self.watch_status),
            "Release": grpc.unary_unary_rpc_method_handler(self.release),
            "Cancel": grpc.unary_unary_rpc_method_handler(self.cancel),
        }
        return grpc.method_handlers_generic_handler("reelmesh.v1.NodeService", by_name)


def _started(asked: node_service_pb2.RunRequest, name: str) -> video_pb2.StartedEvent:
    return video_pb2.StartedEvent(
        region="bench", node=name, attempt=asked.attempt, model_version=MODEL.version
    )


def _event(asked: node_service_pb2.RunRequest, n: int, **event: object) -> bytes:
    return node_service_pb2.RunResponse(
        event=node_service_pb2.NodeEvent(attempt=asked.attempt, n=n, **event)  # type: ignore[arg-type]  # one oneof field each
    ).SerializeToString()


async def serve(
    node: SlotNode, *, control_plane: str, region: str = "bench", ready_file: Path | None = None
) -> None:
    """Serves a node and keeps it in the fleet until it is cancelled."""
    server = aio.server(options=rpc.server_options())
    server.add_generic_rpc_handlers((node.handlers(),))
    port = rpc.listen(server, "127.0.0.1:0")
    await server.start()
    address = f"127.0.0.1:{port}"
    if ready_file is not None:
        write_json_atomic(ready_file, {"grpc": address, "pid": os.getpid()})
    try:
        async with TaskScope("node") as scope:
            scope.spawn(node.work(), name="work")
            await attach(control_plane, address, region=region, status=node.status)
    finally:
        await server.stop(0)


def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control-plane", required=True)
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--hold-s", type=float, required=True)
    args = parser.parse_args()
    node = SlotNode(args.name, slots=args.slots, hold_s=args.hold_s)
    asyncio.run(serve(node, control_plane=args.control_plane, ready_file=args.ready_file))


if __name__ == "__main__":
    main()
