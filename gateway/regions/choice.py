"""Which region makes a new video. Pure; every figure is passed in.

The local region makes it, unless it cannot or another one is predicted to be done
earlier by a margin, which pays for the way there and keeps regions from trading work
for a second's gain. A region that comes back after it could not serve takes its share
back little by little: everybody's work at once would find cold nodes and full queues.

Invariants (tests/unit/test_gateway_regions.py): a choice can serve; without a rule that
moves it, work stays local; more work in a region never makes it more attractive; what
is drained or down is never chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

RAMP_S: Final = 60.0
"""Seconds after its return until a region takes all its own work again."""
FIRST_SHARE: Final = 0.1
"""Share of its own work that it takes at once."""


class RegionState(Enum):
    """What is known of a region."""

    SERVING = "serving"
    """A gateway of it answers and has ready workers."""
    NOT_SERVING = "not_serving"
    """A gateway of it answers, and has none."""
    DRAINING = "draining"
    """Its operators want new work elsewhere."""
    UNKNOWN = "unknown"
    """No summary, or none of its gateways was asked yet."""
    DOWN = "down"
    """No summary, and none of its gateways answers either."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a region says about one model version."""

    region: str
    state: RegionState
    predicted_wait_s: float | None
    """None: it does not serve the model now."""
    units_per_second: float
    """Of one typical worker; 0 where it is not known."""
    round_trip_s: float = 0.0

    @property
    def able(self) -> bool:
        """Whether a job for the model may go there."""
        return self.state is RegionState.SERVING and self.predicted_wait_s is not None


def completion_s(offer: Offer, units: float, *, fallback_speed: float) -> float:
    """Seconds until a job admitted there now is done and the last byte is here."""
    speed = offer.units_per_second or fallback_speed
    wait_s = offer.predicted_wait_s if offer.predicted_wait_s is not None else float("inf")
    return wait_s + units / speed + offer.round_trip_s


def region_state(
    *, draining: bool, answers: bool, ready_workers: int, has_summary: bool, probed: bool
) -> RegionState:
    """A region's state from its policy, its summary and our own eyes.

    Args:
        draining: Its policy says so.
        answers: A stream to one of its gateways stands.
        ready_workers: What that gateway told last.
        has_summary: Its control plane's summary is in the global store.
        probed: All its gateways were tried since a stream last stood.
    """
    if draining:
        return RegionState.DRAINING
    if answers:
        return RegionState.SERVING if ready_workers else RegionState.NOT_SERVING
    if not has_summary and probed:
        return RegionState.DOWN
    return RegionState.UNKNOWN


def local_share(*, back_for_s: float | None) -> float:
    """Share of its own work that the local region takes, 0 to 1.

    Args:
        back_for_s: Seconds since it could serve again; None: it was never away.
    """
    if back_for_s is None or back_for_s >= RAMP_S:
        return 1.0
    return FIRST_SHARE + (1 - FIRST_SHARE) * max(back_for_s, 0.0) / RAMP_S


def choose_region(
    local: Offer,
    others: Iterable[Offer],
    *,
    units: float,
    margin_s: float,
    share: float,
    draw: float,
) -> str | None:
    """The region that should make a job of so much work; None: none can.

    Args:
        local: This gateway's own region.
        others: The rest.
        units: The job's work.
        margin_s: By how much another region must be earlier.
        share: See :func:`local_share`.
        draw: A number of chance, 0 to 1: at or above ``share`` the job goes elsewhere
            where that costs it no more than the margin.
    """
    able = [offer for offer in others if offer.able]
    speeds = [offer.units_per_second for offer in (local, *able) if offer.units_per_second > 0]
    fallback = min(speeds, default=1.0)
    best = min(
        able,
        key=lambda offer: (completion_s(offer, units, fallback_speed=fallback), offer.region),
        default=None,
    )
    if not local.able:
        return None if best is None else best.region
    if best is None:
        return local.region
    gain_s = completion_s(local, units, fallback_speed=fallback) - completion_s(
        best, units, fallback_speed=fallback
    )
    if gain_s > margin_s or (draw >= share and gain_s >= -margin_s):
        return best.region
    return local.region
