"""Whether there is room for a request: its place in line, its wait, its steps under load."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reelmesh.v1 import job_service_pb2, model_pb2, video_pb2, video_service_pb2

from gateway.application import Caller
from gateway.core.executions import ask_of
from gateway.core.metrics import GatewayMetrics
from gateway.errors import GatewayError, ResourceExhausted, Unavailable
from gateway.fleet.nodes import Fleet
from gateway.fleet.order import Standing
from gateway.fleet.placement import serving, typical_speed
from gateway.fleet.waiting import WaitingRoom
from gateway.priority import granted, rank
from gateway.tenants import Policies, weight_of
from gateway.validation.brown_out import AUTO, BrownOut, Queue, Waits, fewer_steps
from gateway.validation.fields import model_by_name, number
from gateway.validation.request import resolve
from reelkit.clock import Clock


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a request would find here."""

    model: tuple[str, str]
    units: float
    wait_s: float | None
    """Of a job of its priority; None: this region cannot take it now."""
    units_per_second: float
    """Of a typical worker; 0 where it is not known."""
    rank: int
    """Of its priority."""
    answered: bool = False
    """It need not be drawn: this gateway has it, or has it drawn for others."""


class Room:
    """What admission asks of the waiting room and of the fleet.

    Args:
        brown_out: Waits at which steps are cut; None: never.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        waiting: WaitingRoom,
        policies: Policies,
        clock: Clock,
        metrics: GatewayMetrics,
        brown_out: Waits | None,
    ) -> None:
        self._fleet = fleet
        self._waiting = waiting
        self._policies = policies
        self._clock = clock
        self._metrics = metrics
        self._brown_out = BrownOut(brown_out)
        metrics.watch_figure(
            "brown_out",
            "1 while requests of quality auto are drawn in fewer steps, for any tenant.",
            lambda: float(self._is_browned_out()),
        )

    def standing(self, caller: Caller, options: video_service_pb2.CreateOptions) -> Standing:
        """How a job of these options would stand in line."""
        now_s, policy = self._clock.monotonic(), self._policies.of(caller.tenant)
        timed = options.HasField("deadline_s")
        return Standing(
            tenant=caller.tenant,
            rank=rank(granted(options.priority, policy)),
            weight=weight_of(policy),
            deadline_at_s=now_s + options.deadline_s if timed else math.inf,
            came_at_s=now_s,
        )

    def outlook(
        self,
        caller: Caller,
        spec: video_pb2.VideoSpec,
        options: video_service_pb2.CreateOptions,
        *,
        coming: int,
    ) -> Outlook | None:
        """What the request would find here; None where it is wrong or nothing can be said.

        Args:
            caller: Who asks.
            spec: What for.
            options: And how.
            coming: Jobs that are about to enter.
        """
        catalog = self._fleet.catalog()
        if not catalog.models:
            return None
        try:
            resolved = resolve(spec, catalog, drawn_seed=0, violations=[], unfit={})
        except GatewayError:
            return None
        ask, standing = ask_of(resolved), self.standing(caller, options)
        able = serving(self._fleet.views(self._clock.monotonic()), ask.model)
        wait_s = self._waiting.predicted_wait_s(ask.model, standing)
        late = options.HasField("deadline_s") and (wait_s or 0.0) > options.deadline_s
        if self._waiting.full(standing, coming=coming) or late:
            wait_s = None
        speed = typical_speed(able) if able else 0.0
        return Outlook(ask.model, ask.units, wait_s, speed, standing.rank)

    def gpu_seconds(self, resolved: video_pb2.ResolvedSpec) -> float:
        """What the video is predicted to take of a typical worker."""
        ask = ask_of(resolved)
        able = serving(self._fleet.views(self._clock.monotonic()), ask.model)
        return ask.units / typical_speed(able)

    def check(self, resolved: video_pb2.ResolvedSpec, standing: Standing, *, coming: int) -> float:
        """Refuses what must be drawn and cannot be in time; answers the predicted wait.

        Raises:
            Unavailable: No ready node serves the model.
            ResourceExhausted: The queue is full, or the wait passes the deadline.
        """
        model = (resolved.model, resolved.model_version)
        wait_s = self._waiting.predicted_wait_s(model, standing)
        if wait_s is None:
            raise Unavailable(
                f"no ready node serves {resolved.model} {resolved.model_version} now",
                retry_after_s=5.0,
            )
        if self._waiting.full(standing, coming=coming):
            raise ResourceExhausted(
                f"{len(self._waiting)} videos wait already; come back in {wait_s:.0f} s",
                retry_after_s=max(wait_s, 1.0),
            )
        deadline_s = standing.deadline_at_s - standing.came_at_s
        if wait_s > deadline_s:
            raise ResourceExhausted(
                f"the predicted wait of {wait_s:.0f} s passes the deadline of "
                f"{number(round(deadline_s, 3))} s",
                retry_after_s=max(wait_s, 1.0),
            )
        return wait_s

    # --- brown-out ---

    def cut_steps(self, record: job_service_pb2.JobRecord) -> bool:
        """Gives a request of quality auto fewer steps where there is load; whether it did."""
        spec = record.video.spec
        if spec.quality != AUTO:
            return False
        level = self._level((spec.model, spec.model_version, record.tenant))
        info = model_by_name(f"{spec.model}@{spec.model_version}", self._fleet.catalog().models)
        policy = self._policies.of(record.tenant)
        steps = fewer_steps(spec, level, policy, info or model_pb2.ModelInfo())
        if steps == spec.steps:
            return False
        spec.unloaded_steps, spec.steps = spec.steps, steps
        return True

    def _level(self, queue: Queue) -> float:
        """Judged by an interactive job of its tenant: to batch jobs a wait is no load."""
        name, version, tenant = queue
        weight = weight_of(self._policies.of(tenant))
        standing = Standing(tenant=tenant, weight=weight, came_at_s=math.inf)
        wait_s = self._waiting.predicted_wait_s((name, version), standing)
        return self._brown_out.level(queue, wait_s)

    def _is_browned_out(self) -> bool:
        for queue in self._brown_out.queues:
            self._level(queue)
        return bool(self._brown_out.queues)
