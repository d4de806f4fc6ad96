"""A generation that shows whether an idle node still makes videos."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any, Protocol

import grpc
import structlog
from grpc import aio
from reelmesh.v1 import model_pb2, node_pb2, video_pb2
from reelmesh.v1.node_service_pb2 import NodeEvent, ReleaseRequest, RunRequest
from reelmesh.v1.node_service_pb2_grpc import NodeServiceStub

from reelkit import rpc
from reelkit.mtls.channels import OpenChannel

_log = structlog.get_logger("control_plane.canary")

TENANT = "canary"
SEED = 1
RELEASE_TIMEOUT_S = 2.0
# The node drops the run at its own deadline; what is left covers the way there and back.
DEADLINE_SLACK_S = 2.0


def smallest_spec(model: model_pb2.ModelInfo) -> video_pb2.ResolvedSpec | None:
    """The cheapest video that the model allows, always the same; None where it says too little."""
    sizes = [size for size in model.sizes if size.width_px and size.height_px]
    if not sizes or not model.frames.min or not model.steps.min:
        return None
    size = min(sizes, key=lambda each: (each.width_px * each.height_px, each.width_px))
    return video_pb2.ResolvedSpec(
        prompt="a canary",
        model=model.name,
        model_version=model.version,
        width=size.width_px,
        height=size.height_px,
        num_frames=model.frames.min,
        fps=model.fps,
        steps=model.steps.min,
        guidance_scale=model.guidance_scale.min,
        flow_shift=model.defaults.flow_shift or model.flow_shift.min,
        seed=SEED,
    )


def served_model(
    models: Iterable[model_pb2.ModelInfo], status: node_pb2.NodeStatus
) -> model_pb2.ModelInfo | None:
    """The first model of the hello that the node says it serves now."""
    now = {(model.name, model.version) for model in status.models}
    return next((model for model in models if (model.name, model.version) in now), None)


def work_units(spec: video_pb2.ResolvedSpec) -> float:
    """As ``NodeStatus.units_per_second`` counts them."""
    return spec.width * spec.height * spec.num_frames * spec.steps / 1e6


def deadline_s(
    spec: video_pb2.ResolvedSpec, *, units_per_second: float, factor: float, least_s: float
) -> float:
    """How long the node gets, by its own speed where that is known."""
    expected_s = work_units(spec) / units_per_second if units_per_second > 0 else 0.0
    return max(least_s, factor * expected_s)


@dataclasses.dataclass(frozen=True, slots=True)
class CanaryOutcome:
    """Whether the node made the video; ``ok`` is None where nothing was learnt."""

    ok: bool | None
    reason: str = ""


class CanaryRunner(Protocol):
    """Runs canaries."""

    async def run(
        self, address: str, *, job_id: str, spec: video_pb2.ResolvedSpec, deadline_s: float
    ) -> CanaryOutcome:
        """One run and its release; never raises for what the node does."""
        ...


class GrpcCanaryRunner:
    """Runs canaries over NodeService, as a gateway runs jobs.

    Args:
        open_channel: Makes a channel to a node of the region.
    """

    def __init__(self, open_channel: OpenChannel = rpc.internal_channel) -> None:
        self._open_channel = open_channel

    async def run(
        self, address: str, *, job_id: str, spec: video_pb2.ResolvedSpec, deadline_s: float
    ) -> CanaryOutcome:
        """See :class:`CanaryRunner`."""
        request = RunRequest(
            job_id=job_id,
            epoch=1,
            attempt=1,
            spec=spec,
            tenant=TENANT,
            deadline_s=deadline_s,
            canary=True,
            alone=False,
            **{"try": 1},
        )
        async with self._open_channel(address) as channel:
            # Any: by its name alone the stub's type is that of blocking calls.
            stub: Any = NodeServiceStub(channel)
            try:
                outcome = await self._follow(stub, request, deadline_s)
            except aio.AioRpcError as error:
                outcome = _of_status(error, deadline_s)
            if outcome.ok is not None:
                await self._release(stub, job_id)
        return outcome

    async def _follow(self, stub: Any, request: RunRequest, deadline_s: float) -> CanaryOutcome:
        digest, size_bytes = hashlib.sha256(), 0
        async for response in stub.Run(request, timeout=deadline_s + DEADLINE_SLACK_S):
            if response.WhichOneof("result") == "busy":
                return CanaryOutcome(None, "it was busy")
            event = response.event
            if event.HasField("chunk"):
                digest.update(event.chunk.data)
                size_bytes += len(event.chunk.data)
            ended = _ending(event, digest.hexdigest(), size_bytes)
            if ended is not None:
                return ended
        return CanaryOutcome(ok=False, reason="its run ended without a word")

    async def _release(self, stub: Any, job_id: str) -> None:
        try:
            await stub.Release(ReleaseRequest(job_id=job_id, epoch=1), timeout=RELEASE_TIMEOUT_S)
        except aio.AioRpcError as error:
            # The node forgets it by itself a little later.
            _log.debug("canary not released", job_id=job_id, code=error.code().name)


def _ending(event: NodeEvent, sha256: str, size_bytes: int) -> CanaryOutcome | None:
    if event.HasField("completed"):
        if size_bytes == 0 or event.completed.sha256 != sha256:
            return CanaryOutcome(ok=False, reason="its video is not what it says it is")
        return CanaryOutcome(ok=True)
    if event.HasField("failed"):
        if event.failed.code == "worker_unavailable":
            return CanaryOutcome(None, event.failed.code)
        return CanaryOutcome(ok=False, reason=event.failed.code)
    if event.HasField("cancelled"):
        if event.cancelled.reason == "deadline":
            return CanaryOutcome(ok=False, reason="its run did not end in time")
        return CanaryOutcome(None, f"cancelled: {event.cancelled.reason}")
    return None


def _of_status(error: aio.AioRpcError, deadline_s: float) -> CanaryOutcome:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return CanaryOutcome(ok=False, reason=f"no video in {deadline_s:.0f} s")
    # Whether it can be reached the calls to its health say, and a run that it refuses,
    # such as one of a model that it has just replaced, says nothing of its device.
    return CanaryOutcome(None, error.code().name)
