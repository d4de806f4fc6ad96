"""How a video begins: validated, admitted, recorded and started, or refused."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import structlog
from reelmesh.v1 import job_service_pb2, tenant_pb2, video_pb2, video_service_pb2

from gateway.application import Caller
from gateway.core.answers import Answers
from gateway.core.cache_metrics import CacheMetrics
from gateway.core.execution import Execution
from gateway.core.executions import Executions
from gateway.core.late_records import LateRecords
from gateway.core.lifetimes import Lifetimes
from gateway.core.metrics import GatewayMetrics
from gateway.core.room import Outlook, Room
from gateway.core.sharing import Sharing, cache_status
from gateway.errors import (
    FieldViolation,
    GatewayError,
    JobStoreAway,
    Unavailable,
)
from gateway.fleet.nodes import Fleet
from gateway.fleet.order import Standing
from gateway.jobs import records
from gateway.jobs.home import HomeJobs
from gateway.jobs.ids import VideoIds
from gateway.jobs.quota import is_counted, reservation
from gateway.jobs.store import KeyElsewhere, Owner, check_digest, copied
from gateway.priority import check_priority, granted
from gateway.quotas.queued import QueuedJobs
from gateway.tenants import Policies
from gateway.validation.fields import check_options
from gateway.validation.policy import resolve_within
from gateway.validation.request import resolve
from gateway.webhooks.addresses import UrlRules
from reelkit.clock import Clock
from reelkit.tasks import TaskScope
from reelkit.tracing import outliving_context

T = TypeVar("T")

_log = structlog.get_logger("gateway.admission")


class Admission:
    """Takes requests for videos.

    Args:
        region: Home of the videos made here.
        owner: Of their records: this gateway in this life.
        lifetimes: Runs what is admitted.
        scope: Owns the step from a record to its run, which a client cannot break off.
        executions: Makes what runs.
        policies: What tenants may do.
        webhooks: Which URLs may be told of an end.
        answers: Finished videos that a request may have.
        sharing: The runs that it may share.
        late: Sees to records that could not be written in time.
        patience_s: How long a streaming client waits for its job's record to be written
            before the job goes on without.
    """

    def __init__(
        self,
        *,
        region: str,
        owner: Owner,
        fleet: Fleet,
        room: Room,
        lifetimes: Lifetimes,
        executions: Executions,
        answers: Answers,
        sharing: Sharing,
        jobs: HomeJobs,
        policies: Policies,
        webhooks: UrlRules,
        queued: QueuedJobs,
        late: LateRecords,
        scope: TaskScope,
        clock: Clock,
        metrics: GatewayMetrics,
        cache_metrics: CacheMetrics,
        patience_s: float,
    ) -> None:
        self._region = region
        self._owner = owner
        self._fleet = fleet
        self._room = room
        self._lifetimes = lifetimes
        self._jobs = jobs
        self._policies = policies
        self._webhooks = webhooks
        self._queued = queued
        self._late = late
        self._scope = scope
        self._executions = executions
        self._answers = answers
        self._sharing = sharing
        self._clock = clock
        self._metrics = metrics
        self._cache_metrics = cache_metrics
        self._patience_s = patience_s
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
        over_assignment: bool,
    ) -> video_pb2.Video:
        """See :meth:`gateway.core.videos.Videos.create`."""
        try:
            return await self._create(
                caller,
                spec,
                options,
                streamed=streamed,
                unfit=unfit,
                over_assignment=over_assignment,
            )
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
        over_assignment: bool,
    ) -> video_pb2.Video:
        policy = self._policies.of(caller.tenant)
        violations = [
            *check_options(options),
            *check_priority(options.priority, policy),
            *self._webhooks.check(options.webhook_url),
        ]
        digest = records.request_digest(spec)
        keep = options.durable or not streamed
        if options.idempotency_key and not violations and not unfit:
            standing = await self._find(caller, options, over_assignment=over_assignment)
            if standing is not None:
                check_digest(standing, digest)
                return self._again(standing, keep=keep)
        urgency = self._room.standing(caller, options)
        record = self._draft(caller, spec, options, violations, unfit)
        record.request_digest, record.keep = digest, keep
        records.check_size(record)
        found = await self._there_already(record, options, policy, over_assignment=over_assignment)
        if found is None and self._room.cut_steps(record):
            self._set_key(record, options, seeded=spec.HasField("seed"))
            found = await self._there_already(
                record, options, policy, over_assignment=over_assignment
            )
        if isinstance(found, video_pb2.Video):
            return found
        leader = found
        if leader is None:
            gpu_seconds = await self._make_room(record, urgency)
        else:
            # In case that it comes to pay.
            gpu_seconds = leader.record.reservation.gpu_seconds
        record.reservation.CopyFrom(reservation(gpu_seconds, now_s=self._clock.wall()))
        beginning = self._beginning(record, leader, policy, over_assignment=over_assignment)
        if record.video.spec.unloaded_steps:
            self._metrics.browned_out()
        if leader is None:
            beginning = self._queued.counted(caller.tenant, beginning)
        self._cache_metrics.request(record.video.cache)
        return await self._to_its_end(beginning)

    async def _make_room(self, record: job_service_pb2.JobRecord, urgency: Standing) -> float:
        """Lets a job in that must be drawn; answers what that takes of a worker, in seconds."""
        # From here on it may lead: others for the same wait for its record.
        self._sharing.comes(record)
        try:
            wait_s = self._room.check(record.video.spec, urgency, coming=self._begins)
            await self._queued.check(record, wait_s=wait_s)
            return self._room.gpu_seconds(record.video.spec)
        except BaseException:
            self._sharing.came(record)
            raise

    async def _to_its_end(self, beginning: Coroutine[Any, Any, T]) -> T:
        """Sees to it that a client that leaves now leaves no record behind that nobody runs."""
        begun = self._scope.spawn(beginning, name="admit", fatal=False, context=outliving_context())
        self._begins += 1
        begun.add_done_callback(self._note_begun)
        return await asyncio.shield(begun)

    def _draft(
        self,
        caller: Caller,
        spec: video_pb2.VideoSpec,
        options: video_service_pb2.CreateOptions,
        violations: list[FieldViolation],
        unfit: Mapping[str, int],
    ) -> job_service_pb2.JobRecord:
        """The record of a request that is right, before it is known what answers it."""
        policy = self._policies.of(caller.tenant)
        record = records.new_record(
            video_id=self._ids.draw(),
            region=self._region,
            caller=caller,
            spec=self._resolve(policy, spec, violations, unfit),
            options=options,
            priority=granted(options.priority, policy),
            digest="",
            owner=self._owner,
            durable=self._jobs.durable,
            keep=False,
            now_s=self._clock.wall(),
        )
        self._set_key(record, options, seeded=spec.HasField("seed"))
        return record

    def _set_key(
        self,
        record: job_service_pb2.JobRecord,
        options: video_service_pb2.CreateOptions,
        *,
        seeded: bool,
    ) -> None:
        """What the record says of the runs that may answer it; follows from its spec."""
        record.execution_key = self._sharing.execution_key(
            record.tenant, record.video.spec, seeded=seeded
        )
        record.video.cache = cache_status(record.execution_key, no_cache=options.no_cache)

    # --- what is there already ---

    async def _there_already(
        self,
        record: job_service_pb2.JobRecord,
        options: video_service_pb2.CreateOptions,
        policy: tenant_pb2.TenantPolicy,
        *,
        over_assignment: bool,
    ) -> video_pb2.Video | Execution | None:
        """The video itself, or a run that the job may share; None: it must be drawn."""
        if not record.execution_key or options.no_cache:
            return None
        video = await self._answer(record, policy, over_assignment=over_assignment)
        if video is not None:
            return video
        await self._sharing.settled(record)
        return self._sharing.leader_for(record.tenant, record.execution_key)

    async def _answer(
        self,
        record: job_service_pb2.JobRecord,
        policy: tenant_pb2.TenantPolicy,
        *,
        over_assignment: bool,
    ) -> video_pb2.Video | None:
        """A video that is finished already; None: there is none."""
        if not self._answers.has(record.tenant, record.execution_key):
            return None
        must_stand = record.keep or bool(record.idempotency_key) or is_counted(policy)
        standing = await self._to_its_end(
            self._answers.begin(
                record,
                patience_s=None if must_stand else self._patience(),
                over_assignment=over_assignment,
            )
        )
        if standing is None:
            return None
        self._cache_metrics.request(standing.video.cache)
        return self._again(standing, keep=record.keep)

    # --- what is drawn ---

    def _beginning(
        self,
        record: job_service_pb2.JobRecord,
        leader: Execution | None,
        policy: tenant_pb2.TenantPolicy,
        *,
        over_assignment: bool,
    ) -> Coroutine[Any, Any, video_pb2.Video]:
        must_stand = bool(record.idempotency_key) or is_counted(policy)
        if leader is not None:
            record.video.cache = video_pb2.CACHE_STATUS_SHARED
            record.video.spec.seed = leader.spec.seed
            record.follows = leader.video_id
            as_made = copied(record)
            return self._begin_following(
                as_made,
                self._follow(record, leader),
                must_stand=must_stand,
                over_assignment=over_assignment,
            )
        if must_stand:
            return self._begin_after_record(record, over_assignment=over_assignment)
        return self._begin(record)

    def _follow(self, record: job_service_pb2.JobRecord, leader: Execution) -> Execution:
        """A job that shares a run from this moment on."""
        execution = self._executions.following(record, leader)
        self._sharing.join(execution, leader, now_s=self._clock.wall())
        return execution

    async def _find(
        self, caller: Caller, options: video_service_pb2.CreateOptions, *, over_assignment: bool
    ) -> job_service_pb2.JobRecord | None:
        try:
            return await self._jobs.find_key(caller.tenant, options.idempotency_key)
        except KeyElsewhere:
            if over_assignment:
                return None
            raise

    def _note_begun(self, begun: asyncio.Task[T]) -> None:
        self._begins -= 1
        if not begun.cancelled():
            # Its client may have left: then nobody else looks at it.
            begun.exception()

    async def _begin_after_record(
        self, record: job_service_pb2.JobRecord, *, over_assignment: bool
    ) -> video_pb2.Video:
        """Records the job, then starts it: its key may have a video, or its tenant no quota."""
        try:
            return await self._begin_if_made(record, over_assignment=over_assignment)
        finally:
            self._sharing.came(record)

    async def _begin_if_made(
        self, record: job_service_pb2.JobRecord, *, over_assignment: bool
    ) -> video_pb2.Video:
        try:
            standing, created = await self._jobs.create(record, over_assignment=over_assignment)
        except JobStoreAway:
            begin = self._begin_recorded if record.idempotency_key else None
            self._late.disclaim(record, begin=begin)
            raise
        if not created:
            return self._again(standing, keep=record.keep)
        return self._begin_recorded(record)

    def _begin_recorded(self, record: job_service_pb2.JobRecord) -> video_pb2.Video:
        """Starts a job whose record stands, unless this gateway has adopted it meanwhile."""
        if self._lifetimes.get(record.video.id) is not None:
            return self._again(record, keep=record.keep)
        leader = self._sharing.same_run(record) if record.follows else None
        if leader is not None:
            execution = self._follow(record, leader)
        else:
            execution = self._executions.admitted(record)
            self._sharing.pays(execution)
        execution.recorded.set()
        return self._started(execution)

    async def _begin(self, record: job_service_pb2.JobRecord) -> video_pb2.Video:
        """Starts the job while its record is written; nobody hears of it before that stands."""
        as_made = copied(record)
        return await self._begin_following(as_made, self._executions.admitted(record))

    async def _begin_following(
        self,
        as_made: job_service_pb2.JobRecord,
        execution: Execution,
        *,
        must_stand: bool = False,
        over_assignment: bool = False,
    ) -> video_pb2.Video:
        """The same with a job that is under way, or shares a run that is.

        That costs nothing where its key turns out to have a video, or its tenant no quota.
        """
        video = self._started(execution)
        must_stand = must_stand or as_made.keep
        try:
            async with asyncio.timeout(None if must_stand else self._patience()):
                standing, created = await self._jobs.create(
                    as_made, over_assignment=over_assignment
                )
        except (JobStoreAway, TimeoutError) as error:
            if must_stand:
                self._give_up(execution, as_made)
                raise
            _log.warning("admitted without a record", job_id=video.id, cause=type(error).__name__)
            await self._go_without(execution, as_made)
        except BaseException:
            self._lifetimes.abort(execution, "not_recorded")
            raise
        else:
            if not created:
                self._lifetimes.abort(execution, "not_recorded")
                return self._again(standing, keep=as_made.keep)
        execution.recorded.set()
        return execution.video()

    async def _go_without(self, execution: Execution, as_made: job_service_pb2.JobRecord) -> None:
        """Lets a streamed job run on that this gateway alone will know."""
        try:
            await self._jobs.create_here(execution.record)
        except GatewayError:
            self._give_up(execution, as_made)
            raise
        execution.log.tell_durable(False)
        as_made.video.durable = False
        self._late.record(as_made)

    def _give_up(self, execution: Execution, as_made: job_service_pb2.JobRecord) -> None:
        """Ends a job that is refused after all, and its record where that was written."""
        self._lifetimes.abort(execution, "not_recorded")
        begin = self._begin_recorded if as_made.idempotency_key else None
        self._late.disclaim(as_made, begin=begin)

    def _patience(self) -> float:
        """Nobody waits long for records that were away a moment ago."""
        return self._patience_s / 10 if self._jobs.away else self._patience_s

    def _started(self, execution: Execution) -> video_pb2.Video:
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

    def outlook(
        self,
        caller: Caller,
        spec: video_pb2.VideoSpec,
        options: video_service_pb2.CreateOptions,
    ) -> Outlook | None:
        """What the request would find here; None where it is wrong or nothing can be said."""
        found = self._room.outlook(caller, spec, options, coming=self._begins)
        if found is None or self._lifetimes.draining:
            return found and replace(found, wait_s=None)
        return replace(found, answered=not options.no_cache and self._is_here(caller, spec))

    def _is_here(self, caller: Caller, spec: video_pb2.VideoSpec) -> bool:
        """Whether it is finished, or under way for others."""
        resolved = resolve(spec, self._fleet.catalog(), drawn_seed=0, violations=[], unfit={})
        key = self._sharing.execution_key(caller.tenant, resolved, seeded=spec.HasField("seed"))
        return self._answers.has(caller.tenant, key) or self._sharing.has(caller.tenant, key)

    def _resolve(
        self,
        policy: tenant_pb2.TenantPolicy,
        spec: video_pb2.VideoSpec,
        violations: list[FieldViolation],
        unfit: Mapping[str, int],
    ) -> video_pb2.ResolvedSpec:
        if self._lifetimes.draining:
            raise Unavailable("this gateway is shutting down; try another", retry_after_s=1.0)
        catalog = self._fleet.catalog()
        if not catalog.models and not violations:
            raise Unavailable("no node of this region has told its models yet", retry_after_s=5.0)
        return resolve_within(
            policy,
            spec,
            catalog,
            drawn_seed=secrets.randbelow(2**31),
            violations=violations,
            unfit=unfit,
        )
