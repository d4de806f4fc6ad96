"""Answers requests with videos that are finished already."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from reelmesh.v1 import job_service_pb2, video_pb2

from gateway.cache.index import Finished, Index
from gateway.core.commit import Committer
from gateway.core.late_records import LateRecords
from gateway.errors import GatewayError, JobStoreAway
from gateway.jobs import records
from gateway.jobs.attempts import FIRST_ATTEMPT
from gateway.jobs.home import HomeJobs
from gateway.jobs.store import KeyElsewhere, copied
from gateway.output.artifacts import ArtifactError, ArtifactMissing, ArtifactStore, artifact_key
from reelkit.clock import Clock

_log = structlog.get_logger("gateway.answers")

# A store that takes longer is slow; the video is drawn then.
_PATIENCE_S: Final = 5.0


class Answers:
    """Makes jobs that are complete when they begin.

    Args:
        index: The videos there are.
        late: Sees to records that could not be written in time.
        retention_s: How long such a job's record and artifact are kept.
    """

    def __init__(
        self,
        *,
        index: Index,
        jobs: HomeJobs,
        late: LateRecords,
        artifacts: ArtifactStore,
        committer: Committer,
        clock: Clock,
        retention_s: float,
    ) -> None:
        self._index = index
        self._jobs = jobs
        self._late = late
        self._artifacts = artifacts
        self._committer = committer
        self._clock = clock
        self._retention_s = retention_s

    def has(self, tenant: str, execution_key: str) -> bool:
        """Whether there is one, as far as is known."""
        return bool(execution_key) and self._index.find(tenant, execution_key) is not None

    async def begin(
        self, record: job_service_pb2.JobRecord, *, patience_s: float | None, over_assignment: bool
    ) -> job_service_pb2.JobRecord | None:
        """Makes a job that is complete; answers the record that stands, its key's perhaps.

        None: there is no video that could answer it after all.

        Args:
            record: The new job's.
            patience_s: How long its record may take to be written before it does without;
                None: it must stand.
            over_assignment: See :meth:`gateway.jobs.store.JobStore.create`.
        """
        ended = await self._answered(record)
        if ended is None:
            return None
        try:
            async with asyncio.timeout(patience_s):
                standing, created = await self._jobs.create(ended, over_assignment=over_assignment)
        except (JobStoreAway, TimeoutError):
            # It may have been written, and names the artifact then: else the sweeper takes that.
            if patience_s is None:
                raise
            await self._jobs.create_here(ended)
            self._late.record(copied(ended))
            self._committer.on_end(ended)
            return ended
        except (GatewayError, KeyElsewhere):
            # Refused for certain. A call that is cut off may have written the record, which
            # then names the artifact.
            self._committer.discard(ended.artifact_key)
            raise
        if created:
            self._committer.on_end(standing)
        else:
            self._committer.discard(ended.artifact_key)
        return standing

    async def _answered(
        self, record: job_service_pb2.JobRecord
    ) -> job_service_pb2.JobRecord | None:
        """The record with its video, and an artifact of its own; None: there is none after all."""
        while entry := self._index.find(record.tenant, record.execution_key):
            key = artifact_key(record.video.id, FIRST_ATTEMPT)
            result = entry.result
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await self._artifacts.copy(
                        entry.artifact_key, key, size=result.size_bytes, sha256=result.sha256
                    )
            except ArtifactMissing:
                # Deleted by its owner, or expired.
                self._index.drop(entry)
                continue
            except (ArtifactError, TimeoutError) as error:
                _log.warning("finished video not usable", cause=str(error))
                self._index.drop(entry)
                return None
            ended = self._complete(record, entry, key)
            self._index.used(entry, ended)
            return ended
        return None

    def _complete(
        self, record: job_service_pb2.JobRecord, entry: Finished, key: str
    ) -> job_service_pb2.JobRecord:
        result = video_pb2.CompletedEvent()
        result.CopyFrom(entry.result)
        # Nothing was drawn for it.
        result.cache, result.attempt, result.gpu_seconds = (
            video_pb2.CACHE_STATUS_HIT,
            FIRST_ATTEMPT,
            0.0,
        )
        result.ClearField("timings")
        ended = records.completed(
            record,
            result,
            artifact_key=key,
            now_s=self._clock.wall(),
            retention_s=self._retention_s,
        )
        ended.video.cache = video_pb2.CACHE_STATUS_HIT
        ended.video.spec.seed = entry.spec.seed
        ended.ClearField("reservation")
        return ended
