"""Clients that ask a region for more than it can do, and write down what they are told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from reelmesh.v1 import video_pb2, video_service_pb2
from reelmesh.v1.video_service_pb2_grpc import VideoServiceStub

from benchmarks.support.overload_history import Ask, Standing, Told, Way
from reelkit.tasks import TaskScope

CALL_S = 30.0
# Longer than anything waits in a queue of a sensible length.
STREAM_S = 300.0
AUDIT_AT_ONCE = 16
# Streams as the SDK opens them, creates as OpenAI's client sends them.
_WAYS: tuple[Way, ...] = ("stream", "stream", "grpc", "http", "http")
_DEADLINES_S = (None, None, None, 2.0, 8.0, 600.0)
_KEYED = 0.2
_STATUSES = {
    video_pb2.VIDEO_STATUS_COMPLETED: "completed",
    video_pb2.VIDEO_STATUS_FAILED: "failed",
    video_pb2.VIDEO_STATUS_CANCELLED: "cancelled",
    video_pb2.VIDEO_STATUS_RUNNING: "running",
    video_pb2.VIDEO_STATUS_QUEUED: "queued",
}


@dataclass(frozen=True)
class Door:
    """Where one gateway is."""

    http: str
    grpc: str


class Crowd:
    """All clients of a run.

    Args:
        doors: The region's gateways.
        tokens: By tenant.
        rng: Draws what each asks for.
    """

    def __init__(
        self, doors: Sequence[Door], tokens: Mapping[str, str], *, rng: random.Random
    ) -> None:
        self.history: list[Told] = []
        self._doors = doors
        self._tokens = tokens
        self._rng = rng
        self._session: aiohttp.ClientSession
        self._stubs: list[Any] = []
        self._channels: list[aio.Channel] = []
        self._scope = TaskScope("crowd")
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        # As many as come: a client that waits for a connection would lower the load.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=CALL_S),
        )
        self._channels = [aio.insecure_channel(door.grpc) for door in self._doors]
        self._stubs = [VideoServiceStub(channel) for channel in self._channels]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._scope.cancel_all()
        await self._session.close()
        for channel in self._channels:
            await channel.close()

    async def offer(self, *, per_s: float, for_s: float) -> None:
        """Sends requests at a rate, whether or not earlier ones were answered."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for number in range(int(per_s * for_s)):
            due_s = began_s + number / per_s
            await asyncio.sleep(max(due_s - loop.time(), 0.0))
            told = Told(self._draw(len(self.history)))
            self.history.append(told)
            asking = self._scope.spawn(self._ask(told), name=f"ask-{number}")
            self._open.add(asking)
            asking.add_done_callback(self._open.discard)

    async def answered(self, *, within_s: float) -> bool:
        """Waits for every request's answer, a stream's to its end; False: some have none."""
        if self._open:
            await asyncio.wait(self._open, timeout=within_s)
        if self._scope.failure is not None:
            raise self._scope.failure
        return not self._open

    def _draw(self, number: int) -> Ask:
        way = self._rng.choice(_WAYS)
        keyed = way != "stream" and self._rng.random() < _KEYED
        return Ask(
            number=number,
            way=way,
            tenant=self._rng.choice(sorted(self._tokens)),
            gateway=self._rng.randrange(len(self._doors)),
            deadline_s=self._rng.choice(_DEADLINES_S) if way != "http" else None,
            key=f"overload-{number}" if keyed else "",
        )

    async def _ask(self, told: Told) -> None:
        for _ in range(2 if told.ask.key else 1):
            try:
                if told.ask.way == "http":
                    await self._by_http(told)
                else:
                    await self._by_grpc(told)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                told.broken = f"{type(error).__name__}: {error}"

    # --- over HTTP ---

    async def _by_http(self, told: Told) -> None:
        url = f"{self._doors[told.ask.gateway].http}/v1/videos"
        headers = {"Authorization": f"Bearer {self._tokens[told.ask.tenant]}"}
        if told.ask.key:
            headers["Idempotency-Key"] = told.ask.key
        body = {"prompt": f"overload {told.ask.number}"}
        async with self._session.post(url, json=body, headers=headers) as answer:
            said = await answer.json(content_type=None)
            if answer.status == 200:
                told.video_ids.append(said["id"])
            elif not told.video_ids:
                told.refused = f"{answer.status} {said.get('code')}"
                told.retry_after_s = _seconds(answer.headers.get("Retry-After"))

    # --- over gRPC ---

    async def _by_grpc(self, told: Told) -> None:
        options = video_service_pb2.CreateOptions(idempotency_key=told.ask.key)
        if told.ask.deadline_s is not None:
            options.deadline_s = told.ask.deadline_s
        spec = video_pb2.VideoSpec(prompt=f"overload {told.ask.number}")
        stub = self._stubs[told.ask.gateway]
        metadata = (("authorization", f"Bearer {self._tokens[told.ask.tenant]}"),)
        try:
            if told.ask.way == "stream":
                await self._follow(told, stub, spec, options, metadata)
                return
            request = video_service_pb2.CreateVideoRequest(spec=spec, options=options)
            answer = await stub.CreateVideo(request, metadata=metadata, timeout=CALL_S)
            told.video_ids.append(answer.video.id)
        except aio.AioRpcError as error:
            _note(told, error)

    async def _follow(
        self, told: Told, stub: Any, spec: Any, options: Any, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        request = video_service_pb2.GenerateVideoRequest(spec=spec, options=options)
        call = stub.GenerateVideo(request, metadata=metadata, timeout=STREAM_S)
        async for answer in call:
            event = answer.event
            if event.video_id and event.video_id not in told.video_ids:
                told.video_ids.append(event.video_id)
            kind = event.WhichOneof("event")
            if kind in ("completed", "failed", "cancelled"):
                told.outcome = kind

    # --- afterwards ---

    async def standings(self) -> dict[str, Standing]:
        """What the records say of every acknowledged video."""
        gate = asyncio.Semaphore(AUDIT_AT_ONCE)
        found: dict[str, Standing] = {}

        async def look(told: Told, video_id: str) -> None:
            async with gate:
                found[video_id] = await self._standing(told, video_id)

        async with asyncio.TaskGroup() as group:
            for told in self.history:
                for video_id in set(told.video_ids):
                    group.create_task(look(told, video_id), name=f"audit {video_id}")
        return found

    async def _standing(self, told: Told, video_id: str) -> Standing:
        # By the other gateway than the one that took it, where there are two.
        stub = self._stubs[(told.ask.gateway + 1) % len(self._stubs)]
        metadata = (("authorization", f"Bearer {self._tokens[told.ask.tenant]}"),)
        request = video_service_pb2.GetVideoRequest(video_id=video_id)
        try:
            video = (await stub.GetVideo(request, metadata=metadata, timeout=CALL_S)).video
        except aio.AioRpcError as error:
            return Standing(f"not told of: {error.code().name} {error.details()}")
        return Standing(
            status=_STATUSES.get(video.status, "?"),
            ended_s=video.completed_at.ToNanoseconds() / 1e9,
            code=video.error.code,
        )


def _note(told: Told, error: aio.AioRpcError) -> None:
    """Takes down a refusal; a status without our details is none of ours."""
    status = rpc_status.from_call(error)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details if status is not None else ():
        detail.Unpack(info)
        detail.Unpack(retry)
    if not info.reason:
        told.broken = f"{error.code().name}: {error.details()}"
    elif told.video_ids:
        told.broken = f"its stream ended: {error.code().name} {info.reason}"
    else:
        told.refused = f"{error.code().name} {info.reason}"
        told.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdigit() else None
