"""Removes what is over: expired records with their artifacts, and artifacts of no record."""

from __future__ import annotations

import contextlib
from typing import Final

import structlog

from gateway.jobs.ids import region_of
from gateway.jobs.store import JobStore
from gateway.output.artifacts import ArtifactError, ArtifactStore, delete_video
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

    Records go first and whatever the store says, so that a store which is away fills no
    gateway with them; an artifact that could not be deleted has no record then, and
    every later sweep tries it again.

    Args:
        region: Whose artifacts these are; those of others in a shared bucket are theirs.
        retention_s: How long records are kept.
        interval_s: Between sweeps, and at most for the deletions of one.
    """

    def __init__(
        self,
        *,
        region: str,
        jobs: JobStore,
        artifacts: ArtifactStore,
        clock: Clock,
        retention_s: float,
        interval_s: float,
    ) -> None:
        self._region = region
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
            except Exception:  # noqa: BLE001 - a supervisor: the next sweep goes on
                _log.exception("sweep broke off")

    async def sweep(self) -> None:
        """Removes what is over now.

        Raises:
            ArtifactError: The artifacts could not be listed.
        """
        until_s = self._clock.monotonic() + self._interval_s
        for key in await self._sweep_records():
            if self._clock.monotonic() >= until_s:
                break
            await self._delete(key)
        await self._sweep_artifacts(until_s)

    async def _sweep_records(self) -> list[str]:
        """Drops expired records; answers the keys of their artifacts."""
        keys = []
        while records := await self._jobs.expired(self._clock.wall(), limit=_BATCH):
            for record in records:
                await self._jobs.delete(record.tenant, record.video.id)
                if record.artifact_key:
                    keys.append(record.artifact_key)
        return keys

    async def _sweep_artifacts(self, until_s: float) -> None:
        min_age_s = _UNREFERENCED_AFTER_S
        if not self._jobs.durable:
            min_age_s += self._retention_s
        before_s = self._clock.wall() - min_age_s
        async with contextlib.aclosing(self._artifacts.listing()) as pages:
            async for page in pages:
                old = [
                    artifact
                    for artifact in page
                    if artifact.modified_at_s < before_s
                    and region_of(artifact.video_id) == self._region
                ]
                known = await self._jobs.known({artifact.video_id for artifact in old})
                for artifact in old:
                    if self._clock.monotonic() >= until_s:
                        return
                    if artifact.video_id not in known:
                        _log.info("unreferenced artifact removed", job_id=artifact.video_id)
                        await self._delete(artifact.key)

    async def _delete(self, key: str) -> None:
        try:
            await delete_video(self._artifacts, key)
        except ArtifactError as error:
            _log.warning("artifact not deleted", key=key, error=str(error))
