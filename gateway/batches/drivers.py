"""The batches that this gateway drives: those it accepted, and those it took over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import structlog
from reelmesh.v1 import batch_record_service_pb2 as pb
from reelmesh.v1 import job_service_pb2

from gateway.batches import records
from gateway.batches.driver import BatchDriver, DriverParts
from gateway.batches.ids import PREFIX
from gateway.errors import GatewayError, JobStoreAway
from gateway.jobs.store import JobStore, Owner
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

_log = structlog.get_logger("gateway.batches")

# As for jobs: the heir has this long before every other gateway may take it.
HEIR_FIRST_S: Final = 2.0
AGAIN_S: Final = 2.0
# How often a gateway asks what it owns: what it does not drive is an answer that it missed.
LOOK_S: Final = 30.0
_LEAVE_S: Final = 5.0


class Drivers:
    """Drives batches, each in a task of its own.

    Args:
        owner: This gateway in this life.
        parts: What each driver works with.
        jobs: Says what this gateway owns.
        scope: Owns the tasks.
    """

    def __init__(
        self, *, owner: Owner, parts: DriverParts, jobs: JobStore, scope: TaskScope, clock: Clock
    ) -> None:
        self._owner = owner
        self._parts = parts
        self._jobs = jobs
        self._scope = scope
        self._clock = clock
        self._live: dict[str, BatchDriver] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._listed: dict[str, job_service_pb2.Orphan] = {}
        # Refused after all, though their record may stand.
        self._refused: set[str] = set()
        self.draining = False
        self.on_end: Callable[[pb.BatchRecord], None] = lambda _record: None
        """Told of each batch that ends here."""

    @property
    def live(self) -> int:
        """Batches driven here."""
        return len(self._live)

    @property
    def in_flight(self) -> int:
        """Their videos under way."""
        return sum(driver.in_flight for driver in self._live.values())

    def live_of(self, tenant: str) -> int:
        """A tenant's batches that are driven here."""
        return sum(driver.tenant == tenant for driver in self._live.values())

    def begin(self, record: pb.BatchRecord) -> None:
        """Drives a batch of this gateway's, unless it does already."""
        batch_id = record.batch.id
        if batch_id in self._live or self.draining or records.ended(record):
            return
        driver = self._live[batch_id] = BatchDriver(record, self._parts)
        self._tasks[batch_id] = self._scope.spawn(
            self._drive(driver), name=f"batch/{batch_id}", fatal=False
        )

    def cancel(self, batch_id: str) -> None:
        """Tells the driver of a batch at once, where it is here, that a cancel was asked for."""
        driver = self._live.get(batch_id)
        if driver is not None:
            driver.cancel()

    async def _drive(self, driver: BatchDriver) -> None:
        try:
            await driver.run()
            if driver.ended is not None:
                self.on_end(driver.ended)
        except Exception:  # noqa: BLE001 - a supervisor: the next look takes the batch up again
            _log.exception("batch broke off", batch_id=driver.batch_id)
        finally:
            if self._live.get(driver.batch_id) is driver:
                del self._live[driver.batch_id]
                del self._tasks[driver.batch_id]

    # --- those that are found ---

    def take(self, orphans: Iterable[job_service_pb2.Orphan]) -> None:
        """Takes the whole list of orphans; batches that are new on it are looked after."""
        batches = {each.job_id: each for each in orphans if each.job_id.startswith(PREFIX)}
        former, self._listed = self._listed, batches
        for batch_id, orphan in batches.items():
            known = former.get(batch_id)
            new = known is None or known.epoch != orphan.epoch
            if new and batch_id not in self._refused:
                self._scope.spawn(self._adopt(orphan), name=f"adopt/{batch_id}", fatal=False)

    async def _adopt(self, orphan: job_service_pb2.Orphan) -> None:
        """Claims it, unless somebody else does first.

        Its owner need not be asked: one that lives on is told by its next write that it owns
        the batch no more, and what both made meanwhile was made once.
        """
        if orphan.heir_gateway not in ("", self._owner.gateway_id):
            await self._clock.sleep(HEIR_FIRST_S)
        asked = False
        # A claim without an answer may have been applied, and then it is on no list.
        while not self.draining and (asked or self._listed.get(orphan.job_id) == orphan):
            try:
                standing, claimed = await self._parts.store.claim(
                    orphan.job_id, epoch=orphan.epoch, owner=self._owner
                )
            except JobStoreAway:
                asked = True
                await self._clock.sleep(AGAIN_S)
                continue
            if claimed and standing is not None:
                _log.info("batch adopted", batch_id=orphan.job_id, former=orphan.owner_gateway)
                self.begin(standing)
            return

    async def run(self) -> None:
        """Takes up what this gateway owns and does not drive; cancellation ends it.

        Such is a batch whose driver broke off, or whose creation was applied without an
        answer: its client may come back for it with the key.
        """
        while True:
            await self._clock.sleep(LOOK_S)
            try:
                await self.look()
            except GatewayError as error:
                _log.info("own batches not listed", cause=error.code)
            except Exception:  # noqa: BLE001 - a supervisor: the next look goes on
                _log.exception("look at own batches broke off")

    async def look(self) -> None:
        """Once."""
        for owned in await self._jobs.owned(self._owner, prefix=PREFIX):
            if owned.job_id in self._live or owned.job_id in self._refused:
                continue
            record = await self._parts.store.get(owned.tenant, owned.job_id)
            if record is None or records.ended(record):
                continue
            if Owner(record.owner_gateway, record.owner_incarnation) == self._owner:
                self.begin(record)

    # --- those that are refused after all ---

    def disclaim(self, record: pb.BatchRecord) -> None:
        """Removes a record that may have been written though its client was told otherwise."""
        self._refused.add(record.batch.id)
        name = f"disclaim/{record.batch.id}"
        self._scope.spawn(self._disclaim(record), name=name, fatal=False)

    async def _disclaim(self, record: pb.BatchRecord) -> None:
        ended = records.finished(
            record,
            records.REFUSED,
            now_s=self._clock.wall(),
            retention_s=0.0,
        )
        absent = 0
        # The write that was given up may still be on its way.
        while absent < 2:
            await self._clock.sleep(AGAIN_S)
            try:
                standing, _ = await self._parts.store.update(ended)
                if standing is None:
                    absent += 1
                    continue
                if not records.ended(standing):
                    # Another took it for an orphan meanwhile: it is to stop.
                    await self._parts.store.cancel(record.tenant, record.batch.id)
                    continue
                await self._parts.store.delete(record.tenant, record.batch.id)
            except JobStoreAway:
                continue
            except GatewayError as error:
                _log.warning("batch not removed", batch_id=record.batch.id, cause=error.code)
            break
        self._refused.discard(record.batch.id)

    async def drain(self) -> None:
        """Begins nothing more, and lets other gateways go on with what is left."""
        self.draining = True
        for driver in list(self._live.values()):
            driver.leave()
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=_LEAVE_S)
