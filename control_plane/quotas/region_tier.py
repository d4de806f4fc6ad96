"""The region's leader gets the region's parts from the global store, and gives them back.

The order keeps the sum: a part is raised in the global store first and in the region's
then; it is lowered in the region's first, and in the global one by the next call, when
nobody in the region can go by more any longer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog
from reelmesh.v1 import quota_service_pb2 as pb

from control_plane.election import Leadership
from control_plane.errors import SupersededError
from control_plane.quotas.book import SAFE_FOR_S, Ask, Leased, ShareBook
from control_plane.quotas.region_totals import RegionTotals
from control_plane.store.port import Delete, Op, Put
from reelkit.clock import Clock

_log = structlog.get_logger("control_plane.quotas")

EVERY_S: Final = 2.0
# Of a lease's time, and seconds by which replicas' wall clocks may differ.
MARGIN_SHARE: Final = 0.2
CLOCKS_DIFFER_S: Final = 2.0
FORGET_AFTER_S: Final = 3600.0
_FAR_S: Final = 4_000_000_000.0
_BATCH: Final = 100
_EPSILON: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Want:
    """What the region has of a tenant in use, and could use."""

    used: float
    demand: float


Wants = Callable[[], Awaitable[Mapping[str, Want]]]
"""Reads what is in use, after whatever was written before the call."""


class RegionTier:
    """A duty of the region's leader.

    Args:
        region: Its name, under which it holds.
        book: The parts of all regions, in the global store.
        totals: The region's, in its own.
        wants: What is in use.
    """

    def __init__(
        self,
        *,
        region: str,
        book: ShareBook,
        totals: RegionTotals,
        wants: Wants,
        clock: Clock,
    ) -> None:
        self._region = region
        self._book = book
        self._totals = totals
        self._wants = wants
        self._clock = clock
        self._idle_since_s: dict[str, float] = {}

    async def keep(self, reign: Leadership) -> None:
        """Keeps the region's parts, for as long as the reign lasts.

        Raises:
            StoreError: A store is away; begin anew.
            NotLeaderError: The reign is over.
        """
        while True:
            await self.once(reign)
            await self._clock.sleep(EVERY_S)

    async def once(self, reign: Leadership) -> None:
        """One call to the global store, and what comes of it."""
        await self._totals.reload()
        wants = await self._wants()
        asks, dropped = self._asks(wants)
        sent_s = self._clock.wall()
        try:
            leased = await self._book.lease(
                self._region,
                number=int(sent_s * 1e6),
                lease_id=self._totals.lease.lease_id,
                asks=asks,
                dropped=dropped,
            )
        except SupersededError as error:
            _log.info("the region's parts are asked for again", cause=str(error))
            return
        ops = [*self._forgotten(wants), *self._changes(leased), self._lease(leased, sent_s)]
        for start in range(0, len(ops), _BATCH):
            await reign.txn([], ops[start : start + _BATCH])

    def _asks(self, wants: Mapping[str, Want]) -> tuple[list[Ask], list[str]]:
        asks, written = [], {each.tenant for each in self._totals.parts}
        for tenant in sorted(wants.keys() | written):
            want = wants.get(tenant, Want(0.0, 0.0))
            asks.append(Ask(tenant, max(self._totals.part(tenant), want.used), want.demand))
        # Those whose part in the region went with the call before.
        dropped = [each for each in self._idle_since_s if each not in written and each not in wants]
        for tenant in dropped:
            del self._idle_since_s[tenant]
        return asks, dropped

    def _forgotten(self, wants: Mapping[str, Want]) -> list[Op]:
        """Parts that nobody has used for long: the safe part holds instead."""
        now_s, ops = self._clock.monotonic(), list[Op]()
        for each in self._totals.parts:
            want = wants.get(each.tenant, Want(0.0, 0.0))
            if want.demand > 0 or want.used > self._totals.safe:
                self._idle_since_s.pop(each.tenant, None)
            elif now_s - self._idle_since_s.setdefault(each.tenant, now_s) > FORGET_AFTER_S:
                ops.append(Delete(self._totals.keys.part(each.tenant)))
        return ops

    def _changes(self, leased: Leased) -> list[Op]:
        ops = list[Op]()
        now_s = self._clock.monotonic()
        for tenant, each in leased.parts.items():
            idle_s = now_s - self._idle_since_s.get(tenant, now_s)
            if idle_s > FORGET_AFTER_S or abs(each.part - self._totals.part(tenant)) < _EPSILON:
                continue
            share = pb.QuotaShare(tenant=tenant, part=each.part)
            value = share.SerializeToString(deterministic=True)
            ops.append(Put(self._totals.keys.part(tenant), value))
        return ops

    def _lease(self, leased: Leased, sent_s: float) -> Op:
        lease = pb.RegionLease(lease_id=leased.lease_id)
        if leased.safe_for_s > 0:
            forever = leased.ttl_s == float("inf")
            held_s = leased.ttl_s * (1 - MARGIN_SHARE) - CLOCKS_DIFFER_S
            valid_s = _FAR_S if forever else sent_s + max(held_s, 0.0)
            safe_s = _FAR_S if forever else sent_s + min(leased.safe_for_s, SAFE_FOR_S)
            lease.valid_until.FromNanoseconds(int(valid_s * 1e9))
            lease.safe_until.FromNanoseconds(int(safe_s * 1e9))
        return Put(self._totals.keys.lease, lease.SerializeToString(deterministic=True))
