"""Where a job goes: least predicted completion, waiting weighed. Pure; figures are passed in.

What is compared, in seconds::

    WAIT_WEIGHT * (the remaining work it reported, until its first worker is out of work
                   + what this gateway sent since that report / its workers)
    + the job's work units / the speed of one of its workers

The weight is there because a job that waits for a fast node makes the next one wait too.

Only a node with a free slot is a candidate: a node holds one running and one waiting
job per worker, all others wait in the gateways. A node that failed this job is passed
over while any other routable node serves the model, even if that means waiting. A job
that runs alone goes to a node that holds nothing, if there is one; elsewhere it waits
at the node, which shields its worker from other work, that of other gateways included.

Invariants (tests/unit/test_gateway_placement.py): a choice is routable, serves the model, has a
free slot, and no other candidate costs less by more than NEAR_SHARE, or IDLE_SHARE beside
where it is idle; more work on a node never makes it more attractive.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ModelKey = tuple[str, str]
"""(name, version)."""

# A node that has not measured itself yet is taken to do this many units a second when
# no other node offers a figure either.
_UNKNOWN_SPEED_UNITS = 1.0

# A second of waiting at a busy node counts as so many of running on an idle one. Who waits
# for a fast node keeps it from the next job, so counting it once makes everybody later:
# docs/adr/0007-placement-weighs-waiting.md has the figures.
WAIT_WEIGHT = 5.0

# Nodes that differ by less than this share are as good as one another: measured speeds
# waver by as much, and gateways that all pick the very best one meet there.
NEAR_SHARE = 0.1

# An idle node is taken before a busy one that seems better, unless it costs more than that by
# this share: what a busy one has left to do is an estimate, and that an idle one is idle is not.
IDLE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class NodeView:
    """What placement knows of a node at one moment."""

    node_id: str
    models: frozenset[ModelKey]
    routable: bool
    """It may get work; see :mod:`gateway.fleet.candidates`."""
    free_slots: int
    """Reported free slots less the jobs sent since that report."""
    workers: int
    remaining_work_s: float
    """Seconds until its first worker is out of work, as it reported."""
    sent_work_s: float
    """Predicted work of the jobs that this gateway sent and no report holds yet."""
    units_per_second: float
    """Of one worker; 0 where it is not known."""
    held_jobs: int
    """Jobs it holds or was sent."""
    on_trial: bool = False
    """It failed lately: it gets one run at a time, and holds no tickets."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a job needs of a node."""

    model: ModelKey
    units: float
    avoid: frozenset[str] = frozenset()
    """Nodes that failed it."""
    alone: bool = False
    """It shares its worker with nothing: a worker has died under this job."""


def work_units(width: int, height: int, num_frames: int, steps: int) -> float:
    """The work of a video; the unit that nodes measure their speed in."""
    return width * height * num_frames * steps / 1e6


def serving(nodes: Iterable[NodeView], model: ModelKey) -> list[NodeView]:
    """The routable nodes that serve a model version."""
    return [node for node in nodes if node.routable and model in node.models]


def typical_speed(nodes: Iterable[NodeView]) -> float:
    """The middle of the known speeds, in units per second."""
    known = sorted(node.units_per_second for node in nodes if node.units_per_second > 0)
    return known[len(known) // 2] if known else _UNKNOWN_SPEED_UNITS


def job_seconds(node: NodeView, units: float, *, fallback_speed: float) -> float:
    """How long one of the node's workers takes for so much work."""
    return units / (node.units_per_second if node.units_per_second > 0 else fallback_speed)


def backlog_s(node: NodeView) -> float:
    """Seconds until a job sent there now would start."""
    return node.remaining_work_s + node.sent_work_s / max(node.workers, 1)


def cost_s(node: NodeView, units: float, *, fallback_speed: float) -> float:
    """What placement weighs: the run's own seconds, and the wait for it several times over."""
    run_s = job_seconds(node, units, fallback_speed=fallback_speed)
    return WAIT_WEIGHT * backlog_s(node) + run_s


def choose(nodes: Sequence[NodeView], ask: Ask, *, rng: random.Random) -> NodeView | None:
    """The node that a job should go to now, or None: it waits."""
    able = serving(nodes, ask.model)
    candidates = able
    if ask.avoid:
        candidates = [node for node in able if node.node_id not in ask.avoid] or able
    free = [node for node in candidates if node.free_slots > 0]
    if ask.alone:
        free = [node for node in free if not node.held_jobs] or free
    if len(free) < 2:
        return free[0] if free else None
    all_known = all(node.units_per_second > 0 for node in free)
    speed = _UNKNOWN_SPEED_UNITS if all_known else typical_speed(able)
    waits_s = [backlog_s(node) for node in free]
    rated = [
        (WAIT_WEIGHT * wait_s + job_seconds(node, ask.units, fallback_speed=speed), wait_s, node)
        for wait_s, node in zip(waits_s, free, strict=True)
    ]
    least = min(cost for cost, _, _ in rated)
    if min(waits_s) <= 0:
        idle = [each for each in rated if each[1] <= 0]
        least_idle = min(cost for cost, _, _ in idle)
        if least_idle <= least * (1 + IDLE_SHARE):
            rated, least = idle, least_idle
    limit = least * (1 + NEAR_SHARE)
    near = [(wait_s, node) for cost, wait_s, node in rated if cost <= limit]
    # As good as one another, but that one of them starts it sooner.
    soonest_s = min(wait_s for wait_s, _ in near)
    return rng.choice([node for wait_s, node in near if wait_s <= soonest_s])


def predicted_wait_s(
    nodes: Sequence[NodeView], model: ModelKey, *, queued_units: float
) -> float | None:
    """Seconds until a job that is admitted now would start, or None: no node serves it.

    With jobs waiting, all serving nodes are seen as one that works off its backlog at
    their summed speed; that is within one job's length of any real schedule.
    """
    able = serving(nodes, model)
    if not able:
        return None
    if queued_units <= 0 and any(node.free_slots > 0 for node in able):
        return min(backlog_s(node) for node in able if node.free_slots > 0)
    speed = typical_speed(able)
    rates = [(node.units_per_second or speed) * max(node.workers, 1) for node in able]
    held_units = sum(backlog_s(node) * rate for node, rate in zip(able, rates, strict=True))
    return (held_units + queued_units) / sum(rates)
