"""Watches the nodes that are attached to this replica: calls them, tries idle ones."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence

import structlog
from reelmesh.v1 import model_pb2, node_pb2

from control_plane.health import canary
from control_plane.health.assess import UNHEALTHY, Assessment
from control_plane.health.canary import CanaryRunner
from control_plane.health.config import HealthSettings
from control_plane.health.probe import Prober
from control_plane.health.shares import too_many
from control_plane.health.track import NodeTrack
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

_log = structlog.get_logger("control_plane.health")

MAX_CANARIES_AT_ONCE = 8
# Of the interval: how soon a node is called again that has only to answer to be back.
RECOVERY_SHARE = 1 / 4


class HealthWatch:
    """What the watches of one replica share: how many fail, and how much may be asked.

    Args:
        rules: The limits.
        prober: Calls nodes.
        runner: Tries them.
        clock: The time.
        ready_nodes: How many nodes of the region, on any replica, are ready.
    """

    def __init__(
        self,
        *,
        rules: HealthSettings,
        prober: Prober,
        runner: CanaryRunner,
        clock: Clock,
        ready_nodes: Callable[[], int],
    ) -> None:
        self.rules = rules
        self.prober = prober
        self.runner = runner
        self.clock = clock
        self.ready_nodes = ready_nodes
        self.canaries = asyncio.Semaphore(MAX_CANARIES_AT_ONCE)
        self._tracks: dict[NodeWatch, NodeTrack] = {}
        self._failing: set[NodeWatch] = set()

    def enter(self, watch: NodeWatch, track: NodeTrack) -> None:
        """Counts a node."""
        self._tracks[watch] = track

    def leave(self, watch: NodeWatch) -> None:
        """Counts it no more."""
        self._tracks.pop(watch, None)
        self._failing.discard(watch)

    def note(self, watch: NodeWatch) -> None:
        """Takes note of whether the node fails now."""
        if watch in self._tracks and self._tracks[watch].failing:
            self._failing.add(watch)
        else:
            self._failing.discard(watch)

    @property
    def failing_count(self) -> int:
        """Nodes whose last call or canary failed."""
        return len(self._failing)

    @property
    def unhealthy_count(self) -> int:
        """Nodes of this replica that are judged unhealthy."""
        return sum(track.now.state == UNHEALTHY for track in self._tracks.values())

    @property
    def many_fail(self) -> bool:
        """Whether so many nodes fail at once that their failing is doubted."""
        return too_many(len(self._failing), len(self._tracks), max_share=self.rules.max_share)

    @property
    def interval_s(self) -> float:
        """Seconds between two calls to a node: longer where there are very many nodes."""
        probe = self.rules.probe
        return max(probe.interval_s, len(self._tracks) / probe.max_per_s)


class NodeWatch:
    """Watches one node for as long as :meth:`run` runs.

    Args:
        shared: Of this replica.
        node_id: Its id.
        address: Where it is called.
        models: What it may serve.
        track: Where the evidence goes.
        on_change: Told each new assessment.
    """

    def __init__(
        self,
        shared: HealthWatch,
        *,
        node_id: str,
        address: str,
        models: Sequence[model_pb2.ModelInfo],
        track: NodeTrack,
        on_change: Callable[[Assessment], None],
    ) -> None:
        self._shared = shared
        self._node_id = node_id
        self._address = address
        self._models = models
        self._track = track
        self._on_change = on_change
        self._log = _log.bind(node=node_id)

    async def run(self) -> None:
        """Watches until cancelled."""
        self._shared.enter(self, self._track)
        try:
            async with TaskScope(f"health/{self._node_id}") as scope:
                scope.spawn(self._probe_on(), name="probe")
                if self._shared.rules.canary.enabled:
                    scope.spawn(self._canary_on(), name="canary")
                await scope.failed.wait()
                if scope.failure is not None:
                    raise scope.failure
        finally:
            self._shared.leave(self)

    async def _probe_on(self) -> None:
        shared = self._shared
        if not self._track.recovering:
            # Spread over the interval, each node always at the same point of it.
            share = zlib.crc32(self._node_id.encode()) / 2**32
            await shared.clock.sleep(share * shared.interval_s)
        while True:
            if shared.rules.probe.enabled:
                await self._probe()
            now_s = shared.clock.monotonic()
            self._on_change(
                self._track.tick(
                    now_s=now_s,
                    every_s=shared.interval_s,
                    many_fail=shared.many_fail,
                    none_ready=shared.ready_nodes() == 0,
                )
            )
            hurry = RECOVERY_SHARE if self._track.recovering else 1.0
            await shared.clock.sleep(hurry * shared.interval_s)

    async def _probe(self) -> None:
        shared = self._shared
        outcome = await shared.prober.probe(self._address, timeout_s=shared.rules.probe.timeout_s)
        failed_before = self._track.failing
        self._track.probed(ok=outcome.ok, reason=outcome.reason, now_s=shared.clock.monotonic())
        shared.note(self)
        if not outcome.ok and not failed_before:
            self._log.info("node does not answer", address=self._address, why=outcome.reason)

    async def _canary_on(self) -> None:
        shared, rules = self._shared, self._shared.rules.canary
        while True:
            wait_s = rules.retry_s if self._track.canary_failed else rules.idle_s
            left_s = wait_s - self._track.idle_s(shared.clock.monotonic())
            if left_s > 0:
                await shared.clock.sleep(left_s)
            elif not self._may_be_tried():
                await shared.clock.sleep(min(wait_s, shared.interval_s))
            else:
                async with shared.canaries:
                    await self._try()

    def _may_be_tried(self) -> bool:
        """Whether it says that it could run something and runs nothing."""
        status = self._track.status
        return (
            status.state == node_pb2.NODE_STATE_READY
            and not status.executions
            and status.free_slots > 0
        )

    async def _try(self) -> None:
        shared, rules, track = self._shared, self._shared.rules.canary, self._track
        model = canary.served_model(self._models, track.status)
        spec = canary.smallest_spec(model) if model is not None else None
        if spec is None:
            track.tried_in_vain(now_s=shared.clock.monotonic())
            return
        outcome = await shared.runner.run(
            self._address,
            # A number that no other replica and no earlier life of this one has used.
            job_id=f"canary-{self._node_id}-{int(shared.clock.wall() * 1e3)}",
            spec=spec,
            deadline_s=canary.deadline_s(
                spec,
                units_per_second=track.status.units_per_second,
                factor=rules.deadline_factor,
                least_s=rules.min_deadline_s,
            ),
        )
        now_s = shared.clock.monotonic()
        if outcome.ok is None:
            self._log.debug("canary told nothing", why=outcome.reason)
            track.tried_in_vain(now_s=now_s)
            return
        if not outcome.ok:
            self._log.warning("canary failed", why=outcome.reason)
        assessment = track.canaried(ok=outcome.ok, reason=outcome.reason, now_s=now_s)
        shared.note(self)
        self._on_change(assessment)
