"""A node agent made up: the real NodeService on a free port, doing what a test scripts.

Each run takes the next of ``node.script``, else ``node.default``. The node keeps its
status as a real one does (executions, free slots, pushed on change).
"""
# ruff: noqa: N802, ARG002 - methods are named and called as the service says

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc
from grpc import aio
from reelmesh.v1 import (
    control_plane_service_pb2,
    model_pb2,
    node_pb2,
    node_service_pb2,
    video_pb2,
)
from reelmesh.v1.node_service_pb2_grpc import NodeServiceServicer, add_NodeServiceServicer_to_server

from reelkit.rpc import listen, server_options

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

VIDEO = bytes(range(256)) * 40


@dataclass
class FakeRun:
    """One call of Run, for scripts and for tests that steer it."""

    request: node_service_pb2.RunRequest
    context: object
    go: asyncio.Event = field(default_factory=asyncio.Event)
    """What :func:`held` waits for."""
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by Cancel."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    n: int = 0
    offset: int = 0

    def event(self, **event: object) -> node_service_pb2.RunResponse:
        """The next numbered event."""
        self.n += 1
        return node_service_pb2.RunResponse(
            event=node_service_pb2.NodeEvent(attempt=self.request.attempt, n=self.n, **event)
        )

    def accepted(self) -> node_service_pb2.RunResponse:
        return node_service_pb2.RunResponse(
            event=node_service_pb2.NodeEvent(
                attempt=self.request.attempt, accepted=node_service_pb2.Accepted()
            )
        )

    def started(self, node_id: str = "node") -> node_service_pb2.RunResponse:
        started = video_pb2.StartedEvent(
            region="ap", node=node_id, attempt=self.request.attempt, model_version="1"
        )
        return self.event(started=started)

    def progress(self, step: int, total: int = 4) -> node_service_pb2.RunResponse:
        progress = video_pb2.ProgressEvent(
            step=step, total_steps=total, stage=video_pb2.STAGE_DENOISE
        )
        return self.event(progress=progress)

    def chunk(self, data: bytes) -> node_service_pb2.RunResponse:
        chunk = video_pb2.ChunkEvent(attempt=self.request.attempt, offset=self.offset, data=data)
        self.offset += len(data)
        return self.event(chunk=chunk)

    def completed(self, data: bytes) -> node_service_pb2.RunResponse:
        spec = self.request.spec
        completed = video_pb2.CompletedEvent(
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            num_frames=spec.num_frames,
            fps=spec.fps,
            width=spec.width,
            height=spec.height,
            seed=spec.seed,
            model=spec.model,
            model_version=spec.model_version,
            attempt=self.request.attempt,
            gpu_seconds=0.5,
        )
        return self.event(completed=completed)


Script = Callable[[FakeRun], AsyncIterator[node_service_pb2.RunResponse]]


def finish(data: bytes = VIDEO, *, piece: int = 1024) -> Script:
    """Draws the whole video at once."""

    async def script(run: FakeRun) -> AsyncIterator[node_service_pb2.RunResponse]:
        yield run.accepted()
        yield run.started()
        yield run.progress(4)
        for start in range(0, len(data), piece):
            yield run.chunk(data[start : start + piece])
        yield run.completed(data)

    return script


def held(data: bytes = VIDEO, *, before: int = 0, piece: int = 1024) -> Script:
    """Starts, sends ``before`` pieces and waits for ``run.go`` or a cancel."""

    async def script(run: FakeRun) -> AsyncIterator[node_service_pb2.RunResponse]:
        yield run.accepted()
        yield run.started()
        yield run.progress(1)
        for start in range(0, before * piece, piece):
            yield run.chunk(data[start : start + piece])
        waits = [asyncio.ensure_future(run.go.wait()), asyncio.ensure_future(run.cancelled.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if run.cancelled.is_set():
            yield run.event(cancelled=video_pb2.CancelledEvent(reason="client"))
            return
        for start in range(before * piece, len(data), piece):
            yield run.chunk(data[start : start + piece])
        yield run.completed(data)

    return script


def break_off(
    data: bytes = VIDEO,
    *,
    after: int = 2,
    piece: int = 1024,
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
) -> Script:
    """Sends ``after`` pieces, then the stream breaks."""

    async def script(run: FakeRun) -> AsyncIterator[node_service_pb2.RunResponse]:
        yield run.started()
        for start in range(0, after * piece, piece):
            yield run.chunk(data[start : start + piece])
        await run.context.abort(code, "scripted")

    return script


def fail(code: str = "worker_died", *, retryable: bool = True) -> Script:
    """Starts and fails."""

    async def script(run: FakeRun) -> AsyncIterator[node_service_pb2.RunResponse]:
        yield run.started()
        failed = video_pb2.FailedEvent(code=code, message="scripted", retryable=retryable)
        yield run.event(failed=failed)

    return script


def busy() -> Script:
    """Refuses."""

    async def script(_run: FakeRun) -> AsyncIterator[node_service_pb2.RunResponse]:
        yield node_service_pb2.RunResponse(busy=node_service_pb2.Busy(remaining_work_s=3))

    return script


def silent() -> Script:
    """Says nothing until the caller gives up."""

    async def script(_run: FakeRun) -> AsyncIterator[node_service_pb2.RunResponse]:
        await asyncio.Event().wait()
        yield node_service_pb2.RunResponse()

    return script


class FakeNode(NodeServiceServicer):
    """See the module; start it with :func:`serve_node`."""

    def __init__(self, node_id: str, *, slots: int = 2, units_per_second: float = 10.0) -> None:
        self.node_id = node_id
        self.slots = slots
        self.address = ""
        self.state = node_pb2.NODE_STATE_READY
        self.remaining_work_s = 0.0
        self.units_per_second = units_per_second
        self.incarnation = "1"
        self.models = [MODEL]
        self.script: deque[Script] = deque()
        self.default: Script = finish()
        self.runs: list[FakeRun] = []
        self.live: dict[str, FakeRun] = {}
        self.cancels: list[node_service_pb2.CancelRequest] = []
        self.releases: list[node_service_pb2.ReleaseRequest] = []
        self.changed = asyncio.Condition()
        """Notified after every run, cancel, release and status change."""
        self._version = 0
        self._server: aio.Server | None = None

    # --- the service ---

    async def Run(
        self, request: node_service_pb2.RunRequest, context: aio.ServicerContext
    ) -> AsyncIterator[node_service_pb2.RunResponse]:
        run = FakeRun(request, context)
        script = self.script.popleft() if self.script else self.default
        self.runs.append(run)
        self.live[request.job_id] = run
        await self.push()
        try:
            async for response in script(run):
                yield response
        finally:
            run.ended.set()
            if self.live.get(request.job_id) is run:
                del self.live[request.job_id]
            await self.push()

    async def Cancel(
        self, request: node_service_pb2.CancelRequest, context: aio.ServicerContext
    ) -> node_service_pb2.CancelResponse:
        self.cancels.append(request)
        run = self.live.get(request.job_id)
        if run is not None:
            run.cancelled.set()
        await self.push()
        return node_service_pb2.CancelResponse(found=run is not None)

    async def Release(
        self, request: node_service_pb2.ReleaseRequest, context: aio.ServicerContext
    ) -> node_service_pb2.ReleaseResponse:
        self.releases.append(request)
        await self.push()
        return node_service_pb2.ReleaseResponse()

    async def WatchStatus(
        self, request: node_service_pb2.WatchStatusRequest, context: aio.ServicerContext
    ) -> AsyncIterator[node_service_pb2.WatchStatusResponse]:
        told = -1
        while True:
            if told != self._version:
                told = self._version
                yield node_service_pb2.WatchStatusResponse(status=self.status())
            async with self.changed:
                while told == self._version:
                    await self.changed.wait()

    # --- what tests steer and ask ---

    def status(self) -> node_pb2.NodeStatus:
        return node_pb2.NodeStatus(
            node_id=self.node_id,
            version=self._version,
            state=self.state,
            workers=[node_pb2.WorkerStatus(id="w", state=node_pb2.WORKER_STATE_IDLE)],
            executions=[
                node_pb2.Execution(job_id=job_id, epoch=run.request.epoch, running=True)
                for job_id, run in self.live.items()
            ],
            free_slots=max(self.slots - len(self.live), 0),
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

    async def kill(self) -> None:
        """Cuts every stream and stops listening."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(0)
            self.live.clear()


@contextlib.asynccontextmanager
async def serve_node(node: FakeNode) -> AsyncIterator[FakeNode]:
    """Serves until the block is left."""
    await node.start()
    try:
        yield node
    finally:
        await node.kill()
