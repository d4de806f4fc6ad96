"""Composition root of the control plane: what it is made of, and how it lives."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1.batch_record_service_pb2_grpc import add_BatchRecordServiceServicer_to_server
from reelmesh.v1.control_plane_service_pb2_grpc import (
    add_ControlPlaneServiceServicer_to_server,
)
from reelmesh.v1.job_service_pb2_grpc import add_JobServiceServicer_to_server
from reelmesh.v1.quota_service_pb2_grpc import add_QuotaServiceServicer_to_server

from control_plane.access import ACCESS
from control_plane.attach import NodeAttachment
from control_plane.attach_gateway import GatewayAttachment
from control_plane.attach_stream import Leasing
from control_plane.batches.book import BatchBook
from control_plane.batches.service import SERVICE_NAME as BATCH_SERVICE_NAME
from control_plane.batches.service import BatchRecordService
from control_plane.config import ControlPlaneConfig
from control_plane.desired import DesiredStates
from control_plane.election import Election, campaigning
from control_plane.fleet import FleetView
from control_plane.health.canary import GrpcCanaryRunner
from control_plane.health.probe import GrpcProber
from control_plane.health.watch import HealthWatch
from control_plane.history import HistoryKeeper
from control_plane.jobs.ledger import Ledger
from control_plane.jobs.part import make_jobs
from control_plane.jobs.service import SERVICE_NAME as JOB_SERVICE_NAME
from control_plane.jobs.service import JobService
from control_plane.jobs.spent_sweep import SpentSweep
from control_plane.jobs.usage_report import UsageReport
from control_plane.keys import GlobalKeys, Keys
from control_plane.metrics import Metrics
from control_plane.model_sweep import ModelSweep
from control_plane.operator.service import OperatorService
from control_plane.operator.status import GrpcStatusAsker
from control_plane.quotas.part import make_quotas
from control_plane.quotas.service import SERVICE_NAME as QUOTA_SERVICE_NAME
from control_plane.quotas.service import QuotaService
from control_plane.regions.part import make_regions
from control_plane.registry.wanted import WantedWeightsPlan
from control_plane.service import ControlPlaneService
from control_plane.store.etcd import EtcdStore
from control_plane.store.mirror import Mirror, MirrorChange
from control_plane.store.port import Store
from control_plane.store.writer import FencedWriter
from control_plane.watch_fleet import FleetWatchers
from reelkit import rpc
from reelkit.clock import Clock, SystemClock
from reelkit.files import write_json_atomic
from reelkit.mtls.channels import Channels
from reelkit.mtls.guard import Guard
from reelkit.mtls.identity import Role
from reelkit.mtls.material import open_mutual_tls
from reelkit.settings import blame_field
from reelkit.tasks import TaskScope

_log = structlog.get_logger("control_plane.app")

SERVICE_NAME = cp.DESCRIPTOR.services_by_name["ControlPlaneService"].full_name


class ControlPlaneApp:
    """A control plane that listens; :func:`build_app` makes it."""

    def __init__(
        self,
        *,
        address: str,
        operator_address: str | None,
        scope: TaskScope,
        server: aio.Server,
        health_service: health.aio.HealthServicer,
        stop_streams: Callable[[], None],
        resign: Callable[[], Awaitable[None]],
        drain_s: float,
        ready: asyncio.Event,
    ) -> None:
        # host:port with the port that was bound.
        self.address = address
        # Likewise of OperatorService; None where it is off.
        self.operator_address = operator_address
        # Set once the fleet was read and the service answers.
        self.ready = ready
        self._scope = scope
        self._server = server
        self._health = health_service
        self._stop_streams = stop_streams
        self._resign = resign
        self._drain_s = drain_s

    async def serve(self) -> None:
        """Returns only when something essential failed; raises its error."""
        await self._scope.failed.wait()
        if self._scope.failure is not None:
            raise self._scope.failure

    async def drain(self) -> None:
        """Fails readiness, resigns, sends attached agents elsewhere, and stops listening.

        Leases are left as they are: an agent that attaches to another replica within
        its lease is never seen to go.
        """
        await self._health.enter_graceful_shutdown()
        await self._resign()
        self._stop_streams()
        await self._server.stop(self._drain_s)


@contextlib.asynccontextmanager
async def build_app(
    config: ControlPlaneConfig,
    *,
    clock: Clock | None = None,
    store: Store | None = None,
    global_store: Store | None = None,
) -> AsyncIterator[ControlPlaneApp]:
    """A listening control plane; leaving the block stops what is left of it.

    Args:
        config: The whole configuration.
        clock: The machine's own by default.
        store: For tests; by default the etcd of the configuration, which may be away
            at first: the service then turns ready when it is back.
        global_store: Likewise; by default the global etcd of the configuration, or
            ``store`` where it names none.
    """
    clock = clock or SystemClock()
    keys = Keys(prefix=config.etcd.prefix, region=config.region)
    metrics = Metrics()
    if config.ready_file is not None:
        # Whoever waits for it must not find the one of an earlier life.
        with blame_field("ready_file", config.ready_file):
            config.ready_file.unlink(missing_ok=True)
    tls = open_mutual_tls(
        config.mtls,
        region=config.region,
        role=Role.CONTROL_PLANE,
        id=config.replica_id,
        clock=clock,
    )
    channels = Channels(tls)
    to_node = channels.to(Role.NODE, region=config.region)
    async with contextlib.AsyncExitStack() as stack:
        if config.metrics_listen is not None:
            with blame_field("metrics_listen", config.metrics_listen):
                stack.enter_context(metrics.served(config.metrics_listen))
        if store is None:
            etcd = EtcdStore(config.etcd, clock=clock, observe=metrics.observe_call)
            store = await stack.enter_async_context(etcd)
        if global_store is None and config.global_etcd is not None:
            shared = EtcdStore(config.global_etcd, clock=clock, observe=metrics.observe_call)
            global_store = await stack.enter_async_context(shared)
        scope = await stack.enter_async_context(TaskScope("control-plane"))
        writer = FencedWriter(store, prefix=keys.writer_slots(config.replica_id), clock=clock)
        leasing = Leasing(
            store=store,
            writer=writer,
            clock=clock,
            ttl_s=config.lease_ttl_s,
            on_lost_lease=metrics.count_lost_lease,
        )
        view, desired = FleetView(keys=keys), DesiredStates(keys=keys)
        weights = WantedWeightsPlan(
            region=config.region, nodes=lambda: tuple(view.nodes), clock=clock
        )
        health = HealthWatch(
            rules=config.health,
            prober=GrpcProber(to_node),
            runner=GrpcCanaryRunner(to_node),
            clock=clock,
            ready_nodes=lambda: view.ready_node_count,
        )
        election = Election(
            store=store,
            writer=writer,
            key=keys.leader,
            identity=config.replica_id,
            clock=clock,
            ttl_s=config.election.ttl_s,
        )
        histories = HistoryKeeper(
            store=store,
            keys=keys,
            clock=clock,
            lease_ttl_s=config.lease_ttl_s,
            max_share=config.health.max_share,
            relist_s=config.fleet.relist_s,
        )
        nodes = NodeAttachment(
            region=config.region,
            replica_id=config.replica_id,
            keys=keys,
            leasing=leasing,
            desired=desired,
            weights=weights,
            health=health,
        )
        gateways = GatewayAttachment(
            region=config.region, replica_id=config.replica_id, keys=keys, leasing=leasing
        )
        watchers = FleetWatchers(
            view,
            clock=clock,
            heartbeat_s=config.fleet.heartbeat_s,
            resnapshot_s=config.fleet.resnapshot_s,
        )
        global_store, global_keys = global_store or store, GlobalKeys(prefix=config.etcd.prefix)
        regions = make_regions(
            store=global_store,
            keys=global_keys,
            region=config.region,
            replica_id=config.replica_id,
            fleet=view,
            weights=weights,
            clock=clock,
            lease_ttl_s=config.lease_ttl_s,
            heartbeat_s=config.fleet.heartbeat_s,
        )
        ledger = Ledger(store=store, keys=keys)
        quotas = make_quotas(
            config.quotas,
            region=config.region,
            store=store,
            writer=writer,
            keys=keys,
            global_store=global_store,
            global_writer=regions.writer,
            global_keys=global_keys,
            policies=regions.tenants,
            ledger=ledger,
            live_tenants=lambda: jobs.live.tenants(),
            regions=regions.book.summarized,
            clock=clock,
            observe=metrics.count_quota_call,
        )
        jobs = make_jobs(
            store=store,
            writer=writer,
            keys=keys,
            fleet=view,
            clock=clock,
            heartbeat_s=config.fleet.heartbeat_s,
            policies=regions.tenants,
            ledger=ledger,
            totals=quotas.jobs,
            supersede=regions.book.supersede,
            observe=metrics.count_job_call,
        )
        batches = BatchRecordService(
            book=BatchBook(store=store, writer=writer, keys=keys), observe=metrics.count_job_call
        )
        service = ControlPlaneService(
            nodes=nodes, gateways=gateways, watchers=watchers, regions=regions.watchers
        )
        server, health_service = _make_server(
            service,
            jobs.service,
            batches,
            quotas.service,
            reflection=config.reflection,
            guard=Guard(ACCESS, region=config.region, mutual=tls is not None, clock=clock),
        )
        with blame_field("listen", config.listen):
            shown = None if tls is None else tls.server_credentials()
            port = rpc.listen(server, config.listen, credentials=shown)
        address = f"{config.listen.rpartition(':')[0]}:{port}"
        await server.start()
        stack.push_async_callback(server.stop, 0)

        operator_address: str | None = None
        if config.operator.listen is not None:
            # Imported here: what verifies tokens costs memory that others need not pay.
            from control_plane.operator.listener import operator_listener

            operators = OperatorService(
                store=store,
                writer=writer,
                keys=keys,
                region=config.region,
                nodes=lambda: view.nodes,
                gateways=lambda: view.gateways,
                desired=desired,
                ready=lambda: view.version > 0 and desired.loaded,
                asker=GrpcStatusAsker(
                    timeout_s=config.operator.status_timeout_s, open_channel=to_node
                ),
                revocations=regions.revocations,
                tenants=regions.tenants,
                usage=UsageReport(
                    store=store, keys=keys, region=config.region, quotas=quotas, clock=clock
                ),
                registry=regions.registry,
                regions=regions.book,
            )
            listening = operator_listener(
                config.operator,
                operators,
                region=config.region,
                revoked=regions.revocations.tokens,
                clock=clock,
                scope=scope,
            )
            operator_address = await stack.enter_async_context(listening)

        def stop_streams() -> None:
            nodes.streams.stop()
            gateways.streams.stop()
            regions.watchers.stop()
            jobs.watchers.stop()
            # Wakes the orphans' watchers too.
            watchers.stop()

        metrics.gauge(
            "leading", "1 while this replica leads.", lambda: election.leadership is not None
        )
        metrics.gauge("unhealthy_nodes", "Attached here.", lambda: health.unhealthy_count)
        metrics.gauge("failing_probes", "Nodes that fail now.", lambda: health.failing_count)
        _add_gauges(metrics, view=view, nodes=nodes, gateways=gateways, watchers=watchers)
        sweep = ModelSweep(view=view, store=store, writer=writer, keys=keys, clock=clock)
        scope.spawn(sweep.run(), name="model sweep")
        await stack.enter_async_context(campaigning(election, scope))
        scope.spawn(election.lead(histories.keep, name="histories"), name="histories")
        for name, tier in quotas.duties.items():
            scope.spawn(election.lead(tier.keep, name=name), name=name)
        spent = SpentSweep(store=store, keys=keys, clock=clock)
        scope.spawn(election.lead(spent.keep, name="spent sweep"), name="spent sweep")
        ready = asyncio.Event()
        others = "Batches that go on, and webhooks that are not delivered."
        metrics.gauge("live_others", others, lambda: len(jobs.others))
        metrics.gauge("live_jobs", "Jobs that have not ended.", lambda: len(jobs.live))
        metrics.gauge(
            "orphaned_jobs", "Live jobs without an owner.", lambda: len(jobs.watchers.orphans())
        )
        for source, prefix, apply in (
            (store, keys.fleet, _each(view.apply, weights.touch)),
            (store, keys.desired_states, desired.apply),
            (store, keys.live_jobs, jobs.live.apply),
            (store, keys.owned_things, jobs.others.apply),
            *quotas.followed,
            (global_store, global_keys.regions, regions.book.apply),
            (global_store, global_keys.revocations, regions.revocations.apply),
            (global_store, global_keys.tenants, regions.tenants.apply),
            (global_store, global_keys.registry, regions.registry.apply),
        ):
            mirror = Mirror(source, prefix, clock=clock, relist_s=config.fleet.relist_s)
            scope.spawn(_follow(mirror, apply), name=f"follow {prefix}")
        scope.spawn(regions.publisher.run(), name="publish summary")
        if tls is not None:
            scope.spawn(channels.follow(), name="identity")
        scope.spawn(weights.run(), name="plan weights")
        addresses = {"grpc": address}
        if operator_address is not None:
            addresses["operator"] = operator_address
        scope.spawn(_announce(view, health_service, config, addresses, ready), name="announce")
        yield ControlPlaneApp(
            address=address,
            operator_address=operator_address,
            scope=scope,
            server=server,
            health_service=health_service,
            stop_streams=stop_streams,
            resign=election.resign,
            drain_s=config.drain_s,
            ready=ready,
        )


def _each(
    apply: Callable[[MirrorChange], None], then: Callable[[], None]
) -> Callable[[MirrorChange], None]:
    def both(change: MirrorChange) -> None:
        apply(change)
        then()

    return both


def _add_gauges(
    metrics: Metrics,
    *,
    view: FleetView,
    nodes: NodeAttachment,
    gateways: GatewayAttachment,
    watchers: FleetWatchers,
) -> None:
    for name, text, read in (
        ("attached_nodes", "Attach streams on this replica.", lambda: len(nodes.streams)),
        ("attached_gateways", "AttachGateway streams here.", lambda: len(gateways.streams)),
        ("fleet_watchers", "WatchFleet streams on this replica.", lambda: watchers.count),
        ("fleet_nodes", "Nodes in the region's fleet.", lambda: view.node_count),
        ("fleet_ready_nodes", "Nodes that take work.", lambda: view.ready_node_count),
        ("fleet_version", "The store's revision that the fleet shows.", lambda: view.version),
    ):
        metrics.gauge(name, text, read)


async def _follow(mirror: Mirror, apply: Callable[[MirrorChange], None]) -> None:
    async with contextlib.aclosing(mirror.changes()) as changes:
        async for change in changes:
            apply(change)


async def _announce(
    view: FleetView,
    health_service: health.aio.HealthServicer,
    config: ControlPlaneConfig,
    addresses: dict[str, str],
    ready: asyncio.Event,
) -> None:
    """Turns healthy once the fleet was read; stays so when the store goes away."""
    await view.wait_until(1)
    for name in ("", SERVICE_NAME):
        await health_service.set(name, health_pb2.HealthCheckResponse.SERVING)
    if config.ready_file is not None:
        told = {name: _reachable(address) for name, address in addresses.items()}
        write_json_atomic(config.ready_file, {**told, "pid": os.getpid()})
    _log.info("ready", **addresses, region=config.region, replica=config.replica_id)
    ready.set()


def _reachable(address: str) -> str:
    """The address for a client on this machine: nobody connects to 0.0.0.0."""
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("0.0.0.0", "[::]", "") else address  # noqa: S104


def _make_server(
    service: ControlPlaneService,
    jobs: JobService,
    batches: BatchRecordService,
    quotas: QuotaService,
    *,
    reflection: bool,
    guard: Guard,
) -> tuple[aio.Server, health.aio.HealthServicer]:
    server = aio.server(options=rpc.server_options(), interceptors=[guard])
    add_ControlPlaneServiceServicer_to_server(service, server)
    add_JobServiceServicer_to_server(jobs, server)
    add_BatchRecordServiceServicer_to_server(batches, server)
    add_QuotaServiceServicer_to_server(quotas, server)
    health_service = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    if reflection:
        # Imported here: it costs memory that a site without it need not pay.
        from grpc_reflection.v1alpha import reflection as grpc_reflection

        grpc_reflection.enable_server_reflection(
            (
                SERVICE_NAME,
                JOB_SERVICE_NAME,
                BATCH_SERVICE_NAME,
                QUOTA_SERVICE_NAME,
                health.SERVICE_NAME,
                grpc_reflection.SERVICE_NAME,
            ),
            server,
        )
    return server, health_service
