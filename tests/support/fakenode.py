"""A node agent made up: the real NodeService on a free port, doing what a test scripts.

Each run takes the next of ``node.script``, else ``node.default``. The node keeps its
status as a real one does (executions, free slots, pushed on change), and its rules of who
may run, attach and stop (``tests/integration/test_node_run.py`` holds the real one to
them). Unlike a real one it goes on only while somebody reads, and lets go of a run with
its last reader unless told otherwise (``keeps``).
"""
# ruff: noqa: N802, ARG002 - methods are named and called as the service says

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator, Callable

from grpc import aio
from grpc_status import rpc_status
from reelmesh.v1 import (
    control_plane_service_pb2,
    model_pb2,
    node_pb2,
    node_service_pb2,
)
from reelmesh.v1.node_service_pb2_grpc import NodeServiceServicer, add_NodeServiceServicer_to_server

from node_agent.errors import StaleOwnerError, to_status
from node_agent.ticket_desk import TicketDesk
from node_agent.tickets import TicketBook
from reelkit.clock import SystemClock
from reelkit.rpc import listen, server_options
from tests.support.fakeruns import (
    VIDEO,
    FakeRun,
    Script,
    break_off,
    busy,
    fail,
    finish,
    held,
    silent,
)

__all__ = [
    "MODEL",
    "VIDEO",
    "FakeNode",
    "FakeRun",
    "Script",
    "break_off",
    "busy",
    "fail",
    "finish",
    "held",
    "serve_node",
    "silent",
]

MODEL = model_pb2.ModelInfo(
    name="fake-wan",
    version="1",
    manifest_sha256="0" * 64,
    pipeline_class="WanPipeline",
    sizes=[
        model_pb2.VideoSize(width_px=96, height_px=64),
        model_pb2.VideoSize(width_px=128, height_px=96),
    ],
    size_aliases=[
        model_pb2.SizeAlias(alias="480p", size=model_pb2.VideoSize(width_px=128, height_px=96))
    ],
    frames=model_pb2.FrameRule(min=5, max=49, step=4),
    fps=8,
    seconds=model_pb2.SecondsRule(min_s=0.5, max_s=6),
    steps=model_pb2.IntRange(min=1, max=50),
    guidance_scale=model_pb2.DoubleRange(min=0, max=20),
    flow_shift=model_pb2.DoubleRange(min=0.1, max=20),
    defaults=model_pb2.GenerationDefaults(
        size=model_pb2.VideoSize(width_px=96, height_px=64),
        num_frames=17,
        steps=4,
        guidance_scale=5,
        flow_shift=5,
        negative_prompt="blurry",
    ),
    max_prompt_chars=2_000,
)


class FakeNode(NodeServiceServicer):
    """See the module; start it with :func:`serve_node`."""

    def __init__(
        self,
        node_id: str,
        *,
        slots: int = 2,
        units_per_second: float = 10.0,
        keeps: bool = False,
    ) -> None:
        self.node_id = node_id
        self.slots = slots
        self.keeps = keeps
        """A run that nobody reads any more is kept, for another owner to attach."""
        self.address = ""
        self.state = node_pb2.NODE_STATE_READY
        self.remaining_work_s = 0.0
        self.units_per_second = units_per_second
        self.first_status_after_s = 0.0
        """How long those who begin to watch it wait."""
        self.incarnation = "1"
        self.models = [MODEL]
        self.script: deque[Script] = deque()
        self.default: Script = finish()
        self.runs: list[FakeRun] = []
        self.live: dict[str, FakeRun] = {}
        self.kept: dict[str, FakeRun] = {}
        """Completed runs that nobody released yet."""
        self.claims: dict[str, tuple[int, int]] = {}
        """The newest of each job."""
        self.cancels: list[node_service_pb2.CancelRequest] = []
        self.releases: list[node_service_pb2.ReleaseRequest] = []
        self.changed = asyncio.Condition()
        """Notified after every run, cancel, release and status change."""
        self._version = 0
        self._server: aio.Server | None = None
        self.tickets = TicketBook()
        self._desk = TicketDesk(
            book=self.tickets,
            waits_s=self._waits_s,
            on_change=self._tell_soon,
            clock=SystemClock(),
        )
        self._tasks: set[asyncio.Future[None]] = set()

    # --- the service ---

    async def Run(
        self, request: node_service_pb2.RunRequest, context: aio.ServicerContext
    ) -> AsyncIterator[node_service_pb2.RunResponse]:
        claim = (request.epoch, getattr(request, "try"))
        await self._refuse_stale(request.job_id, claim, context)
        run = await self._attached(request.job_id, claim)
        if run is None and self._untaken() <= self.tickets.held_back(request.job_id) > 0:
            yield node_service_pb2.RunResponse(busy=node_service_pb2.Busy(remaining_work_s=0.1))
            return
        run = run or await self._admitted(request, claim, context)
        run.readers += 1
        try:
            async for response in run.responses(claim):
                if response is None:
                    await self._refuse_stale(request.job_id, claim, context)
                yield response
        finally:
            run.readers -= 1
            if not run.readers and not (self.keeps and self._goes_on(run)):
                await self._let_go(run)

    async def _refuse_stale(
        self, job_id: str, claim: tuple[int, int], context: aio.ServicerContext
    ) -> None:
        if claim < self.claims.get(job_id, (0, 0)):
            error = StaleOwnerError("another owner has the job")
            await context.abort_with_status(rpc_status.to_status(to_status(error)))

    async def _attached(self, job_id: str, claim: tuple[int, int]) -> FakeRun | None:
        """The run that goes on, or has completed, where the claim may have it."""
        run = self.live.get(job_id) or self.kept.get(job_id)
        former = self.claims.get(job_id)
        self.claims[job_id] = claim
        if run is None or former is None:
            return None
        may_attach = claim == former or claim[0] > former[0]
        if may_attach and run.outcome in ("", "completed") and not run.cancelled.is_set():
            run.move(claim)
            return run
        run.move(claim)
        await self._let_go(run)
        self.kept.pop(job_id, None)
        return None

    async def _admitted(
        self,
        request: node_service_pb2.RunRequest,
        claim: tuple[int, int],
        context: aio.ServicerContext,
    ) -> FakeRun:
        metadata = dict(context.invocation_metadata() or ())
        run = FakeRun(request, context, metadata, claim=claim)
        run.begin(self.script.popleft() if self.script else self.default)
        self.runs.append(run)
        self.live[request.job_id] = run
        self.tickets.ran(request.job_id)
        await self.push()
        return run

    def _goes_on(self, run: FakeRun) -> bool:
        return self.live.get(run.request.job_id) is run and not run.outcome

    async def _let_go(self, run: FakeRun) -> None:
        job_id = run.request.job_id
        if self.live.get(job_id) is run:
            del self.live[job_id]
            if run.outcome == "completed":
                self.kept[job_id] = run
        await run.close()
        await self.push()

    async def Cancel(
        self, request: node_service_pb2.CancelRequest, context: aio.ServicerContext
    ) -> node_service_pb2.CancelResponse:
        await self._refuse_stale(request.job_id, (request.epoch, 2**32), context)
        self.cancels.append(request)
        run = self.live.get(request.job_id)
        if run is not None:
            run.cancelled.set()
            if not run.readers:
                await self._let_go(run)
        await self.push()
        return node_service_pb2.CancelResponse(found=run is not None)

    async def Release(
        self, request: node_service_pb2.ReleaseRequest, context: aio.ServicerContext
    ) -> node_service_pb2.ReleaseResponse:
        await self._refuse_stale(request.job_id, (request.epoch, 2**32), context)
        self.releases.append(request)
        self.kept.pop(request.job_id, None)
        await self.push()
        return node_service_pb2.ReleaseResponse()

    async def WatchStatus(
        self, request: node_service_pb2.WatchStatusRequest, context: aio.ServicerContext
    ) -> AsyncIterator[node_service_pb2.WatchStatusResponse]:
        told = -1
        await asyncio.sleep(self.first_status_after_s)
        while True:
            if told != self._version:
                told = self._version
                yield node_service_pb2.WatchStatusResponse(status=self.status())
            async with self.changed:
                while told == self._version:
                    await self.changed.wait()

    async def Tickets(self, requests: object, context: aio.ServicerContext) -> None:
        await self._desk.serve(requests, context)

    # --- what tests steer and ask ---

    def _untaken(self) -> int:
        return max(self.slots - len(self.live), 0)

    def _waits_s(self) -> list[float]:
        if self.state != node_pb2.NODE_STATE_READY:
            return []
        wait_s = self.remaining_work_s if self.live else 0.0
        return [wait_s, *[math.inf] * self.slots][: self._untaken()]

    def _tell_soon(self) -> None:
        task = asyncio.ensure_future(self._tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def status(self) -> node_pb2.NodeStatus:
        return node_pb2.NodeStatus(
            node_id=self.node_id,
            version=self._version,
            state=self.state,
            workers=[node_pb2.WorkerStatus(id="w", state=node_pb2.WORKER_STATE_IDLE)],
            executions=[
                node_pb2.Execution(job_id=job_id, epoch=run.claim[0], running=True)
                for job_id, run in self.live.items()
            ],
            free_slots=max(self._untaken() - self.tickets.offered, 0),
            remaining_work_s=self.remaining_work_s,
            units_per_second=self.units_per_second,
            models=self._versions(),
            incarnation=self.incarnation,
        )

    def record(self) -> control_plane_service_pb2.NodeRecord:
        return control_plane_service_pb2.NodeRecord(
            node_id=self.node_id,
            region="ap",
            address=self.address,
            incarnation=self.incarnation,
            state=self.state,
            models=self._versions(),
            worker_count=1,
            units_per_second=self.units_per_second,
        )

    def _versions(self) -> list[node_pb2.ModelVersion]:
        return [
            node_pb2.ModelVersion(name=m.name, version=m.version, manifest_sha256=m.manifest_sha256)
            for m in self.models
        ]

    async def push(self) -> None:
        """Tells everybody who watches what the status now is."""
        self._desk.look()
        await self._tell()

    async def _tell(self) -> None:
        async with self.changed:
            self._version += 1
            self.changed.notify_all()

    async def until(self, condition: Callable[[], object], *, within_s: float = 10.0) -> None:
        """Waits until something holds that only the node's calls change."""
        async with asyncio.timeout(within_s), self.changed:
            await self.changed.wait_for(lambda: bool(condition()))

    async def run_at(self, index: int) -> FakeRun:
        """The run of that number, waited for."""
        await self.until(lambda: len(self.runs) > index)
        return self.runs[index]

    async def start(self) -> None:
        """Listens; on the port it had where it was stopped before."""
        self._server = aio.server(options=server_options())
        add_NodeServiceServicer_to_server(self, self._server)
        port = listen(self._server, self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()
        self._tasks.add(asyncio.ensure_future(self._desk.expire()))

    async def kill(self) -> None:
        """Cuts every stream and stops listening."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(0)
            for task in tuple(self._tasks):
                task.cancel()
            self._tasks.clear()
            for run in tuple(self.live.values()):
                await run.close()
            self.live.clear()
            self.kept.clear()


@contextlib.asynccontextmanager
async def serve_node(node: FakeNode) -> AsyncIterator[FakeNode]:
    """Serves until the block is left."""
    await node.start()
    try:
        yield node
    finally:
        await node.kill()
