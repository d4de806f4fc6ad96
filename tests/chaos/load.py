"""Clients of the public API that write down what they see."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from grpc import aio
from reelmesh.v1 import video_pb2, video_service_pb2
from reelmesh.v1.video_service_pb2_grpc import VideoServiceStub

from tests.chaos.history import TERMINAL, History, Kind, Operation, Seen, Standing, Watch, Wish
from tests.support.faulty_mesh import FaultyMesh
from wan_t2v_sdk import AsyncTextToVideoGenerator, ReelmeshError

STEPS, FRAMES = 6, 9
CALL_S = 5.0
RETRY_S = 0.2
PATIENCE_S = 90.0
_STATUSES = {
    video_pb2.VIDEO_STATUS_COMPLETED: "completed",
    video_pb2.VIDEO_STATUS_FAILED: "failed",
    video_pb2.VIDEO_STATUS_CANCELLED: "cancelled",
    video_pb2.VIDEO_STATUS_RUNNING: "running",
    video_pb2.VIDEO_STATUS_QUEUED: "queued",
}
# What another gateway, or the same one in a moment, may answer otherwise.
_AGAIN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
)

T = TypeVar("T")


class GaveUpError(Exception):
    """No gateway gave an answer within the client's patience."""


class Clients:
    """Makes operations against a mesh and notes them in a history."""

    def __init__(self, mesh: FaultyMesh, history: History, *, rng: random.Random) -> None:
        self._mesh = mesh
        self._history = history
        self._rng = rng
        self._now = asyncio.get_running_loop().time
        self._channels: dict[str, aio.Channel] = {}
        self._metadata = (("authorization", f"Bearer {mesh.tokens.user}"),)
        self._sdk = AsyncTextToVideoGenerator(
            endpoints=mesh.endpoints(), token=mesh.tokens.user, timeout_s=PATIENCE_S
        )

    async def close(self) -> None:
        """Closes every connection."""
        await self._sdk.close()
        for channel in self._channels.values():
            await channel.close()

    def stub(self, gateway: str) -> VideoServiceStub:
        """The public service of one gateway."""
        if gateway not in self._channels:
            self._channels[gateway] = aio.insecure_channel(
                self._mesh.grpc(gateway),
                options=[("grpc.max_reconnect_backoff_ms", 500), ("grpc.keepalive_time_ms", 2000)],
            )
        return VideoServiceStub(self._channels[gateway])

    def gateways(self, region: str) -> list[str]:
        """A region's gateways in an order of chance."""
        ids = self._mesh.ids("gateway", region)
        self._rng.shuffle(ids)
        return ids

    async def answer_of(self, wish: Wish) -> str:
        """The wish's video, drawn in peace; its sha256."""
        result = await self._sdk.generate(
            wish.prompt, seed=wish.seed, steps=STEPS, num_frames=FRAMES, progress=False
        )
        return str(result["sha256"])

    async def run(self, kind: Kind, wish: Wish) -> Operation:
        """One operation from its start to its end."""
        operation = Operation(len(self._history.operations), kind, wish, self._now())
        self._history.operations.append(operation)
        try:
            if kind == "stream":
                await self._stream(operation)
            else:
                await self._durable(operation)
        except (GaveUpError, ReelmeshError) as error:
            operation.code = f"{type(error).__name__}: {error}"
        except aio.AioRpcError as error:
            operation.code = f"{error.code().name}: {error.details()}"
        finally:
            operation.ended_s = self._now()
        return operation

    # --- as a developer would ---

    async def _stream(self, operation: Operation) -> None:
        def note(event: Any) -> None:
            if event.video_id and event.video_id not in operation.video_ids:
                operation.video_ids.append(event.video_id)

        result = await self._sdk.generate(
            operation.wish.prompt,
            seed=operation.wish.seed,
            steps=STEPS,
            num_frames=FRAMES,
            on_progress=note,
            progress=False,
        )
        operation.outcome = "completed"
        operation.sha256 = hashlib.sha256(result["video"]).hexdigest()

    # --- with every event looked at ---

    async def _durable(self, operation: Operation) -> None:
        region = self._rng.choice(self._mesh.plan.options.regions)
        request = video_service_pb2.CreateVideoRequest(
            spec=video_pb2.VideoSpec(
                prompt=operation.wish.prompt,
                seed=operation.wish.seed,
                steps=STEPS,
                num_frames=FRAMES,
            ),
            options=video_service_pb2.CreateOptions(
                idempotency_key=f"chaos-{operation.number}", durable=True
            ),
        )
        created = await self._somewhere(
            region,
            lambda stub: stub.CreateVideo(request, metadata=self._metadata, timeout=CALL_S),
        )
        video_id = created.video.id
        operation.video_ids.append(video_id)
        if operation.kind == "cancel":
            await asyncio.sleep(self._rng.uniform(0.0, 1.5))
            ask = video_service_pb2.CancelVideoRequest(video_id=video_id)
            await self._somewhere(
                region,
                lambda stub: stub.CancelVideo(ask, metadata=self._metadata, timeout=CALL_S),
            )
            operation.cancelled = True
        await self._watch_to_the_end(operation, region, video_id)

    async def _somewhere(self, region: str, ask: Callable[[VideoServiceStub], Awaitable[T]]) -> T:
        """The answer of a gateway of the region, asked again while a retry can help."""
        give_up_s = self._now() + PATIENCE_S
        last: aio.AioRpcError | None = None
        while self._now() < give_up_s:
            for gateway in self.gateways(region):
                try:
                    return await ask(self.stub(gateway))
                except aio.AioRpcError as error:
                    if error.code() not in _AGAIN:
                        raise
                    last = error
            await asyncio.sleep(RETRY_S)
        told = f"{last.code().name}: {last.details()}" if last else "nothing"
        raise GaveUpError(
            f"no gateway of {region} answered in {PATIENCE_S:g} s; the last said {told}"
        )

    async def _watch_to_the_end(self, operation: Operation, region: str, video_id: str) -> None:
        give_up_s = self._now() + PATIENCE_S
        data, seq = bytearray(), 0
        while self._now() < give_up_s:
            gateway = self.gateways(region)[0]
            watch = Watch(gateway, seq)
            operation.watches.append(watch)
            request = video_service_pb2.WatchVideoRequest(video_id=video_id, after_seq=seq)
            call = self.stub(gateway).WatchVideo(
                request, metadata=self._metadata, timeout=max(give_up_s - self._now(), 1.0)
            )
            try:
                async for answer in call:
                    seq = max(seq, answer.event.seq)
                    if self._take(operation, watch, answer.event, data):
                        return
            except aio.AioRpcError as error:
                if error.code() not in _AGAIN:
                    raise
                operation.code = f"{error.code().name}: {error.details()}"
            finally:
                call.cancel()
            await asyncio.sleep(RETRY_S)
        raise GaveUpError(f"no end was seen in {PATIENCE_S:g} s; the last stream: {operation.code}")

    def _take(
        self, operation: Operation, watch: Watch, event: video_pb2.VideoEvent, data: bytearray
    ) -> bool:
        kind = event.WhichOneof("event") or ""
        seen = Seen(event.seq, kind)
        if kind == "chunk":
            seen.attempt, seen.offset = event.chunk.attempt, event.chunk.offset
            seen.size = len(event.chunk.data)
            del data[event.chunk.offset :]
            data += event.chunk.data
        elif kind == "restarted":
            data.clear()
        watch.events.append(seen)
        if kind not in TERMINAL:
            return False
        operation.outcome = kind
        operation.code = event.failed.code
        if kind == "completed":
            operation.sha256 = hashlib.sha256(data).hexdigest()
        return True

    # --- afterwards ---

    async def standing(self, gateway: str, video_id: str) -> Standing:
        """What one gateway says of a video."""
        request = video_service_pb2.GetVideoRequest(video_id=video_id)
        try:
            answer = await self.stub(gateway).GetVideo(
                request, metadata=self._metadata, timeout=CALL_S
            )
        except aio.AioRpcError as error:
            return Standing(status="", code=f"{error.code().name}: {error.details()}")
        video = answer.video
        return Standing(
            status=_STATUSES.get(video.status, ""),
            sha256=video.result.sha256,
            code=video.error.code,
        )
