"""Runs a job: place, run, and again on another node while the cause is not the job's.

One task per job. It ends when the job's record is terminal, or when it is cancelled by
whoever made the record terminal.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field, replace

import structlog
from opentelemetry import trace
from reelmesh.v1 import node_service_pb2, video_pb2

from gateway.core.commit import Committer
from gateway.core.execution import OWNER_LOST, Disowned, Execution
from gateway.core.metrics import GatewayMetrics
from gateway.core.node_run import PAST_DEADLINE, STALE_OWNER, Busy, Fault, NodeRun
from gateway.fleet.ejection import RetryBudget
from gateway.fleet.node_link import NodeLink
from gateway.fleet.nodes import Fleet
from gateway.fleet.waiting import Ticket, WaitingRoom
from gateway.jobs.attempts import ordinal_of
from reelkit.clock import Clock

_log = structlog.get_logger("gateway.runner")
_tracer = trace.get_tracer("gateway")

# A second worker that dies under a job shows that the job kills workers.
_WORKER_DEATHS_OF_POISON = 2
WORKER_DIED = "worker_died"


@dataclass(slots=True)
class _Course:
    """What a job's tries so far have shown."""

    ticket: Ticket
    started: bool = False
    """A node was tried: full ones after that make it no second job."""
    worker_deaths: int = 0
    deaths_at: list[str] = field(default_factory=list)
    """The nodes whose workers died, in order."""
    stops: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """Cancels on their way, by node."""

    @classmethod
    def of(cls, execution: Execution) -> _Course:
        """As the record of a job tells it, which may have had other owners."""
        failed = [a for a in execution.record.attempts if a.cause not in ("", OWNER_LOST)]
        deaths = [attempt.node_id for attempt in failed if attempt.cause == WORKER_DIED]
        ticket = execution.ticket
        ticket.ask = replace(
            ticket.ask,
            avoid=ticket.ask.avoid | {attempt.node_id for attempt in failed},
            alone=ticket.ask.alone or bool(deaths),
        )
        return cls(ticket, worker_deaths=len(deaths), deaths_at=deaths)


class Runner:
    """Takes executions from admission to their end."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        waiting: WaitingRoom,
        committer: Committer,
        node_run: NodeRun,
        clock: Clock,
        metrics: GatewayMetrics,
        max_tries: int,
    ) -> None:
        self._fleet = fleet
        self._waiting = waiting
        self._committer = committer
        self._node_run = node_run
        self._clock = clock
        self._metrics = metrics
        self._max_tries = max_tries
        self._retries = RetryBudget()

    async def run(self, execution: Execution) -> None:
        """Runs the job until its record is terminal.

        Cancellation gives up the node's stream and its place in the line; the run at
        the node is not cancelled by that.
        """
        course = _Course.of(execution)
        # One that shared a run before has seen tries of that.
        first = max(execution.log.tries, 1)
        for try_ in itertools.count(first):
            fault = await self._try(execution, course, try_)
            if fault is None:
                return
            if fault is STALE_OWNER:
                raise Disowned
            _log.info("try failed", job_id=execution.video_id, attempt=try_, cause=fault.code)
            if self._is_last(fault, course, try_ - first + 1):
                verdict = self._verdict(fault, course, try_ - first + 1)
                execution.deliver(verdict)
                await self._committer.fail(execution, verdict)
                return
            execution.log.begin(ordinal_of(execution.epoch, try_ + 1), fault.code)
            await self._await_retry_budget()

    async def _try(self, execution: Execution, course: _Course, try_: int) -> Fault | None:
        """One try, placed as often as nodes are found full; None: the record is terminal."""
        attempt = ordinal_of(execution.epoch, try_)
        while True:
            execution.set_status(video_pb2.VIDEO_STATUS_QUEUED)
            link = await self._next_link(execution, course)
            execution.link = link
            stop = course.stops.pop(link.node_id, None)
            if stop is not None:
                stop.cancel()
            execution.begin_attempt(attempt, link.node_id, self._clock.wall())
            if not course.started:
                course.started = True
                self._retries.note_start(self._clock.monotonic())
            try:
                outcome = await self._run_at(execution, link, try_, attempt)
                if isinstance(outcome, Busy):
                    execution.drop_attempt()
                    self._metrics.placed("busy")
                    self._waiting.busy(link, course.ticket, outcome.answer)
                    continue
                # Before the node is left, which lets the next job in.
                self._note_end(execution, course, link, outcome)
            finally:
                execution.link = None
                self._waiting.leave(link, execution.video_id)
            if outcome is not None:
                execution.end_attempt(outcome.code)
                self._learn(execution, course, link, outcome)
                if outcome.runs_on:
                    self._stop(execution, course, link, outcome)
            return outcome

    async def _next_link(self, execution: Execution, course: _Course) -> NodeLink:
        """The node that still runs it for a former owner, else the one it is placed on."""
        link, execution.adopted_from = execution.adopted_from, None
        if link is not None and link.connected:
            # The node's own report holds its work.
            link.assign(execution.video_id, 0.0)
            return link
        execution.lose_attempts()
        return await self._waiting.place(course.ticket)

    async def _run_at(
        self, execution: Execution, link: NodeLink, try_: int, attempt: int
    ) -> Busy | Fault | None:
        with _tracer.start_as_current_span("gateway.run"):
            outcome = await self._node_run.run(execution, link, try_, attempt)
        if outcome is PAST_DEADLINE and execution.run_deadline_at_s > execution.told_deadline_at_s:
            # A job that came to share the run has more time than the node was told.
            return replace(PAST_DEADLINE, retryable=True)
        if isinstance(outcome, node_service_pb2.NodeEvent):
            return await self._committer.complete(execution, link, outcome)
        return outcome

    def _stop(self, execution: Execution, course: _Course, link: NodeLink, fault: Fault) -> None:
        stop = self._committer.stop_at_node(link, execution, fault.code)
        if stop is not None:
            course.stops[link.node_id] = stop

    def _learn(self, execution: Execution, course: _Course, link: NodeLink, fault: Fault) -> None:
        ask = course.ticket.ask
        if fault.code == WORKER_DIED:
            course.worker_deaths += 1
            course.deaths_at.append(link.node_id)
            # Whoever owns it next must know: it runs alone once, and not a third time.
            self._committer.note(execution)
        course.ticket.ask = replace(
            ask, avoid=ask.avoid | {link.node_id}, alone=course.worker_deaths > 0
        )

    def _is_last(self, fault: Fault, course: _Course, try_: int) -> bool:
        poison = course.worker_deaths >= _WORKER_DEATHS_OF_POISON
        return not fault.retryable or poison or try_ >= self._max_tries

    def _verdict(self, fault: Fault, course: _Course, try_: int) -> video_pb2.FailedEvent:
        if not fault.retryable:
            return video_pb2.FailedEvent(
                code=fault.code, message=fault.message, retryable=fault.client_may_retry
            )
        if course.worker_deaths >= _WORKER_DEATHS_OF_POISON:
            return video_pb2.FailedEvent(
                code="poison",
                message="two workers died while they made this video; it is not tried again "
                f"(on {' and '.join(course.deaths_at) or 'one node'})",
            )
        return video_pb2.FailedEvent(
            code=fault.code,
            message=f"gave up after {try_} tries; the last one ended because {fault.message}",
            retryable=True,
        )

    async def _await_retry_budget(self) -> None:
        while (delay_s := self._retries.take(self._clock.monotonic())) > 0:
            await self._clock.sleep(delay_s)

    def _note_end(
        self, execution: Execution, course: _Course, link: NodeLink, fault: Fault | None
    ) -> None:
        if fault is None or not fault.of_node:
            self._metrics.placed("ended")
            if fault is None:
                link.note_end(execution.video_id, failed=False)
            return
        self._metrics.node_failed(fault.code)
        if fault.code == WORKER_DIED and course.worker_deaths:
            # The second worker that this job takes with it: no fault of this node's.
            return
        rest_s = link.note_end(execution.video_id, failed=True)
        if rest_s > 0:
            _log.warning("node ejected", node=link.node_id, seconds=rest_s)
            self._metrics.node_ejected()
            self._waiting.wake_after(rest_s)
