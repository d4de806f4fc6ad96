"""Under load, fewer steps for requests that leave the quality to us. Pure.

A brown-out begins for a tenant where the predicted wait of an interactive job of its own passes
one number of seconds, and ends below a lower one, so that it does not flicker. While it lasts,
steps are cut in proportion to the wait, down to the floor of the tenant and of the model.

Invariants (tests/unit/test_gateway_brown_out.py): nothing is cut without load, never below the
floor, never more for a shorter wait; and who did not say ``quality: auto`` is left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from reelmesh.v1 import model_pb2, tenant_pb2, video_pb2

AUTO: Final = "auto"
DEFAULT_MIN_PERCENT: Final = 50

Queue = tuple[str, str, str]
"""(model, version, tenant): whose jobs wait for what."""

MAX_QUEUES: Final = 64
"""Under load at once; of more the first are forgotten, and begin anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Predicted waits in seconds: off <= on, and off < full."""

    on_s: float
    off_s: float
    full_s: float
    """At this one steps are cut to the floor."""


@dataclass(slots=True)
class BrownOut:
    """Which queues are under load, and how much."""

    waits: Waits | None
    """None: never."""
    _on: dict[Queue, None] = field(default_factory=dict)

    @property
    def queues(self) -> tuple[Queue, ...]:
        """Those that it is on for."""
        return tuple(self._on)

    def level(self, queue: Queue, wait_s: float | None) -> float:
        """0 without load, 1 where steps are cut to the floor.

        Args:
            queue: Where it would wait.
            wait_s: Predicted for an interactive job now; None: no node serves the model.
        """
        waits = self.waits
        if waits is None or wait_s is None or wait_s < waits.off_s:
            self._on.pop(queue, None)
            return 0.0
        if wait_s >= waits.on_s:
            self._on[queue] = None
            while len(self._on) > MAX_QUEUES:
                del self._on[next(iter(self._on))]
        if queue not in self._on:
            return 0.0
        return min((wait_s - waits.off_s) / (waits.full_s - waits.off_s), 1.0)


def least_steps(steps: int, policy: tenant_pb2.TenantPolicy, info: model_pb2.ModelInfo) -> int:
    """The fewest steps that so many may be cut to: the tenant's part of them, the model's own."""
    percent = (
        min(policy.min_steps_percent, 100)
        if policy.HasField("min_steps_percent")
        else DEFAULT_MIN_PERCENT
    )
    return min(steps, max(math.ceil(steps * percent / 100), info.steps.min, 1))


def fewer_steps(
    spec: video_pb2.ResolvedSpec,
    level: float,
    policy: tenant_pb2.TenantPolicy,
    info: model_pb2.ModelInfo,
) -> int:
    """The steps of a request at a level of load; as many as it has where none are cut."""
    if spec.quality != AUTO or level <= 0:
        return spec.steps
    floor = least_steps(spec.steps, policy, info)
    return max(floor, math.ceil(spec.steps - min(level, 1.0) * (spec.steps - floor)))
