"""Batches over any application of single videos, their records in memory."""

from __future__ import annotations

from typing import Any

from obstore.store import MemoryStore

from gateway.batches.assembly import OpenBatches, open_batches
from gateway.batches.config import BatchConfig
from gateway.batches.memory import MemoryBatchStore
from gateway.jobs.memory import MemoryJobStore
from gateway.jobs.store import Owner
from gateway.output.artifacts import ObstoreArtifacts
from gateway.tenants import TenantPolicies
from gateway.validation.request import Catalog
from gateway.webhooks.addresses import UrlRules
from reelkit.clock import Clock
from reelkit.tasks import TaskScope


async def batches_over(
    application: Any, *, scope: TaskScope, clock: Clock, store: Any = None, **config: Any
) -> OpenBatches:
    """Drivers that look often; everything ends with the scope."""

    def catalog() -> Catalog:
        models, default = application.models()
        return Catalog(tuple(models), default)

    return await open_batches(
        BatchConfig.model_validate({"checkpoint_s": 0.05, **config}),
        region="ap",
        owner=Owner("g0", "life-1"),
        store=store or MemoryBatchStore(),
        jobs=MemoryJobStore(max_records=100),
        artifacts=ObstoreArtifacts(MemoryStore(), where="memory"),
        videos=application,
        catalog=catalog,
        policies=TenantPolicies(),
        check_webhook=UrlRules().check,
        draining=lambda: False,
        watch_figure=lambda *_: None,
        sweep_interval_s=60.0,
        scope=scope,
        clock=clock,
    )
