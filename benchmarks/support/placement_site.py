"""Simulated nodes and gateways around the product's own waiting room and placement.

What is the product's: :class:`gateway.fleet.waiting.WaitingRoom` (lines, order, BUSY, when a
job is placed), :mod:`gateway.fleet.placement` (which node), :mod:`gateway.fleet.tickets` (where
tickets are left) and :mod:`node_agent.tickets` (whom a node offers its slots to). What is played
here, by the rules of the parts it stands for:

- a node runs one job and holds one that waits; it answers BUSY beyond that, and to a job that
  would wait longer than its gateway predicted; its status says what it holds, its free slots
  and its remaining work by its own estimate, less what the running job's steps have done;
  gateways see it a fixed delay later;
- a gateway counts what it sent until a status holds it or the run ends, and believes a node
  that answered BUSY until a status that is newer than the answer (gateway/fleet/node_link.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from benchmarks.support.virtual_time import Signal, VirtualTime
from gateway.fleet.node_link import BUSY_HOLD_S, NodeLink
from gateway.fleet.nodes import Fleet
from gateway.fleet.order import Line, Standing
from gateway.fleet.placement import Ask, ModelKey, NodeView
from gateway.fleet.tickets import SOON_S
from gateway.fleet.waiting import WAIT_SLACK_S, WaitingRoom
from gateway.fleet.waiting import Ticket as Waiting
from node_agent.tickets import OFFER_S, Flow, Ticket, TicketBook
from reelkit.tasks import TaskScope

MODEL: ModelKey = ("simulated", "1")
STEPS = 25
RPC_S = 0.001
HELD_PER_WORKER = 2


@dataclass(frozen=True, slots=True)
class Kind:
    """What a node does in a second: in truth, and by its own measure."""

    speed: float
    measured: float


@dataclass(slots=True, eq=False)
class Job:
    """One job of the trace and what became of it. Times in seconds."""

    id: str
    at_s: float
    units: float
    error: float
    """True work over estimated work."""
    started_s: float = -1.0
    ended_s: float = -1.0
    busy: int = 0
    """BUSY answers that it got."""
    done: Signal | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Report:
    """A node's status, as much of it as placement reads."""

    held: tuple[str, ...] = ()
    running: Job | None = None
    waiting_units: float = 0.0
    offered: int = 0
    """Slots that are held for somebody."""
    version: int = 0


@dataclass(frozen=True, slots=True)
class Busy:
    """A node's refusal."""

    remaining_s: float
    full: bool
    version: int
    """Of the node's state that it was refused by."""


class SimNode:
    """One worker: a job on the device and at most one that waits."""

    def __init__(self, number: int, kind: Kind, time: VirtualTime, delay_s: float) -> None:
        self.node_id = f"node-{number}"
        self.kind = kind
        self.report = Report()
        self.seen: list[SeenNode] = []
        self.book = TicketBook()
        self._time = time
        self._delay_s = delay_s
        self._held: list[Job] = []
        self._version = 0

    def admit(self, job: Job, *, most_wait_s: float = float("inf")) -> Busy | None:
        """Takes the job, or says BUSY: full, or it would wait for longer than that."""
        now = self._report()
        remaining_s = self._remaining_s(now, self._time.now_s)
        full = self._untaken() <= self.book.held_back(job.id)
        if full or (self._held and remaining_s > most_wait_s):
            return Busy(remaining_s, full=full, version=self._version)
        self._held.append(job)
        self.book.ran(job.id)
        if len(self._held) == 1:
            self._start()
        self._changed()
        return None

    def _start(self) -> None:
        job = self._held[0]
        job.started_s = self._time.now_s
        self._time.at(job.units * job.error / self.kind.speed, self._finish)

    def _finish(self) -> None:
        job = self._held.pop(0)
        job.ended_s = self._time.now_s
        assert job.done is not None
        job.done.set()
        if self._held:
            self._start()
        self._changed()

    def _untaken(self) -> int:
        return HELD_PER_WORKER - len(self._held)

    def _waits_s(self) -> list[float]:
        if self._untaken() == HELD_PER_WORKER:
            return [0.0, float("inf")]
        return [self._remaining_s(self._report(), self._time.now_s)][: self._untaken()]

    def leave(self, ticket: Ticket, leads: dict[Flow, float]) -> None:
        """A gateway's ticket comes."""
        self.book.hear(ticket.owner, leads)
        self.book.leave(ticket)
        self._look_and_tell()

    def withdraw(self, owner: int, job_id: str) -> None:
        """A gateway takes one back, or declines."""
        self.book.withdraw(owner, [job_id])
        self._look_and_tell()

    def _look_and_tell(self) -> None:
        before = self.book.offered
        self._look()
        if self.book.offered != before:
            self._tell()

    def _look(self) -> None:
        """Offers what is free."""
        for offer in self.book.offers(self._waits_s(), self._time.now_s):
            gateway = self.seen[offer.ticket.owner]
            self._time.at(RPC_S, gateway.hear_offer, offer.ticket.job_id)
            self._time.at(OFFER_S, self._look_and_tell)

    def _changed(self) -> None:
        self._look()
        self._tell()

    def _tell(self) -> None:
        self._version += 1
        self._time.at(self._delay_s, self._arrive, self._report())

    def _report(self) -> Report:
        held = tuple(job.id for job in self._held)
        running = self._held[0] if self._held else None
        waiting_units = sum(job.units for job in self._held[1:])
        return Report(held, running, waiting_units, self.book.offered, self._version)

    def _arrive(self, report: Report) -> None:
        self.report = report
        for seen in self.seen:
            seen.take(report)

    def remaining_s(self, at_s: float) -> float:
        """What the report that is seen now said of the moment ``at_s``."""
        return self._remaining_s(self.report, at_s)

    def _remaining_s(self, report: Report, at_s: float) -> float:
        running = report.running
        if running is None:
            return 0.0
        took_s = running.units * running.error / self.kind.speed
        steps = int((at_s - running.started_s) / took_s * STEPS)
        left = running.units * (1 - min(steps, STEPS) / STEPS)
        return (left + report.waiting_units) / self.kind.measured


class SeenNode:
    """A node as one gateway sees it: a NodeView and the part of a NodeLink that places."""

    models = frozenset({MODEL})
    workers = 1
    routable = True
    on_trial = False

    def __init__(self, node: SimNode, gateway: SimGateway, owner: int) -> None:
        self.node = node
        self._owner = owner
        self.node_id = node.node_id
        self.units_per_second = node.kind.measured
        self.free_slots = HELD_PER_WORKER
        self.sent_work_s = 0.0
        self.held_jobs = 0
        self._gateway = gateway
        self._sent: dict[str, float] = {}
        self._busy_until_s = 0.0
        self._refused: Busy | None = None
        self._refused_until_s = 0.0

    def take(self, report: Report) -> None:
        """A status came."""
        if self._refused is None or report.version > self._refused.version:
            self._busy_until_s = 0.0
            self._refused = None
        for job_id in report.held:
            self._sent.pop(job_id, None)
        self._changed()

    def assign(self, job_id: str, seconds: float, *, alone: bool = False) -> None:
        """As NodeLink.assign."""
        assert not alone
        self._sent[job_id] = seconds
        self._count()

    def unassign(self, job_id: str) -> None:
        """As NodeLink.unassign."""
        self._sent.pop(job_id, None)
        self._changed()

    def answered_busy(self, _answer: object = None) -> None:
        """As NodeLink.answered_busy; :meth:`refused` keeps what was said."""
        if self._refused is None or self._refused.full:
            self._busy_until_s = self._gateway.time.now_s + BUSY_HOLD_S
            # A little later than that.
            self._gateway.time.at(BUSY_HOLD_S + 1e-6, self._count)
        self._changed()

    def leave_ticket(self, ticket: Waiting, line: Line[Waiting]) -> bool:
        """As NodeLink.leave_ticket."""
        standing = ticket.standing
        left = Ticket(
            job_id=ticket.job_id,
            owner=self._owner,
            tenant=standing.tenant,
            units=ticket.units,
            came_at_s=standing.came_at_s,
            max_wait_s=SOON_S if ticket.wants_soon else float("inf"),
        )
        leads = {(standing.rank, standing.tenant): line.lead(standing)}
        self._gateway.time.at(RPC_S, self.node.leave, left, leads)
        return True

    def withdraw_ticket(self, job_id: str) -> None:
        """As NodeLink.withdraw_ticket."""
        self._gateway.time.at(RPC_S, self.node.withdraw, self._owner, job_id)

    def hear_offer(self, job_id: str) -> None:
        """As a TicketStream does."""
        if not self._gateway.room.offered(cast("NodeLink", self), job_id):
            self.withdraw_ticket(job_id)

    def refused(self, busy: Busy) -> None:
        """Its refusal is believed until a status that is not older."""
        self._refused = busy
        self._refused_until_s = self._gateway.time.now_s + busy.remaining_s
        self._changed()

    def _changed(self) -> None:
        self._count()
        self._gateway.room.pump()

    def _count(self) -> None:
        held = self.node.report.held
        self.sent_work_s = sum(self._sent.values())
        self.held_jobs = len(held) + len(self._sent)
        self.free_slots = max(HELD_PER_WORKER - self.held_jobs - self.node.report.offered, 0)
        if self._gateway.time.now_s < self._busy_until_s:
            self.free_slots = 0

    @property
    def remaining_work_s(self) -> float:
        """What is known now of the node's own work; it shrinks by itself."""
        if self._refused is None and self.node.report.running is None:
            return 0.0
        now_s = self._gateway.time.now_s
        left_s = self.node.remaining_s(now_s - self._gateway.delay_s)
        return left_s if self._refused is None else max(left_s, self._refused_until_s - now_s)


class SimGateway:
    """A waiting room over its own view of all nodes."""

    def __init__(
        self,
        nodes: Sequence[SimNode],
        time: VirtualTime,
        *,
        delay_s: float,
        rng: random.Random,
        refusals: bool,
        number: int,
    ) -> None:
        self.time = time
        self._refusals = refusals
        self.delay_s = delay_s
        self._seen = {node.node_id: SeenNode(node, self, number) for node in nodes}
        self._views = list(self._seen.values())
        # The room asks of these what is played here, and of the clock and scope likewise.
        self.room = WaitingRoom(
            fleet=cast("Fleet", self),
            clock=time,
            scope=cast("TaskScope", time),
            max_waiting=1_000_000,
            rng=rng,
        )
        for seen in self._views:
            seen.node.seen.append(seen)

    def views(self, _now_s: float) -> list[NodeView]:
        """As Fleet.views."""
        return cast("list[NodeView]", self._views)

    def link(self, node_id: str) -> NodeLink | None:
        """As Fleet.link."""
        return cast("NodeLink", self._seen[node_id])

    def view(self, node_id: str, _now_s: float) -> NodeView | None:
        """As Fleet.view."""
        return cast("NodeView", self._seen[node_id])

    async def serve(self, job: Job) -> None:
        """What gateway/core/runner.py does with a job, as far as placement goes."""
        ticket = self.room.enter(
            job.id, Ask(MODEL, job.units), Standing(came_at_s=job.at_s), _nobody_listens
        )
        while True:
            seen = cast("SeenNode", await self.room.place(ticket))
            link = cast("NodeLink", seen)
            # What it was told of the node, its own job left aside.
            predicted_s = seen.remaining_work_s + seen.sent_work_s
            predicted_s -= job.units / seen.units_per_second
            await self.time.sleep(RPC_S)
            job.done = Signal(self.time)
            most_wait_s = predicted_s + WAIT_SLACK_S
            if ticket.most_wait_s is None or not self._refusals:
                most_wait_s = float("inf")
            busy = seen.node.admit(job, most_wait_s=most_wait_s)
            if busy is None:
                break
            job.busy += 1
            await self.time.sleep(RPC_S)
            if self._refusals:
                seen.refused(busy)
            self.room.busy(link, ticket)
        await job.done
        await self.time.sleep(RPC_S)
        self.room.leave(link, job.id)


def _nobody_listens(_position: int, _wait_s: float | None) -> None:
    """Positions are for clients."""


async def run_site(
    trace: Sequence[Job],
    kinds: Sequence[Kind],
    *,
    gateways: int,
    delay_s: float,
    seed: int,
    refusals: bool = True,
) -> Sequence[Job]:
    """The trace, served by gateways that each get their share of it at random.

    Without ``refusals`` a node takes whatever it has a slot for: it shows what they are for.

    It awaits nothing; it is a coroutine because the waiting room makes futures.
    """
    rng = random.Random(seed)  # noqa: S311 - a seeded draw
    time = VirtualTime()
    nodes = [SimNode(number, kind, time, delay_s) for number, kind in enumerate(kinds)]
    sites = [
        SimGateway(
            nodes,
            time,
            delay_s=delay_s,
            rng=random.Random(rng.random()),  # noqa: S311 - as above
            refusals=refusals,
            number=number,
        )
        for number in range(gateways)
    ]
    arrivals: Iterator[Job] = iter(trace)

    def arrive(*_: Any) -> None:
        for job in arrivals:
            if job.at_s > time.now_s:
                time.at(job.at_s - time.now_s, come, job)
                return
            come(job)

    def come(job: Job) -> None:
        time.spawn(rng.choice(sites).serve(job))
        arrive()

    arrive()
    time.run()
    return trace


__all__ = ["MODEL", "Job", "Kind", "run_site"]
