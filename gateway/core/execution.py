"""One job on its way, as its gateway holds it: the record so far, its events, its run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from reelmesh.v1 import job_service_pb2, video_pb2

from gateway.fleet.node_link import NodeLink
from gateway.fleet.waiting import Ticket
from gateway.jobs.records import last_attempt, terminal_event
from gateway.output.event_log import EventLog

# Why an attempt is no more whose run its job's next owner did not find.
OWNER_LOST: Final = "owner_lost"


def _nobody(*_args: object) -> None:
    """Whom a job tells that has nobody to tell."""


class Disowned(Exception):  # noqa: N818 - named for what happened
    """Another gateway owns the job now; what this one does for it counts no more."""


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

    def set_status(self, status: video_pb2.VideoStatus.ValueType) -> None:
        """Says whether it waits or runs; nothing once it has ended."""
        if self.ended:
            return
        if status == video_pb2.VIDEO_STATUS_RUNNING != self.record.video.status:
            self.on_running()
        self.record.video.status = status
        if status == video_pb2.VIDEO_STATUS_QUEUED:
            # What a lost attempt had done is not done.
            self.progress_percent = 0

    def begin_attempt(self, attempt: int, try_: int, node_id: str, now_s: float) -> None:
        """Notes that a node was given the job."""
        entry = self.record.attempts.add(
            attempt=attempt, epoch=self.epoch, **{"try": try_}, node_id=node_id
        )
        entry.started_at.FromNanoseconds(int(now_s * 1e9))

    def end_attempt(self, cause: str) -> None:
        """Notes why the newest attempt is no more."""
        if self.record.attempts:
            self.record.attempts[-1].cause = cause

    def lose_attempts(self) -> None:
        """Notes that what former owners began does not go on."""
        for attempt in self.record.attempts:
            attempt.cause = attempt.cause or OWNER_LOST

    def drop_attempt(self) -> None:
        """A node would not take it: that counts as no attempt."""
        del self.record.attempts[-1]

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
        self.on_running = _nobody
        self.log.on_readers = _nobody

    def video(self) -> video_pb2.Video:
        """The video as it now stands."""
        video = video_pb2.Video()
        video.CopyFrom(self.record.video)
        video.progress_percent = self.progress_percent
        video.attempts = len(self.record.attempts)
        return video
