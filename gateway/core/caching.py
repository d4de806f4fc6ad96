"""The parts that save drawing the same again, put together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry

from gateway.cache.index import Index
from gateway.config import CacheConfig
from gateway.core.answers import Answers
from gateway.core.cache_metrics import CacheMetrics
from gateway.core.commit import Committer
from gateway.core.late_records import LateRecords
from gateway.core.metrics import GatewayMetrics
from gateway.core.sharing import Sharing
from gateway.jobs.home import HomeJobs
from gateway.output.artifacts import ArtifactStore
from gateway.tenants import Policies
from reelkit.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Caching:
    """What admission asks before it has a video drawn."""

    index: Index
    answers: Answers
    sharing: Sharing
    metrics: CacheMetrics


def make_caching(
    config: CacheConfig,
    *,
    policies: Policies,
    jobs: HomeJobs,
    late: LateRecords,
    artifacts: ArtifactStore,
    committer: Committer,
    clock: Clock,
    retention_s: float,
    metrics: GatewayMetrics,
    registry: CollectorRegistry,
) -> Caching:
    """The parts; what is finished and in the store feeds the index from now on."""
    counted = CacheMetrics(registry)
    sharing = Sharing(policies=policies, enabled=config.enabled, max_followers=config.max_followers)
    # Whoever owns it next must know.
    sharing.on_pays = committer.note
    index = Index(
        policies=policies,
        max_bytes=config.max_bytes,
        max_entries=config.max_entries,
        on_evict=partial(counted.evicted, "index"),
    )
    if config.enabled:
        committer.on_stored = index.add
    answers = Answers(
        index=index,
        jobs=jobs,
        late=late,
        artifacts=artifacts,
        committer=committer,
        clock=clock,
        retention_s=retention_s,
    )
    watch = metrics.watch_figure
    watch("jobs_sharing", "Jobs that wait for another's run.", lambda: float(sharing.following))
    watch("cache_entries", "Finished videos that may answer requests.", lambda: float(len(index)))
    watch("cache_bytes", "Bytes of those videos.", lambda: float(index.bytes_held))
    return Caching(index=index, answers=answers, sharing=sharing, metrics=counted)
