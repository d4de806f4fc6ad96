"""The application behind the edges: what can be done with videos in this region."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

import structlog
from reelmesh.v1 import (
    fleet_service_pb2,
    job_service_pb2,
    model_pb2,
    video_pb2,
    video_service_pb2,
)

from gateway.application import Caller, Download
from gateway.core.commit import Committer
from gateway.core.execution import Execution
from gateway.core.lifetimes import Lifetimes
from gateway.core.metrics import GatewayMetrics
from gateway.errors import (
    FieldViolation,
    GatewayError,
    InvalidRequest,
    NotFinished,
    ResourceExhausted,
    Unavailable,
    VideoNotFound,
)
from gateway.fleet.nodes import Fleet
from gateway.fleet.placement import Ask, work_units
from gateway.fleet.waiting import WaitingRoom
from gateway.jobs import records
from gateway.jobs.ids import VideoIds, region_of
from gateway.jobs.store import JobStore, check_digest
from gateway.output.artifacts import ArtifactError, ArtifactMissing, ArtifactStore, pieces
from gateway.output.event_log import EventLog
from gateway.output.replay import replay
from gateway.output.spool import VideoBytes
from gateway.output.wire import encode_event
from gateway.validation.fields import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, check_options, number
from gateway.validation.request import resolve
from reelkit.clock import Clock

T = TypeVar("T")

_log = structlog.get_logger("gateway.videos")


class Videos:
    """A :class:`gateway.application.VideoApplication` over the region's nodes.

    Args:
        region: Home of the videos made here.
        gateway_id: Owner of their records.
        lifetimes: Holds and runs the executions of this gateway.
        new_bytes: Makes the spool of an attempt.
        max_lifetime_s: Deadline of a job that names none.
    """

    def __init__(
        self,
        *,
        region: str,
        gateway_id: str,
        fleet: Fleet,
        waiting: WaitingRoom,
        lifetimes: Lifetimes,
        committer: Committer,
        jobs: JobStore,
        artifacts: ArtifactStore,
        new_bytes: Callable[[], VideoBytes],
        clock: Clock,
        metrics: GatewayMetrics,
        max_lifetime_s: float,
    ) -> None:
        self._region = region
        self._gateway_id = gateway_id
        self._fleet = fleet
        self._waiting = waiting
        self._lifetimes = lifetimes
        self._committer = committer
        self._jobs = jobs
        self._artifacts = artifacts
        self._new_bytes = new_bytes
        self._clock = clock
        self._metrics = metrics
        self._max_lifetime_s = max_lifetime_s
        self._ids = VideoIds(region, clock=clock)

    # --- create ---

    async def create(
        self,
        caller: Caller,
        spec: video_pb2.VideoSpec,
        options: video_service_pb2.CreateOptions,
        *,
        streamed: bool,
    ) -> video_pb2.Video:
        """See :meth:`gateway.application.VideoApplication.create`."""
        try:
            return await self._create(caller, spec, options, streamed=streamed)
        except GatewayError as error:
            self._metrics.refused(error.code)
            raise

    async def _create(
        self,
        caller: Caller,
        spec: video_pb2.VideoSpec,
        options: video_service_pb2.CreateOptions,
        *,
        streamed: bool,
    ) -> video_pb2.Video:
        violations = check_options(options)
        digest = records.request_digest(spec)
        keep = options.durable or not streamed
        if options.idempotency_key and not violations:
            standing = await self._jobs.find_key(caller.tenant, options.idempotency_key)
            if standing is not None:
                check_digest(standing, digest)
                return self._again(standing, keep=keep)
        ask, resolved = self._admit(spec, options, violations)
        record = records.new_record(
            video_id=self._ids.draw(),
            region=self._region,
            caller=caller,
            spec=resolved,
            options=options,
            digest=digest,
            owner=self._gateway_id,
            durable=self._jobs.durable,
            now_s=self._clock.wall(),
        )
        standing, created = await self._jobs.create(record)
        if not created:
            return self._again(standing, keep=keep)
        execution = self._execution(record, ask, options, keep=keep)
        self._lifetimes.begin(execution)
        self._metrics.admitted()
        return execution.video()

    def _again(self, standing: job_service_pb2.JobRecord, *, keep: bool) -> video_pb2.Video:
        """A key that was used before: the same video."""
        execution = self._lifetimes.get(standing.video.id)
        if execution is None:
            return standing.video
        if keep:
            self._lifetimes.keep(execution)
        return execution.video()

    def _admit(
        self,
        spec: video_pb2.VideoSpec,
        options: video_service_pb2.CreateOptions,
        violations: list[FieldViolation],
    ) -> tuple[Ask, video_pb2.ResolvedSpec]:
        if self._lifetimes.draining:
            raise Unavailable("this gateway is shutting down; try another", retry_after_s=1.0)
        catalog = self._fleet.catalog()
        if not catalog.models and not violations:
            raise Unavailable("no node of this region has told its models yet", retry_after_s=5.0)
        resolved = resolve(
            spec, catalog, drawn_seed=secrets.randbelow(2**31), violations=violations
        )
        model = (resolved.model, resolved.model_version)
        wait_s = self._waiting.predicted_wait_s(model)
        if wait_s is None:
            raise Unavailable(
                f"no ready node serves {resolved.model} {resolved.model_version} now",
                retry_after_s=5.0,
            )
        if self._waiting.full:
            raise ResourceExhausted(
                f"{len(self._waiting)} videos wait already; come back in {wait_s:.0f} s",
                retry_after_s=max(wait_s, 1.0),
            )
        if options.HasField("deadline_s") and wait_s > options.deadline_s:
            raise ResourceExhausted(
                f"the predicted wait of {wait_s:.0f} s passes the deadline of "
                f"{number(options.deadline_s)} s",
                retry_after_s=max(wait_s, 1.0),
            )
        units = work_units(resolved.width, resolved.height, resolved.num_frames, resolved.steps)
        return Ask(model=model, units=units), resolved

    def _execution(
        self,
        record: job_service_pb2.JobRecord,
        ask: Ask,
        options: video_service_pb2.CreateOptions,
        *,
        keep: bool,
    ) -> Execution:
        video = record.video
        wait_s = self._waiting.predicted_wait_s(ask.model) or 0.0
        position = self._waiting.ahead(ask.model)
        queued = video_pb2.QueuedEvent(
            position=position, eta_s=wait_s, durable=video.durable, spec=video.spec
        )
        log = EventLog(video_id=video.id, new_bytes=self._new_bytes, queued=queued)
        lifetime_s = self._max_lifetime_s
        if options.HasField("deadline_s"):
            lifetime_s = options.deadline_s
        return Execution(
            record=record,
            log=log,
            ticket=self._waiting.enter(video.id, ask, log.requeue),
            deadline_at_s=self._clock.monotonic() + lifetime_s,
            keep=keep,
        )

    # --- read ---

    async def get(self, caller: Caller, video_id: str) -> video_pb2.Video:
        """See :meth:`gateway.application.VideoApplication.get`."""
        execution = self._own(caller, video_id)
        if execution is not None:
            return execution.video()
        return (await self._record(caller, video_id)).video

    def _own(self, caller: Caller, video_id: str) -> Execution | None:
        execution = self._lifetimes.get(video_id)
        if execution is None or execution.record.tenant != caller.tenant:
            return None
        return execution

    async def _record(self, caller: Caller, video_id: str) -> job_service_pb2.JobRecord:
        record = await self._jobs.get(caller.tenant, video_id)
        if record is None:
            raise VideoNotFound("there is no such video; finished ones are kept for a day")
        return record

    async def watch(
        self, caller: Caller, video_id: str, *, after_seq: int
    ) -> AsyncGenerator[video_pb2.VideoEvent]:
        """See :meth:`gateway.application.VideoApplication.watch`."""
        execution = self._own(caller, video_id)
        if execution is not None:
            events = execution.log.read(after_seq)
        else:
            record = await self._record(caller, video_id)
            events = replay(record, self._artifacts, after_seq=after_seq)
        async with contextlib.aclosing(_told(events, video_id)) as told:
            async for event in told:
                yield event

    async def watch_encoded(
        self, caller: Caller, video_id: str, *, after_seq: int
    ) -> AsyncGenerator[bytes]:
        """See :meth:`gateway.application.VideoApplication.watch_encoded`."""
        execution = self._own(caller, video_id)
        if execution is None:
            events = self.watch(caller, video_id, after_seq=after_seq)
            async with contextlib.aclosing(events):
                async for event in events:
                    yield encode_event(event)
            return
        encoded = execution.log.read_encoded(after_seq)
        async with contextlib.aclosing(_told(encoded, video_id)) as told:
            async for message in told:
                yield message

    async def list_page(
        self, caller: Caller, *, page_size: int, page_token: str, oldest_first: bool = False
    ) -> tuple[list[video_pb2.Video], str]:
        """See :meth:`gateway.application.VideoApplication.list_page`."""
        violations = []
        if not 0 <= page_size <= MAX_PAGE_SIZE:
            rule = f"must be 1 to {MAX_PAGE_SIZE}, or 0 for {DEFAULT_PAGE_SIZE}, not {page_size}"
            violations.append(FieldViolation("page_size", rule, (str(MAX_PAGE_SIZE),)))
        if page_token and region_of(page_token) is None:
            violations.append(FieldViolation("page_token", "must be the id of a video"))
        if violations:
            raise InvalidRequest(tuple(violations))
        found, more = await self._jobs.list_page(
            caller.tenant,
            limit=page_size or DEFAULT_PAGE_SIZE,
            after=page_token,
            oldest_first=oldest_first,
        )
        videos = []
        for record in found:
            execution = self._lifetimes.get(record.video.id)
            videos.append(record.video if execution is None else execution.video())
        return videos, videos[-1].id if more else ""

    async def download(self, caller: Caller, video_id: str, *, offset: int) -> Download:
        """See :meth:`gateway.application.VideoApplication.download`."""
        record = await self._record(caller, video_id)
        video = record.video
        if video.status != video_pb2.VIDEO_STATUS_COMPLETED:
            raise NotFinished(_NOT_FINISHED.get(video.status, "the video is not finished yet"))
        total = video.result.size_bytes
        if not 0 <= offset <= total:
            rule = f"must be 0 to {total}, the video's size in bytes, not {offset}"
            nearest = str(min(max(offset, 0), total))
            raise InvalidRequest((FieldViolation("offset", rule, (nearest,)),))
        chunks = pieces(self._artifacts, record.artifact_key, offset=offset, total=total)
        return Download(
            total_bytes=total, sha256=video.result.sha256, chunks=_told(chunks, video_id)
        )

    # --- end ---

    async def cancel(self, caller: Caller, video_id: str) -> video_pb2.Video:
        """See :meth:`gateway.application.VideoApplication.cancel`."""
        execution = self._own(caller, video_id)
        if execution is not None:
            await self._lifetimes.cancel(execution, "client")
            return execution.video()
        return (await self._record(caller, video_id)).video

    async def delete(self, caller: Caller, video_id: str) -> None:
        """See :meth:`gateway.application.VideoApplication.delete`."""
        execution = self._own(caller, video_id)
        if execution is not None:
            await self._lifetimes.cancel(execution, "client")
        removed = await self._jobs.delete(caller.tenant, video_id)
        if removed is None:
            raise VideoNotFound("there is no such video")
        self._lifetimes.forget(video_id)
        if removed.artifact_key:
            self._committer.discard(removed.artifact_key)

    # --- the region ---

    def models(self) -> tuple[list[model_pb2.ModelInfo], str]:
        """See :meth:`gateway.application.VideoApplication.models`."""
        return self._fleet.ready_models()

    def regions(self) -> list[fleet_service_pb2.Region]:
        """See :meth:`gateway.application.VideoApplication.regions`."""
        workers = self._fleet.ready_workers
        if self._lifetimes.draining:
            state = fleet_service_pb2.REGION_STATE_DRAINING
        elif workers:
            state = fleet_service_pb2.REGION_STATE_SERVING
        else:
            state = fleet_service_pb2.REGION_STATE_NOT_SERVING
        wait_s = self.predicted_wait_s()
        return [
            fleet_service_pb2.Region(
                name=self._region,
                state=state,
                ready_workers=workers,
                predicted_wait_s=wait_s,
                local=True,
            )
        ]

    def predicted_wait_s(self) -> float:
        """Seconds that a job for the default model would wait now; 0 where none serves it."""
        catalog = self._fleet.catalog()
        for info in catalog.models:
            if info.name == catalog.default_model:
                return self._waiting.predicted_wait_s((info.name, info.version)) or 0.0
        return 0.0

    def ready(self) -> tuple[bool, str]:
        """See :meth:`gateway.application.VideoApplication.ready`."""
        if self._lifetimes.draining:
            return False, "shutting down"
        if not self._fleet.ready_workers:
            heard = self._fleet.heard
            return False, "no ready node" if heard else "no word from the control plane yet"
        return True, ""


async def _told(items: AsyncGenerator[T], video_id: str) -> AsyncGenerator[T]:
    """The same items; a store that fails under them is told in a client's words."""
    try:
        async with contextlib.aclosing(items):
            async for item in items:
                yield item
    except ArtifactMissing:
        raise VideoNotFound("the video has expired") from None
    except (ArtifactError, OSError) as error:
        _log.error("video not readable", job_id=video_id, error=str(error))
        raise Unavailable("the video cannot be read now", retry_after_s=5.0) from None


_NOT_FINISHED = {
    video_pb2.VIDEO_STATUS_FAILED: "the video failed; there are no bytes of it",
    video_pb2.VIDEO_STATUS_CANCELLED: "the video was cancelled; there are no bytes of it",
}
