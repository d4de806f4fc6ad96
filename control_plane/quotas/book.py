"""Leases parts of tenants' limits to holders: gateways of a region, or regions of the mesh.

There is no leader and no memory of it to be lost. What a holder may go by is a key in the
store under the holder's lease before the holder hears of it, and a transaction raises it
only if nobody else's part was written since the sum was read. So any replica may answer any
call, and a replica that dies leaves nothing to be learnt anew.

A call that comes late, after a later one of the same holder was answered, is refused: it
would write down less than the holder goes by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from reelmesh.v1 import quota_service_pb2 as pb

from control_plane.errors import LeaseNotFoundError, SupersededError
from control_plane.jobs.ledger import Locks
from control_plane.keys import ShareKeys
from control_plane.quotas.shares import Grant, Holding, grant, has_room
from control_plane.quotas.totals import Totals
from control_plane.quotas.view import Place, ShareView, read_view
from control_plane.store.port import Delete, Op, Put, Store, none_written_since, present, unchanged
from control_plane.store.writer import FencedWriter
from reelkit.clock import Clock

_log = structlog.get_logger("control_plane.quotas")

# How long a holder goes by its safe part without a word, and its place is kept for it.
SAFE_FOR_S: Final = 24 * 3600.0
# A holder that waits for a place asks every second or so.
PENDING_FOR_S: Final = 30.0
RENEW_PLACE_S: Final = 600.0
# Replicas' wall clocks differ by less.
SKEW_S: Final = 60.0
# Each lost to another holder's call.
MAX_TRIES: Final = 32
_EPSILON: Final = 1e-9
_DEMAND_NEAR: Final = 0.1
_MAX_DELETES: Final = 100


@dataclass(frozen=True, slots=True)
class Ask:
    """What a holder wants of one tenant."""

    tenant: str
    held: float
    demand: float


@dataclass(frozen=True, slots=True)
class Part:
    """What a holder goes by of a tenant."""

    part: float
    fresh: bool
    """Nobody had a part of it before."""


@dataclass(frozen=True, slots=True)
class Leased:
    """The answer to a holder's call."""

    parts: Mapping[str, Part]
    lease_id: int
    ttl_s: float
    safe_for_s: float
    """0: it waits for a place."""


class ShareBook:
    """One tier's parts; :attr:`view` is to be followed.

    Args:
        ttl_s: Of holders' leases; None: a part is the holder's until it gives it back.
        safe: The safe part of each holder with a place.
        most_holders: That may have one.
        totals: What all holders may have together.
    """

    def __init__(
        self,
        *,
        store: Store,
        writer: FencedWriter,
        keys: ShareKeys,
        clock: Clock,
        ttl_s: float | None,
        safe: float,
        most_holders: int,
        totals: Totals,
    ) -> None:
        self.view = ShareView(keys)
        self.safe = safe
        self.most_holders = most_holders
        self._store = store
        self._writer = writer
        self._keys = keys
        self._clock = clock
        self._ttl_s = ttl_s
        # Without leases nothing is given to others that was not given back.
        self._place_for_s = SAFE_FOR_S if ttl_s is not None else float("inf")
        self._totals = totals
        self._turns = Locks()

    async def lease(
        self,
        holder: str,
        *,
        number: int,
        lease_id: int,
        asks: Sequence[Ask],
        dropped: Sequence[str] = (),
    ) -> Leased:
        """Renews a holder's parts.

        Args:
            holder: Who asks.
            number: Of this call; each one's is greater than that of the one before.
            lease_id: Of the answer before; 0: none.
            asks: The tenants whose parts it goes by or wants.
            dropped: Those that it goes by no part of any more.

        Raises:
            SupersededError: A later call was answered already.
            StoreError: The store is away.
        """
        async with self._turns.of(holder):
            lease_id, ttl_s = await self._renewed(lease_id)
            ttl_s = min(ttl_s, self._totals.holds_for_s() or ttl_s)
            view = self.view if self.view.revision else await self._read()
            place, view = await self._placed(holder, number, view)
            if place.pending or self._totals.of("") <= 0:
                return Leased({}, lease_id, ttl_s, 0.0)
            if dropped:
                place, view = await self._drop(holder, number, dropped, view)
            parts = {
                ask.tenant: await self._part(holder, number, lease_id, ask, view) for ask in asks
            }
            left_s = place.renewed_at_s + self._place_for_s - self._clock.wall()
            return Leased(parts, lease_id, ttl_s, max(left_s, 0.0))

    async def release(self, holder: str, *, number: int, lease_id: int) -> None:
        """Forgets a holder that goes by nothing any more.

        Raises:
            StoreError: The store is away; its lease and its place end in their time.
        """
        async with self._turns.of(holder):
            view = await self._read()
            place = view.places.get(holder)
            if place is not None and place.number < number:
                compares = [unchanged(self._keys.slot(holder), place.revision)]
                await self._writer.txn(compares, [Delete(self._keys.slot(holder))])
            if lease_id:
                await self._store.revoke(lease_id)

    async def read(self, store: Store) -> ShareView:
        """The tier as it stands now.

        Raises:
            StoreError: The store is away.
        """
        return await read_view(store, self._keys)

    def places(self, view: ShareView) -> dict[str, Place]:
        """Those that count: whoever has one, and as many of those who wait as there is room for."""
        now_s = self._clock.wall()
        live = {name: place for name, place in view.places.items() if self._lives(place, now_s)}
        having = {name: place for name, place in live.items() if not place.pending}
        room = self.most_holders - len(having)
        waiting = sorted((p.number, name) for name, p in live.items() if p.pending)
        having.update((name, live[name]) for _, name in waiting[: max(room, 0)])
        return having

    # --- places ---

    async def _placed(self, holder: str, number: int, view: ShareView) -> tuple[Place, ShareView]:
        """The holder's place, which may be one in the line of those who wait."""
        for _ in range(MAX_TRIES):
            now_s = self._clock.wall()
            place = view.places.get(holder)
            if place is not None and number <= place.number:
                raise SupersededError(f"a later call of {holder} was answered already")
            having = place is not None and self._lives(place, now_s) and not place.pending
            if place is not None and having and now_s - place.renewed_at_s < RENEW_PLACE_S:
                return place, view
            pending = not having and not self._has_room(holder, view)
            slot = pb.QuotaSlot(number=number, pending=pending)
            slot.renewed_at.FromNanoseconds(int(now_s * 1e9))
            # A renewal needs no room; a new place needs that nobody has taken it meanwhile.
            compares = [unchanged(self._keys.slot(holder), place.revision if place else 0)]
            if not having:
                compares.append(none_written_since(self._keys.base, view.revision))
            ops: list[Op] = [
                Put(self._keys.slot(holder), slot.SerializeToString(deterministic=True)),
                *self._over(view, now_s, but=holder),
            ]
            result = await self._writer.txn(compares, ops)
            if result.succeeded:
                if pending:
                    _log.info("a holder waits for a place", holder=holder)
                return Place(number, now_s, pending, result.revision), await self._read()
            view = await self._read()
        raise SupersededError("the places change all the time; ask again")

    def _has_room(self, holder: str, view: ShareView) -> bool:
        others = [n for n, p in self.places(view).items() if n != holder and not p.pending]
        if len(others) >= self.most_holders:
            _log.error(
                "there are more holders than are configured: one gets no part of any limit",
                holder=holder,
                places=len(others),
            )
            return False
        return all(
            has_room(self._totals.of(tenant), holdings, others, self.safe)
            for tenant, holdings in view.tenants()
        )

    def _over(self, view: ShareView, now_s: float, *, but: str) -> list[Op]:
        over = [n for n, p in view.places.items() if n != but and not self._lives(p, now_s)]
        return [Delete(self._keys.slot(name)) for name in over[:_MAX_DELETES]]

    async def _drop(
        self, holder: str, number: int, tenants: Sequence[str], view: ShareView
    ) -> tuple[Place, ShareView]:
        """Forgets parts; the place is written too, so that no earlier call brings them back."""
        slot_key = self._keys.slot(holder)
        place = view.places.get(holder)
        slot = pb.QuotaSlot(number=number)
        renewed_s = place.renewed_at_s if place else self._clock.wall()
        slot.renewed_at.FromNanoseconds(int(renewed_s * 1e9))
        deletes = [Delete(self._keys.share(each, holder)) for each in tenants[:_MAX_DELETES]]
        result = await self._writer.txn(
            [unchanged(slot_key, place.revision if place else 0)],
            [Put(slot_key, slot.SerializeToString(deterministic=True)), *deletes],
        )
        if not result.succeeded:
            raise SupersededError(f"another call of {holder} is being answered")
        return Place(number, renewed_s, False, result.revision), await self._read()

    # --- parts ---

    async def _part(
        self, holder: str, number: int, lease_id: int, ask: Ask, view: ShareView
    ) -> Part:
        prefix = self._keys.tenant_prefix(ask.tenant)
        for _ in range(MAX_TRIES):
            holdings = view.holdings(ask.tenant)
            own = holdings.get(holder, Holding())
            if number <= own.number:
                raise SupersededError(f"a later call of {holder} was answered already")
            granted = grant(
                self._totals.of(ask.tenant),
                me=holder,
                held=ask.held,
                demand=ask.demand,
                holdings=holdings,
                places=self.places(view),
                safe=self.safe,
            )
            if not _is_news(own, ask, granted):
                return Part(granted.part, fresh=False)
            share = pb.QuotaShare(
                tenant=ask.tenant, part=granted.recorded, demand=ask.demand, number=number
            )
            result = await self._writer.txn(
                [
                    none_written_since(prefix, view.revision),
                    none_written_since(self._keys.slots, view.revision),
                    # Its place may have been given up: what goes is not newly written.
                    present(self._keys.slot(holder)),
                    *self._totals.fence(ask.tenant),
                ],
                [
                    Put(
                        self._keys.share(ask.tenant, holder),
                        share.SerializeToString(deterministic=True),
                        lease_id,
                    )
                ],
            )
            if result.succeeded:
                return Part(granted.part, fresh=not holdings)
            view = await self._read(ask.tenant)
            await self._totals.refresh(ask.tenant)
            if holder not in view.places:
                raise SupersededError(f"the place of {holder} was given up meanwhile")
        raise SupersededError("the parts of a tenant change all the time; ask again")

    def _lives(self, place: Place, now_s: float) -> bool:
        lasts_s = PENDING_FOR_S if place.pending else self._place_for_s + SKEW_S
        return now_s - place.renewed_at_s < lasts_s

    # --- the store ---

    async def _read(self, tenant: str | None = None) -> ShareView:
        return await read_view(self._store, self._keys, tenant)

    async def _renewed(self, lease_id: int) -> tuple[int, float]:
        if self._ttl_s is None:
            return 0, float("inf")
        if lease_id:
            try:
                return lease_id, await self._store.keep_alive(lease_id)
            except LeaseNotFoundError:
                _log.info("a holder's lease ran out")
        granted = await self._store.grant(self._ttl_s)
        return granted.lease_id, granted.granted_s


def _is_news(own: Holding, ask: Ask, granted: Grant) -> bool:
    """Whether the holder may be told only after it was written down."""
    return (
        abs(granted.recorded - own.part) > _EPSILON
        or granted.part > min(ask.held, own.part) + _EPSILON
        or abs(min(ask.demand, 1.0) - min(own.demand, 1.0)) > _DEMAND_NEAR
        or (ask.demand > 0) != (own.demand > 0)
    )
