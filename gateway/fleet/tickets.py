"""Where waiting jobs leave tickets: at a few nodes each, those that can start them soonest.

A node that frees a slot offers it to the first of all tickets that lie there, whichever
gateway they are of (node_agent/tickets.py has its order). What no ticket asks for is shown
free in the node's status, and placed by that.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gateway.fleet.order import Line
from gateway.fleet.placement import (
    IDLE_SHARE,
    ModelKey,
    NodeView,
    cost_s,
    serving,
    typical_speed,
)

if TYPE_CHECKING:
    from gateway.fleet.nodes import Fleet
    from gateway.fleet.waiting import Ticket

HEAD: Final = 64
"""Jobs of a line, the first of it, that leave tickets; a node takes as many of a gateway."""
SPREAD: Final = 16
"""Nodes at which a job leaves one."""
SOON_S: Final = 0.05
"""A job that asks wants to start within so long: as good as at once."""
# Of a large fleet a job takes its nodes at random from so many times as many good ones, so
# that gateways do not all ask the same few.
_POOL: Final = 4
# How often it is looked which nodes there are.
_LOOK_S: Final = 0.25


def best_nodes(
    nodes: Sequence[NodeView],
    model: ModelKey,
    *,
    units: float,
    jobs: int,
    rng: random.Random,
    refusals: int | None = None,
) -> list[str]:
    """The nodes at which so many jobs of a line should leave tickets, best first. Pure.

    Args:
        nodes: All of them.
        model: What the jobs need.
        units: Work of such a job.
        jobs: How many there are.
        rng: Of a large fleet a job that asks looks at some of the nodes.
        refusals: Of a job that asks: with each it asks worse nodes too.
    """
    able = [node for node in serving(nodes, model) if not node.on_trial]
    count = max(_POOL * SPREAD, _POOL * jobs)
    if not able or (len(able) <= count and refusals is None):
        return [node.node_id for node in able]
    if refusals is not None and len(able) > count:
        able = rng.sample(able, count)
    speed = typical_speed(able)
    costs = [(cost_s(node, units, fallback_speed=speed), node.node_id) for node in able]
    if refusals is not None:
        limit = min(costs)[0] * (1 + IDLE_SHARE * (2 * refusals - 1))
        costs = [each for each in costs if each[0] <= limit]
    return [node_id for _, node_id in heapq.nsmallest(count, costs)]


def some_of(nodes: Sequence[str], avoid: frozenset[str], *, rng: random.Random) -> set[str]:
    """SPREAD nodes of these, none that failed the job where there are others. Pure."""
    allowed = [node for node in nodes if node not in avoid] or list(nodes)
    return set(allowed if len(allowed) <= SPREAD else rng.sample(allowed, SPREAD))


class Tickets:
    """Leaves them, and takes them back."""

    def __init__(self, *, fleet: Fleet, rng: random.Random) -> None:
        self._fleet = fleet
        self._rng = rng
        self._able: dict[ModelKey, frozenset[str]] = {}
        self._looked_s: dict[ModelKey, float] = {}

    def spread(
        self, model: ModelKey, line: Line[Ticket], views: Sequence[NodeView], now_s: float
    ) -> None:
        """Sees to it that the first of the line, and no others, have tickets at good nodes.

        One that asks (see :data:`gateway.fleet.waiting.ASK_S`) knows of nodes that seem free:
        it wants no other than such.
        """
        head = list(itertools.islice(line, HEAD))
        able = self._nodes(model, head, views, now_s)
        for ticket in head:
            if ticket.wants_soon != (now_s < ticket.asks_until_s):
                ticket.wants_soon = not ticket.wants_soon
                self.withdraw(ticket)
        wanting = [ticket for ticket in head if self._wants(ticket, able)]
        asking = [ticket for ticket in wanting if ticket.wants_soon]
        rest = [ticket for ticket in wanting if not ticket.wants_soon]
        for tickets, refusals in [([each], each.refusals) for each in asking] + [(rest, None)]:
            if tickets:
                best = best_nodes(
                    views,
                    model,
                    units=tickets[0].units,
                    jobs=len(line),
                    rng=self._rng,
                    refusals=refusals,
                )
            for ticket in tickets:
                self._leave(ticket, line, some_of(best, ticket.ask.avoid, rng=self._rng))
        if len(line) > HEAD:
            for ticket in itertools.islice(line, HEAD, 2 * HEAD):
                self.withdraw(ticket)

    def _nodes(
        self, model: ModelKey, head: list[Ticket], views: Sequence[NodeView], now_s: float
    ) -> frozenset[str]:
        """Where tickets may lie; those at nodes that are gone are forgotten."""
        known = self._able.get(model)
        if known is not None and now_s < self._looked_s[model] + _LOOK_S:
            return known
        able = [view.node_id for view in serving(views, model) if not view.on_trial]
        self._able[model], self._looked_s[model] = frozenset(able), now_s
        if known is not None and known != self._able[model]:
            for ticket in head:
                self._take_back(ticket, ticket.left_at - self._able[model])
        return self._able[model]

    @staticmethod
    def _wants(ticket: Ticket, able: frozenset[str]) -> bool:
        """Whether it should leave more: at every node of a small fleet, at some of a large one."""
        avoid = ticket.ask.avoid
        most = len(able - avoid) or len(able) if avoid else len(able)
        return len(ticket.left_at) < (most if most <= SPREAD else SPREAD // 2)

    def withdraw(self, ticket: Ticket) -> None:
        """Takes all of a job's tickets back: it has a node, or waits no more."""
        if ticket.left_at:
            self._take_back(ticket, set(ticket.left_at))

    def forget(self, model: ModelKey) -> None:
        """Nobody waits for the model any more."""
        self._able.pop(model, None)
        self._looked_s.pop(model, None)

    def _leave(self, ticket: Ticket, line: Line[Ticket], nodes: set[str]) -> None:
        for node_id in nodes - ticket.left_at:
            link = self._fleet.link(node_id)
            if link is not None and link.leave_ticket(ticket, line):
                ticket.left_at.add(node_id)

    def _take_back(self, ticket: Ticket, nodes: set[str] | frozenset[str]) -> None:
        for node_id in nodes:
            ticket.left_at.discard(node_id)
            link = self._fleet.link(node_id)
            if link is not None:
                link.withdraw_ticket(ticket.job_id)
