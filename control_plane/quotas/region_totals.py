"""The region's own part of each tenant, as its store has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import structlog
from google.protobuf.message import DecodeError
from reelmesh.v1 import quota_service_pb2 as pb

from control_plane.keys import RegionPartKeys
from control_plane.store.mirror import ChangeKind, MirrorChange, list_all
from control_plane.store.port import Compare, KeyValue, Store, unchanged
from reelkit.clock import Clock

_log = structlog.get_logger("control_plane.quotas")


class RegionPart(NamedTuple):
    """What the region may go by of a tenant."""

    tenant: str
    part: float
    revision: int


class RegionTotals:
    """A :class:`control_plane.quotas.totals.Totals` of the region's parts.

    The leader writes them, and until when they hold without another word of the global
    store; then the region goes by its safe part. Replicas' wall clocks are compared with
    that time, so it is written earlier by more than they differ.

    Args:
        safe: The region's safe part.
    """

    def __init__(self, *, store: Store, keys: RegionPartKeys, clock: Clock, safe: float) -> None:
        self.lease = pb.RegionLease()
        self.safe = safe
        self.keys = keys
        self._store = store
        self._clock = clock
        self._parts: dict[str, RegionPart] = {}

    @property
    def parts(self) -> Sequence[RegionPart]:
        """Those that are written down."""
        return list(self._parts.values())

    def is_safe(self) -> bool:
        """Whether the region goes by its safe part: nothing newer is known to hold."""
        return self.holds_for_s() <= 0

    def holds_for_s(self) -> float:
        """See :meth:`Totals.holds_for_s`; 0: it goes by its safe part."""
        return max(self.lease.valid_until.ToNanoseconds() / 1e9 - self._clock.wall(), 0.0)

    def of(self, tenant: str) -> float:
        """See :meth:`Totals.of`."""
        if self._clock.wall() >= self.lease.safe_until.ToNanoseconds() / 1e9:
            # It has no place among the regions.
            return 0.0
        if self.is_safe():
            return self.safe
        return self.part(tenant)

    def part(self, tenant: str) -> float:
        """What is written down of a tenant; the safe part where nothing is."""
        found = self._parts.get(self.keys.part(tenant))
        return self.safe if found is None else max(found.part, self.safe)

    def fence(self, tenant: str) -> Sequence[Compare]:
        """See :meth:`Totals.fence`."""
        key = self.keys.part(tenant)
        found = self._parts.get(key)
        return (unchanged(key, found.revision if found else 0),)

    async def refresh(self, tenant: str) -> None:
        """See :meth:`Totals.refresh`."""
        key = self.keys.part(tenant)
        found = await self._store.get(key)
        if found is None:
            self._parts.pop(key, None)
        else:
            self._put(found)

    async def reload(self) -> None:
        """Reads everything anew.

        Raises:
            StoreError: The store is away.
        """
        items, _ = await list_all(self._store, self.keys.base)
        self._parts.clear()
        for kv in items:
            self._put(kv)

    def apply(self, change: MirrorChange) -> None:
        """Takes a change of the store over."""
        if change.kind is ChangeKind.SNAPSHOT:
            self._parts.clear()
        for kv in change.upserts:
            self._put(kv)
        for key in change.deleted_keys:
            found = self._parts.get(key)
            if found is not None and found.revision <= change.revision:
                del self._parts[key]

    def _put(self, kv: KeyValue) -> None:
        try:
            if kv.key == self.keys.lease:
                self.lease = pb.RegionLease.FromString(kv.value)
                return
            share = pb.QuotaShare.FromString(kv.value)
        except DecodeError:
            _log.error("the region's part cannot be read; the safe part holds", key=kv.key)
            return
        known = self._parts.get(kv.key)
        if known is None or known.revision <= kv.mod_revision:
            # What was read just now may be newer than what a watch brings.
            self._parts[kv.key] = RegionPart(share.tenant, share.part, kv.mod_revision)
