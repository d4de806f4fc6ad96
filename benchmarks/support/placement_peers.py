"""The ideal central queues and the plain rules that placement is held against.

All of them know at every moment what is true now: there is no delay and no second gateway.
The central ones also know how long each job will really take.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.support.placement_site import Job, Kind

Pick = Callable[["Machines", Job], int]


class Machines:
    """Nodes with a queue each, first come first served; a job's end is known when it joins."""

    def __init__(self, kinds: Sequence[Kind], rng: random.Random) -> None:
        self.speed = np.array([kind.speed for kind in kinds])
        self.free_at_s = np.zeros(len(kinds))
        self.held = np.zeros(len(kinds), dtype=np.int64)
        self.rng = rng
        self.turn = 0
        self._ends: list[tuple[float, int]] = []

    def run(self, trace: Sequence[Job], pick: Pick) -> Sequence[Job]:
        """Sends each job on arrival to the machine that was picked for it."""
        for job in trace:
            while self._ends and self._ends[0][0] <= job.at_s:
                self.held[heapq.heappop(self._ends)[1]] -= 1
            machine = pick(self, job)
            job.started_s = max(job.at_s, self.free_at_s[machine])
            job.ended_s = job.started_s + job.units * job.error / self.speed[machine]
            self.free_at_s[machine] = job.ended_s
            self.held[machine] += 1
            heapq.heappush(self._ends, (job.ended_s, machine))
        return trace


def earliest_end(machines: Machines, job: Job) -> int:
    """The machine on which this job really ends first."""
    work = job.units * job.error
    return int(np.argmin(np.maximum(machines.free_at_s, job.at_s) + work / machines.speed))


def fastest_idle(machines: Machines, job: Job) -> int:
    """Work-conserving: the fastest idle machine, else the one that is idle first."""
    idle = machines.free_at_s <= job.at_s
    if idle.any():
        return int(np.argmax(np.where(idle, machines.speed, 0.0)))
    return int(np.argmin(machines.free_at_s))


def round_robin(machines: Machines, _job: Job) -> int:
    """One after the other."""
    machines.turn = (machines.turn + 1) % len(machines.held)
    return machines.turn


def shortest_queue(machines: Machines, _job: Job) -> int:
    """The machine that holds the fewest jobs."""
    least = np.flatnonzero(machines.held == machines.held.min())
    return int(least[machines.rng.randrange(len(least))])


def two_choices(machines: Machines, _job: Job) -> int:
    """Of two at random the one that holds fewer jobs."""
    one, other = (machines.rng.randrange(len(machines.held)) for _ in range(2))
    return one if machines.held[one] <= machines.held[other] else other
