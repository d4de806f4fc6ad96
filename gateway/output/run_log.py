"""What nodes say in the runs of one video, kept once for all jobs that share it.

One attempt is current at a time. When another begins, everything of the one before is void.
Progress and previews are kept only in their newest form; chunks are never dropped. The logs
of the jobs (:mod:`gateway.output.event_log`) read it, each under its own id and numbers.
"""

from __future__ import annotations

import asyncio
import bisect
import weakref
from collections.abc import Callable
from typing import Final, Protocol

from reelmesh.v1 import node_service_pb2, video_pb2

from gateway.jobs.attempts import seq_of
from gateway.output.spool import VideoBytes
from gateway.output.wire import NodeChunk

# No device finishes steps faster, so progress that does comes in a burst (a replay).
_BURST_S: Final = 0.005


class RunEntry:
    """An event of the current attempt; a chunk's bytes are with the spool."""

    __slots__ = ("event", "length", "offset", "seq")

    def __init__(
        self, seq: int, event: video_pb2.VideoEvent | None, offset: int = 0, length: int = 0
    ) -> None:
        self.seq = seq
        """As the node numbered it."""
        self.event = event
        """None for a chunk, and for one that a newer of its kind replaced."""
        self.offset = offset
        self.length = length
        """More than 0 for a chunk alone."""


def _seq(entry: RunEntry) -> int:
    return entry.seq


class Subscriber(Protocol):
    """The log of a job that reads this run."""

    @property
    def done(self) -> bool:
        """Its job has ended, and nobody reads of it now."""
        ...

    @property
    def stored(self) -> bool:
        """It reads its own artifact and needs the spool no more."""
        ...

    def attempt_begun(self, attempt: int, reason: str) -> None:
        """Another attempt is current; what there was is void."""
        ...

    def moved(self) -> None:
        """There is more to read."""
        ...

    def requeue(self, position: int, eta_s: float | None) -> None:
        """The run has a new place in the line."""
        ...


class RunLog:
    """The entries and bytes of the current attempt.

    Args:
        video_id: Named in the events; another job's log names its own.
        new_bytes: Makes the spool of an attempt.
    """

    def __init__(self, *, video_id: str, new_bytes: Callable[[], VideoBytes]) -> None:
        self.video_id = video_id
        self._new_bytes = new_bytes
        self.entries: list[RunEntry] = []
        self.published = 0
        """How many of the entries may be read."""
        self.generation = 0
        """Rises whenever everything before is void."""
        self.attempt = 0
        """Ordinal of the current attempt as its node has it; 0 before the first."""
        self.spooled = new_bytes()
        """The current attempt's bytes."""
        self._publishing: asyncio.TimerHandle | None = None
        self._told_progress_at = 0.0
        self._newest: dict[str, RunEntry] = {}
        # Each refers to this: a circle would wait for the garbage collector.
        self._subscribers: weakref.WeakSet[Subscriber] = weakref.WeakSet()

    # --- the logs of jobs ---

    def join(self, subscriber: Subscriber) -> None:
        """Tells a job's log of everything from now on."""
        self._subscribers.add(subscriber)

    def leave(self, subscriber: Subscriber) -> None:
        """Tells it nothing more; with the last one the bytes are void."""
        if subscriber in self._subscribers:
            self._subscribers.discard(subscriber)
            if not self._subscribers:
                self._reset()

    def requeue(self, position: int, eta_s: float | None) -> None:
        """Takes a new position in the line; None: no node serves the model now."""
        for subscriber in tuple(self._subscribers):
            subscriber.requeue(position, eta_s)

    @property
    def stored(self) -> bool:
        """Whether no log needs the spool any more."""
        return all(subscriber.stored for subscriber in self._subscribers)

    def settle_memory(self) -> None:
        """Frees what need not be held once every job has ended and nobody reads."""
        if all(subscriber.done for subscriber in self._subscribers):
            self.spooled.forget_recent()

    # --- the runner's side ---

    def begin(self, attempt: int, reason: str) -> None:
        """Makes an attempt current."""
        if self.attempt:
            self._reset()
        self.attempt = attempt
        for subscriber in tuple(self._subscribers):
            subscriber.attempt_begun(attempt, reason)
        self.publish()

    def _reset(self) -> None:
        self.generation += 1
        self.entries = []
        self.published = 0
        self._newest = {}
        self.spooled.void()
        self.spooled = self._new_bytes()

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
        entry = RunEntry(seq, self._event(seq, **{kind: getattr(event, kind)}))
        self.entries.append(entry)
        if kind == "started":
            # What follows at once is a burst too.
            self._told_progress_at = asyncio.get_running_loop().time()
            self.publish()
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
            self.spooled.append(chunk.offset, chunk.data)
            self.entries.append(RunEntry(seq, None, chunk.offset, len(chunk.data)))
            self.publish()

    def _is_known(self, seq: int) -> bool:
        """Whether a node's replay overlaps what it has sent before."""
        return bool(self.entries) and seq <= self.entries[-1].seq

    def publish(self) -> None:
        """Lets readers see everything that is there."""
        if self._publishing is not None:
            self._publishing.cancel()
            self._publishing = None
        self.published = len(self.entries)
        for subscriber in tuple(self._subscribers):
            subscriber.moved()

    def _publish_in_time(self) -> None:
        """The same, but only the last of a burst of progress is seen."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - self._told_progress_at >= _BURST_S:
            self._told_progress_at = now
            self.publish()
        elif self._publishing is None:
            self._publishing = loop.call_later(_BURST_S, self.publish)

    def _event(self, seq: int, **event: object) -> video_pb2.VideoEvent:
        # The keyword is one of the oneof's names; mypy cannot follow that.
        return video_pb2.VideoEvent(seq=seq, video_id=self.video_id, **event)  # type: ignore[arg-type]

    # --- the readers' side ---

    def first_after(self, seq: int) -> int:
        """The index of the first entry that a node numbered higher."""
        return bisect.bisect_right(self.entries, seq, key=_seq)
