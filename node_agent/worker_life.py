"""One worker process through all its lives: started, watched, killed, started again.

A worker that dies, hangs or breaks the wire is killed, its runs fail as retryable, and
it is started again: at once after it has served, with a growing wait when it dies
while it loads. Nothing here ends the agent.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from reelmesh.v1 import node_pb2
from reelmesh.v1.model_pb2 import ModelInfo
from reelmesh.v1.worker_pb2 import (
    WorkerCommand,
    WorkerEvent,
    WorkerLoad,
    WorkerShutdown,
)

from node_agent.executions import ExecutionTable
from node_agent.liveness import Liveness, LivenessLimits
from node_agent.worker_wire import AsyncWire, WireError
from reelkit.clock import Clock
from reelkit.tasks import TaskScope
from reelkit.threads import in_daemon_thread

_log = structlog.get_logger("node_agent.worker_life")

_TICK_S = 0.2
# A worker that lived this long while serving was healthy: the next wait is the first.
_HEALTHY_S = 60.0
# Commands that a worker has not read; it holds two runs, so a longer queue is a hang.
_MAX_COMMANDS = 64
_REAP_S = 5.0
_EXIT_S = 0.5


class WorkerHandle(Protocol):
    """A started worker process, as :mod:`node_agent.engine.spawn` gives it."""

    pid: int
    sock: socket.socket

    @property
    def exitcode(self) -> int | None:
        """None while it lives."""
        ...

    def kill(self) -> None:
        """Ends it now; no error if it is gone."""
        ...

    def join(self, timeout_s: float) -> bool:
        """Blocks until it has ended (True) or the time is over."""
        ...


# Starts the worker of an id; blocks, so it is called in a thread. Raises OSError or
# EOFError where it cannot.
Launcher = Callable[[str], WorkerHandle]


@dataclass(frozen=True)
class Respawn:
    """The wait before a worker that died at load is started again."""

    first_s: float = 0.5
    max_s: float = 30.0


@dataclass(frozen=True)
class LoadOrder:
    """What a worker is told to load."""

    model_dir: Path
    threads: int


class Worker:
    """One worker id through all its lives."""

    def __init__(
        self,
        *,
        worker_id: str,
        device: str,
        launcher: Launcher,
        table: ExecutionTable,
        clock: Clock,
        liveness: LivenessLimits,
        respawn: Respawn,
        on_change: Callable[[], None],
    ) -> None:
        self.worker_id = worker_id
        self.device = device
        self.pid = 0
        self.state: node_pb2.WorkerState.ValueType = node_pb2.WORKER_STATE_STARTING
        self.detail = ""
        self.restarts = 0
        self.model: ModelInfo | None = None
        self.device_uuid = ""
        """What its device is to the driver, once it was told; outlives the worker."""
        self._launcher = launcher
        self._table = table
        self._clock = clock
        self._limits = liveness
        self._respawn = respawn
        self._on_change = on_change
        self._commands: asyncio.Queue[WorkerCommand] = asyncio.Queue(_MAX_COMMANDS)
        self._liveness = Liveness(liveness, now_s=clock.monotonic())
        self._handle: WorkerHandle | None = None
        self._kill_reason = ""
        self._fatal = ""
        self._leaving = False

    @property
    def serving(self) -> bool:
        """Whether it lives and has loaded the model in this life."""
        return self._handle is not None and self._liveness.serving

    def status(self, *, busy: bool) -> node_pb2.WorkerStatus:
        """What the node's status says of it."""
        state = self.state
        if self.serving:
            state = node_pb2.WORKER_STATE_BUSY if busy else node_pb2.WORKER_STATE_IDLE
        return node_pb2.WorkerStatus(
            id=self.worker_id,
            pid=self.pid,
            state=state,
            device=self.device,
            restarts=self.restarts,
        )

    def send(self, command: WorkerCommand) -> None:
        """Queues a command; a worker that does not read its commands is killed."""
        try:
            self._commands.put_nowait(command)
        except asyncio.QueueFull:
            self.kill("does not read its commands")

    def kill(self, reason: str) -> None:
        """Ends this life of the worker; the next one begins by itself."""
        if self._handle is not None and not self._kill_reason:
            self._kill_reason = reason
            _log.warning("worker killed", worker=self.worker_id, pid=self.pid, reason=reason)
            self._handle.kill()

    async def live(self, order: LoadOrder) -> None:
        """Starts the worker again and again, until cancelled or :meth:`shut_down`.

        Cancelling kills the process.
        """
        delay_s = self._respawn.first_s
        while True:
            began_s = self._clock.monotonic()
            reason = await self._live_once(order)
            if self._leaving:
                return
            served = self.serving
            self._reset(reason)
            if served:
                # It worked: whoever waits for it should not wait longer than needed.
                delay_s = self._respawn.first_s
                if self._clock.monotonic() - began_s >= _HEALTHY_S:
                    continue
            await self._clock.sleep(delay_s)
            delay_s = min(2 * delay_s, self._respawn.max_s)

    async def _live_once(self, order: LoadOrder) -> str:
        """One life, from start to death; says why it ended."""
        self._liveness = Liveness(self._limits, now_s=self._clock.monotonic())
        self._set_state(node_pb2.WORKER_STATE_STARTING, "")
        try:
            handle = await self._start()
        except (OSError, EOFError) as error:
            return f"could not be started: {str(error) or type(error).__name__}"
        self._handle, self.pid = handle, handle.pid
        self._on_change()
        try:
            wire = await AsyncWire.open(handle.sock)
            try:
                reason = await self._converse(wire, order)
            finally:
                await wire.close()
            # A worker that ends by itself tells its exit code if it is let.
            await asyncio.to_thread(handle.join, _EXIT_S)
        finally:
            handle.kill()
            await asyncio.shield(asyncio.to_thread(handle.join, _REAP_S))
        if self._kill_reason:
            return self._kill_reason
        return self._fatal or f"{reason} (exit code {handle.exitcode})"

    async def _start(self) -> WorkerHandle:
        """Starts the process in a thread; one that comes too late is killed.

        Raises:
            OSError: It cannot be started, or (TimeoutError) not in time.
            EOFError: The fork server died.
        """
        async with asyncio.timeout(self._limits.start_timeout_s):
            # An agent that is told to stop does not wait until the fork server has
            # imported torch.
            return await in_daemon_thread(
                lambda: self._launcher(self.worker_id),
                name=f"launch {self.worker_id}",
                on_late=lambda handle: handle.kill(),
            )

    async def _converse(self, wire: AsyncWire, order: LoadOrder) -> str:
        load = WorkerLoad(model_dir=str(order.model_dir), device=self.device, threads=order.threads)
        self.send(WorkerCommand(load=load))
        async with TaskScope(self.worker_id) as scope:
            scope.spawn(self._send_commands(wire), name="commands", fatal=False)
            scope.spawn(self._watch(wire), name="watch", fatal=False)
            try:
                while (event := await wire.receive()) is not None:
                    self._on_event(event)
            except WireError as error:
                return f"broke the wire: {error}"
        return "died"

    async def _send_commands(self, wire: AsyncWire) -> None:
        try:
            while True:
                await wire.send(await self._commands.get())
        except TimeoutError:
            self.kill("does not read its commands")
        except ConnectionError:
            return  # The reader sees the same end and says why.

    async def _watch(self, wire: AsyncWire) -> None:
        """Kills the worker when its silence is longer than can be borne."""
        while not self._kill_reason:
            asleep_s = self._clock.monotonic()
            await self._clock.sleep(_TICK_S)
            now_s = self._clock.monotonic()
            self._liveness.forgive(max(0.0, now_s - asleep_s - 2 * _TICK_S))
            silent_s, step_s = self._table.silence(self.worker_id, now_s=now_s)
            verdict = self._liveness.verdict(now_s=now_s, silent_s=silent_s, step_s=step_s)
            if verdict is not None:
                self.kill(verdict)
        await self._clock.sleep(_REAP_S)
        # Not even SIGKILL closed its end (a device driver that hangs): let go of it.
        await wire.close()

    def _on_event(self, message: WorkerEvent) -> None:
        now_s = self._clock.monotonic()
        self._liveness.heard(now_s)
        kind = message.WhichOneof("event")
        if kind == "run":
            self._table.on_event(message.run.run_id, message.run.event, now_s=now_s)
        elif kind == "device_done":
            self._table.on_device_done(message.device_done.run_id, now_s=now_s)
        elif kind == "state" and not self.serving:
            self._set_state(message.state.state, message.state.detail)
        elif kind == "loaded":
            self.device_uuid = message.loaded.device_uuid
            self._loaded(message.loaded.model, message.loaded.units_per_second)
        elif kind == "fatal":
            self._fatal = f"{message.fatal.code}: {message.fatal.message}"

    def _loaded(self, model: ModelInfo, units_per_second: float) -> None:
        self.model = model
        self._liveness.serving = True
        self._table.speed.seed(units_per_second)
        self._set_state(node_pb2.WORKER_STATE_IDLE, "")
        self._table.worker_ready(self.worker_id)
        _log.info(
            "worker ready",
            worker=self.worker_id,
            pid=self.pid,
            model=model.name,
            version=model.version,
            units_per_second=round(units_per_second, 2),
        )

    def _set_state(self, state: node_pb2.WorkerState.ValueType, detail: str) -> None:
        self.state, self.detail = state, detail
        self._on_change()

    def _reset(self, reason: str) -> None:
        """The end of a life: its runs fail, and the next life starts clean."""
        _log.warning("worker lost", worker=self.worker_id, pid=self.pid, reason=reason)
        self.restarts += 1
        self._handle = None
        self.pid = 0
        self._kill_reason = self._fatal = ""
        self._commands = asyncio.Queue(_MAX_COMMANDS)
        self._set_state(node_pb2.WORKER_STATE_DEAD, reason)
        self._table.worker_lost(
            self.worker_id,
            message=f"worker {self.worker_id}: {reason}",
            now_s=self._clock.monotonic(),
        )

    async def shut_down(self, *, timeout_s: float) -> None:
        """Asks the process to leave and waits for it; it is not started again."""
        self._leaving = True
        handle = self._handle
        if handle is None:
            return
        self.send(WorkerCommand(shutdown=WorkerShutdown()))
        await asyncio.to_thread(handle.join, timeout_s)
