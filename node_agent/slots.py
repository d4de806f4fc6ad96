"""What one worker holds: at most one run on the device and one that waits for it.

Pure bookkeeping. Runs that are being cancelled keep the device for up to a step, but
no longer count as admitted; runs whose device part is done are a tail that is still
encoded, and count as neither.

A run that is ``alone`` (a worker has died under its job) shares its worker with nothing
that could be lost: it is handed over once the worker holds nothing else, tails included,
and nothing is admitted behind it until it has ended.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from reelmesh.v1.video_pb2 import ResolvedSpec

from node_agent.event_log import EventLog

MAX_HELD = 2

# (epoch, try): which owner, and which of its tries.
Claim = tuple[int, int]


class Phase(enum.Enum):
    """How far a run has come."""

    WAITING = "waiting"
    RUNNING = "running"
    TAIL = "tail"
    ENDED = "ended"


@dataclass(eq=False, kw_only=True)
class Execution:
    """One attempt of a job on this node, from admission until its bytes are forgotten.

    Times are seconds of the agent's monotonic clock. ``epoch`` and ``try_number`` are
    those of the present owner, which may be newer than ``attempt``: an adopter
    attaches to the attempt that runs.
    """

    job_id: str
    run_id: str
    epoch: int
    try_number: int
    attempt: int
    spec: ResolvedSpec
    units: float
    admitted_s: float
    worker_id: str = ""
    traceparent: str = ""
    deadline_at_s: float | None = None
    canary: bool = False
    """A test of the node: its time says nothing of what clients' jobs take."""
    alone: bool = False
    """A worker has died under its job: it has a worker to itself."""
    log: EventLog = field(default_factory=EventLog)
    phase: Phase = Phase.WAITING
    outcome: str = ""
    progress: float = 0.0
    dispatched_s: float | None = None
    """When the worker was told of it."""
    closing: str = ""
    """Why a cancel is on its way, after which nothing may attach any more."""
    started_s: float | None = None
    device_s: float = 0.0
    """How long the device was held, once it is free of the run."""
    last_event_s: float | None = None
    last_step_s: float | None = None
    ended_s: float | None = None
    owners: int = 0
    """Open streams of the present owner."""
    orphaned_s: float | None = None
    """Since when nobody reads; None while somebody does."""

    @property
    def claim(self) -> Claim:
        """What a newer owner's (epoch, try) must exceed or equal."""
        return (self.epoch, self.try_number)

    @property
    def dispatched(self) -> bool:
        """Whether the worker knows of it."""
        return self.dispatched_s is not None

    def overdue(self, now_s: float) -> bool:
        """Whether its deadline has passed."""
        return self.deadline_at_s is not None and now_s >= self.deadline_at_s

    @property
    def units_left(self) -> float:
        """Work units that the device has yet to do."""
        if self.closing or self.phase in (Phase.TAIL, Phase.ENDED):
            return 0.0
        return self.units * (1 - self.progress)


@dataclass(eq=False)
class WorkerSlots:
    """The runs of one worker, in the order in which the device takes them."""

    worker_id: str
    held: list[Execution] = field(default_factory=list)
    tails: list[Execution] = field(default_factory=list)
    device_free_s: float = 0.0
    """When the device last became free for the next run."""

    @property
    def free(self) -> int:
        """Runs that can be admitted now; none beside one that has the worker to itself."""
        if any(run.alone for run in self.all_runs()):
            return 0
        return max(0, MAX_HELD - sum(not run.closing for run in self.held))

    @property
    def units_left(self) -> float:
        """Work units ahead of a run that is admitted now."""
        return sum(run.units_left for run in self.held)

    def admit(self, execution: Execution) -> None:
        """Puts a run at the end; the caller has looked at :attr:`free`."""
        execution.worker_id = self.worker_id
        self.held.append(execution)

    def to_dispatch(self, *, now_s: float) -> list[Execution]:
        """The runs that the worker should be told of now; marks them as told.

        Two at most are with the worker, cancelled ones that it has not yet let go of
        included: it starts the second without asking back. One that is alone waits here
        until the worker has let go of everything else.
        """
        with_worker = sum(run.dispatched for run in self.held)
        ready = [run for run in self.held if not run.dispatched][: MAX_HELD - with_worker]
        ready = [run for run in ready if not run.alone or self.all_runs() == [run]]
        for run in ready:
            run.dispatched_s = now_s
        return ready

    def device_done(self, execution: Execution, *, now_s: float) -> None:
        """Moves a run from the device to the tail. Idempotent."""
        if execution in self.held:
            self.held.remove(execution)
            self.tails.append(execution)
            self.device_free_s = now_s

    def remove(self, execution: Execution, *, now_s: float) -> None:
        """Forgets a run. Idempotent."""
        if execution in self.held:
            self.held.remove(execution)
            self.device_free_s = now_s
        if execution in self.tails:
            self.tails.remove(execution)

    def all_runs(self) -> list[Execution]:
        """Everything the worker's death would take along."""
        return [*self.tails, *self.held]

    def silent_s(self, now_s: float) -> float:
        """Longest time that a run which should progress said nothing; 0 when idle.

        The tails, and the first run that the worker was told of, counted from when
        it could begin. So every stage is covered: text and denoising and decoding of the
        first run, encoding of the tails.
        """
        waits = [now_s - (run.last_event_s or run.admitted_s) for run in self.tails]
        for run in self.held[:1]:
            if run.dispatched_s is not None:
                began_s = max(run.dispatched_s, self.device_free_s)
                waits.append(now_s - max(run.last_event_s or 0.0, began_s))
        return max(waits, default=0.0)
