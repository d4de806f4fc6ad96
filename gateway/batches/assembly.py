"""Batches put together, over a gateway's application of single videos."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from reelmesh.v1 import video_pb2

from gateway.application import VideoApplication
from gateway.batches.config import BatchConfig
from gateway.batches.driver import DriverParts
from gateway.batches.drivers import Drivers
from gateway.batches.files import BatchFiles
from gateway.batches.purge import Purge
from gateway.batches.service import Batches
from gateway.batches.store import BatchStore
from gateway.errors import FieldViolation
from gateway.jobs.store import JobStore, Owner
from gateway.output.artifacts import ArtifactStore
from gateway.tenants import Policies
from gateway.validation.request import Catalog
from reelkit.clock import Clock
from reelkit.tasks import TaskScope


class WatchFigure(Protocol):
    """Adds a gauge that is read when somebody scrapes."""

    def __call__(self, name: str, text: str, figure: Callable[[], float]) -> None:
        """Adds it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBatches:
    """What the edges and the control-plane streams are hung on."""

    application: Batches
    drivers: Drivers
    purge: Purge


async def _find_video(jobs: JobStore, tenant: str, key: str) -> video_pb2.Video | None:
    record = await jobs.find_key(tenant, key)
    return None if record is None else record.video


async def open_batches(
    config: BatchConfig,
    *,
    region: str,
    owner: Owner,
    store: BatchStore,
    jobs: JobStore,
    artifacts: ArtifactStore,
    videos: VideoApplication,
    catalog: Callable[[], Catalog],
    policies: Policies,
    check_webhook: Callable[[str], Sequence[FieldViolation]],
    draining: Callable[[], bool],
    watch_figure: WatchFigure,
    sweep_interval_s: float,
    scope: TaskScope,
    clock: Clock,
) -> OpenBatches:
    """The batches of one gateway; their tasks end with the scope."""
    files = BatchFiles(artifacts)
    parts = DriverParts(
        videos=videos,
        find_video=partial(_find_video, jobs),
        store=store,
        files=files,
        clock=clock,
        config=config,
        slots=asyncio.Semaphore(config.max_in_flight),
    )
    drivers = Drivers(owner=owner, parts=parts, jobs=jobs, scope=scope, clock=clock)
    purge = Purge(
        region=region,
        videos=videos,
        store=store,
        files=files,
        artifacts=artifacts,
        clock=clock,
        interval_s=sweep_interval_s,
    )
    application = Batches(
        region=region,
        owner=owner,
        store=store,
        files=files,
        drivers=drivers,
        purge=purge,
        catalog=catalog,
        policies=policies,
        check_webhook=check_webhook,
        draining=draining,
        config=config,
        scope=scope,
        clock=clock,
    )
    _watch_figures(drivers, watch_figure)
    scope.spawn(drivers.run(), name="own batches")
    scope.spawn(purge.run(), name="batch sweeper")
    return OpenBatches(application=application, drivers=drivers, purge=purge)


def _watch_figures(drivers: Drivers, watch_figure: WatchFigure) -> None:
    watch_figure("batches_live", "Batches driven here.", lambda: float(drivers.live))
    watch_figure(
        "batch_videos_in_flight",
        "Videos of batches under way that this gateway asked for.",
        lambda: float(drivers.in_flight),
    )
