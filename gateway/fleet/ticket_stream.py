"""One gateway's tickets at one node: what should lie there, and the stream that sees to it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from grpc import aio
from reelmesh.v1 import node_service_pb2 as pb

from gateway.fleet.order import Line, Place
from gateway.priority import ORDER
from gateway.tenants import opaque
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

if TYPE_CHECKING:
    # Exists in the stubs alone.
    from reelmesh.v1.node_service_pb2_grpc import NodeServiceAsyncStub

MAX_TICKETS: Final = 64


@dataclass(frozen=True, slots=True)
class _Left:
    place: Place
    line: Line[Any]
    max_wait_s: float | None


class TicketStream:
    """Keeps the node's copy of this gateway's tickets.

    Nothing is opened before the first ticket. A stream that broke begins anew with all that
    should lie there, since the node forgets what was left by it.

    Args:
        on_offer: Told of a job that a slot is kept for; False where that job does not want it.
    """

    def __init__(
        self, *, stub: NodeServiceAsyncStub, clock: Clock, on_offer: Callable[[str], bool]
    ) -> None:
        self._stub = stub
        self._clock = clock
        self._on_offer = on_offer
        self._left: dict[str, _Left] = {}
        self._untold: set[str] = set()
        self._withdrawn: set[str] = set()
        self._news = asyncio.Event()

    def __len__(self) -> int:
        """Tickets that should lie there."""
        return len(self._left)

    def leave(
        self, job_id: str, place: Place, line: Line[Any], max_wait_s: float | None = None
    ) -> bool:
        """Leaves a job's ticket, or another one; False where there are enough."""
        if len(self._left) >= MAX_TICKETS and job_id not in self._left:
            return False
        self._left[job_id] = _Left(place, line, max_wait_s)
        self._untold.add(job_id)
        self._withdrawn.discard(job_id)
        self._news.set()
        return True

    def withdraw(self, job_id: str) -> None:
        """Takes a ticket back, or declines what was offered to it."""
        self._left.pop(job_id, None)
        if job_id in self._untold:
            self._untold.discard(job_id)
        else:
            self._withdrawn.add(job_id)
            self._news.set()

    async def run(self) -> None:
        """Sends tickets and takes offers until the stream breaks.

        Raises:
            aio.AioRpcError: It did; call it again.
        """
        await self._news.wait()
        self._untold = set(self._left)
        self._withdrawn.clear()
        self._news.set()
        call = self._stub.Tickets()
        try:
            async with TaskScope("tickets") as scope:
                scope.spawn(self._send(call), name="send", fatal=False)
                while isinstance(response := await call.read(), pb.TicketsResponse):
                    self._take(response.offer.job_id)
            # The node ended it without an error: whoever calls this again waits a little.
            self._news.set()
        finally:
            call.cancel()

    async def _send(self, call: Any) -> None:
        # Why it ended is told by reading it.
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await self._news.wait()
                self._news.clear()
                await call.write(self._message())

    def _take(self, job_id: str) -> None:
        # The offer has used the ticket up.
        self._left.pop(job_id, None)
        if not self._on_offer(job_id):
            self.withdraw(job_id)
        # A word in any case: from who says nothing the node keeps its offers.
        self._news.set()

    def _message(self) -> pb.TicketsRequest:
        untold, self._untold = self._untold, set()
        withdrawn, self._withdrawn = self._withdrawn, set()
        message = pb.TicketsRequest(withdrawn=sorted(withdrawn), now_s=self._clock.monotonic())
        for job_id in untold:
            left = self._left[job_id]
            message.left.append(_ticket(job_id, left))
        leads = {
            (left.place.standing.rank, left.place.standing.tenant): left
            for left in self._left.values()
        }
        for (rank, tenant), left in leads.items():
            lead = left.line.lead(left.place.standing)
            if lead > 0:
                message.leads.add(tenant=opaque(tenant), priority=ORDER[rank], units=lead)
        return message


def _ticket(job_id: str, left: _Left) -> pb.Ticket:
    place, standing = left.place, left.place.standing
    ticket = pb.Ticket(
        job_id=job_id,
        tenant=opaque(standing.tenant),
        priority=ORDER[standing.rank],
        weight=standing.weight,
        units=place.units,
        came_at_s=standing.came_at_s,
        max_wait_s=left.max_wait_s,
    )
    if math.isfinite(standing.deadline_at_s):
        ticket.deadline_at_s = standing.deadline_at_s
    return ticket
