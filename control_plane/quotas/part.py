"""The leased parts' part of a control plane, put together."""

from __future__ import annotations

from dataclasses import dataclass

from control_plane.calls import Observe
from control_plane.keys import Keys
from control_plane.quotas.book import ShareBook
from control_plane.quotas.config import QuotaSettings
from control_plane.quotas.service import QuotaService
from control_plane.store.port import Store
from control_plane.store.writer import FencedWriter
from reelkit.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """What the app serves and fills."""

    service: QuotaService
    gateways: ShareBook


def make_quotas(
    config: QuotaSettings,
    *,
    store: Store,
    writer: FencedWriter,
    keys: Keys,
    clock: Clock,
    observe: Observe,
) -> Quotas:
    """The part of one replica; ``store`` is the regional one."""
    region_safe = 1.0 / config.max_regions
    gateways = ShareBook(
        store=store,
        writer=writer,
        keys=keys.quotas,
        clock=clock,
        ttl_s=config.share_ttl_s,
        safe=region_safe / config.max_gateways,
        most_holders=config.max_gateways,
        total=lambda _tenant: region_safe,
    )
    service = QuotaService(book=gateways, region_is_safe=lambda: False, observe=observe)
    return Quotas(service=service, gateways=gateways)
