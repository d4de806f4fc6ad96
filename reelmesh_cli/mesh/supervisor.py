"""The mesh as a whole: started in order, watched, written to mesh.json, stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from reelmesh.v1 import node_pb2

from reelkit.clock import Clock
from reelkit.files import write_atomic, write_json_atomic
from reelkit.tasks import TaskScope, cancel_on_exit
from reelmesh_cli.errors import MeshStartError, UsageError
from reelmesh_cli.mesh import certificates, node_watch, probes
from reelmesh_cli.mesh.board import Board
from reelmesh_cli.mesh.keys import Tokens
from reelmesh_cli.mesh.mesh_file import WorkerEntry, mesh_document
from reelmesh_cli.mesh.node_health import NodeHealth
from reelmesh_cli.mesh.process import Child, describe_exit, log_tail
from reelmesh_cli.mesh.state_dir import MESH_FILE
from reelmesh_cli.mesh.topology import DRAIN_S, MeshPlan, ProcessPlan, Role

STOP_GRACE_S = DRAIN_S + 5.0
# Those who take work first, those whom others need last.
_STOP_ORDER: tuple[Role, ...] = ("gateway", "node-agent", "fork-server", "control-plane", "etcd")
_FIRST_RESTART_S, _MAX_RESTART_S = 0.5, 10.0
# A process that lived this long was healthy: its next restart is at once.
_HEALTHY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """How the mesh is kept."""

    restart: bool
    """Start a process again that died."""
    start_timeout_s: float
    """Time until every gateway must serve, loading of the model included."""


@contextlib.asynccontextmanager
async def run_mesh(
    plan: MeshPlan,
    *,
    tokens: Tokens,
    supervision: Supervision,
    board: Board,
    clock: Clock,
    on_made: Callable[[Mesh], None],
) -> AsyncIterator[Mesh]:
    """A mesh that serves; ``mesh.json`` is there inside the block and gone after it.

    However the block or the start is left, every process is stopped.

    Raises:
        MeshStartError: A process did not come up; names its log.
    """
    async with TaskScope("mesh") as scope:
        mesh = Mesh(
            plan, tokens=tokens, supervision=supervision, board=board, clock=clock, scope=scope
        )
        on_made(mesh)
        try:
            await mesh.bring_up()
            yield mesh
        finally:
            await mesh.stop()


class Mesh:
    """A running mesh; made by :func:`run_mesh`."""

    def __init__(
        self,
        plan: MeshPlan,
        *,
        tokens: Tokens,
        supervision: Supervision,
        board: Board,
        clock: Clock,
        scope: TaskScope,
    ) -> None:
        self.plan = plan
        self.tokens = tokens
        self._supervision = supervision
        self._board = board
        self._clock = clock
        self._scope = scope
        self._children: dict[str, Child] = {}
        self._workers: dict[str, tuple[WorkerEntry, ...]] = {}
        self._nodes: dict[str, NodeHealth] = {}
        self._listening: set[str] = set()
        self._delays: dict[str, float] = {}
        self._states: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._first_death: asyncio.Future[MeshStartError] | None = None
        self._serving = False
        self._stopping = False

    @property
    def mesh_file(self) -> Path:
        """Where mesh.json lies."""
        return self.plan.options.state_dir / MESH_FILE

    def pid_of(self, process_id: str) -> int | None:
        """The process id of a plan's process or a worker that lives and is known to listen."""
        agent, slash, _ = process_id.partition("/")
        if slash:
            workers = self._workers.get(agent, ())
            return next((each.pid for each in workers if each.id == process_id), None)
        return self._children[process_id].pid if process_id in self._listening else None

    def node_is_ready(self, node_id: str) -> bool:
        """Whether a node agent said so last."""
        return self._nodes.get(node_id, NodeHealth()).ready

    async def bring_up(self) -> None:
        """Starts every process and returns once every gateway serves its region.

        Raises:
            MeshStartError: A process died or the time is over.
        """
        self._write_configs()
        self._first_death = asyncio.get_running_loop().create_future()
        starting = self._scope.spawn(self._start_in_order(), name="start", fatal=False)
        async with cancel_on_exit(starting):
            watched: list[asyncio.Future[Any]] = [starting, self._first_death]
            await asyncio.wait(
                watched,
                timeout=self._supervision.start_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self._first_death.done():
                raise self._first_death.result()
            if not starting.done():
                raise self._too_late()
            starting.result()
        self._serving = True
        self._write_mesh_file()
        if self.plan.certificates:
            self._scope.spawn(self._renew_certificates(), name="renew certificates")

    async def stop(self) -> None:
        """Stops every process, those that take work first; idempotent."""
        self._stopping = True
        self.mesh_file.unlink(missing_ok=True)
        for role in _STOP_ORDER:
            children = [
                child
                for child in self._children.values()
                if child.plan.role == role and child.exit_code is None
            ]
            for child in children:
                self._say(child.plan, "stopping")
            await asyncio.gather(*(child.stop(STOP_GRACE_S) for child in children))
            for child in children:
                self._say(child.plan, "stopped")

    def kill_at_once(self) -> None:
        """Kills every process without waiting: the person asked twice."""
        self._stopping = True
        for child in self._children.values():
            child.kill_at_once()
        self.mesh_file.unlink(missing_ok=True)

    async def _start_in_order(self) -> None:
        # The agents wait for it by themselves: it imports while the others start.
        for fork_server in self.plan.of_role("fork-server"):
            await self._start(fork_server)
            self._scope.spawn(self._until_listening(fork_server), name="fork-server is ready")
        await self._start_listening(self.plan.of_role("etcd"))
        await self._start_listening(self.plan.of_role("control-plane"))
        nodes = self.plan.of_role("node-agent")
        for node in nodes:
            self._scope.spawn(self._watch_node(node), name=f"watch {node.id}")
        gateways = self.plan.of_role("gateway")
        await self._start_listening((*nodes, *gateways))
        await self._until_nodes_are_ready()
        await asyncio.gather(*(self._until_serving(each) for each in gateways))

    async def _start_listening(self, plans: Sequence[ProcessPlan]) -> None:
        """Starts these and returns once each listens."""
        await asyncio.gather(*(self._start(plan) for plan in plans))
        await asyncio.gather(*(self._until_listening(plan) for plan in plans))

    async def _until_listening(self, plan: ProcessPlan) -> None:
        if plan.ready_file is None:
            await probes.wait_for_etcd(plan.address, plan.called_with)
        else:
            await probes.wait_for_file(plan.ready_file)
        self._listening.add(plan.id)
        if plan.role != "node-agent":
            # A node agent tells of itself, in its status.
            self._say(plan, "listening" if plan.role == "gateway" else "ready")

    async def _start(self, plan: ProcessPlan) -> None:
        self._say(plan, "starting")
        try:
            child = await Child.start(plan, state_dir=self.plan.options.state_dir)
        except OSError as error:
            raise MeshStartError(f"{plan.id} cannot be started: {error}") from None
        if self._stopping:
            await child.kill()
            return
        self._children[plan.id] = child
        self._scope.spawn(self._wait_for_death(child), name=f"wait {plan.id}")

    async def _wait_for_death(self, child: Child) -> None:
        plan, began_s = child.plan, self._clock.monotonic()
        code = await child.wait()
        self._listening.discard(plan.id)
        self._workers.pop(plan.id, None)
        self._nodes.pop(plan.id, None)
        if self._stopping:
            return
        self._say(plan, describe_exit(code))
        log = self.plan.options.state_dir / plan.log
        if not self._serving:
            if self._first_death is not None and not self._first_death.done():
                self._first_death.set_result(
                    MeshStartError(
                        f"{plan.id} ended while the mesh was starting ({describe_exit(code)})",
                        hint=f"the end of {log}:\n{log_tail(log)}",
                    )
                )
            return
        self._write_mesh_file()
        self._board.warn(f"{plan.id} ended: {describe_exit(code)}; its log is {log}")
        if self._supervision.restart:
            await self._restart(plan, lived_s=self._clock.monotonic() - began_s)

    async def _restart(self, plan: ProcessPlan, *, lived_s: float) -> None:
        delay_s = _FIRST_RESTART_S if lived_s > _HEALTHY_S else self._next_delay_s(plan)
        await self._clock.sleep(delay_s)
        if self._stopping:
            return
        await self._start(plan)
        # One that ends again in that time is started again by whoever waits for its end.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._supervision.start_timeout_s):
                await self._until_listening(plan)
                self._write_mesh_file()
                if plan.role == "gateway":
                    await self._until_serving(plan)

    def _next_delay_s(self, plan: ProcessPlan) -> float:
        delay_s = self._delays.get(plan.id, _FIRST_RESTART_S)
        self._delays[plan.id] = min(2 * delay_s, _MAX_RESTART_S)
        return delay_s

    async def _until_nodes_are_ready(self) -> None:
        nodes = self.plan.of_role("node-agent")
        while not all(self._nodes.get(node.id, NodeHealth()).ready for node in nodes):
            self._raise_if_hopeless()
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._changed.wait()

    def _raise_if_hopeless(self) -> None:
        for name, health in self._nodes.items():
            if health.hopeless(now_s=self._clock.monotonic()):
                log = self.plan.options.state_dir / "logs" / f"{name}.log"
                raise MeshStartError(
                    f"{name} cannot serve: {self._states[name]}", hint=f"its log is {log}"
                )

    async def _until_serving(self, gateway: ProcessPlan) -> None:
        while True:
            ready, reason = await probes.readiness(gateway.addresses["http"], self.plan.ca)
            self._say(gateway, "ready" if ready else f"waiting: {reason or 'not ready'}")
            if ready:
                return
            await asyncio.sleep(probes.POLL_S)

    async def _watch_node(self, plan: ProcessPlan) -> None:
        def on_status(status: node_pb2.NodeStatus) -> None:
            self._say(plan, node_watch.describe(status))
            self._nodes[plan.id] = self._nodes.get(plan.id, NodeHealth()).seen(
                ready=status.state == node_pb2.NODE_STATE_READY,
                unhealthy=status.state == node_pb2.NODE_STATE_UNHEALTHY,
                now_s=self._clock.monotonic(),
            )
            workers = node_watch.live_workers(status)
            if workers != self._workers.get(plan.id):
                self._workers[plan.id] = workers
                if self._serving and not self._stopping:
                    self._write_mesh_file()
            self._changed.set()

        await node_watch.watch_node(plan, on_status, clock=self._clock)

    async def _renew_certificates(self) -> None:
        while True:
            await self._clock.sleep(certificates.RENEW_EVERY_S)
            now = dt.datetime.fromtimestamp(self._clock.wall(), tz=dt.UTC)
            try:
                await asyncio.to_thread(certificates.issue, self.plan.certificates, now=now)
            except UsageError as error:
                # Two thirds of their life are left to try again in.
                self._board.warn(error.message)

    def _too_late(self) -> MeshStartError:
        waited_for = [
            f"{name}: {state}" for name, state in self._states.items() if state != "ready"
        ]
        return MeshStartError(
            f"the mesh did not serve within {self._supervision.start_timeout_s:g} s; "
            + "; ".join(waited_for),
            hint=f"the logs are in {self.plan.options.state_dir / 'logs'}; a large model "
            "needs more time: --start-timeout",
        )

    def _say(self, plan: ProcessPlan, state: str) -> None:
        self._states[plan.id] = state
        self._board.say(plan, state)

    def _write_configs(self) -> None:
        for plan in self.plan.processes:
            if plan.config is not None and plan.config_file is not None:
                text = yaml.safe_dump(plan.config, sort_keys=False, allow_unicode=True)
                write_atomic(plan.config_file, text.encode())

    def _write_mesh_file(self) -> None:
        pids = {name: self._children[name].pid for name in self._listening}
        document = mesh_document(self.plan, pids=pids, workers=self._workers, tokens=self.tokens)
        write_json_atomic(self.mesh_file, document)
