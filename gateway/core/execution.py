"""One job on its way, as its gateway holds it: the record so far, its events, its run.

Jobs that ask for the same share one run. The first of them leads: its execution holds the
run, at the node under its id, and goes on doing so for the others when its own job has ended.
The others follow; each has its record, its log, its deadline and its end for itself.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from reelmesh.v1 import job_service_pb2, video_pb2

from gateway.fleet.node_link import NodeLink
from gateway.fleet.waiting import Ticket
from gateway.jobs.attempts import attempt_of
from gateway.jobs.records import last_attempt, terminal_event
from gateway.output.event_log import EventLog

# Why an attempt is no more whose run its job's next owner did not find.
OWNER_LOST: Final = "owner_lost"


def _nobody(*_args: object) -> None:
    """Whom a job tells that has nobody to tell."""


class Disowned(Exception):  # noqa: N818 - named for what happened
    """Another gateway owns the job now; what this one does for it counts no more."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A run brought its video, which lies in the store."""

    key: str
    """The artifact of the job that was given it first; it may be deleted at any time."""
    result: video_pb2.CompletedEvent


Outcome = Whole | video_pb2.FailedEvent
"""How a run ended, for those who share it."""


@dataclass(eq=False, kw_only=True, slots=True)
class Execution:
    """A job between its admission and some time after its end."""

    record: job_service_pb2.JobRecord
    """As admitted, with status and attempts as they now are; terminal once ended."""
    log: EventLog
    ticket: Ticket
    deadline_at_s: float
    """Monotonic."""
    progress_percent: int = 0
    link: NodeLink | None = None
    """The node that holds its run now."""
    task: asyncio.Task[None] | None = None
    committing: bool = False
    """The video is whole and is being written; the node is done with it."""
    grace: asyncio.Task[None] | None = None
    """Cancels it when nobody watches for too long."""
    recorded: asyncio.Event = field(default_factory=asyncio.Event)
    """Its record stands, or it was decided that it has none; nothing ends before."""
    noting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the record of a job that goes on is written."""
    adopted_from: NodeLink | None = None
    """The node that still runs it for a former owner."""
    ended: bool = False
    on_running: Callable[[], None] = _nobody
    """Called when a node has begun to work on it."""
    on_disowned: Callable[[], None] = _nobody
    """To be called when its record names another owner."""
    disowned: bool = False
    """Another gateway owns it, or nobody: what goes on at the node is not this one's to stop."""
    told_deadline_at_s: float = math.inf
    """The deadline that the run's node was told, monotonic."""
    attempt: int = 0
    """Ordinal of the run's newest attempt; 0 before the first."""
    leader: Execution | None = None
    """Whose run this job shares."""
    followers: list[Execution] = field(default_factory=list)
    """The jobs that share this one's run."""
    delivered: bool = False
    """The run has an outcome: nobody joins it any more."""
    outcome: asyncio.Future[Outcome | None] | None = None
    """A follower's: how the run ended; None: it is to have a run of its own."""

    @property
    def video_id(self) -> str:
        """The video's id."""
        return self.record.video.id

    @property
    def epoch(self) -> int:
        """The owner's epoch."""
        return self.record.epoch

    @property
    def keep(self) -> bool:
        """Runs on when nobody watches."""
        return self.record.keep

    @property
    def may_answer_first(self) -> bool:
        """Whether its client may hear of its end before the record does.

        One that nobody can ask for again, by its key or after the client left.
        """
        return not self.keep and not self.record.idempotency_key

    @property
    def spec(self) -> video_pb2.ResolvedSpec:
        """What to draw."""
        return self.record.video.spec

    # --- the run, for every job that shares it ---

    @property
    def jobs(self) -> list[Execution]:
        """The jobs that wait for this run: that have not ended, the one that pays first."""
        return [job for job in (self, *self.followers) if not job.ended]

    @property
    def run_deadline_at_s(self) -> float:
        """When nobody wants the run any more, monotonic."""
        return max((job.deadline_at_s for job in self.jobs), default=self.deadline_at_s)

    def set_status(self, status: video_pb2.VideoStatus.ValueType) -> None:
        """Says whether it waits or runs; nothing to a job that has ended."""
        for job in self.jobs:
            job._set_status(status)  # noqa: SLF001 - of its own kind

    def _set_status(self, status: video_pb2.VideoStatus.ValueType) -> None:
        if status == video_pb2.VIDEO_STATUS_RUNNING != self.record.video.status:
            self.on_running()
        self.record.video.status = status
        if status == video_pb2.VIDEO_STATUS_QUEUED:
            # What a lost attempt had done is not done.
            self.progress_percent = 0

    def note_progress(self, percent: int) -> None:
        """Says how much of the video is drawn."""
        for job in self.jobs:
            job.progress_percent = percent

    def begin_attempt(self, attempt: int, node_id: str, now_s: float) -> None:
        """Notes that a node was given the run."""
        self.attempt = attempt
        for job in self.jobs:
            job.join_attempt(job.log.number_of(attempt), node_id, now_s)

    def join_attempt(self, attempt: int, node_id: str, now_s: float) -> None:
        """Notes an attempt of this job, by its own count."""
        entry = self.record.attempts.add(
            attempt=attempt, epoch=self.epoch, **{"try": attempt_of(attempt)[1]}, node_id=node_id
        )
        entry.started_at.FromNanoseconds(int(now_s * 1e9))

    def end_attempt(self, cause: str) -> None:
        """Notes why the newest attempt is no more."""
        for job in self.jobs:
            if job.record.attempts:
                job.record.attempts[-1].cause = cause

    def lose_attempts(self) -> None:
        """Notes that what former owners began does not go on."""
        for job in self.jobs:
            for attempt in job.record.attempts:
                attempt.cause = attempt.cause or OWNER_LOST

    def drop_attempt(self) -> None:
        """A node would not take it: that counts as no attempt."""
        for job in self.jobs:
            del job.record.attempts[-1]

    def deliver(self, outcome: Outcome) -> None:
        """Tells those who follow how the run ended; each ends its job by itself."""
        self.delivered = True
        followers, self.followers = self.followers, []
        for job in followers:
            job.leader = None
            if job.outcome is not None and not job.outcome.done():
                job.outcome.set_result(outcome)

    # --- the job ---

    def finish(self, standing: job_service_pb2.JobRecord) -> None:
        """Takes the terminal record that stands and tells all readers."""
        if self.ended:
            return
        self.record = standing
        self.progress_percent = standing.video.progress_percent
        self.ended = True
        event = terminal_event(standing.video, last_attempt(standing))
        if event is not None:
            self.log.finish(event)

    def let_go(self) -> None:
        """Drops what only a job that runs needs; call it when its task has ended.

        These refer back to the execution (the task by its traceback), so that an ended job
        would stay in memory until a garbage collection comes by, however soon it is deleted.
        """
        self.task = None
        self.leader = None
        self.on_running = self.on_disowned = _nobody
        self.log.on_readers = _nobody

    def video(self) -> video_pb2.Video:
        """The video as it now stands."""
        video = video_pb2.Video()
        video.CopyFrom(self.record.video)
        video.progress_percent = self.progress_percent
        video.attempts = len(self.record.attempts)
        return video
