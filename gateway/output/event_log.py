"""The events of one job, written at the node's speed and read at each reader's own.

One attempt is current at a time. When another begins, everything of the one before is
void: its bytes go, and a reader that is still inside it gets RESTARTED next. Progress
and previews are kept only in their newest form, so a reader that is behind sees them
conflated; chunks of the current attempt and the terminal event are never missed. After
FAILED or CANCELLED the bytes are void too, and a reader that is behind goes straight to
the terminal event.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import AsyncGenerator, Callable
from typing import Final, TypeVar

from reelmesh.v1 import node_service_pb2, video_pb2

from gateway.jobs.attempts import FIRST_ATTEMPT, seq_of
from gateway.output.spool import BytesGone, VideoBytes
from gateway.output.wire import NodeChunk, encode_chunk, encode_event

T = TypeVar("T")

# No device finishes steps faster, so progress that does comes in a burst (a replay).
_BURST_S: Final = 0.005


class LogAbandoned(Exception):  # noqa: N818 - named for what happened
    """This gateway no longer makes the job's events; its owner does.

    ``seq`` is the last one that the reader got, to go on after elsewhere.
    """

    def __init__(self, seq: int) -> None:
        super().__init__("the job has another owner")
        self.seq = seq


class _Entry:
    """An event of the current attempt; a chunk's bytes are with the spool."""

    __slots__ = ("event", "length", "offset", "seq")

    def __init__(
        self, seq: int, event: video_pb2.VideoEvent | None, offset: int = 0, length: int = 0
    ) -> None:
        self.seq = seq
        self.event = event
        """None for a chunk, and for one that a newer of its kind replaced."""
        self.offset = offset
        self.length = length
        """More than 0 for a chunk alone."""


def _seq(entry: _Entry) -> int:
    return entry.seq


class EventLog:
    """What happened to a job, for any number of readers.

    Args:
        video_id: Named in every event.
        new_bytes: Makes the spool of an attempt.
        queued: The snapshot that every reader gets first.
    """

    def __init__(
        self,
        *,
        video_id: str,
        new_bytes: Callable[[], VideoBytes],
        queued: video_pb2.QueuedEvent,
    ) -> None:
        self._video_id = video_id
        self._new_bytes = new_bytes
        self._queued = queued
        self._queued_changes = 0
        self._waiting = True
        self._entries: list[_Entry] = []
        self._published = 0
        self._publishing: asyncio.TimerHandle | None = None
        self._told_progress_at = 0.0
        self._generation = 0
        self._newest: dict[str, _Entry] = {}
        self._bytes = new_bytes()
        self._terminal: video_pb2.VideoEvent | None = None
        self._abandoned = False
        self._waiters: list[asyncio.Future[None]] = []
        self.attempt = 0
        """Ordinal of the current attempt; 0 before the first."""
        self.readers = 0
        self.on_readers: Callable[[int], None] = lambda _readers: None
        """Called with the number of readers when it changed."""

    # --- the runner's side ---

    @property
    def spooled(self) -> VideoBytes:
        """The current attempt's bytes."""
        return self._bytes

    @property
    def terminal(self) -> video_pb2.VideoEvent | None:
        """The last event, once there is one."""
        return self._terminal

    def requeue(self, position: int, eta_s: float | None) -> None:
        """Takes a new position in the line; None: no node serves the model now."""
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

    def begin(self, attempt: int, reason: str) -> None:
        """Makes an attempt current; any but the first is announced with RESTARTED."""
        if self.attempt:
            self._reset()
        if attempt > FIRST_ATTEMPT:
            restarted = video_pb2.RestartedEvent(attempt=attempt, reason=reason)
            seq = seq_of(attempt, 0)
            self._entries.append(_Entry(seq, self._event(seq, restarted=restarted)))
        self.attempt = attempt
        self._publish()

    def _reset(self) -> None:
        self._generation += 1
        self._entries = []
        self._published = 0
        self._newest = {}
        self._bytes.void()
        self._bytes = self._new_bytes()

    def append(self, event: node_service_pb2.NodeEvent, kind: str) -> None:
        """Takes an event of the current attempt, as the node numbered it.

        Raises:
            ByteGap: A chunk does not follow the one before.
        """
        if kind == "chunk":
            data = memoryview(event.chunk.data)
            self.append_chunk(NodeChunk(event.attempt, event.n, event.chunk.offset, data))
            return
        seq = seq_of(event.attempt, event.n)
        if self._is_known(seq):
            return
        entry = _Entry(seq, self._event(seq, **{kind: getattr(event, kind)}))
        self._entries.append(entry)
        if kind == "started":
            # What follows at once is a burst too.
            self._told_progress_at = asyncio.get_running_loop().time()
            self._publish()
            return
        former = self._newest.get(kind)
        if former is not None:
            former.event = None
        self._newest[kind] = entry
        self._publish_in_time()

    def append_chunk(self, chunk: NodeChunk) -> None:
        """The same with a chunk that was not decoded into a message.

        Raises:
            ByteGap: It does not follow the one before.
        """
        seq = seq_of(chunk.attempt, chunk.n)
        if not self._is_known(seq):
            self._bytes.append(chunk.offset, chunk.data)
            self._entries.append(_Entry(seq, None, chunk.offset, len(chunk.data)))
            self._publish()

    def _is_known(self, seq: int) -> bool:
        """Whether a node's replay overlaps what it has sent before."""
        return bool(self._entries) and seq <= self._entries[-1].seq

    def _publish(self) -> None:
        """Lets readers see everything that is there."""
        if self._publishing is not None:
            self._publishing.cancel()
            self._publishing = None
        self._published = len(self._entries)
        self._waiting = False
        self._wake()

    def _publish_in_time(self) -> None:
        """The same, but only the last of a burst of progress is seen."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - self._told_progress_at >= _BURST_S:
            self._told_progress_at = now
            self._publish()
        elif self._publishing is None:
            self._publishing = loop.call_later(_BURST_S, self._publish)

    def finish(self, terminal: video_pb2.VideoEvent) -> None:
        """Ends the log; what comes later is ignored."""
        if self._terminal is not None:
            return
        if terminal.WhichOneof("event") != "completed":
            self._reset()
        self._terminal = terminal
        self._publish()
        self.settle_memory()

    def abandon(self) -> None:
        """Sends every reader elsewhere; a log that has ended stays as it is."""
        if self._terminal is None:
            self._abandoned = True
            self._reset()
            self._wake()

    def tell_durable(self, durable: bool) -> None:
        """Corrects what readers are told first, before the first of them reads."""
        self._queued.durable = durable

    def _event(self, seq: int, **event: object) -> video_pb2.VideoEvent:
        # The keyword is one of the oneof's names; mypy cannot follow that.
        return video_pb2.VideoEvent(seq=seq, video_id=self._video_id, **event)  # type: ignore[arg-type]

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
        of_chunk: Callable[[_Entry, int, bytes | memoryview], T],
    ) -> AsyncGenerator[T]:
        self._count_reader(+1)
        generation, cursor, queued_changes = -1, 0, -1
        try:
            while True:
                if self._abandoned:
                    raise LogAbandoned(after_seq)
                if generation != self._generation:
                    generation = self._generation
                    cursor = bisect.bisect_right(self._entries, after_seq, key=_seq)
                if queued_changes != self._queued_changes and (self._waiting or queued_changes < 0):
                    queued_changes = self._queued_changes
                    queued = video_pb2.VideoEvent(video_id=self._video_id, queued=self._queued)
                    yield of_event(queued)
                elif cursor < self._published:
                    entry = self._entries[cursor]
                    cursor += 1
                    if entry.seq <= after_seq:
                        # A node replays to the next owner of a job what its reader had.
                        continue
                    if entry.length:
                        data = await self._data(entry)
                        if data is None or generation != self._generation:
                            continue
                        yield of_chunk(entry, self.attempt, data)
                    elif entry.event is not None:
                        yield of_event(entry.event)
                    after_seq = entry.seq
                elif self._terminal is not None:
                    yield of_event(self._terminal)
                    return
                else:
                    await self._change()
        finally:
            self._count_reader(-1)

    def _count_reader(self, change: int) -> None:
        self.readers += change
        self.on_readers(self.readers)
        self.settle_memory()

    def settle_memory(self) -> None:
        """Frees what an ended log need not hold while nobody reads it."""
        if self._terminal is not None and not self.readers:
            self._bytes.forget_recent()

    async def _data(self, entry: _Entry) -> bytes | memoryview | None:
        """A chunk's bytes; None where they are void by now."""
        data = self._bytes.recent(entry.offset)
        if data is not None:
            return data
        try:
            return await self._bytes.read(entry.offset, entry.length)
        except BytesGone:
            return None

    def _chunk_event(
        self, entry: _Entry, attempt: int, data: bytes | memoryview
    ) -> video_pb2.VideoEvent:
        chunk = video_pb2.ChunkEvent(attempt=attempt, offset=entry.offset, data=bytes(data))
        return video_pb2.VideoEvent(seq=entry.seq, video_id=self._video_id, chunk=chunk)

    def _chunk_encoded(self, entry: _Entry, attempt: int, data: bytes | memoryview) -> bytes:
        return encode_chunk(entry.seq, self._video_id, attempt, entry.offset, data)

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
