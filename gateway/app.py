"""The gateway as one thing to start and stop: edges, application, streams."""

from __future__ import annotations

import gc
import math
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import grpc
import structlog
from grpc import aio
from prometheus_client import CollectorRegistry
from reelmesh.v1 import control_plane_service_pb2, job_service_pb2

from gateway.application import FROM_REGION
from gateway.auth.door import Door
from gateway.auth.tokens import TokenVerifier
from gateway.batches.assembly import OpenBatches, open_batches
from gateway.batches.ids import PREFIX as BATCH_PREFIX
from gateway.batches.memory import MemoryBatchStore
from gateway.batches.remote import RemoteBatchStore
from gateway.batches.store import BatchStore
from gateway.config import GatewayConfig
from gateway.core.assembly import Core, open_core
from gateway.core.keeping import open_kept
from gateway.core.load import LoadReporter
from gateway.core.mesh import MeshVideos
from gateway.edge.metrics import EdgeMetrics
from gateway.edge_grpc.api import add_grpc_services, grpc_server_options
from gateway.edge_grpc.peer_access import PEER_ACCESS
from gateway.edge_grpc.peer_api import add_peer_service
from gateway.edge_http.api import build_http_app, http_runner, listen_http
from gateway.edge_http.connections import Connections
from gateway.edge_http.jwks import open_jwks_loaders
from gateway.edge_http.webhook_bodies import batch_event, video_event
from gateway.edge_http.webhook_sender import open_sender
from gateway.fleet.watch import ControlPlaneLink
from gateway.jobs.store import JobStore
from gateway.output.artifacts import ArtifactStore
from gateway.peers.client import Peers
from gateway.quotas.parts import Mode
from gateway.quotas.rates import RequestRates
from gateway.quotas.shares import Shares
from gateway.regions.regions import Regions
from gateway.tenants import TenantPolicies
from gateway.webhooks.deliveries import PREFIX as WEBHOOK_PREFIX
from gateway.webhooks.deliveries import Deliveries, Notice
from gateway.webhooks.metrics import WebhookMetrics
from reelkit.clock import Clock, SystemClock
from reelkit.files import write_json_atomic
from reelkit.mtls.channels import Channels
from reelkit.mtls.guard import Guard
from reelkit.mtls.identity import Role
from reelkit.mtls.material import open_mutual_tls
from reelkit.rpc import listen, server_options
from reelkit.settings import blame_field
from reelkit.tls import FollowedContext, grpc_credentials

_log = structlog.get_logger("gateway.app")

# An ocean and a busy gateway lie between, and a client waits.
_REGION_READ_S = 5.0
# Beyond drain_s, for answers whose jobs have just ended.
_CLOSE_GRACE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayApp:
    """A running gateway; see :class:`reelkit.lifecycle.App`."""

    core: Core
    batches: OpenBatches
    webhooks: Deliveries | None
    http_address: str
    grpc_address: str
    peer_address: str
    shares: Shares
    drain_s: float
    _grpc_server: aio.Server
    _control: ControlPlaneLink

    async def serve(self) -> None:
        """Returns only when something essential failed, with its error."""
        await self.core.scope.failed.wait()
        if self.core.scope.failure is not None:
            raise self.core.scope.failure

    async def drain(self) -> None:
        """Fails readiness, refuses new videos, and lets the live ones end in time.

        Both edges go on listening meanwhile, so that clients can follow their videos.
        """
        await self.batches.drivers.drain()
        await self.core.lifetimes.drain(self.drain_s)
        # What is left has a record: others take it over at once.
        await self._control.goodbye()
        await self._grpc_server.stop(_CLOSE_GRACE_S)


@asynccontextmanager
async def build_app(
    config: GatewayConfig,
    *,
    clock: Clock | None = None,
    jobs: JobStore | None = None,
    artifacts: ArtifactStore | None = None,
    batches: BatchStore | None = None,
) -> AsyncIterator[GatewayApp]:
    """Starts a gateway and yields it once both edges listen; leaving stops it.

    Args:
        config: Everything it is told.
        clock: The machine's by default.
        jobs: Where records are kept; this process's memory by default.
        artifacts: Where videos are kept; ``config.artifacts`` by default.
        batches: Where records of batches are kept; where ``config.jobs`` says by default.

    Raises:
        ConfigError: A key file, an address, a folder or the artifact store cannot be used.
    """
    clock = clock or SystemClock()
    registry = CollectorRegistry()
    metrics = EdgeMetrics(registry)
    tls = open_mutual_tls(
        config.mtls, region=config.region, role=Role.GATEWAY, id=config.gateway_id, clock=clock
    )
    channels = Channels(tls)
    async with AsyncExitStack() as stack:
        loader_of = await stack.enter_async_context(open_jwks_loaders())
        verifier = TokenVerifier(config.auth, clock=clock, loader_of=loader_of)
        policies = TenantPolicies()
        shares = Shares(
            gateway_id=config.gateway_id,
            endpoints=config.control_plane.endpoints,
            policies=policies,
            clock=clock,
            open_channel=channels.to(Role.CONTROL_PLANE, region=config.region),
        )
        stack.push_async_callback(shares.close)
        metrics.watch_quota_mode(
            ("unheard", *Mode), lambda: shares.mode if policies.heard else "unheard"
        )
        rates = RequestRates(policies=policies, shares=shares, clock=clock)
        door = Door(verifier, config.auth.strangers, clock=clock, rates=rates)
        core = await stack.enter_async_context(
            open_core(
                config,
                clock=clock,
                registry=registry,
                jobs=jobs,
                artifacts=artifacts,
                policies=policies,
                shares=shares,
                channels=channels,
            )
        )

        application, regions = await _across_regions(config, core, clock, stack, channels)
        batch_records = batches or await _batch_store(config, clock, stack, channels)
        opened = await open_batches(
            config.batches,
            region=config.region,
            owner=core.owner,
            store=batch_records,
            jobs=core.jobs,
            artifacts=core.artifacts,
            videos=application,
            catalog=core.fleet.catalog,
            policies=policies,
            check_webhook=config.webhooks.rules.check,
            draining=lambda: regions.draining,
            watch_figure=core.metrics.watch_figure,
            sweep_interval_s=config.artifacts.sweep_interval_s,
            scope=core.scope,
            clock=clock,
        )
        server = aio.server(options=grpc_server_options(config.edge))
        add_grpc_services(
            server,
            application=application,
            batches=opened.application,
            door=door,
            metrics=metrics,
            config=config.edge,
            clock=clock,
        )
        credentials, followed = _certificates(config, clock)
        with blame_field("grpc.listen", config.grpc.listen):
            grpc_port = listen(server, config.grpc.listen, credentials=credentials)
        await server.start()
        stack.push_async_callback(server.stop, 0)
        grpc_address = _with_port(config.grpc.listen, grpc_port)

        http_app = build_http_app(
            application=application,
            batches=opened.application,
            door=door,
            metrics=metrics,
            config=config.edge,
            clock=clock,
        )
        http = http_runner(
            http_app,
            shutdown_timeout_s=_CLOSE_GRACE_S,
            idle_timeout_s=config.edge.idle_timeout_s,
            connections=Connections(
                door,
                limit=config.edge.max_connections_per_address,
                refused=metrics.connection_refused,
            ),
        )
        await http.setup()
        stack.push_async_callback(http.cleanup)
        with blame_field("http.listen", config.http.listen):
            context = None if followed is None else followed.context
            http_port = await listen_http(http, config.http.listen, context=context)
        http_address = _with_port(config.http.listen, http_port)

        guard = Guard(PEER_ACCESS, region=config.region, mutual=tls is not None, clock=clock)
        peer_server = aio.server(options=server_options(), interceptors=[guard])
        add_peer_service(peer_server, application=application)
        with blame_field("peer.listen", config.peer.listen):
            shown = None if tls is None else tls.server_credentials()
            peer_port = listen(peer_server, config.peer.listen, credentials=shown)
        await peer_server.start()
        stack.push_async_callback(peer_server.stop, 0)
        peer_address = _with_port(config.peer.listen, peer_port)

        if config.ready_file is not None:
            scheme = "http" if followed is None else "https"
            ready = {"http": f"{scheme}://{http_address}", "grpc": grpc_address, "pid": os.getpid()}
            with blame_field("ready_file", config.ready_file):
                write_json_atomic(config.ready_file, ready)

        webhooks = await _webhooks(
            config, core, opened, batch_records, clock, stack, WebhookMetrics(registry)
        )

        def shared_out(orphans: Sequence[job_service_pb2.Orphan]) -> None:
            others = (BATCH_PREFIX, WEBHOOK_PREFIX)
            core.adoption.take(o for o in orphans if not o.job_id.startswith(others))
            opened.drivers.take(orphans)
            if webhooks is not None:
                webhooks.take(orphans)

        hello = control_plane_service_pb2.GatewayHello(
            gateway_id=config.gateway_id,
            region=config.region,
            grpc_address=config.grpc.advertise or grpc_address,
            http_address=config.http.advertise or http_address,
            incarnation=core.owner.incarnation,
            peer_address=config.peer.advertise or peer_address,
        )
        control = ControlPlaneLink(
            endpoints=config.control_plane.endpoints,
            fleet=core.fleet,
            clock=clock,
            hello=hello,
            silence_timeout_s=config.control_plane.silence_timeout_s,
            on_fleet=core.gateways.take,
            on_regions=regions.take,
            on_revocations=verifier.take_revocations,
            on_tenants=policies.replace,
            on_superseded=core.superseded.take,
            on_orphans=shared_out if config.jobs.store == "control-plane" else None,
            open_channel=channels.to(Role.CONTROL_PLANE, region=config.region),
        )
        stack.push_async_callback(control.close)
        control.start(core.scope)
        core.scope.spawn(core.sweeper.run(), name="sweeper")
        core.scope.spawn(shares.run(), name="shares")
        verifier.follow_keys(core.scope)
        if followed is not None:
            core.scope.spawn(followed.follow(), name="certificate")
        if tls is not None:
            core.scope.spawn(channels.follow(), name="identity")
        # What start-up made lives as long as the process: no collection need look at it.
        gc.collect()
        gc.freeze()
        _log.info("listening", http=http_address, grpc=grpc_address, region=config.region)
        yield GatewayApp(
            core=core,
            batches=opened,
            webhooks=webhooks,
            http_address=http_address,
            grpc_address=grpc_address,
            peer_address=peer_address,
            shares=shares,
            drain_s=config.drain_s,
            _grpc_server=server,
            _control=control,
        )


async def _across_regions(
    config: GatewayConfig, core: Core, clock: Clock, stack: AsyncExitStack, channels: Channels
) -> tuple[MeshVideos, Regions]:
    """The application of the whole mesh around this region's."""
    regions = Regions(
        local=config.region,
        open_channel=lambda region: channels.to(Role.GATEWAY, region=region),
        clock=clock,
        scope=core.scope,
        margin_s=config.regions.margin_s,
        draw=random.Random().random,  # noqa: S311 - spreads work, guards nothing
    )
    stack.push_async_callback(regions.close)
    peers = Peers(open_channel=regions.channel, hops=FROM_REGION, read_timeout_s=_REGION_READ_S)
    stack.push_async_callback(peers.close)
    loads = LoadReporter(
        region=config.region,
        gateway_id=config.gateway_id,
        fleet=core.fleet,
        waiting=core.waiting,
        lifetimes=core.lifetimes,
        clock=clock,
    )
    kept = open_kept(
        config.cache,
        config.state_dir / "kept" / config.gateway_id,
        metrics=core.metrics,
        cache_metrics=core.caching.metrics,
        clock=clock,
        scope=core.scope,
        stack=stack,
    )
    application = MeshVideos(
        region=config.region,
        home=core.videos,
        regions=regions,
        peers=peers,
        loads=loads,
        kept=kept,
        clock=clock,
        scope=core.scope,
        # As long as the record of the video that was made there.
        key_keep_s=math.ceil(config.artifacts.retention_s + config.runs.max_lifetime_s),
        job_keep_s=math.ceil(config.runs.max_lifetime_s),
    )
    return application, regions


async def _batch_store(
    config: GatewayConfig, clock: Clock, stack: AsyncExitStack, channels: Channels
) -> BatchStore:
    if config.jobs.store == "memory":
        return MemoryBatchStore()
    store = RemoteBatchStore(
        endpoints=config.control_plane.endpoints,
        clock=clock,
        patience_s=config.jobs.patience_s,
        open_channel=channels.to(Role.CONTROL_PLANE, region=config.region),
    )
    stack.push_async_callback(store.close)
    return store


async def _find_notice(jobs: JobStore, batches: BatchStore, tenant: str, of: str) -> Notice | None:
    """What is told of an ended job or batch; None: it is gone."""
    if of.startswith(BATCH_PREFIX):
        batch = await batches.get(tenant, of)
        if batch is None:
            return None
        at_s = batch.batch.completed_at.ToNanoseconds() / 1e9
        return Notice(batch.webhook_url, batch_event(batch.batch), at_s)
    job = await jobs.get(tenant, of)
    if job is None:
        return None
    at_s = job.video.completed_at.ToNanoseconds() / 1e9
    return Notice(job.webhook_url, video_event(job.video), at_s)


async def _webhooks(
    config: GatewayConfig,
    core: Core,
    opened: OpenBatches,
    batch_records: BatchStore,
    clock: Clock,
    stack: AsyncExitStack,
    metrics: WebhookMetrics,
) -> Deliveries | None:
    """Tells clients of ends from now on; None where operators have not turned that on."""
    if not config.webhooks.enabled:
        return None
    with blame_field("webhooks.secret_files", config.webhooks.secret_files, ValueError):
        secrets = config.webhooks.secrets()
    send = await stack.enter_async_context(
        open_sender(config.webhooks.rules, timeout_s=config.webhooks.timeout_s)
    )

    deliveries = Deliveries(
        config=config.webhooks,
        owner=core.owner,
        jobs=core.jobs,
        find_notice=partial(_find_notice, core.jobs, batch_records),
        send=send,
        secrets=secrets,
        metrics=metrics,
        scope=core.scope,
        clock=clock,
    )
    core.committer.on_end = deliveries.job_ended
    opened.drivers.on_end = deliveries.batch_ended
    core.metrics.watch_figure(
        "webhooks_pending", "Webhooks held here.", lambda: float(deliveries.pending)
    )
    core.metrics.watch_figure(
        "webhook_hosts_failing",
        "Hosts of webhooks that are left alone until they answer.",
        lambda: float(deliveries.open_circuits),
    )
    core.scope.spawn(deliveries.run(), name="own webhooks")
    return deliveries


def _certificates(
    config: GatewayConfig, clock: Clock
) -> tuple[grpc.ServerCredentials | None, FollowedContext | None]:
    """What both edges show, for gRPC and for HTTP; nothing where they speak plain text."""
    if config.tls is None:
        return None, None
    with blame_field("tls.cert_file", config.tls.cert_file):
        return grpc_credentials(config.tls), FollowedContext(config.tls, clock=clock)


def _with_port(address: str, port: int) -> str:
    return f"{address.rpartition(':')[0]}:{port}"
