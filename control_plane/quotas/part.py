"""The leased parts' part of a control plane, put together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from control_plane.calls import Observe
from control_plane.jobs.ledger import Ledger
from control_plane.keys import GlobalKeys, Keys, RegionPartKeys, ShareKeys
from control_plane.quotas.book import ShareBook
from control_plane.quotas.config import QuotaSettings
from control_plane.quotas.region_tier import RegionTier, Wants
from control_plane.quotas.region_totals import RegionTotals
from control_plane.quotas.service import QuotaService
from control_plane.quotas.totals import Single, Totals, Whole
from control_plane.quotas.wants import JobWants, rate_wants
from control_plane.store.mirror import MirrorChange
from control_plane.store.port import Store
from control_plane.store.writer import FencedWriter
from control_plane.tenants.book import TenantBook
from reelkit.clock import Clock

Followed = tuple[Store, str, Callable[[MirrorChange], None]]
"""A prefix of a store, and who is told of its changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """What the app serves, fills and runs."""

    service: QuotaService
    gateways: ShareBook
    rates: Totals
    """What the region may have of rates."""
    jobs: Totals
    """And of limits on jobs."""
    is_safe: Callable[[], bool]
    """Whether the region goes by its safe part of rates."""
    duties: Mapping[str, RegionTier]
    """Of the region's leader, by name."""
    followed: tuple[Followed, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    config: QuotaSettings
    region: str
    store: Store
    writer: FencedWriter
    global_store: Store
    global_writer: FencedWriter
    clock: Clock

    @property
    def region_safe(self) -> float:
        """Of each region: what is kept of the whole, in equal parts."""
        return self.config.safe_percent / 100 / self.config.max_regions


def make_quotas(
    config: QuotaSettings,
    *,
    region: str,
    store: Store,
    writer: FencedWriter,
    keys: Keys,
    global_store: Store,
    global_writer: FencedWriter,
    global_keys: GlobalKeys,
    policies: TenantBook,
    ledger: Ledger,
    live_tenants: Callable[[], Iterable[str]],
    regions: Callable[[], Collection[str]],
    clock: Clock,
    observe: Observe,
) -> Quotas:
    """The part of one replica; with one region there is nothing to share with others."""
    ground = _Ground(
        config=config,
        region=region,
        store=store,
        writer=writer,
        global_store=global_store,
        global_writer=global_writer,
        clock=clock,
    )
    if config.max_regions == 1:
        return _single(ground, keys, regions, observe)
    rates = _totals(ground, keys.region_rates)
    jobs = _totals(ground, keys.region_jobs)
    gateways = _gateways(ground, keys, rates)
    job_wants = JobWants(
        ledger=ledger, policies=policies, totals=jobs, live_tenants=live_tenants, clock=clock
    )
    duties = {
        "rates of the region": _tier(
            ground, global_keys.rates, rates, lambda: rate_wants(store, gateways), leased=True
        ),
        "jobs of the region": _tier(ground, global_keys.jobs, jobs, job_wants.read, leased=False),
    }
    return Quotas(
        service=QuotaService(book=gateways, region_is_safe=rates.is_safe, observe=observe),
        gateways=gateways,
        rates=rates,
        jobs=jobs,
        is_safe=rates.is_safe,
        duties=duties,
        followed=(
            (store, keys.quotas.base, gateways.view.apply),
            (store, keys.region_rates.base, rates.apply),
            (store, keys.region_jobs.base, jobs.apply),
        ),
    )


def _single(
    ground: _Ground, keys: Keys, regions: Callable[[], Collection[str]], observe: Observe
) -> Quotas:
    whole = Single(region=ground.region, regions=regions)
    gateways = _gateways(ground, keys, whole)
    return Quotas(
        service=QuotaService(book=gateways, region_is_safe=_never, observe=observe),
        gateways=gateways,
        rates=whole,
        jobs=whole,
        is_safe=_never,
        duties={},
        followed=((ground.store, keys.quotas.base, gateways.view.apply),),
    )


def _never() -> bool:
    return False


def _gateways(ground: _Ground, keys: Keys, totals: Totals) -> ShareBook:
    return ShareBook(
        store=ground.store,
        writer=ground.writer,
        keys=keys.quotas,
        clock=ground.clock,
        ttl_s=ground.config.share_ttl_s,
        safe=ground.region_safe / ground.config.max_gateways,
        most_holders=ground.config.max_gateways,
        totals=totals,
    )


def _totals(ground: _Ground, keys: RegionPartKeys) -> RegionTotals:
    return RegionTotals(store=ground.store, keys=keys, clock=ground.clock, safe=ground.region_safe)


def _tier(
    ground: _Ground, keys: ShareKeys, totals: RegionTotals, wants: Wants, *, leased: bool
) -> RegionTier:
    book = ShareBook(
        store=ground.global_store,
        writer=ground.global_writer,
        keys=keys,
        clock=ground.clock,
        ttl_s=ground.config.region_ttl_s if leased else None,
        safe=ground.region_safe,
        most_holders=ground.config.max_regions,
        totals=Whole(),
    )
    return RegionTier(
        region=ground.region, book=book, totals=totals, wants=wants, clock=ground.clock
    )
