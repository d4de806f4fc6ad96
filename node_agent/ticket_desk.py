"""Tickets over gRPC: takes what gateways leave, and tells them of slots that are theirs."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
from grpc import aio
from reelmesh.v1 import node_service_pb2 as pb
from reelmesh.v1 import tenant_pb2

from node_agent.tickets import MAX_TICKETS, OFFER_S, Flow, Offer, Ticket, TicketBook
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

Context = aio.ServicerContext[Any, Any]

_log = structlog.get_logger("node_agent.tickets")

MAX_GATEWAYS: Final = 256
_MAX_ID_CHARS: Final = 128
_WEIGHTS: Final = (1e-3, 1e6)
_UNITS: Final = (1e-6, 1e9)


class _Stream:
    """A gateway's stream: offers that it has not been told of yet."""

    def __init__(self) -> None:
        self.offers: deque[Offer] = deque(maxlen=MAX_TICKETS)
        self.ended = False
        self.clock_offset_s: float | None = None
        """From the gateway's clock to the node's."""
        self._news = asyncio.Event()

    def tell(self, offer: Offer) -> None:
        # One that does not read misses the oldest, which have expired by then.
        self.offers.append(offer)
        self._news.set()

    def end(self) -> None:
        self.ended = True
        self._news.set()

    async def news(self) -> None:
        await self._news.wait()
        self._news.clear()


class TicketDesk:
    """One per agent: the streams of the gateways, and the time.

    Args:
        book: The tickets, and the slots that are held.
        waits_s: Of each slot that is not taken, held ones included, the least first: how
            long a job would wait in it.
        on_change: Told when the number of held slots changed.
    """

    def __init__(
        self,
        *,
        book: TicketBook,
        waits_s: Callable[[], Sequence[float]],
        on_change: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._book = book
        self._waits_s = waits_s
        self._on_change = on_change
        self._clock = clock
        self._owners = itertools.count(1)
        self._streams: dict[int, _Stream] = {}
        self._held = asyncio.Event()
        self._told = 0

    def look(self) -> None:
        """Offers what is free; call it after every change of slots or tickets."""
        for offer in self._book.offers(self._waits_s(), self._clock.monotonic()):
            self._streams[offer.ticket.owner].tell(offer)
        if self._book.offered:
            self._held.set()
        if self._book.offered != self._told:
            self._told = self._book.offered
            self._on_change()

    async def expire(self) -> None:
        """Lets go of offers that nobody took; one task of the agent runs it."""
        while True:
            await self._held.wait()
            self._held.clear()
            while (at_s := self._book.next_expiry_s()) is not None:
                await self._clock.sleep(max(at_s - self._clock.monotonic(), 0.001))
                self.look()

    async def serve(self, _requests: object, context: Context) -> None:
        """One gateway's stream, to its end."""
        if len(self._streams) >= MAX_GATEWAYS:
            _log.warning("too many gateways leave tickets", most=MAX_GATEWAYS)
            return
        owner = next(self._owners)
        stream = self._streams[owner] = _Stream()
        try:
            async with TaskScope(f"tickets-{owner}") as scope:
                scope.spawn(self._read(owner, stream, context), name="read", fatal=False)
                while not stream.ended:
                    while stream.offers:
                        job_id = stream.offers.popleft().ticket.job_id
                        offer = pb.Offer(job_id=job_id, expires_s=OFFER_S)
                        await context.write(pb.TicketsResponse(offer=offer))
                    await stream.news()
        finally:
            del self._streams[owner]
            self._book.gone(owner)
            self.look()

    async def _read(self, owner: int, stream: _Stream, context: Context) -> None:
        try:
            while isinstance(request := await context.read(), pb.TicketsRequest):
                if stream.clock_offset_s is None:
                    now_s = self._clock.monotonic()
                    stream.clock_offset_s = now_s - request.now_s
                self._take(owner, request, stream.clock_offset_s)
        finally:
            stream.end()

    def _take(self, owner: int, request: pb.TicketsRequest, offset_s: float) -> None:
        """What a gateway says; numbers that make no sense are brought into bounds."""
        now_s = self._clock.monotonic()
        self._book.hear(owner, _leads(request))
        self._book.withdraw(owner, request.withdrawn)
        for ticket in request.left[:MAX_TICKETS]:
            if 1 <= len(ticket.job_id) <= _MAX_ID_CHARS:
                self._book.leave(_ticket(ticket, owner, now_s, offset_s))
        self.look()


def _rank(priority: int) -> int:
    return 1 if priority == tenant_pb2.PRIORITY_BATCH else 0


def _leads(request: pb.TicketsRequest) -> dict[Flow, float]:
    return {
        (_rank(lead.priority), lead.tenant): _within(lead.units, (0.0, _UNITS[1]))
        for lead in request.leads[:MAX_TICKETS]
    }


def _ticket(ticket: pb.Ticket, owner: int, now_s: float, offset_s: float) -> Ticket:
    came_at_s, deadline_at_s = ticket.came_at_s + offset_s, ticket.deadline_at_s + offset_s
    timed = ticket.HasField("deadline_at_s") and math.isfinite(deadline_at_s)
    return Ticket(
        job_id=ticket.job_id,
        owner=owner,
        tenant=ticket.tenant[:_MAX_ID_CHARS],
        rank=_rank(ticket.priority),
        weight=_within(ticket.weight, _WEIGHTS) if ticket.HasField("weight") else 1.0,
        units=_within(ticket.units, _UNITS),
        deadline_at_s=deadline_at_s if timed else math.inf,
        # Nobody has waited for less than no time.
        max_wait_s=_within(ticket.max_wait_s, _UNITS)
        if ticket.HasField("max_wait_s")
        else math.inf,
        came_at_s=min(came_at_s, now_s) if math.isfinite(came_at_s) else now_s,
    )


def _within(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return min(max(value, low), high) if math.isfinite(value) else low
