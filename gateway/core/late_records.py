"""What becomes of records that could not be written when their job was admitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
from reelmesh.v1 import job_service_pb2, video_pb2

from gateway.errors import GatewayError, JobStoreAway
from gateway.jobs import records
from gateway.jobs.home import HomeJobs
from gateway.jobs.replicas import CALL_TIMEOUT_S
from gateway.jobs.store import TERMINAL_STATUSES
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

_log = structlog.get_logger("gateway.late_records")

_FIRST_DELAY_S: Final = 0.5
_MAX_DELAY_S: Final = 5.0

_REFUSED: Final = video_pb2.FailedEvent(
    code="not_recorded", message="the video was refused: its record could not be written"
)


class LateRecords:
    """Tries on where a client was answered without its job's record.

    Args:
        scope: Owns the tries; they end with the gateway.
    """

    def __init__(self, *, jobs: HomeJobs, scope: TaskScope, clock: Clock) -> None:
        self._jobs = jobs
        self._scope = scope
        self._clock = clock

    def record(self, record: job_service_pb2.JobRecord) -> None:
        """Writes the record, as it was made, of a job that was admitted without."""
        self._scope.spawn(self._record(record), name=f"record/{record.video.id}")

    def disclaim(
        self,
        record: job_service_pb2.JobRecord,
        *,
        begin: Callable[[job_service_pb2.JobRecord], object] | None,
    ) -> None:
        """Sees to a record that may have been written though its client was told otherwise.

        Left alone it would be a job that its owner does not know and nobody adopts.

        Args:
            record: As it was made.
            begin: Runs the job where the record stands: for one with an idempotency key,
                which its client will come back with. None: the record is removed.
        """
        self._scope.spawn(self._disclaim(record, begin), name=f"disclaim/{record.video.id}")

    async def _record(self, record: job_service_pb2.JobRecord) -> None:
        delay_s = _FIRST_DELAY_S
        while True:
            await self._clock.sleep(delay_s)
            try:
                await self._jobs.move(record)
            except JobStoreAway:
                delay_s = min(2 * delay_s, _MAX_DELAY_S)
            except GatewayError as error:
                _log.warning("record not written", job_id=record.video.id, cause=error.code)
                return
            else:
                return

    async def _disclaim(
        self,
        record: job_service_pb2.JobRecord,
        begin: Callable[[job_service_pb2.JobRecord], object] | None,
    ) -> None:
        delay_s, absent = _FIRST_DELAY_S, False
        while True:
            await self._clock.sleep(delay_s)
            try:
                standing = await self._jobs.get(record.tenant, record.video.id)
                if standing is not None:
                    await self._see_to(standing, record, begin)
                elif not absent:
                    # The call that was given up may still be on its way.
                    delay_s, absent = CALL_TIMEOUT_S, True
                    continue
            except JobStoreAway:
                delay_s = min(2 * delay_s, _MAX_DELAY_S)
            except GatewayError as error:
                _log.warning("record not removed", job_id=record.video.id, cause=error.code)
                return
            else:
                return

    async def _see_to(
        self,
        standing: job_service_pb2.JobRecord,
        record: job_service_pb2.JobRecord,
        begin: Callable[[job_service_pb2.JobRecord], object] | None,
    ) -> None:
        if standing.epoch != record.epoch:
            return
        if begin is not None:
            if standing.video.status not in TERMINAL_STATUSES:
                begin(standing)
            return
        refused = records.failed(record, _REFUSED, now_s=self._clock.wall(), retention_s=0.0)
        await self._jobs.finish(refused)
        await self._jobs.delete(record.tenant, record.video.id)
