"""Simulated nodes and gateways around the product's own waiting room and placement.

What is the product's: :class:`gateway.fleet.waiting.WaitingRoom` (lines, order, BUSY, when a
job is placed) and :mod:`gateway.fleet.placement` (which node). What is played here, by the
rules of the parts it stands for:

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
from gateway.fleet.order import Standing
from gateway.fleet.placement import Ask, ModelKey, NodeView
from gateway.fleet.waiting import WAIT_SLACK_S, WaitingRoom
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
        self._time = time
        self._delay_s = delay_s
        self._held: list[Job] = []
        self._version = 0

    def admit(self, job: Job, *, most_wait_s: float = float("inf")) -> Busy | None:
        """Takes the job, or says BUSY: full, or it would wait for longer than that."""
        now = self._report()
        remaining_s = self._remaining_s(now, self._time.now_s)
        if len(self._held) >= HELD_PER_WORKER or (self._held and remaining_s > most_wait_s):
            full = len(self._held) >= HELD_PER_WORKER
            return Busy(remaining_s, full=full, version=self._version)
        self._held.append(job)
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

    def _changed(self) -> None:
        self._version += 1
        self._time.at(self._delay_s, self._arrive, self._report())

    def _report(self) -> Report:
        held = tuple(job.id for job in self._held)
        running = self._held[0] if self._held else None
        waiting_units = sum(job.units for job in self._held[1:])
        return Report(held, running, waiting_units, self._version)

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

    def __init__(self, node: SimNode, gateway: SimGateway) -> None:
        self.node = node
        self.node_id = node.node_id
        self.units_per_second = node.kind.measured
        self.free_slots = HELD_PER_WORKER
        self.remaining_work_s = 0.0
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
        self._changed()

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
        self.free_slots = max(HELD_PER_WORKER - self.held_jobs, 0)

    def look(self, now_s: float, delay_s: float) -> None:
        """Brings the figures that move by themselves up to date."""
        self.remaining_work_s = self.node.remaining_s(now_s - delay_s)
        if self._busy_until_s:
            if now_s < self._busy_until_s:
                self.free_slots = 0
            else:
                self._busy_until_s = 0.0
                self._count()
        if self._refused is not None:
            left_s = self._refused_until_s - now_s
            self.remaining_work_s = max(self.remaining_work_s, left_s)


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
    ) -> None:
        self.time = time
        self._refusals = refusals
        self._delay_s = delay_s
        self._seen = {node.node_id: SeenNode(node, self) for node in nodes}
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

    def views(self, now_s: float) -> list[NodeView]:
        """As Fleet.views."""
        for seen in self._views:
            seen.look(now_s, self._delay_s)
        return cast("list[NodeView]", self._views)

    def link(self, node_id: str) -> NodeLink | None:
        """As Fleet.link."""
        return cast("NodeLink", self._seen[node_id])

    async def serve(self, job: Job) -> None:
        """What gateway/core/runner.py does with a job, as far as placement goes."""
        ticket = self.room.enter(job.id, Ask(MODEL, job.units), Standing(), _nobody_listens)
        while True:
            seen = cast("SeenNode", await self.room.place(ticket))
            link = cast("NodeLink", seen)
            # What it was told of the node, its own job left aside.
            predicted_s = seen.remaining_work_s + seen.sent_work_s
            predicted_s -= job.units / seen.units_per_second
            await self.time.sleep(RPC_S)
            job.done = Signal(self.time)
            most_wait_s = predicted_s + WAIT_SLACK_S if self._refusals else float("inf")
            busy = seen.node.admit(job, most_wait_s=most_wait_s)
            if busy is None:
                break
            job.busy += 1
            await self.time.sleep(RPC_S)
            if self._refusals:
                seen.refused(busy)
            self.room.busy(link, job.id)
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
        )
        for _ in range(gateways)
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
