"""The events of one job, written at the node's speed and read at each reader's own.

What nodes say lies in a run's log (:mod:`gateway.output.run_log`), which jobs that share the
run read together: each under its own id, with attempts and seqs counted as its own record
does. When an attempt is superseded, a reader that is still inside it gets RESTARTED next.
Progress and previews are conflated for a reader that is behind; chunks of the current attempt
and the terminal event are never missed. After FAILED or CANCELLED the bytes are void for this
job, and a reader that is behind goes straight to the terminal event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

from reelmesh.v1 import node_service_pb2, video_pb2

from gateway.jobs.attempts import FIRST_ATTEMPT, attempt_of, ordinal_of, seq_of
from gateway.output.run_log import RunEntry, RunLog
from gateway.output.spool import BytesGone, ReadRange, VideoBytes
from gateway.output.wire import NodeChunk, encode_chunk, encode_event

T = TypeVar("T")


class LogAbandoned(Exception):  # noqa: N818 - named for what happened
    """This gateway no longer makes the job's events; its owner does.

    ``seq`` is the last one that the reader got, to go on after elsewhere.
    """

    def __init__(self, seq: int) -> None:
        super().__init__("the job has another owner")
        self.seq = seq


class EventLog:
    """What happened to a job, for any number of readers.

    Args:
        video_id: Named in every event.
        new_bytes: Makes the spool of an attempt.
        queued: The snapshot that every reader gets first.
        follows: The run of another job that this one shares; without, it has its own.
        epoch: Of the job's owner; numbers the attempts of a run that it shares.
    """

    def __init__(
        self,
        *,
        video_id: str,
        new_bytes: Callable[[], VideoBytes],
        queued: video_pb2.QueuedEvent,
        follows: RunLog | None = None,
        epoch: int = 1,
    ) -> None:
        self._video_id = video_id
        self._new_bytes = new_bytes
        self._queued = queued
        self._epoch = epoch
        self._queued_changes = 0
        self._waiting = True
        self._reason = ""
        self._shift = 0
        self._stored: ReadRange | None = None
        self._terminal: video_pb2.VideoEvent | None = None
        self._void = False
        self._abandoned = False
        self._waiters: list[asyncio.Future[None]] = []
        self.attempt = 0
        """Ordinal of the current attempt in this job's own count; 0 before the first."""
        self.readers = 0
        self.on_readers: Callable[[int], None] = lambda _readers: None
        """Called with the number of readers when it changed."""
        self._follows = follows is not None
        self._run = follows or RunLog(video_id=video_id, new_bytes=new_bytes)
        self._run.join(self)
        if self._run.attempt:
            self.attempt_begun(self._run.attempt, "")

    # --- whose run it is ---

    @property
    def run(self) -> RunLog:
        """What nodes say."""
        return self._run

    def follow(self, run: RunLog, reason: str) -> None:
        """Reads the run of another job from now on; what its last one brought is void."""
        self._run.leave(self)
        self._follows, self._run = True, run
        run.join(self)
        if run.attempt:
            self.attempt_begun(run.attempt, reason)
        self._wake()

    def lead(self, reason: str) -> None:
        """Has a run of its own from now on; what the shared one brought is void."""
        self._run.leave(self)
        self._follows = False
        self._run = RunLog(video_id=self._video_id, new_bytes=self._new_bytes)
        self._run.join(self)
        self._waiting = True
        if self.attempt:
            self.begin(self._next_attempt(), reason)

    def number_of(self, attempt: int) -> int:
        """This job's own ordinal of a run's current or next attempt."""
        if not self._follows:
            return attempt
        return self.attempt if attempt == self._run.attempt else self._next_attempt()

    @property
    def tries(self) -> int:
        """The number of the current try among those of the job's present owner; 0: none yet."""
        if not self.attempt:
            return 0
        epoch, try_ = attempt_of(self.attempt)
        return try_ if epoch == self._epoch else 0

    def _next_attempt(self) -> int:
        return ordinal_of(self._epoch, self.tries + 1)

    # --- what the run tells ---

    @property
    def done(self) -> bool:
        """See :class:`gateway.output.run_log.Subscriber`."""
        return self._terminal is not None and not self.readers

    @property
    def stored(self) -> bool:
        """See :class:`gateway.output.run_log.Subscriber`."""
        return self._stored is not None

    def attempt_begun(self, attempt: int, reason: str) -> None:
        """See :class:`gateway.output.run_log.Subscriber`."""
        self.attempt = self._next_attempt() if self._follows else attempt
        self._shift = seq_of(self.attempt, 0) - seq_of(attempt, 0)
        self._reason = reason

    def moved(self) -> None:
        """See :class:`gateway.output.run_log.Subscriber`."""
        self._waiting = False
        self._wake()

    def requeue(self, position: int, eta_s: float | None) -> None:
        """See :class:`gateway.output.run_log.Subscriber`."""
        told_s = self._queued.eta_s if self._queued.HasField("eta_s") else None
        if self._queued.position == position and _alike(told_s, eta_s):
            return
        queued = video_pb2.QueuedEvent()
        queued.CopyFrom(self._queued)
        queued.position = position
        if eta_s is None:
            queued.ClearField("eta_s")
        else:
            queued.eta_s = eta_s
        self._queued = queued
        self._queued_changes += 1
        self._waiting = True
        self._wake()

    # --- the runner's side ---

    @property
    def spooled(self) -> VideoBytes:
        """The current attempt's bytes."""
        return self._run.spooled

    @property
    def terminal(self) -> video_pb2.VideoEvent | None:
        """The last event, once there is one."""
        return self._terminal

    @property
    def position(self) -> int:
        """Jobs ahead of it, as readers were told last."""
        return self._queued.position

    def tell_position(self, position: int, eta_s: float | None) -> None:
        """Takes the run's new place in the line, for all who share it."""
        self._run.requeue(position, eta_s)

    def begin(self, attempt: int, reason: str) -> None:
        """Makes an attempt current; any but the first is announced with RESTARTED."""
        self._run.begin(attempt, reason)

    def append(self, event: node_service_pb2.NodeEvent, kind: str) -> None:
        """See :meth:`gateway.output.run_log.RunLog.append`."""
        self._run.append(event, kind)

    def append_chunk(self, chunk: NodeChunk) -> None:
        """See :meth:`gateway.output.run_log.RunLog.append_chunk`."""
        self._run.append_chunk(chunk)

    def finish(self, terminal: video_pb2.VideoEvent) -> None:
        """Ends the log; what comes later is ignored."""
        if self._terminal is not None:
            return
        self._terminal = terminal
        if terminal.WhichOneof("event") == "completed":
            self._run.publish()
        else:
            self._leave()
        self._wake()
        self.settle_memory()

    def rebase(self, read: ReadRange) -> None:
        """Bytes that have left memory come from the job's own artifact from now on."""
        self._stored = read

    def abandon(self) -> None:
        """Sends every reader elsewhere; a log that has ended stays as it is."""
        if self._terminal is None:
            self._abandoned = True
            self._leave()
            self._wake()

    def _leave(self) -> None:
        self._void = True
        self._run.leave(self)

    def tell_durable(self, durable: bool) -> None:
        """Corrects what readers are told first, before the first of them reads."""
        self._queued.durable = durable

    def _wake(self) -> None:
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    # --- the readers' side ---

    def read(self, after_seq: int) -> AsyncGenerator[video_pb2.VideoEvent]:
        """QUEUED, then every event after a seq, up to and including the terminal one.

        Raises:
            OSError: Bytes that had left memory could not be read back.
            LogAbandoned: The job has another owner now.
        """
        return self._read(after_seq, lambda event: event, self._chunk_event)

    def read_encoded(self, after_seq: int) -> AsyncGenerator[bytes]:
        """The same events, each as an encoded ``WatchVideoResponse``."""
        return self._read(after_seq, encode_event, self._chunk_encoded)

    async def _read(
        self,
        after_seq: int,
        of_event: Callable[[video_pb2.VideoEvent], T],
        of_chunk: Callable[[RunEntry, int, bytes | memoryview], T],
    ) -> AsyncGenerator[T]:
        self._count_reader(+1)
        place: tuple[RunLog, int] | None = None
        cursor, queued_changes = 0, -1
        try:
            while True:
                if self._abandoned:
                    raise LogAbandoned(after_seq)
                run = self._run
                if place is None or place[0] is not run or place[1] != run.generation:
                    place = (run, run.generation)
                    cursor = run.first_after(after_seq - self._shift)
                if queued_changes != self._queued_changes and (self._waiting or queued_changes < 0):
                    queued_changes = self._queued_changes
                    queued = video_pb2.VideoEvent(video_id=self._video_id, queued=self._queued)
                    yield of_event(queued)
                elif not self._void and self._is_restarted(after_seq):
                    restarted = self._restarted()
                    after_seq = restarted.seq
                    yield of_event(restarted)
                elif not self._void and cursor < run.published:
                    entry = run.entries[cursor]
                    cursor += 1
                    seq = entry.seq + self._shift
                    if seq <= after_seq:
                        # A node replays to the next owner of a job what its reader had.
                        continue
                    if entry.length:
                        data = await self._data(run, entry)
                        if data is None or place != (self._run, self._run.generation):
                            continue
                        yield of_chunk(entry, seq, data)
                    elif entry.event is not None:
                        yield of_event(self._own(entry.event, seq))
                    after_seq = seq
                elif self._terminal is not None:
                    yield of_event(self._terminal)
                    return
                else:
                    await self._change()
        finally:
            self._count_reader(-1)

    def _is_restarted(self, after_seq: int) -> bool:
        return self.attempt > FIRST_ATTEMPT and after_seq < seq_of(self.attempt, 0)

    def _restarted(self) -> video_pb2.VideoEvent:
        return video_pb2.VideoEvent(
            seq=seq_of(self.attempt, 0),
            video_id=self._video_id,
            restarted=video_pb2.RestartedEvent(attempt=self.attempt, reason=self._reason),
        )

    def _own(self, event: video_pb2.VideoEvent, seq: int) -> video_pb2.VideoEvent:
        """An event of the run as this job tells it."""
        if event.seq == seq and event.video_id == self._video_id:
            return event
        own = video_pb2.VideoEvent()
        own.CopyFrom(event)
        own.seq, own.video_id = seq, self._video_id
        if own.HasField("started"):
            own.started.attempt = self.attempt
        return own

    def _count_reader(self, change: int) -> None:
        self.readers += change
        self.on_readers(self.readers)
        self.settle_memory()

    def settle_memory(self) -> None:
        """Frees what an ended log need not hold while nobody reads it."""
        if self.done:
            self._run.settle_memory()

    async def _data(self, run: RunLog, entry: RunEntry) -> bytes | memoryview | None:
        """A chunk's bytes; None where they are void by now."""
        data = run.spooled.recent(entry.offset)
        if data is not None:
            return data
        if self._stored is not None:
            return await self._stored(entry.offset, entry.length)
        try:
            return await run.spooled.read(entry.offset, entry.length)
        except BytesGone:
            return None

    def _chunk_event(
        self, entry: RunEntry, seq: int, data: bytes | memoryview
    ) -> video_pb2.VideoEvent:
        chunk = video_pb2.ChunkEvent(attempt=self.attempt, offset=entry.offset, data=bytes(data))
        return video_pb2.VideoEvent(seq=seq, video_id=self._video_id, chunk=chunk)

    def _chunk_encoded(self, entry: RunEntry, seq: int, data: bytes | memoryview) -> bytes:
        return encode_chunk(seq, self._video_id, self.attempt, entry.offset, data)

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)


def _alike(told_s: float | None, eta_s: float | None) -> bool:
    if told_s is None or eta_s is None:
        return told_s is eta_s
    return abs(told_s - eta_s) < 1.0
