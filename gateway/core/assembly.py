"""The application put together, without its edges; tests and :mod:`gateway.app` share it."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry

from gateway.config import GatewayConfig
from gateway.core.admission import Admission
from gateway.core.adoption import Adoption
from gateway.core.caching import Caching, make_caching
from gateway.core.commit import Committer
from gateway.core.contents import Contents
from gateway.core.executions import Executions
from gateway.core.figures import watch_figures
from gateway.core.late_records import LateRecords
from gateway.core.lifetimes import Lifetimes
from gateway.core.metrics import GatewayMetrics
from gateway.core.node_run import NodeRun
from gateway.core.room import Room
from gateway.core.runner import Runner
from gateway.core.sharing import Sharing
from gateway.core.sources import Sources
from gateway.core.superseded import Superseded
from gateway.core.sweeper import Sweeper
from gateway.core.videos import Videos
from gateway.fleet.node_link import NodeLinks
from gateway.fleet.nodes import Fleet
from gateway.fleet.waiting import WaitingRoom
from gateway.jobs.home import HomeJobs
from gateway.jobs.memory import MemoryJobStore
from gateway.jobs.remote import RemoteJobStore
from gateway.jobs.store import JobStore, Owner
from gateway.output.artifacts import (
    ArtifactError,
    ArtifactStore,
    ObstoreArtifacts,
    StoreLimits,
    open_store,
)
from gateway.output.pictures import Pictures
from gateway.output.spool import VideoBytes
from gateway.output.spool_budget import SpoolBudget
from gateway.output.threads import Threads
from gateway.peers.client import Peers
from gateway.peers.gateways import Gateways
from gateway.quotas.queued import QueuedJobs
from gateway.quotas.shares import Shares
from gateway.tenants import Policies, TenantPolicies
from reelkit.clock import Clock
from reelkit.mtls.channels import PLAINTEXT, Channels
from reelkit.mtls.identity import Role
from reelkit.settings import blame_field
from reelkit.tasks import TaskScope

# What spool writes under way get to end; they are worth nothing any more.
_THREADS_CLOSE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """What the edges and the control-plane streams are hung on."""

    videos: Videos
    fleet: Fleet
    waiting: WaitingRoom
    gateways: Gateways
    adoption: Adoption
    superseded: Superseded
    owner: Owner
    policies: Policies
    lifetimes: Lifetimes
    sweeper: Sweeper
    jobs: JobStore
    artifacts: ArtifactStore
    metrics: GatewayMetrics
    caching: Caching
    """What need not be drawn again; a rollback purges its index."""
    committer: Committer
    scope: TaskScope
    """Owns jobs and node streams; its failure is the gateway's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """What every part stands on."""

    config: GatewayConfig
    clock: Clock
    metrics: GatewayMetrics
    registry: CollectorRegistry
    scope: TaskScope
    jobs: HomeJobs
    artifacts: ArtifactStore
    owner: Owner
    gateways: Gateways
    peers: Peers
    policies: Policies


@asynccontextmanager
async def open_core(
    config: GatewayConfig,
    *,
    clock: Clock,
    registry: CollectorRegistry,
    jobs: JobStore | None = None,
    artifacts: ArtifactStore | None = None,
    policies: Policies | None = None,
    shares: Shares | None = None,
    channels: Channels = PLAINTEXT,
) -> AsyncIterator[Core]:
    """Yields the application; leaving stops its jobs and its streams to nodes.

    Raises:
        ConfigError: The artifact store cannot be used, or the spool's folder not be made.
    """
    async with AsyncExitStack() as stack:
        ground, links = await _ground(
            config, clock, registry, jobs, artifacts, policies, channels, stack
        )
        threads = Threads(max(1, (os.cpu_count() or 1) // 2), "spool")
        stack.push_async_callback(threads.close, _THREADS_CLOSE_S)
        fleet, waiting = _routing(ground, links)
        committer = _committer(ground)
        caching = _caching(ground, committer)
        lifetimes = _lifetimes(ground, fleet, waiting, committer, caching.sharing)
        stack.callback(lifetimes.close)
        executions = _executions(ground, fleet, waiting, threads)
        superseded = Superseded(lifetimes=lifetimes, clock=ground.clock, scope=ground.scope)
        adoption = _adoption(ground, executions, lifetimes, committer, superseded, caching.sharing)
        videos = _videos(
            ground,
            fleet,
            waiting,
            committer,
            lifetimes,
            admission=_admission(ground, fleet, waiting, lifetimes, executions, caching, shares),
            adoption=adoption,
            pictures=_pictures(ground, stack),
        )
        watch_figures(ground.metrics, fleet, waiting, lifetimes, videos)
        yield Core(
            videos=videos,
            fleet=fleet,
            waiting=waiting,
            gateways=ground.gateways,
            adoption=adoption,
            superseded=superseded,
            owner=ground.owner,
            policies=ground.policies,
            lifetimes=lifetimes,
            sweeper=_sweeper(ground),
            jobs=ground.jobs,
            artifacts=ground.artifacts,
            metrics=ground.metrics,
            caching=caching,
            committer=committer,
            scope=ground.scope,
        )


async def _ground(
    config: GatewayConfig,
    clock: Clock,
    registry: CollectorRegistry,
    jobs: JobStore | None,
    artifacts: ArtifactStore | None,
    policies: Policies | None,
    channels: Channels,
    stack: AsyncExitStack,
) -> tuple[_Ground, NodeLinks]:
    with blame_field("artifacts.url", config.artifacts_url, ArtifactError):
        if artifacts is None:
            opened = artifacts = _open_artifacts(config)
            stack.push_async_callback(opened.close)
        await artifacts.verify(config.gateway_id)
    if config.artifacts.links:
        with blame_field("artifacts.links", config.artifacts.links, ArtifactError):
            await artifacts.sign("nothing", expires_s=config.artifacts.link_s)
    with blame_field("spool.directory", config.spool_dir):
        config.spool_dir.mkdir(parents=True, exist_ok=True)
    policies = policies or TenantPolicies()
    region_jobs = jobs or await _open_jobs(config, clock, policies, stack, channels)
    links = NodeLinks(
        clock=clock,
        open_channel=lambda address, node_id: channels.open(
            address, role=Role.NODE, region=config.region, id=node_id
        ),
    )
    stack.push_async_callback(links.close)
    peers = Peers(open_channel=channels.to(Role.GATEWAY, region=config.region))
    stack.push_async_callback(peers.close)
    scope = await stack.enter_async_context(TaskScope("gateway"))
    links.spawn_in(scope)
    stack.callback(links.stop)
    ground = _Ground(
        config=config,
        clock=clock,
        metrics=GatewayMetrics(registry),
        registry=registry,
        scope=scope,
        jobs=HomeJobs(region=region_jobs, own=MemoryJobStore(max_records=config.jobs.max_records)),
        artifacts=artifacts,
        owner=Owner(config.gateway_id, secrets.token_hex(8)),
        gateways=Gateways(),
        peers=peers,
        policies=policies,
    )
    return ground, links


async def _open_jobs(
    config: GatewayConfig,
    clock: Clock,
    policies: Policies,
    stack: AsyncExitStack,
    channels: Channels,
) -> JobStore:
    if config.jobs.store == "memory":
        return MemoryJobStore(max_records=config.jobs.max_records, policies=policies)
    store = RemoteJobStore(
        endpoints=config.control_plane.endpoints,
        clock=clock,
        patience_s=config.jobs.patience_s,
        open_channel=channels.to(Role.CONTROL_PLANE, region=config.region),
        policies=policies,
    )
    stack.push_async_callback(store.close)
    return store


def _open_artifacts(config: GatewayConfig) -> ObstoreArtifacts:
    limits = StoreLimits(
        timeout_s=config.artifacts.timeout_s,
        write_timeout_s=config.artifacts.write_timeout_s,
        max_parallel=config.artifacts.max_parallel,
    )
    return open_store(config.artifacts_url, limits)


def _routing(ground: _Ground, links: NodeLinks) -> tuple[Fleet, WaitingRoom]:
    fleet = Fleet(
        open_link=links.open, clock=ground.clock, default_model=ground.config.default_model
    )
    waiting = WaitingRoom(
        fleet=fleet,
        clock=ground.clock,
        scope=ground.scope,
        max_waiting=ground.config.runs.max_waiting,
        kept_for_interactive=int(
            ground.config.runs.max_waiting * ground.config.runs.interactive_share
        ),
    )
    links.on_change = fleet.link_changed
    links.on_offer = waiting.offered
    waiting.on_answer = ground.metrics.offer_answered
    fleet.on_change = waiting.pump
    return fleet, waiting


def _committer(ground: _Ground) -> Committer:
    return Committer(
        jobs=ground.jobs,
        artifacts=ground.artifacts,
        clock=ground.clock,
        scope=ground.scope,
        metrics=ground.metrics,
        retention_s=ground.config.artifacts.retention_s,
        patience_s=ground.config.jobs.commit_patience_s,
    )


def _caching(ground: _Ground, committer: Committer) -> Caching:
    config = ground.config
    return make_caching(
        config.cache,
        policies=ground.policies,
        jobs=ground.jobs,
        late=_late(ground),
        artifacts=ground.artifacts,
        committer=committer,
        clock=ground.clock,
        retention_s=config.artifacts.retention_s,
        metrics=ground.metrics,
        registry=ground.registry,
    )


def _late(ground: _Ground) -> LateRecords:
    return LateRecords(jobs=ground.jobs, scope=ground.scope, clock=ground.clock)


def _lifetimes(
    ground: _Ground, fleet: Fleet, waiting: WaitingRoom, committer: Committer, sharing: Sharing
) -> Lifetimes:
    runs = ground.config.runs
    node_run = NodeRun(
        clock=ground.clock,
        accept_timeout_s=runs.accept_timeout_s,
        silence_timeout_s=runs.silence_timeout_s,
    )
    runner = Runner(
        fleet=fleet,
        waiting=waiting,
        committer=committer,
        node_run=node_run,
        clock=ground.clock,
        metrics=ground.metrics,
        max_tries=runs.max_tries,
    )
    return Lifetimes(
        runner=runner,
        waiting=waiting,
        committer=committer,
        sharing=sharing,
        clock=ground.clock,
        scope=ground.scope,
        client_grace_s=runs.client_grace_s,
        linger_s=runs.linger_s,
    )


def _executions(
    ground: _Ground, fleet: Fleet, waiting: WaitingRoom, threads: Executor
) -> Executions:
    config = ground.config
    budget = SpoolBudget(
        max_bytes=config.spool.max_bytes,
        max_bytes_per_video=config.spool.max_bytes_per_video,
        patience_s=config.spool.patience_s,
        clock=ground.clock,
    )
    new_bytes = partial(
        VideoBytes,
        directory=config.spool_dir,
        memory_bytes=config.spool.memory_bytes_per_video,
        budget=budget,
        executor=threads,
    )
    ground.metrics.watch_figure(
        "spool_bytes", "Bytes in spool files.", lambda: float(budget.used_bytes)
    )
    return Executions(
        fleet=fleet,
        waiting=waiting,
        policies=ground.policies,
        new_bytes=new_bytes,
        clock=ground.clock,
        max_lifetime_s=config.runs.max_lifetime_s,
    )


def _adoption(
    ground: _Ground,
    executions: Executions,
    lifetimes: Lifetimes,
    committer: Committer,
    superseded: Superseded,
    sharing: Sharing,
) -> Adoption:
    return Adoption(
        owner=ground.owner,
        jobs=ground.jobs,
        executions=executions,
        lifetimes=lifetimes,
        gateways=ground.gateways,
        peers=ground.peers,
        sharing=sharing,
        committer=committer,
        superseded=superseded,
        retention_s=ground.config.artifacts.retention_s,
        scope=ground.scope,
        clock=ground.clock,
        metrics=ground.metrics,
    )


def _admission(
    ground: _Ground,
    fleet: Fleet,
    waiting: WaitingRoom,
    lifetimes: Lifetimes,
    executions: Executions,
    caching: Caching,
    shares: Shares | None,
) -> Admission:
    return Admission(
        region=ground.config.region,
        owner=ground.owner,
        fleet=fleet,
        room=Room(
            fleet=fleet,
            waiting=waiting,
            policies=ground.policies,
            clock=ground.clock,
            metrics=ground.metrics,
            brown_out=ground.config.brown_out.waits(),
        ),
        lifetimes=lifetimes,
        executions=executions,
        answers=caching.answers,
        sharing=caching.sharing,
        jobs=ground.jobs,
        policies=ground.policies,
        webhooks=ground.config.webhooks.rules,
        queued=QueuedJobs(policies=ground.policies, shares=shares, waiting=waiting),
        late=_late(ground),
        scope=ground.scope,
        clock=ground.clock,
        metrics=ground.metrics,
        cache_metrics=caching.metrics,
        patience_s=ground.config.jobs.admit_patience_s,
    )


def _videos(
    ground: _Ground,
    fleet: Fleet,
    waiting: WaitingRoom,
    committer: Committer,
    lifetimes: Lifetimes,
    *,
    admission: Admission,
    adoption: Adoption,
    pictures: Pictures,
) -> Videos:
    config = ground.config
    sources = Sources(
        region=config.region,
        owner=ground.owner,
        lifetimes=lifetimes,
        jobs=ground.jobs,
        artifacts=ground.artifacts,
        gateways=ground.gateways,
        peers=ground.peers,
        adoption=adoption,
        scope=ground.scope,
        clock=ground.clock,
    )
    return Videos(
        region=config.region,
        admission=admission,
        fleet=fleet,
        waiting=waiting,
        lifetimes=lifetimes,
        committer=committer,
        jobs=ground.jobs,
        contents=Contents(
            sources=sources,
            jobs=ground.jobs,
            artifacts=ground.artifacts,
            pictures=pictures,
            metrics=ground.metrics,
            clock=ground.clock,
            link_s=config.artifacts.link_s if config.artifacts.links else None,
        ),
        sources=sources,
        peers=ground.peers,
    )


def _pictures(ground: _Ground, stack: AsyncExitStack) -> Pictures:
    config = ground.config.artifacts
    threads = Threads(config.pictures_at_once, "pictures")
    stack.push_async_callback(threads.close, _THREADS_CLOSE_S)
    return Pictures(
        artifacts=ground.artifacts,
        folder=ground.config.spool_dir,
        executor=threads,
        parallel=config.pictures_at_once,
        timeout_s=config.picture_timeout_s,
        scope=ground.scope,
    )


def _sweeper(ground: _Ground) -> Sweeper:
    return Sweeper(
        region=ground.config.region,
        jobs=ground.jobs,
        artifacts=ground.artifacts,
        clock=ground.clock,
        retention_s=ground.config.artifacts.retention_s,
        interval_s=ground.config.artifacts.sweep_interval_s,
    )
