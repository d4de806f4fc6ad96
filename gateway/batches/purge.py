"""Removes batches that are over: their videos, their files, and last their record."""

from __future__ import annotations

import contextlib
from typing import Final

import structlog
from reelmesh.v1 import batch_record_service_pb2 as pb

from gateway.application import VideoApplication
from gateway.batches import records, segments
from gateway.batches.files import BatchFiles
from gateway.batches.ids import batch_region_of
from gateway.batches.store import BatchStore
from gateway.errors import GatewayError, HomeUnreachable, OtherRegion, VideoNotFound
from gateway.output.artifacts import ArtifactError, ArtifactMissing, ArtifactStore
from reelkit.clock import Clock

_log = structlog.get_logger("gateway.batches")

_AT_ONCE: Final = 100
# Items are written before the record that names them.
_UNREFERENCED_AFTER_S: Final = 3600.0


class Purge:
    """Keeps batches to their time; what fails is tried again by a later sweep.

    Every step may be repeated, by several gateways at once: the record goes last, and while
    it is there all else can be found.

    Args:
        region: Whose batches these are.
        interval_s: Between sweeps.
    """

    def __init__(
        self,
        *,
        region: str,
        videos: VideoApplication,
        store: BatchStore,
        files: BatchFiles,
        artifacts: ArtifactStore,
        clock: Clock,
        interval_s: float,
    ) -> None:
        self._region = region
        self._videos = videos
        self._store = store
        self._files = files
        self._artifacts = artifacts
        self._clock = clock
        self._interval_s = interval_s

    async def run(self) -> None:
        """Sweeps at every interval; cancellation ends it."""
        while True:
            await self._clock.sleep(self._interval_s)
            try:
                await self.sweep()
            except (GatewayError, ArtifactError) as error:
                _log.info("sweep of batches broke off", error=str(error))
            except Exception:  # noqa: BLE001 - a supervisor: the next sweep goes on
                _log.exception("sweep of batches broke off")

    async def sweep(self) -> None:
        """Removes what is over now; raises what the record or artifact store does."""
        for record in await self._store.expired(self._clock.wall(), limit=_AT_ONCE):
            await self.try_remove(record)
        await self._sweep_files()

    async def try_remove(self, record: pb.BatchRecord) -> bool:
        """Removes an ended batch; False: not all of it yet."""
        try:
            await self._remove(record)
        except (GatewayError, ArtifactError) as error:
            _log.info("batch not removed yet", batch_id=record.batch.id, error=str(error))
            return False
        return True

    async def _remove(self, record: pb.BatchRecord) -> None:
        caller = records.caller_of(record)
        for segment in range(len(record.segment_bytes)):
            try:
                outcomes = await self._files.outcomes(record, segment)
            except ArtifactMissing:
                # An earlier try came as far, or another gateway is at it.
                continue
            for outcome in outcomes.outcomes:
                if outcome.video_id:
                    # One in a region that does not answer goes there when its time is over.
                    with contextlib.suppress(VideoNotFound, OtherRegion, HomeUnreachable):
                        await self._videos.delete(caller, outcome.video_id)
        await self._files.remove_all(record.batch.id)
        await self._store.purge(record.batch.id)

    async def _sweep_files(self) -> None:
        """Removes files of batches that were never accepted, or are no more."""
        before_s = self._clock.wall() - _UNREFERENCED_AFTER_S
        async with contextlib.aclosing(self._artifacts.listing(segments.FOLDER)) as pages:
            async for page in pages:
                old = [
                    file
                    for file in page
                    if file.modified_at_s < before_s
                    and batch_region_of(file.video_id) == self._region
                ]
                known = await self._store.known({file.video_id for file in old})
                for file in old:
                    if file.video_id not in known:
                        await self._artifacts.delete(file.key)
