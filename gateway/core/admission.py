"""How a video begins: validated, admitted, recorded and started, or refused."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping

from reelmesh.v1 import job_service_pb2, video_pb2, video_service_pb2

from gateway.application import Caller
from gateway.core.execution import Execution
from gateway.core.lifetimes import Lifetimes
from gateway.core.metrics import GatewayMetrics
from gateway.errors import FieldViolation, GatewayError, ResourceExhausted, Unavailable
from gateway.fleet.nodes import Fleet
from gateway.fleet.placement import Ask, work_units
from gateway.fleet.waiting import WaitingRoom
from gateway.jobs import records
from gateway.jobs.ids import VideoIds
from gateway.jobs.store import JobStore, check_digest
from gateway.output.event_log import EventLog
from gateway.output.spool import VideoBytes
from gateway.validation.fields import check_options, number
from gateway.validation.request import resolve
from reelkit.clock import Clock
from reelkit.tasks import TaskScope


class Admission:
    """Takes requests for videos.

    Args:
        region: Home of the videos made here.
        gateway_id: Owner of their records.
        lifetimes: Runs what is admitted.
        scope: Owns the step from a record to its run, which a client cannot break off.
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
        jobs: JobStore,
        scope: TaskScope,
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
        self._jobs = jobs
        self._scope = scope
        self._new_bytes = new_bytes
        self._clock = clock
        self._metrics = metrics
        self._max_lifetime_s = max_lifetime_s
        self._ids = VideoIds(region, clock=clock)
        self._begins = 0

    async def create(
        self,
        caller: Caller,
        spec: video_pb2.VideoSpec,
        options: video_service_pb2.CreateOptions,
        *,
        streamed: bool,
        unfit: Mapping[str, int],
    ) -> video_pb2.Video:
        """See :meth:`gateway.application.VideoApplication.create`."""
        try:
            return await self._create(caller, spec, options, streamed=streamed, unfit=unfit)
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
        unfit: Mapping[str, int],
    ) -> video_pb2.Video:
        violations = check_options(options)
        digest = records.request_digest(spec)
        keep = options.durable or not streamed
        if options.idempotency_key and not violations and not unfit:
            standing = await self._jobs.find_key(caller.tenant, options.idempotency_key)
            if standing is not None:
                check_digest(standing, digest)
                return self._again(standing, keep=keep)
        ask, resolved = self._admit(spec, options, violations, unfit)
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
        # A client that leaves now leaves no record behind that nobody runs.
        begin = self._begin(record, ask, options, keep=keep)
        begun = self._scope.spawn(begin, name="admit", fatal=False)
        self._begins += 1
        begun.add_done_callback(self._note_begun)
        return await asyncio.shield(begun)

    def _note_begun(self, _task: asyncio.Task[video_pb2.Video]) -> None:
        self._begins -= 1

    async def _begin(
        self,
        record: job_service_pb2.JobRecord,
        ask: Ask,
        options: video_service_pb2.CreateOptions,
        *,
        keep: bool,
    ) -> video_pb2.Video:
        """Records the job and starts it."""
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
        unfit: Mapping[str, int],
    ) -> tuple[Ask, video_pb2.ResolvedSpec]:
        if self._lifetimes.draining:
            raise Unavailable("this gateway is shutting down; try another", retry_after_s=1.0)
        catalog = self._fleet.catalog()
        if not catalog.models and not violations:
            raise Unavailable("no node of this region has told its models yet", retry_after_s=5.0)
        resolved = resolve(
            spec,
            catalog,
            drawn_seed=secrets.randbelow(2**31),
            violations=violations,
            unfit=unfit,
        )
        model = (resolved.model, resolved.model_version)
        wait_s = self._waiting.predicted_wait_s(model)
        if wait_s is None:
            raise Unavailable(
                f"no ready node serves {resolved.model} {resolved.model_version} now",
                retry_after_s=5.0,
            )
        if self._waiting.full(coming=self._begins):
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
        queued = video_pb2.QueuedEvent(
            position=self._waiting.ahead(ask.model),
            # None, and so unset, where the last node went since it was admitted.
            eta_s=self._waiting.predicted_wait_s(ask.model),
            durable=video.durable,
            spec=video.spec,
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
