"""Every region of the mesh, as this replica reads it in the global store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeVar

import structlog
from google.protobuf.message import DecodeError
from reelmesh.v1 import region_pb2

from control_plane.errors import InvalidRequestError, NotFoundError, SupersededError
from control_plane.keys import GlobalKeys
from control_plane.passing import PassingKeys
from control_plane.regions.summary import newest
from control_plane.store.mirror import ChangeKind, MirrorChange
from control_plane.store.port import KeyValue, Put, Store, unchanged
from control_plane.store.writer import FencedWriter
from reelkit.clock import Clock

_log = structlog.get_logger("control_plane.regions")

MAX_WRITE_TRIES = 5
# Every region keeps them all, some 100 bytes each, and any client can have one written.
MAX_SUPERSEDED = 50_000

M = TypeVar("M", region_pb2.RegionSummary, region_pb2.RegionPolicy)


class RegionBook:
    """Summaries and policies; filled by :meth:`apply`, read by any number of watchers.

    What was read last goes on being shown while the store is away.
    """

    def __init__(
        self, *, keys: GlobalKeys, store: Store, writer: FencedWriter, clock: Clock
    ) -> None:
        self.loaded = asyncio.Event()
        self._keys = keys
        self._store = store
        self._writer = writer
        self._clock = clock
        # By region, then replica.
        self._summaries: dict[str, dict[str, region_pb2.RegionSummary]] = {}
        self._policies: dict[str, region_pb2.RegionPolicy] = {}
        # Tenants of the jobs whose clients go on elsewhere, by job.
        self._superseded: dict[str, str] = {}
        self._passing = PassingKeys(store=store, writer=writer, clock=clock)
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change, a new one for each; take it before looking."""
        return self._changed

    def wake(self) -> None:
        """Lets every watcher look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def views(self) -> list[region_pb2.RegionView]:
        """Every region that has a summary or a policy, by name."""
        return [self.view(name) for name in sorted(self._summaries.keys() | self._policies.keys())]

    def summarized(self) -> list[str]:
        """Those that have a summary: their control planes live."""
        return list(self._summaries)

    def view(self, region: str) -> region_pb2.RegionView:
        """One region; without a summary where nothing is known of it."""
        return region_pb2.RegionView(
            region=region,
            summary=newest(self._summaries.get(region, {}).values()),
            policy=self._policies.get(region),
        )

    @property
    def superseded(self) -> Mapping[str, str]:
        """Tenants of the jobs of any region whose clients go on elsewhere, by job."""
        return self._superseded

    def apply(self, change: MirrorChange) -> None:
        """Takes a change of the store over and wakes the watchers."""
        if change.kind is ChangeKind.SNAPSHOT:
            self._summaries.clear()
            self._policies.clear()
            self._superseded.clear()
        for kv in change.upserts:
            self._upsert(kv)
        for key in change.deleted_keys:
            self._forget(key)
        self.loaded.set()
        self.wake()

    def _upsert(self, kv: KeyValue) -> None:
        if kv.key.startswith(self._keys.summaries):
            region, _, replica = kv.key.removeprefix(self._keys.summaries).partition("/")
            summary = _decoded(region_pb2.RegionSummary(), kv)
            if summary is not None:
                self._summaries.setdefault(region, {})[replica] = summary
        elif kv.key.startswith(self._keys.policies):
            policy = _decoded(region_pb2.RegionPolicy(), kv)
            if policy is not None:
                self._policies[kv.key.removeprefix(self._keys.policies)] = policy
        elif kv.key.startswith(self._keys.superseded_jobs):
            self._superseded[kv.key.removeprefix(self._keys.superseded_jobs)] = kv.value.decode()

    def _forget(self, key: str) -> None:
        if key.startswith(self._keys.summaries):
            region, _, replica = key.removeprefix(self._keys.summaries).partition("/")
            known = self._summaries.get(region, {})
            known.pop(replica, None)
            if not known:
                self._summaries.pop(region, None)
        elif key.startswith(self._keys.superseded_jobs):
            self._superseded.pop(key.removeprefix(self._keys.superseded_jobs), None)
        else:
            self._policies.pop(key.removeprefix(self._keys.policies), None)

    async def supersede(self, tenant: str, job_id: str, *, keep_s: int) -> None:
        """Writes that a job's client goes on elsewhere; may be repeated.

        Raises:
            InvalidRequestError: There are too many.
            StoreError: The global store is away.
        """
        if len(self._superseded) >= MAX_SUPERSEDED:
            raise InvalidRequestError("job_id", f"{MAX_SUPERSEDED} are kept already; ask later")
        key = self._keys.superseded_job(job_id)
        await self._passing.put(key, tenant.encode(), keep_s=keep_s)

    async def set_policy(
        self, region: str, *, draining: bool, reason: str, by: str
    ) -> region_pb2.RegionView:
        """Writes what an operator wants of a region; the last one wins.

        Raises:
            NotFoundError: Nobody knows that region.
            SupersededError: Others change it all the time.
            StoreError: The global store is away; nothing was changed, ask again.
        """
        names = [view.region for view in self.views()]
        if region not in names:
            raise NotFoundError(
                f"there is no region {region!r}; known are: {', '.join(names) or 'none'}"
            )
        policy = region_pb2.RegionPolicy(draining=draining, reason=reason, changed_by=by)
        policy.changed_at.FromNanoseconds(int(self._clock.wall() * 1e9))
        key = self._keys.policy(region)
        for _ in range(MAX_WRITE_TRIES):
            found = await self._store.get(key)
            result = await self._writer.txn(
                [unchanged(key, found.mod_revision if found else 0)],
                [Put(key, policy.SerializeToString(deterministic=True))],
            )
            if result.succeeded:
                break
        else:
            raise SupersededError(f"region {region} is being changed by others; look and ask again")
        _log.info("region policy", region=region, draining=draining, by=by)
        view = self.view(region)
        view.policy.CopyFrom(policy)
        return view


def _decoded(message: M, kv: KeyValue) -> M | None:
    try:
        message.ParseFromString(kv.value)
    except DecodeError:
        _log.error("a record of a region cannot be read; it is left out", key=kv.key)
        return None
    return message
