"""Live jobs whose owner is no more, and who should take them over.

A gateway counts as gone with its lease, or when it was started again: its forerunner's
jobs are not its own. That is only a hint. A claim is safe at any time, since epochs decide,
and whoever claims asks the owner first; so unlike nodes, gateways that vanish in number are
not doubted here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import structlog
from google.protobuf.message import DecodeError
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import job_service_pb2 as pb

from control_plane.errors import NotReadyError
from control_plane.fleet import FleetView
from control_plane.store.mirror import ChangeKind, MirrorChange
from reelkit.clock import Clock

_log = structlog.get_logger("control_plane.jobs")

MAX_TOLD: Final = 256
FIRST_READ_S: Final = 5.0
# A gateway that dies leaves hundreds of jobs at once: they share a message.
COALESCE_S: Final = 0.02

Owner = tuple[str, str]
"""A gateway's id and incarnation."""


def heir_of(job_id: str, gateways: Collection[str]) -> str:
    """The gateway that should take a job over, "" where there is none.

    Rendezvous hashing: every replica says the same, each gateway gets its share, and
    one that comes or goes moves only the jobs that are or were its own.
    """
    return max(gateways, key=lambda gateway: _weight(job_id, gateway), default="")


def _weight(job_id: str, gateway: str) -> bytes:
    return hashlib.sha256(f"{job_id}\0{gateway}".encode()).digest()


def orphans_of(
    owners: Mapping[Owner, Mapping[str, pb.JobRecord]], gateways: Iterable[cp.GatewayHello]
) -> list[pb.Orphan]:
    """The live jobs that nobody owns, the oldest first.

    Args:
        owners: The live jobs of each owner, by id.
        gateways: Those that live.
    """
    alive = {gateway.gateway_id: gateway.incarnation for gateway in gateways}
    found = [
        pb.Orphan(
            job_id=job_id,
            tenant=record.tenant,
            epoch=record.epoch,
            owner_gateway=owner,
            # Jobs that shared a run go to one gateway, which can let them share it again.
            heir_gateway=heir_of(record.follows or job_id, alive),
        )
        for (owner, incarnation), jobs in owners.items()
        if alive.get(owner) != incarnation
        for job_id, record in jobs.items()
    ]
    # Ids sort by the time of admission.
    return sorted(found, key=lambda orphan: orphan.job_id)[:MAX_TOLD]


def owned_by(owner: Owner, jobs: Mapping[str, pb.JobRecord], *, prefix: str) -> list[pb.Orphan]:
    """Those of an owner's whose ids begin with ``prefix``, the oldest first."""
    found = [
        pb.Orphan(job_id=job_id, tenant=record.tenant, epoch=record.epoch, owner_gateway=owner[0])
        for job_id, record in jobs.items()
        if job_id.startswith(prefix)
    ]
    return sorted(found, key=lambda orphan: orphan.job_id)[:MAX_TOLD]


class LiveJobs:
    """The owners of all live jobs, as this replica reads them; filled by :meth:`apply`.

    Args:
        on_change: Called after each change; wakes whoever watches orphans.
    """

    def __init__(self, *, on_change: Callable[[], None]) -> None:
        self.loaded = asyncio.Event()
        self._on_change = on_change
        self._owner_of: dict[str, Owner] = {}
        # By owner, so that a gateway's end costs its own jobs and not a look at all.
        self._owners: dict[Owner, dict[str, pb.JobRecord]] = {}

    def __len__(self) -> int:
        return len(self._owner_of)

    @property
    def owners(self) -> Mapping[Owner, Mapping[str, pb.JobRecord]]:
        """The live jobs of each owner."""
        return self._owners

    def tenants(self) -> set[str]:
        """Those that have a live job."""
        return {record.tenant for jobs in self._owners.values() for record in jobs.values()}

    def apply(self, change: MirrorChange) -> None:
        """Takes a change of the store over."""
        if change.kind is ChangeKind.SNAPSHOT:
            self._owner_of.clear()
            self._owners.clear()
        for kv in change.upserts:
            job_id = _job_id(kv.key)
            try:
                record = pb.JobRecord.FromString(kv.value)
            except DecodeError:
                _log.error("an owner cannot be read; its job is left out", key=kv.key)
                continue
            self._forget(job_id)
            owner = (record.owner_gateway, record.owner_incarnation)
            self._owner_of[job_id] = owner
            self._owners.setdefault(owner, {})[job_id] = record
        for key in change.deleted_keys:
            self._forget(_job_id(key))
        self.loaded.set()
        self._on_change()

    def _forget(self, job_id: str) -> None:
        owner = self._owner_of.pop(job_id, None)
        if owner is None:
            return
        jobs = self._owners[owner]
        del jobs[job_id]
        if not jobs:
            del self._owners[owner]


def _job_id(live_key: str) -> str:
    return live_key.rpartition("/")[2]


class OrphanWatchers:
    """Serves WatchOrphans on this replica; the fleet's wake is theirs too.

    Args:
        live: The live jobs.
        others: What else has owners: batches.
    """

    def __init__(
        self,
        *,
        live: LiveJobs,
        others: LiveJobs,
        fleet: FleetView,
        clock: Clock,
        heartbeat_s: float,
    ) -> None:
        self._live = live
        self._others = others
        self._fleet = fleet
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._stopping = False

    def stop(self) -> None:
        """Ends every watch; call it before the fleet's watchers are woken to the same end."""
        self._stopping = True

    def orphans(self) -> Sequence[pb.Orphan]:
        """Those there are now."""
        gateways = list(self._fleet.gateways)
        jobs = orphans_of(self._live.owners, gateways)
        return [*jobs, *orphans_of(self._others.owners, gateways)]

    def owned(self, owner: Owner, *, prefix: str) -> list[pb.Orphan]:
        """What an owner has of what has not ended and is no job.

        Raises:
            NotReadyError: This replica has not read the store since it started.
        """
        if not self._others.loaded.is_set():
            raise NotReadyError("this replica has not read the batches yet; try another")
        return owned_by(owner, self._others.owners.get(owner, {}), prefix=prefix)

    async def serve(
        self, _request: pb.WatchOrphansRequest
    ) -> AsyncGenerator[pb.WatchOrphansResponse, None]:
        """Responses for one watcher, for ever.

        Raises:
            NotReadyError: This replica has not read the store since it started, or stops.
        """
        try:
            async with asyncio.timeout(FIRST_READ_S):
                await self._live.loaded.wait()
                await self._others.loaded.wait()
                await self._fleet.wait_until(1)
        except TimeoutError:
            raise NotReadyError("this replica has not read the jobs yet; try another") from None
        told: Sequence[pb.Orphan] | None = None
        due_s = 0.0
        while not self._stopping:
            changed = self._fleet.changed
            orphans = self.orphans()
            if orphans != told or self._clock.monotonic() >= due_s:
                told, due_s = orphans, self._clock.monotonic() + self._heartbeat_s
                yield pb.WatchOrphansResponse(orphans=orphans)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(due_s - self._clock.monotonic(), 0.0)):
                    await changed.wait()
            await self._clock.sleep(COALESCE_S)
        raise NotReadyError("this replica is stopping; watch another")
