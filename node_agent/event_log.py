"""The events of one run, kept so that several readers can follow and replay them."""

from __future__ import annotations

import asyncio

from reelmesh.v1.node_service_pb2 import NodeEvent, RunResponse

TERMINAL_KINDS = frozenset({"completed", "failed", "cancelled"})


class EventLog:
    """An append-only list of serialised ``RunResponse`` messages, numbered from 1.

    Events are serialised once, here, and the same bytes go to every reader: the
    video's bytes are not copied per reader nor parsed again. The log ends with its
    terminal event; later appends are dropped.
    """

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._changed: asyncio.Event | None = None
        self.size_bytes = 0
        self.ended = False

    @property
    def last_n(self) -> int:
        """Number of the newest event; 0 where there is none."""
        return len(self._frames)

    def append(self, event: NodeEvent) -> bool:
        """Numbers and keeps ``event``, wakes the readers; False once the log has ended."""
        if self.ended:
            return False
        event.n = len(self._frames) + 1
        frame = RunResponse(event=event).SerializeToString()
        self._frames.append(frame)
        self.size_bytes += len(frame)
        self.ended = event.WhichOneof("event") in TERMINAL_KINDS
        self.wake()
        return True

    def wake(self) -> None:
        """Lets the readers look again, also when nothing was appended."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def frames_after(self, n: int) -> list[bytes]:
        """The serialised events whose number is greater than ``n``."""
        return self._frames[n:]

    async def changed(self) -> None:
        """Returns at the next append or :meth:`wake`; look at the log first."""
        if self._changed is None:
            self._changed = asyncio.Event()
        await self._changed.wait()
