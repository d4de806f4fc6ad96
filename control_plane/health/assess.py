"""A node's state from all that is known of it. Pure.

What always holds, and ``tests/unit/test_node_health_assess.py`` checks:

1. A node is READY only where its own newest report says READY.
2. DRAINING and CORDONED are what the operator or the node decided; nothing overrides them.
3. Fewer failures in a row than the limit never take a READY node out.
4. While too many nodes fail at once, no READY node is taken out for silence, calls or
   canaries: its own word and its devices alone can.
5. A node that was UNHEALTHY is READY again only after the successes in a row that are
   asked for, and any node only after the hold that its flapping earned it, which is
   bounded. A hold never keeps the last node out: while none is ready there is none.
6. The answer is stable: judged again at the same moment it is the same.
7. UNHEALTHY has a reason. LOST is never answered here: it is for records that vanished.
"""

from __future__ import annotations

import dataclasses

from reelmesh.v1 import node_pb2
from reelmesh.v1.node_pb2 import NodeState

from control_plane.health.config import FlappingSettings, HealthSettings

READY = node_pb2.NODE_STATE_READY
UNHEALTHY = node_pb2.NODE_STATE_UNHEALTHY
_DECIDED = (node_pb2.NODE_STATE_DRAINING, node_pb2.NODE_STATE_CORDONED)


@dataclasses.dataclass(frozen=True, slots=True)
class Streak:
    """How often something went well, or not, without interruption; one of both is 0."""

    successes: int = 0
    failures: int = 0
    # Of the last failure.
    reason: str = ""

    def then(self, *, ok: bool, reason: str = "") -> Streak:
        """With one more outcome."""
        if ok:
            return Streak(successes=self.successes + 1)
        return Streak(failures=self.failures + 1, reason=reason)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of a node. Times are seconds of one monotonic clock."""

    reported: NodeState.ValueType
    reported_reason: str = ""
    reported_at_s: float
    # Without a report for longer the agent hangs; below the lease's time.
    silent_after_s: float
    # Why none of its devices is fit, or "".
    device_fault: str = ""
    probe: Streak = Streak()
    canary: Streak = Streak()
    # So many nodes fail at once that we doubt ourselves.
    many_fail: bool = False
    # No node of the region is ready.
    none_ready: bool = False
    # What it was judged to be before.
    before: NodeState.ValueType = node_pb2.NODE_STATE_UNSPECIFIED
    before_reason: str = ""
    # When it fell from READY, and since when nothing is held against it.
    falls_s: tuple[float, ...] = ()
    well_since_s: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Assessment:
    """What follows."""

    state: NodeState.ValueType
    reason: str
    # What is held against it now, whether or not that decides.
    fault: str = ""


def assess(evidence: Evidence, now_s: float, rules: HealthSettings) -> Assessment:
    """The node's state and why."""
    said, reason = evidence.reported, evidence.reported_reason
    fault = _fault(evidence, now_s, rules)
    if said in _DECIDED:
        return Assessment(said, f"{reason}; {fault}".strip("; ") if fault else reason, fault)
    if said == UNHEALTHY:
        return Assessment(UNHEALTHY, reason or "the node says so", fault or reason or "it says so")
    if fault:
        return Assessment(UNHEALTHY, fault, fault)
    if said == READY and evidence.before != READY:
        missing = _missing(evidence, now_s, rules)
        if missing:
            return Assessment(UNHEALTHY, missing)
    return Assessment(said or node_pb2.NODE_STATE_STARTING, reason)


def hold_s(falls_s: tuple[float, ...], now_s: float, rules: FlappingSettings) -> float:
    """How long a node has to stay well before it is READY again: 0 for a steady one."""
    recent = sum(now_s - fall_s <= rules.window_s for fall_s in falls_s)
    if recent < rules.times:
        return 0.0
    # Bounded before it is raised: a hundred falls are no reason for a huge number.
    doublings = min(recent - rules.times, 16)
    return float(min(rules.first_hold_s * 2**doublings, rules.max_hold_s))


def _fault(evidence: Evidence, now_s: float, rules: HealthSettings) -> str:
    """The first thing that is held against the node, its own word left aside."""
    if evidence.device_fault:
        return evidence.device_fault
    if evidence.many_fail:
        return ""
    silent_s = now_s - evidence.reported_at_s
    if silent_s > evidence.silent_after_s:
        return "it is attached and has stopped reporting"
    probe, canary = evidence.probe, evidence.canary
    if rules.probe.enabled and probe.failures >= rules.probe.failures:
        return f"it does not answer at its address: {probe.reason}"
    if rules.canary.enabled and canary.failures >= rules.canary.failures:
        return f"canary generations fail: {canary.reason}"
    return ""


def _missing(evidence: Evidence, now_s: float, rules: HealthSettings) -> str:
    """What a node without a fault has yet to show before it is READY, or ""."""
    probe, canary = evidence.probe, evidence.canary
    was_unhealthy = evidence.before == UNHEALTHY
    if was_unhealthy and rules.probe.enabled and probe.successes < rules.probe.successes:
        return _after("it has to answer at its address a few times", evidence)
    if was_unhealthy and rules.canary.enabled and canary.failures:
        return _after("a canary generation has to succeed", evidence)
    if evidence.none_ready:
        return ""
    hold = hold_s(evidence.falls_s, now_s, rules.flapping)
    well_s = now_s - (now_s if evidence.well_since_s is None else evidence.well_since_s)
    if well_s < hold:
        return (
            f"it fell {len(evidence.falls_s)} times in a short while and has to stay well "
            f"for {hold:.0f} s"
        )
    return ""


_AFTER = "recovering: "


def _after(needed: str, evidence: Evidence) -> str:
    """The need and the trouble before it, which is said once."""
    trouble = evidence.before_reason
    if trouble.startswith(_AFTER):
        trouble = trouble.partition(" (before: ")[2].removesuffix(")")
    return f"{_AFTER}{needed}" + (f" (before: {trouble})" if trouble else "")
