"""The composition root of the agent and its life: fetch, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable

import structlog
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from reelmesh.v1 import node_pb2, node_service_pb2
from reelmesh.v1.model_pb2 import ModelInfo
from reelmesh.v1.node_pb2 import WorkerStatus

from node_agent.access import ACCESS
from node_agent.attach import Attachment, Identity
from node_agent.config import NodeConfig
from node_agent.device_figures import Figures, Gpus
from node_agent.device_nvml import NvmlGpus
from node_agent.devices import DeviceWatch, Wanted
from node_agent.errors import WeightsError
from node_agent.executions import ExecutionTable
from node_agent.liveness import LivenessLimits
from node_agent.manifest import Manifest
from node_agent.model_folder import ModelFolder
from node_agent.prefetch import Prefetcher
from node_agent.service import SERVICE_NAME, NodeService
from node_agent.slots import Execution
from node_agent.status import StatusBoard
from node_agent.supervisor import Supervisor
from node_agent.ticket_desk import TicketDesk
from node_agent.weights import prepare_weights
from node_agent.weights_service import SERVICE_NAME as WEIGHTS_SERVICE_NAME
from node_agent.weights_service import WeightsService
from node_agent.work import Speed
from node_agent.worker_life import Launcher, LoadOrder, Respawn, Worker, WorkerHandle
from reelkit.clock import Clock, SystemClock
from reelkit.files import write_json_atomic
from reelkit.mtls.channels import Channels
from reelkit.mtls.guard import Guard
from reelkit.mtls.identity import Role
from reelkit.mtls.material import open_mutual_tls
from reelkit.rpc import listen, server_options
from reelkit.settings import blame_field
from reelkit.tasks import TaskScope

_log = structlog.get_logger("node_agent.app")

_HELLO_PATIENCE_S = 1.0
_EXPIRE_TICK_S = 0.2
_REFETCH_FIRST_S = 1.0
_REFETCH_MAX_S = 60.0
_WORKER_LEAVE_S = 2.0
_SERVER_STOP_S = 1.0


class NodeApp:
    """A running agent; made by :func:`build_app`."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        clock: Clock,
        table: ExecutionTable,
        supervisor: Supervisor,
        gpus: Gpus,
        health: health_aio.HealthServicer,
        scope: TaskScope,
        incarnation: str,
        address: str,
        channels: Channels,
    ) -> None:
        self.config = config
        self.address = address
        self.table = table
        self.supervisor = supervisor
        self.folder: ModelFolder | None = None
        self._has_folder = asyncio.Event()
        self.devices = DeviceWatch(
            reader=Figures(gpus),
            wanted=self._wanted_devices,
            limits=config.devices.limits(),
            clock=clock,
            on_news=self._devices_changed,
        )
        self.prefetcher = _prefetcher(config, clock, lambda urgent: self.board.touch(urgent))
        self.board = StatusBoard(
            node_id=config.node_id,
            incarnation=incarnation,
            table=table,
            worker_statuses=self._worker_statuses,
            models=self._models,
            devices=lambda: self.devices.report,
            clock=clock,
            before_build=self._offer,
            weights=self.prefetcher.statuses,
        )
        self.desk = TicketDesk(
            book=table.tickets,
            waits_s=table.slot_waits_s,
            on_change=self.board.touch,
            clock=clock,
        )
        self.attachment = Attachment(
            identity=Identity(config.node_id, config.region, address, incarnation),
            control_planes=config.control_planes,
            board=self.board,
            models=self._models,
            on_weights=self.prefetcher.want,
            clock=clock,
            open_channel=channels.to(Role.CONTROL_PLANE, region=config.region),
        )
        self._clock = clock
        self._health = health
        self._scope = scope

    def changed(self, urgent: bool) -> None:
        """Something of the table did; a slot that is wanted is offered at once."""
        self._offer()
        self.board.touch(urgent)

    def _offer(self) -> None:
        self.desk.look()

    async def serve(self) -> None:
        """Returns only when a part of the agent failed; raises its error."""
        await self._scope.failed.wait()
        if self._scope.failure is not None:
            raise self._scope.failure

    async def drain(self) -> None:
        """Admits nothing more, waits for running work, fails the rest as retryable."""
        self.board.wish(stopping=True)
        try:
            async with asyncio.timeout(self.config.drain_timeout_s):
                await self._idle()
        except TimeoutError:
            _log.warning("drain deadline passed", runs=len(self.table.live()))
            self.table.fail_all(
                code="node_shutdown",
                message=f"node {self.config.node_id} shut down",
                now_s=self._clock.monotonic(),
            )

    async def _idle(self) -> None:
        version = 0
        while self.table.live():
            version = (await self.board.next(version)).version

    async def supply_model(self) -> None:
        """Fetches the weights, again and again until it worked, then keeps workers alive."""
        delay_s = _REFETCH_FIRST_S
        while self.folder is None:
            try:
                self.folder = await prepare_weights(
                    self.config.model, on_progress=self._on_fetch_progress
                )
            except WeightsError as error:
                _log.error("weights unavailable", error=str(error), retry_in_s=delay_s)
                self.board.wish(fault=f"weights: {error}", doing="")
                await self._clock.sleep(delay_s)
                delay_s = min(2 * delay_s, _REFETCH_MAX_S)
        self._has_folder.set()
        self.board.wish(fault="", doing="")
        self.attachment.renew_hello()
        order = LoadOrder(model_dir=self.folder.path, threads=self.config.workers.threads)
        await self.supervisor.serve(order)

    def _on_fetch_progress(self, done_bytes: int, total_bytes: int) -> None:
        doing = f"fetching weights: {done_bytes / 1e9:.2f} of {total_bytes / 1e9:.2f} GB"
        self.board.wish(doing=doing, fault="")

    async def attach(self) -> None:
        """Keeps the node attached; a model that is at hand goes into the first hello."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HELLO_PATIENCE_S):
                await self._has_folder.wait()
        await self.attachment.run()

    async def expire(self) -> None:
        """Lets time act on the runs."""
        while True:
            await self._clock.sleep(_EXPIRE_TICK_S)
            self.table.expire(now_s=self._clock.monotonic())

    async def tell_health(self) -> None:
        """Keeps gRPC health in step: SERVING exactly while the node is ready."""
        version, said = 0, None
        while True:
            status = await self.board.next(version)
            version = status.version
            ready = status.state == node_pb2.NODE_STATE_READY
            if ready is not said:
                said = ready
                answer = (
                    health_pb2.HealthCheckResponse.SERVING
                    if ready
                    else health_pb2.HealthCheckResponse.NOT_SERVING
                )
                await self._health.set(SERVICE_NAME, answer)
                _log.info("node state", state=node_pb2.NodeState.Name(status.state))

    def manifest(self) -> Manifest | None:
        """The served model's manifest, once its folder is there."""
        return self.folder.manifest if self.folder is not None else None

    def _models(self) -> list[ModelInfo]:
        return [self.folder.to_model_info()] if self.folder is not None else []

    def _worker_statuses(self) -> list[tuple[WorkerStatus, str]]:
        busy = {slots.worker_id for slots in self.table.slots() if slots.held}
        statuses = []
        for worker in self.supervisor.workers:
            status, detail = worker.status(busy=worker.worker_id in busy), worker.detail
            fault = self.devices.report.faults.get(worker.device)
            if fault is not None:
                # What it holds may end well, but nobody should count on it.
                status.state, detail = node_pb2.WORKER_STATE_DEAD, fault
            statuses.append((status, detail))
        return statuses

    def _wanted_devices(self) -> list[Wanted]:
        """Each device once, with the processes that use it."""
        wanted: list[Wanted] = []
        for device in dict.fromkeys(self.config.workers.devices):
            workers = [w for w in self.supervisor.workers if w.device == device]
            # The agent itself computes nothing, but its memory is the machine's too.
            own = () if device.startswith("cuda") else (os.getpid(),)
            wanted.append(
                Wanted(
                    device=device,
                    uuid=next((w.device_uuid for w in workers if w.device_uuid), ""),
                    pids=own + tuple(w.pid for w in workers if w.pid),
                )
            )
        return wanted

    def _devices_changed(self) -> None:
        faults = self.devices.report.faults
        faulty = [w.worker_id for w in self.supervisor.workers if w.device in faults]
        self.table.bar(frozenset(faulty))
        self.board.touch(urgent=bool(faulty))


def _prefetcher(config: NodeConfig, clock: Clock, on_change: Callable[[bool], None]) -> Prefetcher:
    return Prefetcher(
        node_id=config.node_id,
        region=config.region,
        model=config.model,
        registry=config.registry,
        mtls=config.mtls,
        clock=clock,
        on_change=on_change,
    )


def _log_end(execution: Execution) -> None:
    _log.info(
        "run ended",
        job_id=execution.job_id,
        attempt=execution.attempt,
        outcome=execution.outcome,
        worker=execution.worker_id,
        device_s=round(execution.device_s, 3),
        kept_bytes=execution.log.size_bytes,
    )


def default_launcher(config: NodeConfig) -> Launcher:
    """Starts real engine workers by way of the fork server."""
    from node_agent.engine.spawn import start_worker

    settings = config.worker_settings()
    shared = config.workers.fork_server
    if shared is None:
        return lambda worker_id: start_worker(worker_id=worker_id, settings=settings)

    from node_agent.engine.spawn_shared import start_shared_worker

    def launch(worker_id: str) -> WorkerHandle:
        try:
            return start_shared_worker(shared, worker_id=worker_id, settings=settings)
        except OSError as error:
            _log.warning("shared fork server failed; using one of our own", error=str(error))
            return start_worker(worker_id=worker_id, settings=settings)

    return launch


@contextlib.asynccontextmanager
async def build_app(
    config: NodeConfig,
    *,
    clock: Clock | None = None,
    launcher: Launcher | None = None,
    gpus: Gpus | None = None,
) -> AsyncIterator[NodeApp]:
    """A listening agent; leaving the block stops it and ends its workers.

    Raises:
        ConfigError: The address cannot be bound, the certificate not be used, or the ready file
            not be written.
    """
    clock = clock or SystemClock()
    launcher = launcher or default_launcher(config)
    async with contextlib.AsyncExitStack() as stack:
        supervisor = Supervisor()
        speed = Speed()
        numbers = iter(range(1, 2**63))
        incarnation = secrets.token_hex(8)
        table = ExecutionTable(
            gate=supervisor,
            limits=config.runs.limits(),
            speed=speed,
            new_run_id=lambda: f"{incarnation}-{next(numbers)}",
            on_end=_log_end,
        )
        tls = open_mutual_tls(
            config.mtls, region=config.region, role=Role.NODE, id=config.node_id, clock=clock
        )
        channels = Channels(tls)
        guard = Guard(ACCESS, region=config.region, mutual=tls is not None, clock=clock)
        server = aio.server(options=server_options(), interceptors=[guard])
        health = health_aio.HealthServicer()
        with blame_field("listen", config.listen):
            shown = None if tls is None else tls.server_credentials()
            port = listen(server, config.listen, credentials=shown)
        scope = await stack.enter_async_context(TaskScope(config.node_id))
        app = NodeApp(
            config=config,
            clock=clock,
            table=table,
            supervisor=supervisor,
            gpus=gpus or NvmlGpus(),
            health=health,
            scope=scope,
            incarnation=incarnation,
            address=config.advertised(port),
            channels=channels,
        )
        table.on_change = app.changed
        workers = config.workers
        supervisor.adopt(
            [
                Worker(
                    worker_id=f"{config.node_id}/worker-{index}",
                    device=device,
                    launcher=launcher,
                    table=table,
                    clock=clock,
                    liveness=LivenessLimits(
                        heartbeat_timeout_s=workers.heartbeat_timeout_s,
                        loading_silence_s=workers.loading_silence_s,
                        start_timeout_s=workers.start_timeout_s,
                        load_timeout_s=workers.load_timeout_s,
                        stall_floor_s=workers.stall_floor_s,
                        stall_steps=workers.stall_steps,
                    ),
                    respawn=Respawn(first_s=workers.respawn_first_s, max_s=workers.respawn_max_s),
                    on_change=app.board.touch,
                )
                for index, device in enumerate(workers.devices)
            ]
        )
        NodeService(
            table=table, board=app.board, manifest=app.manifest, desk=app.desk, clock=clock
        ).add_to(server)
        WeightsService(
            store=app.prefetcher.store,
            max_streams=config.registry.serve_streams,
            bytes_per_s=config.registry.serve_bytes_per_s,
            clock=clock,
        ).add_to(server)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        await health.set("", health_pb2.HealthCheckResponse.SERVING)
        if config.reflection:
            names = (
                node_service_pb2.DESCRIPTOR.services_by_name["NodeService"].full_name,
                WEIGHTS_SERVICE_NAME,
                health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
                reflection.SERVICE_NAME,
            )
            reflection.enable_server_reflection(names, server)
        await server.start()
        stack.push_async_callback(server.stop, _SERVER_STOP_S)
        stack.callback(app.board.close)
        stack.push_async_callback(supervisor.shut_down, timeout_s=_WORKER_LEAVE_S)
        scope.spawn(app.board.publish_changes(), name="status")
        scope.spawn(app.tell_health(), name="health")
        scope.spawn(app.expire(), name="expire")
        scope.spawn(app.desk.expire(), name="offers")
        scope.spawn(app.devices.run(), name="devices")
        scope.spawn(app.supply_model(), name="model")
        scope.spawn(app.prefetcher.run(), name="prefetch")
        scope.spawn(app.attach(), name="attach")
        if tls is not None:
            scope.spawn(channels.follow(), name="identity")
        stack.push_async_callback(app.attachment.goodbye)
        if config.ready_file is not None:
            host = config.listen.rpartition(":")[0]
            with blame_field("ready_file", config.ready_file):
                write_json_atomic(config.ready_file, {"grpc": f"{host}:{port}", "pid": os.getpid()})
        _log.info("listening", node=config.node_id, port=port, address=app.address)
        yield app
