"""Keeps this replica's summary of its region in the global store, under a lease.

Each replica has a key of its own, so that nobody need be elected for it: they all see
the same fleet, and a reader believes the newest.
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog
from reelmesh.v1 import region_pb2

from control_plane.errors import LeaseNotFoundError, StoreError
from control_plane.fleet import FleetView
from control_plane.leased_record import LeasedRecord
from control_plane.regions.summary import says_the_same, summarize
from reelkit.clock import Clock

_log = structlog.get_logger("control_plane.regions")

# Others need not see each change, and making a summary of 5,000 nodes takes milliseconds.
COALESCE_S = 1.0
RETRY_DELAY_S = 1.0


class SummaryPublisher:
    """Publishes while it runs; what it published expires with its lease."""

    def __init__(self, *, region: str, view: FleetView, record: LeasedRecord, clock: Clock) -> None:
        self._region = region
        self._view = view
        self._record = record
        self._clock = clock
        self._published: region_pb2.RegionSummary | None = None
        self._failing = False

    async def run(self) -> None:
        """Publishes at once and after each change of the fleet; for ever."""
        await self._view.wait_until(1)
        while True:
            changed = self._view.changed
            try:
                await self._bring_up_to_date()
            except StoreError as error:
                self._note_failure(error)
                await self._clock.sleep(RETRY_DELAY_S)
                continue
            self._note_success()
            await self._clock.sleep(COALESCE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._record.ttl_s / 3):
                    await changed.wait()

    async def withdraw(self) -> None:
        """Takes the summary out at once: this replica stops.

        Raises:
            StoreError: The store is away; the lease takes it out in its time.
        """
        if self._published is not None:
            await self._record.remove()

    async def _bring_up_to_date(self) -> None:
        summary = summarize(
            self._region,
            nodes=self._view.nodes,
            gateways=self._view.gateways,
            fleet_version=self._view.version,
        )
        if self._published is None:
            await self._put(summary, claim=True)
            return
        try:
            await self._record.renew()
            if not says_the_same(self._published, summary):
                await self._put(summary, claim=False)
        except LeaseNotFoundError:
            await self._put(summary, claim=True)

    async def _put(self, summary: region_pb2.RegionSummary, *, claim: bool) -> None:
        summary.changed_at.FromNanoseconds(int(self._clock.wall() * 1e9))
        value = summary.SerializeToString(deterministic=True)
        if claim:
            await self._record.claim(value, lease_id=self._record.lease_id)
        else:
            await self._record.write(value)
        self._published = summary

    def _note_failure(self, error: StoreError) -> None:
        # Said once an outage.
        if not self._failing:
            _log.warning("summary waits for the global store", error=str(error))
        self._failing = True

    def _note_success(self) -> None:
        if self._failing:
            _log.info("summary is published again")
        self._failing = False
