"""What operators are told of a tenant's use of a region."""

from __future__ import annotations

from collections import defaultdict

from reelmesh.v1 import job_service_pb2 as pb
from reelmesh.v1 import operator_service_pb2 as op

from control_plane.jobs.quota import day_of
from control_plane.keys import Keys
from control_plane.quotas.part import Quotas
from control_plane.store.mirror import list_all
from control_plane.store.port import Store
from reelkit.clock import Clock


class UsageReport:
    """Reads figures that nobody is held to: they may be of slightly different moments."""

    def __init__(
        self, *, store: Store, keys: Keys, region: str, quotas: Quotas, clock: Clock
    ) -> None:
        self._quotas = quotas
        self._store = store
        self._keys = keys
        self._region = region
        self._clock = clock

    async def report(self, tenant: str) -> op.TenantUsage:
        """A tenant's figures of now and of today, by gateway.

        Raises:
            StoreError: The store is away.
        """
        day = day_of(self._clock.wall())
        found: defaultdict[str, op.TenantGatewayUsage] = defaultdict(op.TenantGatewayUsage)
        live, _ = await list_all(self._store, self._keys.tenants_live_jobs(tenant))
        for kv in live:
            record = pb.JobRecord.FromString(kv.value)
            figures = found[record.owner_gateway]
            figures.live_jobs += 1
            if record.reservation.day == day:
                figures.reserved_gpu_seconds += record.reservation.gpu_seconds
        prefix = self._keys.spent_on(tenant, day)
        for kv in (await list_all(self._store, prefix))[0]:
            spent = pb.QuotaSpent.FromString(kv.value)
            found[kv.key.removeprefix(prefix)].spent_gpu_seconds = spent.gpu_seconds
        for gateway_id, held in self._quotas.gateways.view.holdings(tenant).items():
            found[gateway_id].rate_part = held.part
        for gateway_id, figures in found.items():
            figures.gateway_id = gateway_id
        return op.TenantUsage(
            tenant=tenant,
            region=self._region,
            day=day,
            gateways=[found[gateway_id] for gateway_id in sorted(found)],
            rate_part=self._quotas.rates.of(tenant),
            jobs_part=self._quotas.jobs.of(tenant),
            is_safe=self._quotas.is_safe(),
        )
