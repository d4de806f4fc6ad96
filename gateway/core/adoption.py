"""Takes over jobs whose owner is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from functools import partial

import structlog
from reelmesh.v1 import job_service_pb2, video_pb2

from gateway.application import Caller
from gateway.core.commit import Committer
from gateway.core.execution import Execution, Whole
from gateway.core.executions import Executions
from gateway.core.lifetimes import Lifetimes
from gateway.core.metrics import GatewayMetrics
from gateway.core.sharing import Sharing
from gateway.core.superseded import REASON, Superseded
from gateway.errors import GatewayError, JobStoreAway
from gateway.jobs import records
from gateway.jobs.store import TERMINAL_STATUSES, JobStore, Owner
from gateway.peers.client import NotItsOwn, PeerGone, Peers
from gateway.peers.gateways import Gateways
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

_log = structlog.get_logger("gateway.adoption")

# The heir of a job has this long before every other gateway may take it.
HEIR_FIRST_S = 2.0
# An owner without a lease that still answers is asked again after this.
ASK_AGAIN_S = 2.0
MAX_AT_ONCE = 16


class Adoption:
    """Claims jobs: those that the control plane calls orphans, and those that are asked for.

    Args:
        owner: This gateway in this life.
        sharing: The runs that an adopted job may go on to share.
        superseded: Which jobs are not to be resumed.
        retention_s: How long the record of one that is ended here is kept.
        scope: Owns the claims that nobody waits for.
    """

    def __init__(
        self,
        *,
        owner: Owner,
        jobs: JobStore,
        executions: Executions,
        lifetimes: Lifetimes,
        gateways: Gateways,
        peers: Peers,
        sharing: Sharing,
        committer: Committer,
        superseded: Superseded,
        retention_s: float,
        scope: TaskScope,
        clock: Clock,
        metrics: GatewayMetrics,
    ) -> None:
        self._owner = owner
        self._jobs = jobs
        self._executions = executions
        self._lifetimes = lifetimes
        self._gateways = gateways
        self._peers = peers
        self._sharing = sharing
        self._committer = committer
        self._superseded = superseded
        self._retention_s = retention_s
        self._scope = scope
        self._clock = clock
        self._metrics = metrics
        self._claims: dict[str, asyncio.Task[Execution | None]] = {}
        self._listed: dict[str, job_service_pb2.Orphan] = {}
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)

    # --- by the control plane's list ---

    def take(self, orphans: Iterable[job_service_pb2.Orphan]) -> None:
        """Takes the whole list of orphans; what is on it for the first time is looked after."""
        former, self._listed = self._listed, {orphan.job_id: orphan for orphan in orphans}
        for job_id, orphan in self._listed.items():
            known = former.get(job_id)
            if known is None or known.epoch != orphan.epoch:
                self._scope.spawn(self._look_after(orphan), name=f"orphan/{job_id}", fatal=False)

    async def _look_after(self, orphan: job_service_pb2.Orphan) -> None:
        """Adopts it unless somebody else has: for as long as it is on the list."""
        if orphan.heir_gateway not in ("", self._owner.gateway_id):
            await self._clock.sleep(HEIR_FIRST_S)
        while self._is_listed(orphan) and not self._lifetimes.draining:
            try:
                async with self._slots:
                    if not self._is_listed(orphan):
                        return
                    if await self._adopt_orphan(orphan):
                        return
            except JobStoreAway:
                pass
            except Exception:  # noqa: BLE001 - a supervisor: one job's trouble is not all jobs'
                _log.exception("adoption broke off", job_id=orphan.job_id)
            await self._clock.sleep(ASK_AGAIN_S)

    def _is_listed(self, orphan: job_service_pb2.Orphan) -> bool:
        listed = self._listed.get(orphan.job_id)
        return listed is not None and listed.epoch == orphan.epoch

    async def _adopt_orphan(self, orphan: job_service_pb2.Orphan) -> bool:
        """Whether nothing is left to do for it."""
        record = await self._jobs.get(orphan.tenant, orphan.job_id)
        if record is None or record.video.status in TERMINAL_STATUSES:
            return True
        if record.epoch != orphan.epoch:
            return True
        if await self._answers(record):
            # Its lease ran out, as in a long outage of the store, and it goes on.
            return False
        await self.adopt(record)
        return True

    async def _answers(self, record: job_service_pb2.JobRecord) -> bool:
        address = self._gateways.address_of(record.owner_gateway, record.owner_incarnation)
        if address is None:
            return False
        asker = Caller(record.tenant, record.subject, frozenset())
        try:
            await self._peers.get(address, asker, record.video.id)
        except (PeerGone, NotItsOwn):
            return False
        except GatewayError:
            # It cannot say now, and it lives.
            return True
        return True

    # --- by whoever asks for a job ---

    async def adopt(self, record: job_service_pb2.JobRecord) -> Execution | None:
        """Makes this gateway the owner of a live job; None: another was faster, or it ended.

        Raises:
            JobStoreAway: The records cannot be written now.
        """
        job_id = record.video.id
        claim = self._claims.get(job_id)
        if claim is None:
            claim = self._scope.spawn(self._claim(record), name=f"claim/{job_id}", fatal=False)
            self._claims[job_id] = claim
            claim.add_done_callback(partial(self._claimed, job_id))
        return await asyncio.shield(claim)

    def _claimed(self, job_id: str, claim: asyncio.Task[Execution | None]) -> None:
        del self._claims[job_id]
        if not claim.cancelled():
            # Whoever asked may have left: then nobody else looks at it.
            claim.exception()

    def _look_again(self, record: job_service_pb2.JobRecord) -> None:
        name = f"make sure/{record.video.id}"
        self._scope.spawn(self._make_sure(record), name=name, fatal=False)

    async def _make_sure(self, record: job_service_pb2.JobRecord) -> None:
        """Takes up a job that a claim without an answer has made this gateway's.

        It is no orphan then, and nobody else would.
        """
        while not self._lifetimes.draining:
            await self._clock.sleep(ASK_AGAIN_S)
            with contextlib.suppress(JobStoreAway):
                standing = await self._jobs.get(record.tenant, record.video.id)
                if standing is None or standing.video.status in TERMINAL_STATUSES:
                    return
                if Owner(standing.owner_gateway, standing.owner_incarnation) == self._owner:
                    await self.adopt(standing)
                return

    async def _claim(self, record: job_service_pb2.JobRecord) -> Execution | None:
        mine = self._lifetimes.get(record.video.id)
        if mine is not None:
            return mine
        await self._executions.look_around()
        try:
            standing, claimed = await self._jobs.claim(
                record.video.id, epoch=record.epoch, owner=self._owner
            )
        except JobStoreAway:
            self._look_again(record)
            raise
        if standing is None or not claimed:
            return None
        if self._superseded.holds(standing.tenant, standing.video.id):
            await self._end_superseded(standing)
            return None
        try:
            execution = await self._resumed(standing)
        except JobStoreAway:
            self._look_again(standing)
            raise
        if execution is None:
            return None
        _log.info(
            "job adopted",
            job_id=record.video.id,
            former=record.owner_gateway,
            epoch=standing.epoch,
            attached=execution.adopted_from is not None,
        )
        self._metrics.adopted()
        self._lifetimes.begin(execution)
        return execution

    # --- those that shared a run ---

    async def _resumed(self, standing: job_service_pb2.JobRecord) -> Execution | None:
        """The claimed job on its way: at its node, in a run that it shares, or anew.

        None: it has ended with the video that was drawn for another.
        """
        if not standing.follows:
            return self._executions.adopted(standing)
        finished = await self._look_for_run(standing)
        if finished is not None and await self._committer.share_record(standing, finished):
            return None
        leader = self._sharing.same_run(standing)
        if leader is None:
            execution = self._executions.adopted(standing)
            self._sharing.pays(execution)
            return execution
        execution = self._executions.following(standing, leader)
        execution.recorded.set()
        self._sharing.join(execution, leader, now_s=self._clock.wall())
        return execution

    async def _look_for_run(self, standing: job_service_pb2.JobRecord) -> Whole | None:
        """Takes over the job whose run it shared, where nobody else has it; or what it brought.

        Whatever stands in the way of that, the job is run by itself.
        """
        if self._sharing.same_run(standing) is not None:
            return None
        try:
            # None, too, where that is another tenant's.
            led = await self._jobs.get(standing.tenant, standing.follows)
            if led is None:
                return None
            if led.video.status not in TERMINAL_STATUSES:
                if not await self._answers(led):
                    await self.adopt(led)
                return None
        except GatewayError as error:
            _log.info("run not looked for", job_id=standing.video.id, cause=error.code)
            return None
        if led.video.status != video_pb2.VIDEO_STATUS_COMPLETED:
            return None
        return Whole(led.artifact_key, led.video.result)

    async def _end_superseded(self, standing: job_service_pb2.JobRecord) -> None:
        """Ends a job that nobody waits for any more, before it is begun again."""
        _log.info("superseded job not resumed", job_id=standing.video.id)
        ended = records.cancelled(
            standing, REASON, now_s=self._clock.wall(), retention_s=self._retention_s
        )
        try:
            await self._jobs.finish(ended)
        except JobStoreAway:
            # It is this gateway's by now, and no orphan any more.
            self._look_again(standing)
            raise
