"""What a region has in use of tenants' limits, and what it could use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from control_plane.jobs.ledger import Ledger
from control_plane.jobs.quota import Limits, Usage, day_of, limits_of
from control_plane.quotas.book import ShareBook
from control_plane.quotas.region_tier import Want
from control_plane.quotas.region_totals import RegionTotals
from control_plane.quotas.shares import taken
from control_plane.store.port import Store
from control_plane.tenants.book import TenantBook
from reelkit.clock import Clock

# A region that uses so much of what it has could use all that there is.
_NEARLY_FULL: Final = 0.7
_HEADROOM: Final = 1.25


async def rate_wants(store: Store, gateways: ShareBook) -> Mapping[str, Want]:
    """Of the parts that the region's gateways hold.

    Raises:
        StoreError: The store is away.
    """
    view = await gateways.read(store)
    places = gateways.places(view)
    return {
        tenant: Want(
            used=taken(holdings, places, gateways.safe),
            demand=sum(min(each.demand, 1.0) for each in holdings.values()),
        )
        for tenant, holdings in view.tenants()
    }


def use(usage: Usage, limits: Limits) -> float:
    """The greatest part of a limit that is in use."""
    parts = [0.0]
    if limits.concurrent_jobs:
        parts.append(usage.live_jobs / limits.concurrent_jobs)
    if limits.gpu_seconds_per_day:
        parts.append(usage.gpu_seconds / limits.gpu_seconds_per_day)
    return max(parts)


class JobWants:
    """Of limits on jobs, which those that run hold for as long as they do."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        policies: TenantBook,
        totals: RegionTotals,
        live_tenants: Callable[[], Iterable[str]],
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._policies = policies
        self._totals = totals
        self._live_tenants = live_tenants
        self._clock = clock

    async def read(self) -> Mapping[str, Want]:
        """What each tenant that has a job here, or a part, has in use.

        Raises:
            StoreError: The store is away.
        """
        found: dict[str, Want] = {}
        tenants = {*self._live_tenants(), *(each.tenant for each in self._totals.parts)}
        for tenant in sorted(tenants):
            limits = limits_of(self._policies.of(tenant))
            if limits.none:
                continue
            usage = await self._ledger.usage(tenant, day_of(self._clock.wall()))
            used = use(usage, limits)
            full = used >= _NEARLY_FULL * self._totals.part(tenant)
            found[tenant] = Want(used=used, demand=1.0 if full and used else used * _HEADROOM)
        return found
