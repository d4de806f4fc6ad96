"""Which waiting job a freed slot is offered to. Pure: (tickets, slots, now) -> offers.

Gateways leave tickets of jobs that wait. A slot is offered by priority, then fairly between
tenants (:mod:`reelkit.fairness`: what this node gave each, and what its gateway says it got
elsewhere), then by the earliest deadline, then to who has waited longest; over all gateways.
A ticket may say that it wants only a slot in which it starts soon.

Invariants (tests/unit/test_node_tickets.py): never more offers than slots; the order above; no
ticket starves inside a priority; an offer that nobody takes holds its slot for OFFER_S and no
longer, and its gateway gets no further one until it is heard of; all of it is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from reelkit.fairness import FairShares, in_turn

OFFER_S: Final = 0.2
MAX_TICKETS: Final = 64
"""Of one gateway; more are dropped."""
RANKS: Final = 2

Flow = tuple[int, str]
"""(rank of the priority, tenant)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A job that waits in a gateway. Times are the node's own."""

    job_id: str
    owner: int
    """The gateway's stream that left it."""
    tenant: str = ""
    rank: int = 0
    """Of its priority: 0 goes first."""
    weight: float = 1.0
    units: float = 1.0
    deadline_at_s: float = math.inf
    came_at_s: float = 0.0
    max_wait_s: float = math.inf
    """It wants only a slot in which it starts within so long."""

    @property
    def flow(self) -> Flow:
        """Whom it counts for."""
        return (self.rank, self.tenant)

    @property
    def own_order(self) -> tuple[float, float, str]:
        """Among its tenant's."""
        return (self.deadline_at_s, self.came_at_s, self.job_id)


@dataclass(frozen=True, slots=True)
class Offer:
    """A slot that is held for a job."""

    ticket: Ticket
    expires_at_s: float


def _cost(ticket: Ticket) -> float:
    return ticket.units / ticket.weight


def _tie(ticket: Ticket) -> tuple[float, str]:
    return (ticket.came_at_s, ticket.job_id)


class TicketBook:
    """The tickets that lie here, and the slots that are held for offers."""

    def __init__(self) -> None:
        self._tickets: dict[str, Ticket] = {}
        self._offers: dict[str, Offer] = {}
        self._counts: dict[int, int] = {}
        self._leads: dict[int, dict[Flow, float]] = {}
        self._silent: set[int] = set()
        self._shares: list[FairShares[str]] = [FairShares() for _ in range(RANKS)]

    def __len__(self) -> int:
        """Tickets that no slot is offered to."""
        return len(self._tickets)

    @property
    def offered(self) -> int:
        """Slots that are held."""
        return len(self._offers)

    def held_back(self, job_id: str) -> int:
        """Slots that are held for other jobs than this."""
        return len(self._offers) - (job_id in self._offers)

    def next_expiry_s(self) -> float | None:
        """When the next offer expires."""
        return min((offer.expires_at_s for offer in self._offers.values()), default=None)

    # --- what gateways say ---

    def hear(self, owner: int, leads: Mapping[Flow, float]) -> None:
        """A gateway lives; how far ahead its tenants are, by its own count."""
        self._silent.discard(owner)
        self._leads[owner] = dict(leads)

    def leave(self, ticket: Ticket) -> None:
        """Takes a ticket; of a job that has one or an offer, the newest gateway's counts."""
        self._drop(ticket.job_id)
        if self._counts.get(ticket.owner, 0) >= MAX_TICKETS:
            return
        self._tickets[ticket.job_id] = ticket
        self._counts[ticket.owner] = self._counts.get(ticket.owner, 0) + 1

    def withdraw(self, owner: int, job_ids: Iterable[str]) -> None:
        """Takes tickets back, and declines what was offered to them."""
        for job_id in job_ids:
            ticket = self._of(job_id)
            if ticket is not None and ticket.owner == owner:
                self._drop(job_id)
        self._rest()

    def gone(self, owner: int) -> None:
        """The gateway's stream has ended, and all that it left with it."""
        self.withdraw(owner, [t.job_id for t in self._all() if t.owner == owner])
        self._counts.pop(owner, None)
        self._leads.pop(owner, None)
        self._silent.discard(owner)

    def ran(self, job_id: str) -> None:
        """A job was admitted: its offer is taken, its tenant has had its turn."""
        ticket = self._of(job_id)
        if ticket is not None:
            self._shares[ticket.rank].serve(ticket.tenant, _cost(ticket))
            self._drop(job_id)
            self._rest()

    # --- what the node offers ---

    def offers(self, waits_s: Sequence[float], now_s: float) -> list[Offer]:
        """New offers for slots that are free and not held; lets go of what has expired.

        Args:
            waits_s: Of each slot that is not taken, held ones included, the least first:
                how long a job would wait in it.
            now_s: Seconds of the node's monotonic clock.
        """
        self._expire(now_s)
        made: list[Offer] = []
        # Those that are held are the soonest.
        for ticket in self._chosen(waits_s[len(self._offers) :]):
            offer = Offer(ticket, now_s + OFFER_S)
            self._forget_ticket(ticket)
            self._offers[ticket.job_id] = offer
            made.append(offer)
        return made

    def in_order(self) -> Iterator[Ticket]:
        """The tickets in the order in which slots are offered."""
        for rank, shares in enumerate(self._shares):
            flows: dict[str, list[Ticket]] = {}
            for ticket in self._tickets.values():
                if ticket.rank == rank and ticket.owner not in self._silent:
                    flows.setdefault(ticket.tenant, []).append(ticket)
            for row in flows.values():
                row.sort(key=lambda ticket: ticket.own_order)
            due = {tenant: self._due(shares, row) for tenant, row in flows.items()}
            yield from in_turn(flows, tag=due.__getitem__, cost=_cost, tie=_tie)

    def _chosen(self, waits_s: Sequence[float]) -> list[Ticket]:
        """For each slot the first that wants it, if anybody does."""
        chosen: list[Ticket] = []
        if waits_s and self._tickets:
            for ticket in self.in_order():
                if waits_s[len(chosen)] <= ticket.max_wait_s:
                    chosen.append(ticket)
                    if len(chosen) == len(waits_s):
                        break
        return chosen

    def _due(self, shares: FairShares[str], row: list[Ticket]) -> float:
        flow = row[0].flow
        owners = {ticket.owner for ticket in row}
        elsewhere = max(self._leads.get(owner, {}).get(flow, 0.0) for owner in owners)
        return shares.tag(flow[1]) + elsewhere

    def _expire(self, now_s: float) -> None:
        for offer in [o for o in self._offers.values() if o.expires_at_s <= now_s]:
            self._silent.add(offer.ticket.owner)
            self._drop(offer.ticket.job_id)
        self._rest()

    # --- how it is kept ---

    def _of(self, job_id: str) -> Ticket | None:
        offer = self._offers.get(job_id)
        return self._tickets.get(job_id) if offer is None else offer.ticket

    def _all(self) -> list[Ticket]:
        return [*self._tickets.values(), *(offer.ticket for offer in self._offers.values())]

    def _drop(self, job_id: str) -> None:
        self._offers.pop(job_id, None)
        ticket = self._tickets.get(job_id)
        if ticket is not None:
            self._forget_ticket(ticket)

    def _forget_ticket(self, ticket: Ticket) -> None:
        del self._tickets[ticket.job_id]
        self._counts[ticket.owner] -= 1

    def _rest(self) -> None:
        """With nobody left who waits, all begin anew as equals."""
        if not self._tickets and not self._offers:
            for shares in self._shares:
                shares.forget()
