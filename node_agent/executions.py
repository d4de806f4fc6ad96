"""Which runs this node holds, who owns them, and what may happen to them.

Decisions only: time is passed in, workers are reached through :class:`WorkerGate`,
and no method waits. A job has at most one current execution, that of its newest
(epoch, try):

- a higher epoch attaches to a live or completed execution and becomes its owner;
- the same (epoch, try) attaches again;
- a higher try of the same epoch replaces the execution;
- anything lower is :class:`~node_agent.errors.StaleOwnerError`, also for a while after
  the execution was forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from reelmesh.v1.node_service_pb2 import NodeEvent, RunRequest
from reelmesh.v1.video_pb2 import (
    STAGE_DENOISE,
    CancelledEvent,
    CompletedEvent,
    FailedEvent,
    ProgressEvent,
)

from node_agent.event_log import TERMINAL_KINDS
from node_agent.job_book import JobBook, stale
from node_agent.slots import Claim, Execution, Phase, WorkerSlots
from node_agent.tickets import TicketBook
from node_agent.work import Speed, progress_fraction, work_units

# Cancel and Release name an epoch and no try (a uint32): they speak for its newest.
_ANY_TRY = 2**32


class WorkerGate(Protocol):
    """Where decisions go; neither call waits or fails."""

    def generate(self, execution: Execution) -> None:
        """Tells ``execution.worker_id`` to run it after what it has."""
        ...

    def cancel(self, execution: Execution, reason: str) -> None:
        """Tells the worker to stop it within one step."""
        ...


@dataclass(frozen=True)
class ExecutionLimits:
    """Bounds and grace times of the table; seconds and bytes."""

    owner_grace_s: float = 30.0
    keep_s: float = 120.0
    keep_bytes: int = 512 * 1024 * 1024


class NotAdmittedError(Exception):
    """No room, too long a wait, or the node takes nothing now: the job belongs elsewhere."""

    def __init__(self, remaining_work_s: float, *, too_long: bool = False) -> None:
        super().__init__(f"busy for {remaining_work_s:.1f} s")
        self.remaining_work_s = remaining_work_s
        self.too_long = too_long


class ExecutionTable:
    """Every execution of the node, and the slots of its live workers."""

    def __init__(
        self,
        *,
        gate: WorkerGate,
        limits: ExecutionLimits,
        speed: Speed,
        new_run_id: Callable[[], str],
        on_change: Callable[[bool], None] = lambda _urgent: None,
        on_end: Callable[[Execution], None] = lambda _execution: None,
        tickets: TicketBook | None = None,
    ) -> None:
        self.admitting = True
        self.barred: frozenset[str] = frozenset()
        """Workers that are given nothing new; see :meth:`bar`."""
        self.speed = speed
        self.tickets = tickets or TicketBook()
        """Of jobs that wait for a slot; slots that are held for them are not free."""
        self._gate = gate
        self._limits = limits
        self._new_run_id = new_run_id
        # Told True when slots or runs changed, False when only progress did.
        self.on_change = on_change
        self._on_end = on_end
        self._slots: dict[str, WorkerSlots] = {}
        self._jobs = JobBook()
        self._runs: dict[str, Execution] = {}

    # --- what callers ask for ---

    def run(self, request: RunRequest, *, now_s: float, traceparent: str = "") -> Execution:
        """The execution that answers ``request``: a new one, or the one to attach to.

        Raises:
            StaleOwnerError: A newer owner or try has the job.
            NotAdmittedError: It needs a slot and there is none.
        """
        claim = (request.epoch, getattr(request, "try"))
        self._jobs.refuse_stale(request.job_id, claim)
        current = self._jobs.get(request.job_id)
        if current is not None and self._attaches(current, claim):
            self._take_over(current, claim, now_s=now_s)
            if request.HasField("deadline_s"):
                current.deadline_at_s = now_s + request.deadline_s
            return current
        return self._admit(request, claim, now_s=now_s, traceparent=traceparent)

    def cancel(self, job_id: str, *, epoch: int, reason: str, now_s: float) -> bool:
        """Stops the live run of a job; False where there is none.

        Raises:
            StaleOwnerError: A newer owner has the job.
        """
        self._jobs.refuse_stale(job_id, (epoch, _ANY_TRY))
        execution = self._jobs.get(job_id)
        if execution is None or execution.phase is Phase.ENDED:
            return False
        self._stop(execution, reason, now_s=now_s)
        return True

    def release(self, job_id: str, *, epoch: int) -> None:
        """Forgets the bytes of a finished run; a live one stays. Idempotent.

        Raises:
            StaleOwnerError: A newer owner has the job.
        """
        self._jobs.refuse_stale(job_id, (epoch, _ANY_TRY))
        execution = self._jobs.get(job_id)
        if execution is not None and execution.phase is Phase.ENDED:
            self._jobs.forget(execution)

    def attach(self, execution: Execution) -> None:
        """A stream of the present owner begins to read."""
        execution.owners += 1
        execution.orphaned_s = None

    def detach(self, execution: Execution, claim: Claim, *, now_s: float) -> None:
        """A stream stopped reading; the grace time begins with the owner's last one."""
        if claim != execution.claim:
            return
        execution.owners -= 1
        if execution.owners == 0:
            execution.orphaned_s = now_s

    def check_claim(self, execution: Execution, claim: Claim) -> None:
        """Returns while ``claim`` is the one that may read the execution.

        Raises:
            StaleOwnerError: A newer owner or try took the job since.
        """
        if claim != execution.claim:
            raise stale(execution.job_id, claim, execution.claim)

    # --- what workers say ---

    def worker_ready(self, worker_id: str) -> None:
        """A worker can take runs from now on."""
        self._slots[worker_id] = WorkerSlots(worker_id)
        self.on_change(True)

    def worker_lost(self, worker_id: str, *, message: str, now_s: float) -> None:
        """A worker is gone: what it had started failed with it, what waited did not begin."""
        slots = self._slots.pop(worker_id, None)
        if slots is None:
            return
        for execution in slots.all_runs():
            self._runs.pop(execution.run_id, None)
            if execution.closing:
                self._cancelled(execution, now_s=now_s)
                continue
            # The code tells a run that may have killed the worker from one that only waited.
            code = "worker_unavailable" if execution.phase is Phase.WAITING else "worker_died"
            self._fail(execution, code=code, message=message, retryable=True, now_s=now_s)
        self.on_change(True)

    def on_event(self, run_id: str, event: NodeEvent, *, now_s: float) -> None:
        """Takes an event of a run; one of an unknown run is late and dropped."""
        execution = self._runs.get(run_id)
        if execution is None:
            return
        execution.last_event_s = now_s
        kind = event.WhichOneof("event")
        urgent = kind == "started" or kind in TERMINAL_KINDS
        if kind == "started" and execution.phase is Phase.WAITING:
            execution.phase = Phase.RUNNING
            execution.started_s = now_s
        elif kind == "progress":
            self._on_progress(execution, event.progress, now_s=now_s)
        elif kind == "completed":
            self._on_completed(execution, event.completed, now_s=now_s)
        self._jobs.append(execution, event)
        if kind in TERMINAL_KINDS:
            self._leave_worker(execution, now_s=now_s)
            self._end(execution, kind or "", now_s=now_s)
        elif kind == "chunk":
            self._bound_bytes(execution, now_s=now_s)
        if urgent or kind == "progress":
            self.on_change(urgent)

    def on_device_done(self, run_id: str, *, now_s: float) -> None:
        """The device is free for the next run; this one's tail is still encoded."""
        execution = self._runs.get(run_id)
        if execution is None or execution.phase is not Phase.RUNNING:
            return
        execution.phase = Phase.TAIL
        execution.device_s = now_s - (execution.started_s or now_s)
        slots = self._slots.get(execution.worker_id)
        if slots is not None:
            slots.device_done(execution, now_s=now_s)
            self._dispatch(slots, now_s=now_s)
        self.on_change(True)

    def _on_progress(self, execution: Execution, event: ProgressEvent, *, now_s: float) -> None:
        execution.progress = max(execution.progress, progress_fraction(event))
        if event.stage == STAGE_DENOISE:
            if execution.last_step_s is not None and not execution.canary:
                self.speed.observe_step(now_s - execution.last_step_s)
            execution.last_step_s = now_s

    def _on_completed(self, execution: Execution, event: CompletedEvent, *, now_s: float) -> None:
        self.on_device_done(execution.run_id, now_s=now_s)
        # The worker knows only how long it waited there, not here.
        event.timings.queue_s = (execution.started_s or now_s) - execution.admitted_s
        # Only now: a run that failed held the device for less than its units.
        if not execution.canary:
            self.speed.observe(execution.units, execution.device_s)

    # --- what time does ---

    def expire(self, *, now_s: float) -> None:
        """Stops what is past its deadline or without an owner, forgets what is old."""
        for execution in self._jobs:
            if execution.phase is Phase.ENDED:
                if now_s - (execution.ended_s or 0.0) >= self._limits.keep_s:
                    self._jobs.forget(execution)
            elif execution.overdue(now_s):
                self._stop(execution, "deadline", now_s=now_s)
            elif (
                execution.orphaned_s is not None
                and now_s - execution.orphaned_s >= self._limits.owner_grace_s
            ):
                self._stop(execution, "disconnected", now_s=now_s)

    def fail_all(self, *, code: str, message: str, now_s: float) -> None:
        """Fails every live run as retryable: the agent leaves."""
        for execution in self.live():
            self._abandon(execution, code, now_s=now_s)
            self._fail(execution, code=code, message=message, retryable=True, now_s=now_s)

    def bar(self, worker_ids: frozenset[str]) -> None:
        """Gives these workers nothing new, as their devices fail; what they hold goes on."""
        if worker_ids != self.barred:
            self.barred = worker_ids
            self.on_change(True)

    # --- what others read ---

    def live(self) -> list[Execution]:
        """The current executions that have not ended, oldest first."""
        return [e for e in self._jobs if e.phase is not Phase.ENDED]

    def slots(self) -> Iterable[WorkerSlots]:
        """The slots of each live worker."""
        return self._slots.values()

    def free_slots(self) -> int:
        """Runs that would be admitted now, whosever they are."""
        return max(self.untaken_slots() - self.tickets.offered, 0)

    def untaken_slots(self) -> int:
        """The same, with those that are held for somebody."""
        return sum(slots.free for slots in self._open_slots())

    def slot_waits_s(self) -> list[float]:
        """How long a job would wait in each of these, the least first.

        In the second of a worker it would wait for a job that is not known yet.
        """
        waits_s: list[float] = []
        for slots in self._open_slots():
            if slots.free:
                waits_s.append(self.speed.seconds(slots.units_left))
                waits_s.extend([math.inf] * (slots.free - 1))
        return sorted(waits_s)

    def remaining_work_s(self) -> float:
        """Seconds until the first of the workers is out of work; 0 where one is idle."""
        return min((self.speed.seconds(s.units_left) for s in self._slots.values()), default=0.0)

    def silence(self, worker_id: str, *, now_s: float) -> tuple[float, float]:
        """How long a worker's run made no progress, and what one of its steps takes.

        The step is the longer of the median seen and the estimate for these very runs,
        so that a first large run is not called hung by the steps of small ones.
        """
        slots = self._slots.get(worker_id)
        if slots is None:
            return 0.0, 0.0
        steps_s = [
            self.speed.seconds(run.units) / max(run.spec.steps, 1)
            for run in (*slots.tails, *slots.held[:1])
        ]
        return slots.silent_s(now_s), max([self.speed.median_step_s(), *steps_s])

    def kept_bytes(self) -> int:
        """Bytes of all events that are kept."""
        return self._jobs.kept_bytes

    # --- how it is done ---

    def _open_slots(self) -> list[WorkerSlots]:
        """Those of the workers that may be given something."""
        if not self.admitting:
            return []
        return [slots for slots in self._slots.values() if slots.worker_id not in self.barred]

    @staticmethod
    def _attaches(current: Execution, claim: Claim) -> bool:
        if claim == current.claim:
            return True
        if claim[0] == current.epoch:
            return False
        return not current.closing and current.outcome in ("", "completed")

    @staticmethod
    def _take_over(current: Execution, claim: Claim, *, now_s: float) -> None:
        if claim == current.claim:
            return
        current.epoch, current.try_number = claim
        current.owners = 0
        # Until the new owner's stream attaches.
        current.orphaned_s = now_s
        # Streams of the former owner look at the claim when they wake.
        current.log.wake()

    def _admit(
        self, request: RunRequest, claim: Claim, *, now_s: float, traceparent: str
    ) -> Execution:
        former = self._jobs.get(request.job_id)
        self._supersede(former, claim, now_s=now_s)
        open_slots = [slots for slots in self._open_slots() if slots.free > 0]
        if self.untaken_slots() <= self.tickets.held_back(request.job_id):
            raise NotAdmittedError(self.remaining_work_s())
        slots = min(open_slots, key=lambda s: (self.speed.seconds(s.units_left), len(s.held)))
        wait_s = self.speed.seconds(slots.units_left)
        if request.HasField("max_wait_s") and wait_s > request.max_wait_s:
            raise NotAdmittedError(wait_s, too_long=True)
        execution = Execution(
            job_id=request.job_id,
            run_id=self._new_run_id(),
            epoch=claim[0],
            try_number=claim[1],
            attempt=request.attempt,
            spec=request.spec,
            units=work_units(request.spec),
            admitted_s=now_s,
            traceparent=traceparent,
            canary=request.canary,
            alone=request.alone,
            deadline_at_s=now_s + request.deadline_s if request.HasField("deadline_s") else None,
            # Until its stream attaches: a caller that vanished at once must not hold a slot.
            orphaned_s=now_s,
        )
        self._jobs.put(execution)
        self._runs[execution.run_id] = execution
        slots.admit(execution)
        self.tickets.ran(request.job_id)
        self._dispatch(slots, now_s=now_s)
        self.on_change(True)
        return execution

    def _supersede(self, former: Execution | None, claim: Claim, *, now_s: float) -> None:
        """Gives the job to a newer claim: the former attempt is stopped and forgotten."""
        if former is None:
            return
        if former.phase is not Phase.ENDED:
            self._stop(former, "superseded", now_s=now_s)
        former.epoch, former.try_number = claim
        former.log.wake()
        self._jobs.forget(former)

    def _dispatch(self, slots: WorkerSlots, *, now_s: float) -> None:
        overdue = [e for e in slots.held if not e.dispatched and e.overdue(now_s)]
        for execution in overdue:
            # Not left to the next look at the time: the device would begin it meanwhile.
            self._stop(execution, "deadline", now_s=now_s)
        for execution in slots.to_dispatch(now_s=now_s):
            self._gate.generate(execution)

    def _stop(self, execution: Execution, reason: str, *, now_s: float) -> None:
        """Cancels a live run: at once where it waits, within a step where it runs."""
        if execution.closing:
            return
        self._abandon(execution, reason, now_s=now_s)
        if execution.phase is Phase.WAITING:
            self._cancelled(execution, now_s=now_s)
        self.on_change(True)

    def _abandon(self, execution: Execution, reason: str, *, now_s: float) -> None:
        """Tells the worker, once, to let go of a run; its slot counts as free."""
        if execution.closing:
            return
        execution.closing = reason
        if execution.dispatched:
            self._gate.cancel(execution, reason)
        else:
            self._leave_worker(execution, now_s=now_s)

    def _cancelled(self, execution: Execution, *, now_s: float) -> None:
        event = CancelledEvent(reason=execution.closing)
        if self._jobs.append(execution, NodeEvent(attempt=execution.attempt, cancelled=event)):
            self._end(execution, "cancelled", now_s=now_s)

    def _fail(
        self, execution: Execution, *, code: str, message: str, retryable: bool, now_s: float
    ) -> None:
        failed = FailedEvent(code=code, message=message, retryable=retryable)
        if self._jobs.append(execution, NodeEvent(attempt=execution.attempt, failed=failed)):
            self._end(execution, "failed", now_s=now_s)

    def _end(self, execution: Execution, outcome: str, *, now_s: float) -> None:
        if execution.phase is not Phase.ENDED:
            execution.phase = Phase.ENDED
            execution.outcome = outcome
            execution.ended_s = now_s
            self._on_end(execution)
            self._bound_bytes(execution, now_s=now_s)

    def _leave_worker(self, execution: Execution, *, now_s: float) -> None:
        """The worker let go of the run (or never had it): its slot is free."""
        self._runs.pop(execution.run_id, None)
        slots = self._slots.get(execution.worker_id)
        if slots is not None:
            slots.remove(execution, now_s=now_s)
            self._dispatch(slots, now_s=now_s)

    def _bound_bytes(self, growing: Execution, *, now_s: float) -> None:
        """Keeps within the byte bound: oldest ended runs go first, then the growing one."""
        limit_bytes = self._limits.keep_bytes
        if self._jobs.shrink(limit_bytes, keep=growing) or growing.phase is Phase.ENDED:
            return
        self._abandon(growing, "output_too_large", now_s=now_s)
        self._fail(
            growing,
            code="output_too_large",
            message=f"the node keeps at most {limit_bytes} bytes of output",
            retryable=False,
            now_s=now_s,
        )
