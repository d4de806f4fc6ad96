"""The runs of a fake node: what it says in them, and scripts for that."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc
from reelmesh.v1 import node_service_pb2, video_pb2

VIDEO = bytes(range(256)) * 40


@dataclass
class FakeRun:
    """One call of Run, for scripts and for tests that steer it."""

    request: node_service_pb2.RunRequest
    context: object
    metadata: dict[str, str | bytes] = field(default_factory=dict)
    """What the call carried; grpc's own is gone with the call."""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    """What :func:`held` waits for."""
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by Cancel."""
    die: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by a test: the worker of a :func:`held` one dies."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    n: int = 0
    offset: int = 0
    claim: tuple[int, int] = (0, 0)
    """(epoch, try) of its present owner."""
    log: list[node_service_pb2.RunResponse] = field(default_factory=list)
    """What was sent, for those who attach."""
    outcome: str = ""
    readers: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Replaced and set when its owner changes."""
    _source: AsyncIterator[node_service_pb2.RunResponse] | None = None
    _pull: asyncio.Future[node_service_pb2.RunResponse | None] | None = None

    def begin(self, script: Script) -> None:
        self._source = script(self)

    async def responses(
        self, claim: tuple[int, int]
    ) -> AsyncIterator[node_service_pb2.RunResponse | None]:
        """What it says, from its start, to whoever holds the claim; None: it lost it."""
        sent = 0
        while True:
            if claim != self.claim:
                yield None
                return
            if sent < len(self.log):
                sent += 1
                yield self.log[sent - 1]
            elif self.ended.is_set() or not await self._more():
                return

    async def _more(self) -> bool:
        """Pulls the next response, together with whoever else reads; False at the end."""
        if self._pull is None:
            self._pull = asyncio.ensure_future(anext(self._source, None))
        pull, moved = self._pull, asyncio.ensure_future(self.moved.wait())
        try:
            await asyncio.wait([pull, moved], return_when=asyncio.FIRST_COMPLETED)
        finally:
            moved.cancel()
        if pull.done() and pull is self._pull:
            self._pull = None
            response = pull.result()
            if response is None:
                return False
            self.log.append(response)
            kind = response.event.WhichOneof("event") or ""
            self.outcome = kind if kind in ("completed", "failed", "cancelled") else ""
        return True

    def move(self, claim: tuple[int, int]) -> None:
        """Gives it to another owner; the former one's streams end."""
        self.claim = claim
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()

    async def close(self) -> None:
        self.ended.set()
        if self._pull is not None:
            self._pull.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._pull
        if self._source is not None:
            await self._source.aclose()

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
        events = (run.go, run.cancelled, run.die)
        waits = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if run.die.is_set():
            died = video_pb2.FailedEvent(code="worker_died", message="scripted", retryable=True)
            yield run.event(failed=died)
            return
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
