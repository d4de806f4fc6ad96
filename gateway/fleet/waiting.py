"""Where admitted jobs wait for a node, per model version, in :mod:`gateway.fleet.order`.

Nothing polls. A job is placed when it arrives or when something that may matter
happened: a node's status, a node coming up, a run that ended. Jobs that come back
(BUSY, a retry) keep the place that their admission gave them.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from reelmesh.v1 import node_service_pb2

from gateway.fleet.node_link import BUSY_HOLD_S, NodeLink
from gateway.fleet.nodes import Fleet
from gateway.fleet.order import Line, Place, Standing
from gateway.fleet.placement import (
    Ask,
    ModelKey,
    NodeView,
    backlog_s,
    choose,
    job_seconds,
    predicted_wait_s,
    serving,
    typical_speed,
)
from gateway.fleet.tickets import Tickets
from gateway.priority import BATCH, rank
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

# A node's own estimate may exceed what its status promised by this much.
WAIT_SLACK_S = 0.25

# A job that was refused so often, against what is known here of the nodes, asks several at once
# by its tickets, and is sent to none unasked for so long: more than the way there and back.
ASK_AFTER = 1
ASK_S = 0.02

# Positions are told to those who watch at most this often.
_TELL_EVERY_S = 0.25


OnPosition = Callable[[int, float | None], None]
_BATCH_RANK = rank(BATCH)


@dataclass(eq=False, slots=True, kw_only=True)
class Ticket(Place):
    """A job's place in the line."""

    job_id: str
    ask: Ask
    on_position: OnPosition
    """Called with jobs ahead and predicted seconds (None: no node serves the model)."""
    placed: asyncio.Future[NodeLink] | None = field(default=None)
    left_at: set[str] = field(default_factory=set)
    """Nodes where its tickets lie."""
    refusals: int = 0
    """How often a node was full, against what this gateway knew of it."""
    asks_until_s: float = 0.0
    """Until then it waits for an offer, and is sent to no node unasked."""
    wants_soon: bool = False
    """Its tickets ask for slots alone in which it starts at once."""
    most_wait_s: float | None = None
    """What it may wait at the node that it was placed at; beyond that it belongs elsewhere."""


class WaitingRoom:
    """The gateway's bounded queue in front of the region's nodes.

    Args:
        max_waiting: Jobs that may wait in all.
        kept_for_interactive: Of these, places that batch jobs leave free.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        clock: Clock,
        scope: TaskScope,
        max_waiting: int,
        kept_for_interactive: int = 0,
        rng: random.Random | None = None,
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._scope = scope
        self._max_waiting = max_waiting
        self._kept = kept_for_interactive
        self._rng = rng or random.Random()  # noqa: S311 - breaks ties, guards nothing
        self._tickets = Tickets(fleet=fleet, rng=self._rng)
        self._standing: dict[str, Ticket] = {}
        self.on_answer: Callable[[str], None] = lambda _answer: None
        """Called with what became of a node's offer: "taken" or "declined"."""
        self._numbers = itertools.count()
        self._lines: dict[ModelKey, Line[Ticket]] = {}
        self._unserved: set[ModelKey] = set()
        self._telling = False
        self._closed = False

    def close(self) -> None:
        """Places nothing more; the scope is about to end."""
        self._closed = True

    # --- figures ---

    def __len__(self) -> int:
        """Jobs that wait."""
        return sum(len(line) for line in self._lines.values())

    @property
    def lines(self) -> int:
        """Model versions that somebody waits for."""
        return len(self._lines)

    def ahead(self, model: ModelKey, standing: Standing) -> int:
        """About how many jobs a new one would wait behind."""
        line = self._lines.get(model)
        return 0 if line is None else line.ahead(standing)[0]

    def waiting_of(self, tenant: str) -> int:
        """A tenant's jobs that wait."""
        return sum(line.jobs_of(tenant) for line in self._lines.values())

    def must_wait(self, model: ModelKey) -> bool:
        """Whether a job that came now would find no node to take it at once."""
        if self._lines.get(model):
            return True
        views = self._fleet.views(self._clock.monotonic())
        return not any(view.free_slots > 0 for view in serving(views, model))

    def full(self, standing: Standing, *, coming: int = 0) -> bool:
        """Whether one more job is one too many, with those that are about to enter."""
        limit = self._max_waiting
        if standing.rank >= _BATCH_RANK:
            limit = max(limit - self._kept, 1)
        return len(self) + coming >= limit

    def predicted_wait_s(self, model: ModelKey, standing: Standing) -> float | None:
        """Seconds until a job admitted now would start; None: no node serves the model."""
        line = self._lines.get(model)
        queued = 0.0 if line is None else line.ahead(standing)[1]
        views = self._fleet.views(self._clock.monotonic())
        return predicted_wait_s(views, model, queued_units=queued)

    # --- in and out ---

    def enter(self, job_id: str, ask: Ask, standing: Standing, on_position: OnPosition) -> Ticket:
        """Takes its place in the line, and a node at once where one is free.

        Follow with :meth:`place`, or with :meth:`abandon` where that is never awaited.
        """
        ticket = self.ticket(job_id, ask, standing, on_position)
        self._stand(ticket)
        return ticket

    def ticket(self, job_id: str, ask: Ask, standing: Standing, on_position: OnPosition) -> Ticket:
        """A place in the line that is taken once somebody asks for a node."""
        return Ticket(
            standing=standing,
            units=ask.units,
            number=next(self._numbers),
            job_id=job_id,
            ask=ask,
            on_position=on_position,
        )

    def _stand(self, ticket: Ticket) -> None:
        future: asyncio.Future[NodeLink] = asyncio.get_running_loop().create_future()
        ticket.placed = future
        line = self._lines.setdefault(ticket.ask.model, Line())
        line.add(ticket)
        self._standing[ticket.job_id] = ticket
        if ticket.refusals >= ASK_AFTER:
            ticket.asks_until_s = self._clock.monotonic() + ASK_S
            self.wake_after(ASK_S)
        # Those before it may be held by rules that do not hold this one.
        self.pump()
        if ticket in line:
            self._tell_soon()

    async def place(self, ticket: Ticket) -> NodeLink:
        """Waits for the ticket's node; the job counts as sent to it.

        A ticket that was placed before stands in line again where it stood. The caller
        must :meth:`leave` the node when the run has ended. Cancellation leaves the
        line, and the node if one was just given.
        """
        if ticket.placed is None:
            self._stand(ticket)
        assert ticket.placed is not None  # noqa: S101 - for mypy: _stand sets it
        try:
            link = await ticket.placed
        except asyncio.CancelledError:
            self.abandon(ticket)
            raise
        ticket.placed = None
        return link

    def hasten(self, ticket: Ticket, standing: Standing) -> None:
        """A more urgent job waits for the same run: it stands as that one would, of its tenant."""
        now = ticket.standing
        sooner = replace(
            now,
            rank=min(now.rank, standing.rank),
            deadline_at_s=min(now.deadline_at_s, standing.deadline_at_s),
        )
        if sooner == now:
            return
        line = self._lines.get(ticket.ask.model)
        if line is None or ticket not in line:
            ticket.standing = sooner
            return
        line.remove(ticket)
        ticket.standing = sooner
        line.add(ticket)
        # Those that lie at nodes say what it was.
        self._tickets.withdraw(ticket)
        self.pump()

    def abandon(self, ticket: Ticket) -> None:
        """Gives up a place in the line, or the node that it brought and nobody took."""
        placed, ticket.placed = ticket.placed, None
        line = self._lines.get(ticket.ask.model)
        if line is not None and ticket in line:
            line.remove(ticket)
            self._left(ticket)
            self._forget_empty_lines()
            self._tell_soon()
        elif placed is not None and placed.done() and not placed.cancelled():
            # The node may keep a slot for it.
            placed.result().withdraw_ticket(ticket.job_id)
            self.leave(placed.result(), ticket.job_id)

    def leave(self, link: NodeLink, job_id: str) -> None:
        """The job's run on the node has ended, however it did."""
        link.unassign(job_id)

    def busy(
        self, link: NodeLink, ticket: Ticket, answer: node_service_pb2.Busy | None = None
    ) -> None:
        """The node would not take the job; ``answer`` is what it said."""
        ticket.refusals += 1
        link.answered_busy(answer)
        link.unassign(ticket.job_id)
        self.wake_after(BUSY_HOLD_S)

    # --- placing ---

    def pump(self) -> None:
        """Places every waiting job that can be placed now; called on every change."""
        if self._closed:
            return
        for model, line in self._lines.items():
            while len(line):
                now_s = self._clock.monotonic()
                views = self._fleet.views(now_s)
                if not self._place_next(model, line, views, now_s):
                    self._tickets.spread(model, line, views, now_s)
                    break
                self._tell_soon()
        self._forget_empty_lines()

    def _place_next(
        self, model: ModelKey, line: Line[Ticket], views: list[NodeView], now_s: float
    ) -> bool:
        """Places the first of the line that can be; False where none can."""
        for ticket in line:
            if ticket.placed is None or ticket.placed.done() or now_s < ticket.asks_until_s:
                # Cancelled and about to leave the line, or it has asked.
                continue
            link = self._try(ticket, views)
            if link is not None:
                self._give(ticket, line, link)
                return True
            self._note_served(model, views)
            if not ticket.ask.avoid:
                # What cannot take this one cannot take any behind it.
                break
        return False

    def _note_served(self, model: ModelKey, views: list[NodeView]) -> None:
        """Those who wait are told when the last node went, and when one is back."""
        if bool(serving(views, model)) == (model in self._unserved):
            self._unserved ^= {model}
            self._tell_soon()

    def _forget_empty_lines(self) -> None:
        """Versions come and go; a line is kept while somebody stands in it."""
        for model in [model for model, line in self._lines.items() if not line]:
            del self._lines[model]
            self._tickets.forget(model)
            self._unserved.discard(model)

    def offered(self, link: NodeLink, job_id: str) -> bool:
        """A node keeps a slot for a job; whether the job is still there to take it."""
        taken = self._take_offer(link, job_id)
        self.on_answer("taken" if taken else "declined")
        return taken

    def _take_offer(self, link: NodeLink, job_id: str) -> bool:
        ticket = self._standing.get(job_id)
        if ticket is None or self._closed:
            return False
        ticket.left_at.discard(link.node_id)
        view = self._fleet.view(link.node_id, self._clock.monotonic())
        if view is None or not view.routable or view.on_trial:
            return False
        if ticket.placed is None or ticket.placed.done():
            # Cancelled, and about to leave the line.
            return False
        seconds = job_seconds(view, ticket.units, fallback_speed=typical_speed([view]))
        # It waits there as long as it must: the slot was kept for it.
        ticket.most_wait_s = None
        link.assign(job_id, seconds, alone=ticket.ask.alone)
        self._give(ticket, self._lines[ticket.ask.model], link)
        self._forget_empty_lines()
        self._tell_soon()
        return True

    def _give(self, ticket: Ticket, line: Line[Ticket], link: NodeLink) -> None:
        assert ticket.placed is not None  # noqa: S101 - for mypy: who calls has looked
        line.serve(ticket)
        self._left(ticket)
        ticket.placed.set_result(link)

    def _left(self, ticket: Ticket) -> None:
        """It stands in line no more."""
        self._standing.pop(ticket.job_id, None)
        self._tickets.withdraw(ticket)

    def _try(self, ticket: Ticket, views: list[NodeView]) -> NodeLink | None:
        view = choose(views, ticket.ask, rng=self._rng)
        link = self._fleet.link(view.node_id) if view is not None else None
        if view is None or link is None:
            return None
        seconds = job_seconds(view, ticket.ask.units, fallback_speed=typical_speed(views))
        # One that runs alone waits at the node, however long: it is shielded there.
        ticket.most_wait_s = None if ticket.ask.alone else backlog_s(view) + WAIT_SLACK_S
        link.assign(ticket.job_id, seconds, alone=ticket.ask.alone)
        return link

    def wake_after(self, delay_s: float) -> None:
        """Looks again after a time at which a rule (BUSY, ejection) lets a node back in."""
        if not self._closed:
            self._scope.spawn(self._wake(delay_s), name="wake")

    async def _wake(self, delay_s: float) -> None:
        await self._clock.sleep(delay_s)
        self.pump()

    # --- telling positions ---

    def _tell_soon(self) -> None:
        if not self._telling and not self._closed and len(self):
            self._telling = True
            self._scope.spawn(self._tell(), name="positions")

    async def _tell(self) -> None:
        await self._clock.sleep(_TELL_EVERY_S)
        self._telling = False
        now_s = self._clock.monotonic()
        views = self._fleet.views(now_s)
        for model, line in self._lines.items():
            ahead_units = 0.0
            for position, ticket in enumerate(line):
                wait_s = predicted_wait_s(views, model, queued_units=ahead_units)
                ticket.on_position(position, wait_s)
                ahead_units += ticket.ask.units
