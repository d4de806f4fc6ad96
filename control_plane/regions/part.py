"""The regions' part of a control plane, put together."""

from __future__ import annotations

from dataclasses import dataclass

from control_plane.fleet import FleetView
from control_plane.keys import GlobalKeys
from control_plane.leased_record import LeasedRecord
from control_plane.regions.book import RegionBook
from control_plane.regions.publisher import SummaryPublisher
from control_plane.regions.watch import RegionWatchers
from control_plane.registry.book import ModelRegistry
from control_plane.registry.wanted import WantedWeightsPlan
from control_plane.revocations.book import RevocationBook
from control_plane.store.port import Store
from control_plane.store.writer import FencedWriter
from control_plane.tenants.book import TenantBook
from reelkit.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionsPart:
    """What the app serves, fills, runs and stops."""

    book: RegionBook
    revocations: RevocationBook
    tenants: TenantBook
    writer: FencedWriter
    """On the global store."""
    registry: ModelRegistry
    publisher: SummaryPublisher
    watchers: RegionWatchers


def make_regions(
    *,
    store: Store,
    keys: GlobalKeys,
    region: str,
    replica_id: str,
    fleet: FleetView,
    weights: WantedWeightsPlan,
    clock: Clock,
    lease_ttl_s: float,
    heartbeat_s: float,
) -> RegionsPart:
    """The part of one replica; ``store`` is the global one."""
    writer = FencedWriter(store, prefix=keys.writer_slots(region, replica_id), clock=clock)
    book = RegionBook(keys=keys, store=store, writer=writer, clock=clock)
    revocations = RevocationBook(
        keys=keys, store=store, writer=writer, clock=clock, on_change=book.wake
    )
    tenants = TenantBook(keys=keys, store=store, writer=writer, clock=clock, on_change=book.wake)
    registry = ModelRegistry(
        keys=keys, store=store, writer=writer, clock=clock, on_change=weights.touch
    )
    weights.follow(registry)
    record = LeasedRecord(
        store=store,
        writer=writer,
        clock=clock,
        key=keys.summary(region, replica_id),
        ttl_s=lease_ttl_s,
    )
    publisher = SummaryPublisher(region=region, view=fleet, record=record, clock=clock)
    return RegionsPart(
        book=book,
        revocations=revocations,
        tenants=tenants,
        writer=writer,
        registry=registry,
        publisher=publisher,
        watchers=RegionWatchers(
            book,
            revocations=revocations,
            tenants=tenants,
            region=region,
            heartbeat_s=heartbeat_s,
        ),
    )
