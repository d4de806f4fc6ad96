"""In which order jobs that wait for the same model are placed. Pure.

Interactive ones before batch ones. Inside a priority those that were placed before and came
back (BUSY, a retry), as they were placed; then fair between tenants, by work and weight
(:mod:`reelkit.fairness`). Inside a tenant the earliest deadline first, then as they came.

Invariants (tests/unit/test_gateway_order.py): the order is total, and does not depend on when
it is asked for; nobody starves inside a priority; shares converge to the weights; a tenant that
was idle has no credit; who came back has lost nothing.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from gateway.priority import ORDER
from reelkit.fairness import FairShares, in_turn

P = TypeVar("P", bound="Place")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Whose job waits, and how urgently."""

    tenant: str = ""
    rank: int = 0
    """Of its priority: 0 goes first."""
    weight: float = 1.0
    """The tenant's part beside others."""
    deadline_at_s: float = math.inf
    """Monotonic; infinite for a job that named none."""
    came_at_s: float = 0.0
    """Monotonic: when it was admitted, here or elsewhere."""


@dataclass(eq=False, slots=True, kw_only=True)
class Place:
    """A job's place in a line."""

    standing: Standing
    units: float
    number: int
    """Of this gateway's own count: no two are equal."""
    turn: int | None = None
    """Which placement of its line it was, once it was placed."""

    @property
    def own_order(self) -> tuple[float, float, int]:
        """Among its tenant's jobs."""
        return (self.standing.deadline_at_s, self.standing.came_at_s, self.number)

    @property
    def cost(self) -> float:
        """What its tenant is charged for it."""
        return self.units / self.standing.weight


def _own_order(place: Place) -> tuple[float, float, int]:
    return place.own_order


def _turn(place: Place) -> int:
    assert place.turn is not None  # noqa: S101 - for mypy: only placed ones are asked
    return place.turn


def _number(place: Place) -> int:
    return place.number


def _cost(place: Place) -> float:
    return place.cost


class Line(Generic[P]):
    """Those who wait for one model version."""

    def __init__(self) -> None:
        self._levels: list[_Level[P]] = [_Level() for _ in ORDER]
        self._turns = itertools.count()

    def __len__(self) -> int:
        """Jobs that wait."""
        return sum(level.jobs for level in self._levels)

    def __contains__(self, place: P) -> bool:
        return place in self._levels[place.standing.rank]

    def __iter__(self) -> Iterator[P]:
        """In the order in which they are to be placed; the line must not change meanwhile."""
        for level in self._levels:
            yield from level.in_order()

    def add(self, place: P) -> None:
        """Takes its place; one that was placed before goes back to where it stood."""
        self._levels[place.standing.rank].add(place)

    def remove(self, place: P) -> None:
        """Leaves the line unplaced. Idempotent."""
        self._levels[place.standing.rank].remove(place)

    def serve(self, place: P) -> None:
        """Leaves the line for a node: its tenant has had that much, once."""
        level = self._levels[place.standing.rank]
        level.serve(place)
        if place.turn is None:
            place.turn = next(self._turns)

    def jobs(self, rank: int) -> int:
        """Jobs of a priority."""
        return self._levels[rank].jobs

    def jobs_of(self, tenant: str) -> int:
        """Jobs of a tenant."""
        return sum(level.jobs_of(tenant) for level in self._levels)

    def lead(self, standing: Standing) -> float:
        """How far its tenant is ahead of its fair share, in work by weight."""
        return self._levels[standing.rank].shares.lead(standing.tenant)

    def ahead(self, standing: Standing) -> tuple[int, float]:
        """About how many jobs, and work units, a new one would wait behind.

        Exact up to one job of each other tenant of its priority.
        """
        before = [level.all() for level in self._levels[: standing.rank]]
        before.append(self._levels[standing.rank].ahead(standing))
        return sum(jobs for jobs, _ in before), sum(units for _, units in before)


class _Level(Generic[P]):
    """Those of one priority."""

    def __init__(self) -> None:
        self.shares: FairShares[str] = FairShares()
        self.jobs = 0
        self._flows: dict[str, list[P]] = {}
        self._units: dict[str, float] = {}
        self._back: list[P] = []

    def __contains__(self, place: P) -> bool:
        return place in self._row(place)

    def _row(self, place: P) -> list[P]:
        """Where it stands, or would."""
        if place.turn is not None:
            return self._back
        return self._flows.get(place.standing.tenant, [])

    def in_order(self) -> Iterator[P]:
        yield from self._back
        yield from in_turn(self._flows, tag=self.shares.tag, cost=_cost, tie=_number)

    def add(self, place: P) -> None:
        self.jobs += 1
        if place.turn is not None:
            bisect.insort(self._back, place, key=_turn)
            return
        tenant = place.standing.tenant
        bisect.insort(self._flows.setdefault(tenant, []), place, key=_own_order)
        self._units[tenant] = self._units.get(tenant, 0.0) + place.units

    def serve(self, place: P) -> None:
        if place.turn is None:
            self.shares.serve(place.standing.tenant, place.cost)
        self.remove(place)

    def remove(self, place: P) -> None:
        row = self._row(place)
        if place not in row:
            return
        row.remove(place)
        self.jobs -= 1
        if place.turn is None:
            tenant = place.standing.tenant
            self._units[tenant] -= place.units
            if not row:
                del self._flows[tenant], self._units[tenant]
        if not self.jobs:
            self.shares.forget()

    def jobs_of(self, tenant: str) -> int:
        back = sum(place.standing.tenant == tenant for place in self._back)
        return len(self._flows.get(tenant, ())) + back

    def all(self) -> tuple[int, float]:
        return self.jobs, sum(self._units.values()) + self._units_back()

    def _units_back(self) -> float:
        return sum(place.units for place in self._back)

    def ahead(self, standing: Standing) -> tuple[int, float]:
        own = self._flows.get(standing.tenant, [])
        key = (standing.deadline_at_s, standing.came_at_s, math.inf)
        jobs = bisect.bisect(own, key, key=_own_order)
        if jobs == len(own):
            units = self._units.get(standing.tenant, 0.0)
        else:
            units = sum(place.units for place in own[:jobs])
        due = self.shares.tag(standing.tenant) + units / standing.weight
        jobs, units = jobs + len(self._back), units + self._units_back()
        for tenant, row in self._flows.items():
            if tenant == standing.tenant:
                continue
            until = due - self.shares.tag(tenant)
            if until < 0:
                continue
            mean = self._units[tenant] / len(row)
            cost = mean / row[0].standing.weight
            turns = len(row) if cost <= 0 else min(int(until / cost) + 1, len(row))
            jobs, units = jobs + turns, units + turns * mean
        return jobs, units
