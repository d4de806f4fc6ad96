"""Removes what is over: expired records with their artifacts, and artifacts of no record."""

from __future__ import annotations

from typing import Final

import structlog

from gateway.jobs.ids import region_of
from gateway.jobs.store import JobStore
from gateway.output.artifacts import ArtifactError, ArtifactStore
from reelkit.clock import Clock

_log = structlog.get_logger("gateway.sweeper")

_BATCH: Final = 500
# A durable store knows every reference, but an artifact is written before its record.
_UNREFERENCED_AFTER_S: Final = 3600.0


class Sweeper:
    """Keeps records and artifacts to their time.

    Artifacts without a record: where records are durable, all gateways' are known, and
    such an artifact goes after an hour. Where they are not, a peer may hold the record,
    so it goes only when every record of its age has expired.
    """

    def __init__(
        self,
        *,
        jobs: JobStore,
        artifacts: ArtifactStore,
        clock: Clock,
        retention_s: float,
        interval_s: float,
    ) -> None:
        self._jobs = jobs
        self._artifacts = artifacts
        self._clock = clock
        self._retention_s = retention_s
        self._interval_s = interval_s

    async def run(self) -> None:
        """Sweeps at every interval; cancellation ends it."""
        while True:
            await self._clock.sleep(self._interval_s)
            try:
                await self.sweep()
            except ArtifactError as error:
                _log.warning("sweep broke off", error=str(error))

    async def sweep(self) -> None:
        """Removes what is over now.

        Raises:
            ArtifactError: The artifact store failed; the next sweep goes on.
        """
        await self._sweep_records()
        await self._sweep_artifacts()

    async def _sweep_records(self) -> None:
        while records := await self._jobs.expired(self._clock.wall(), limit=_BATCH):
            for record in records:
                if record.artifact_key:
                    await self._artifacts.delete(record.artifact_key)
                await self._jobs.delete(record.tenant, record.video.id)

    async def _sweep_artifacts(self) -> None:
        now_s = self._clock.wall()
        min_age_s = _UNREFERENCED_AFTER_S
        if not self._jobs.durable:
            min_age_s += self._retention_s
        old = [a for a in await self._artifacts.listing() if a.modified_at_s < now_s - min_age_s]
        known = await self._jobs.known({artifact.video_id for artifact in old})
        for artifact in old:
            if artifact.video_id not in known and region_of(artifact.video_id) is not None:
                _log.info("unreferenced artifact removed", job_id=artifact.video_id)
                await self._artifacts.delete(artifact.key)
