"""Serves the regions to gateways: whole at first, after each change, and as a heartbeat."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from collections.abc import Set as AbstractSet

from reelmesh.v1 import control_plane_service_pb2 as cp

from control_plane.errors import NotReadyError
from control_plane.regions.book import RegionBook
from control_plane.revocations.book import RevocationBook
from control_plane.tenants.book import TenantBook

FIRST_READ_S = 5.0
# In one message, of some 50 bytes each.
MAX_SUPERSEDED = 1000


class RegionWatchers:
    """Serves WatchRegions on this replica, each watcher at its own pace."""

    def __init__(
        self,
        book: RegionBook,
        *,
        revocations: RevocationBook,
        tenants: TenantBook,
        region: str,
        heartbeat_s: float,
    ) -> None:
        self._book = book
        self._revocations = revocations
        self._tenants = tenants
        self._own_jobs = f"{region}-"
        self._heartbeat_s = heartbeat_s
        self._stopping = False

    def stop(self) -> None:
        """Ends every watch with a word that sends the watcher to another replica."""
        self._stopping = True
        self._book.wake()

    async def serve(
        self, _request: cp.WatchRegionsRequest
    ) -> AsyncGenerator[cp.WatchRegionsResponse, None]:
        """Responses for one watcher, for ever.

        Raises:
            NotReadyError: The global store was not read yet, or this replica stops.
        """
        try:
            async with asyncio.timeout(FIRST_READ_S):
                await self._book.loaded.wait()
        except TimeoutError:
            raise NotReadyError("this replica has not read the regions yet; try another") from None
        told: set[str] = set()
        revocations_version = tenants_version = 0
        while not self._stopping:
            changed = self._book.changed
            superseded = self._superseded(but=told)
            told.update(job.job_id for job in superseded)
            response = cp.WatchRegionsResponse(regions=self._book.views(), superseded=superseded)
            if self._revocations.version != revocations_version:
                revocations_version = self._revocations.version
                response.revocations.CopyFrom(self._revocations.all())
            if self._tenants.version != tenants_version:
                tenants_version = self._tenants.version
                response.tenants.CopyFrom(self._tenants.all())
            yield response
            if len(superseded) == MAX_SUPERSEDED:
                # There may be more of them.
                continue
            told &= self._book.superseded.keys()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await changed.wait()
        raise NotReadyError("this replica is stopping; watch another")

    def _superseded(self, *, but: AbstractSet[str]) -> list[cp.SupersededJob]:
        """The region's own that a watcher was not told of yet."""
        return [
            cp.SupersededJob(job_id=job_id, tenant=tenant)
            for job_id, tenant in self._book.superseded.items()
            if job_id.startswith(self._own_jobs) and job_id not in but
        ][:MAX_SUPERSEDED]
