"""What the node says of itself: built from its parts, published when they change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from reelmesh.v1 import node_pb2
from reelmesh.v1.model_pb2 import ModelInfo
from reelmesh.v1.node_pb2 import ModelVersion, NodeStatus, WorkerStatus
from reelmesh.v1.node_service_pb2 import WatchStatusResponse
from reelmesh.v1.registry_pb2 import WeightsStatus

from node_agent.devices import DeviceReport
from node_agent.executions import ExecutionTable
from node_agent.slots import Phase
from reelkit.clock import Clock

# Changes closer together than this share a message; gateways place by it, so it is short.
_COALESCE_S = 0.005
# Progress alone is told this often: placement reads seconds, not steps.
_PROGRESS_S = 0.25
_MAX_REASON_CHARS = 500


@dataclass(frozen=True)
class Wishes:
    """What others want of the node, and what it knows of itself beyond its workers."""

    cordoned: bool = False
    draining: bool = False
    stopping: bool = False
    fault: str = ""
    """Why there are no workers yet although there should be, such as a failed fetch."""
    doing: str = ""
    """What it does before there are workers, such as how far a fetch is."""


_WORKER_TO_NODE = (
    (node_pb2.WORKER_STATE_IDLE, node_pb2.NODE_STATE_READY),
    (node_pb2.WORKER_STATE_BUSY, node_pb2.NODE_STATE_READY),
    (node_pb2.WORKER_STATE_WARMING, node_pb2.NODE_STATE_WARMING),
    (node_pb2.WORKER_STATE_LOADING, node_pb2.NODE_STATE_LOADING),
    (node_pb2.WORKER_STATE_STARTING, node_pb2.NODE_STATE_STARTING),
)


def node_state(wishes: Wishes, workers: Sequence[WorkerStatus]) -> node_pb2.NodeState.ValueType:
    """The node's state: its best worker's, unless it is being emptied.

    A node without a live worker is unhealthy once a worker has died or a fetch failed,
    and starting before.
    """
    if wishes.stopping or wishes.draining:
        return node_pb2.NODE_STATE_DRAINING
    if wishes.cordoned:
        return node_pb2.NODE_STATE_CORDONED
    if wishes.fault:
        return node_pb2.NODE_STATE_UNHEALTHY
    states = {worker.state for worker in workers}
    for worker_state, state in _WORKER_TO_NODE:
        if worker_state in states:
            return state
    if node_pb2.WORKER_STATE_DEAD in states:
        return node_pb2.NODE_STATE_UNHEALTHY
    return node_pb2.NODE_STATE_STARTING


class StatusBoard:
    """Builds the status after each change and hands it to whoever watches.

    A change of slots, runs or states is published at once, changes in the same few
    milliseconds together; progress alone four times a second.
    """

    def __init__(
        self,
        *,
        node_id: str,
        incarnation: str,
        table: ExecutionTable,
        worker_statuses: Callable[[], list[tuple[WorkerStatus, str]]],
        models: Callable[[], Sequence[ModelInfo]],
        devices: Callable[[], DeviceReport],
        clock: Clock,
        before_build: Callable[[], None] = lambda: None,
        weights: Callable[[], Sequence[WeightsStatus]] = tuple,
    ) -> None:
        self.wishes = Wishes()
        self._node_id = node_id
        self._incarnation = incarnation
        self._table = table
        self._worker_statuses = worker_statuses
        self._models = models
        self._devices = devices
        self._clock = clock
        # Slots that are somebody's are offered before anybody is told that they are free.
        self._before_build = before_build
        self._weights = weights
        self._dirty = asyncio.Event()
        self._urgent = asyncio.Event()
        self._published = asyncio.Event()
        self._version = 0
        self._closed = False
        self.current = NodeStatus()
        self._frame = b""
        self._build()

    def touch(self, urgent: bool = True) -> None:
        """Something changed; ``urgent`` is False where only progress did."""
        self._dirty.set()
        if urgent:
            self._urgent.set()

    def wish(
        self,
        *,
        cordoned: bool | None = None,
        draining: bool | None = None,
        stopping: bool | None = None,
        fault: str | None = None,
        doing: str | None = None,
    ) -> None:
        """Changes what is wanted; a node that is being emptied admits nothing."""
        now = self.wishes
        self.wishes = Wishes(
            cordoned=now.cordoned if cordoned is None else cordoned,
            draining=now.draining if draining is None else draining,
            stopping=now.stopping if stopping is None else stopping,
            fault=now.fault if fault is None else fault,
            doing=now.doing if doing is None else doing,
        )
        wishes = self.wishes
        self._table.admitting = not (wishes.cordoned or wishes.draining or wishes.stopping)
        self.touch()

    def close(self) -> None:
        """Ends :meth:`frames` for everybody: the agent stops serving."""
        self._closed = True
        self._wake()

    async def next(self, after_version: int) -> NodeStatus:
        """The current status once its version is above ``after_version``."""
        while self.current.version <= after_version:
            await self._published.wait()
        return self.current

    async def frames(self) -> AsyncIterator[bytes]:
        """Serialised ``WatchStatusResponse``: the status now and after each change."""
        version = 0
        while True:
            while self.current.version <= version:
                if self._closed:
                    return
                await self._published.wait()
            version = self.current.version
            yield self._frame

    async def publish_changes(self) -> None:
        """Publishes until cancelled; one task of the agent runs it."""
        while True:
            await self._dirty.wait()
            if not self._urgent.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PROGRESS_S):
                        await self._urgent.wait()
            self._before_build()
            self._dirty.clear()
            self._urgent.clear()
            self._build()
            self._wake()
            await self._clock.sleep(_COALESCE_S)

    def _wake(self) -> None:
        published, self._published = self._published, asyncio.Event()
        published.set()

    def _build(self) -> None:
        self._version += 1
        table = self._table
        workers = self._worker_statuses()
        statuses = [status for status, _detail in workers]
        status = NodeStatus(
            node_id=self._node_id,
            version=self._version,
            state=node_state(self.wishes, statuses),
            reason=self._reason(workers),
            workers=statuses,
            free_slots=table.free_slots(),
            remaining_work_s=table.remaining_work_s(),
            units_per_second=table.speed.units_per_second,
            models=[
                ModelVersion(
                    name=model.name, version=model.version, manifest_sha256=model.manifest_sha256
                )
                for model in self._models()
            ],
            incarnation=self._incarnation,
            devices=self._devices().statuses,
            weights=self._weights(),
        )
        for execution in table.live():
            entry = status.executions.add(
                job_id=execution.job_id,
                epoch=execution.epoch,
                running=execution.phase is not Phase.WAITING,
                progress=execution.progress,
                attempt=execution.attempt,
            )
            # "try" is a keyword of Python: the field can only be set by name.
            setattr(entry, "try", execution.try_number)
        self.current = status
        self._frame = WatchStatusResponse(status=status).SerializeToString()

    def _reason(self, workers: Sequence[tuple[WorkerStatus, str]]) -> str:
        wishes = self.wishes
        if wishes.stopping:
            return "shutting down"
        if wishes.draining:
            return "drained by an operator"
        if wishes.cordoned:
            return "cordoned by an operator"
        if wishes.fault or wishes.doing:
            return (wishes.fault or wishes.doing)[:_MAX_REASON_CHARS]
        reasons = [f"{status.id}: {detail}" for status, detail in workers if detail]
        reasons += self._devices().notes
        return "; ".join(reasons)[:_MAX_REASON_CHARS]
