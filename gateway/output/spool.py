"""The bytes of one attempt: the newest in memory, older ones in a file without a name.

A node writes at its own speed and every reader reads at its own pace: what a reader has
not fetched when it leaves memory is read back from the file, or, once the video is
committed, from the artifact. A short video never touches the disk. The file is
unlinked when it is made, so a crash leaves nothing behind, and it goes as soon as the
attempt is superseded or committed.

The event loop never waits for the disk: hashing and writing happen in a thread, piece
by piece in order, and :meth:`VideoBytes.room` holds the node's stream back when the
disk does not keep up.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from gateway.output.spool_budget import SpoolBudget
from gateway.output.spool_file import Piece, SpoolFile

# Below this, hashing in place costs less than handing it to a thread.
_BATCH_BYTES: Final = 1024 * 1024

ReadRange = Callable[[int, int], Awaitable[bytes]]
"""(offset, length) → those bytes."""


class ByteGap(Exception):  # noqa: N818 - named for what it says of the stream
    """A piece does not begin where the one before it ended."""


class BytesGone(Exception):  # noqa: N818 - likewise
    """The attempt was superseded or has ended without a video: its bytes are void."""


class VideoBytes:
    """What a node has sent of one attempt's video.

    Args:
        directory: Where the file is made when one is needed.
        memory_bytes: How much of the newest part stays in memory.
        budget: What all spool files of the gateway share.
        executor: Threads for hashing and disk; few, since each takes CPU from the loop.
    """

    def __init__(
        self, *, directory: Path, memory_bytes: int, budget: SpoolBudget, executor: Executor
    ) -> None:
        self._directory = directory
        self._memory_limit = memory_bytes
        self._budget = budget
        self._executor = executor
        self.size = 0
        self._hash = hashlib.sha256()
        self._recent: dict[int, Piece] = {}
        self._recent_bytes = 0
        self._pending: list[Piece] = []
        self._pending_bytes = 0
        self._written = 0
        self._file: SpoolFile | None = None
        self._flushing: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._void = False
        self._elsewhere: ReadRange | None = None

    # --- the node's side ---

    def append(self, offset: int, data: Piece) -> None:
        """Takes the next piece.

        Raises:
            ByteGap: It is not the next one.
        """
        if offset != self.size:
            raise ByteGap(f"a piece at byte {offset} follows {self.size} bytes")
        self._recent[offset] = data
        self._recent_bytes += len(data)
        self._pending.append(data)
        self._pending_bytes += len(data)
        self.size += len(data)

    @property
    def behind(self) -> bool:
        """Whether :meth:`room` should be awaited before the next piece."""
        return self._pending_bytes >= _BATCH_BYTES

    async def room(self) -> None:
        """Starts the thread's work; waits only where it is a batch behind.

        Raises:
            SpoolFull: No room for the file within the budget's time.
            OSError: The file could not be written.
        """
        if self._flushing is not None:
            if self._pending_bytes < self._memory_limit + _BATCH_BYTES:
                return
            await asyncio.wait([self._flushing])
        await self._flush()

    async def _flush(self) -> None:
        """Reserves what the file will hold and hands the pending pieces to a thread."""
        if self._failure is not None:
            raise self._failure
        await self._budget.reserve(self, self.size if self.size > self._memory_limit else 0)
        if self._void:
            self._budget.release(self)
        else:
            self._start_flush()

    def _start_flush(self) -> None:
        pieces, self._pending, self._pending_bytes = self._pending, [], 0
        keep_on_disk = self.size > self._memory_limit
        start = self._written
        if keep_on_disk and self._file is None:
            # What was only hashed so far is still in memory and is written first.
            self._file = SpoolFile(self._directory)
            to_write = list(self._recent.values())
        else:
            to_write = pieces if keep_on_disk else []
        file = self._file if keep_on_disk else None
        self._written = start + sum(map(len, to_write))
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(
            self._executor, _hash_and_write, self._hash, pieces, file, to_write
        )
        self._flushing = work
        work.add_done_callback(self._flushed)

    def _flushed(self, work: asyncio.Future[None]) -> None:
        self._flushing = None
        if self._void:
            self._close_file()
        elif not work.cancelled():
            error = work.exception()
            if isinstance(error, Exception):
                self._failure = error
            else:
                self._evict()

    def _evict(self) -> None:
        """Drops from memory the oldest pieces that the file holds."""
        for offset, data in list(self._recent.items()):
            if self._recent_bytes <= self._memory_limit or offset + len(data) > self._written:
                break
            del self._recent[offset]
            self._recent_bytes -= len(data)

    async def seal(self) -> str:
        """The sha256 of everything, in hex; no more pieces follow.

        Raises:
            SpoolFull: No room for the file within the budget's time.
            OSError: The file could not be written.
        """
        if self._flushing is not None:
            await asyncio.wait([self._flushing])
        if self._file is not None or self._pending_bytes >= _BATCH_BYTES:
            await self._flush()
            if self._flushing is not None:
                await asyncio.wait([self._flushing])
        else:
            for piece in self._pending:
                self._hash.update(piece)
            self._pending, self._pending_bytes = [], 0
        if self._failure is not None:
            raise self._failure
        return self._hash.hexdigest()

    def finished(self) -> bytes | SpoolFile:
        """Everything, after :meth:`seal`: the bytes where they are in memory, else their file.

        The file is the caller's own to close: :meth:`rebase` and :meth:`void` leave it whole.
        """
        if self._file is None:
            return b"".join(self._recent.values())
        return self._file.duplicate()

    def rebase(self, read: ReadRange) -> None:
        """Reads come from the committed artifact from now on; the file goes."""
        self._elsewhere = read
        self._close_file()

    def forget_recent(self) -> None:
        """Frees the memory of a committed video that nobody reads now."""
        if self._elsewhere is not None:
            self._recent.clear()
            self._recent_bytes = 0

    def void(self) -> None:
        """The bytes are worth nothing any more; every further read fails."""
        self._void = True
        self._recent.clear()
        self._pending.clear()
        self._recent_bytes = self._pending_bytes = 0
        if self._flushing is None:
            self._close_file()

    def _close_file(self) -> None:
        self._budget.release(self)
        if self._file is not None:
            self._file.close()
            self._file = None

    # --- the readers' side ---

    def recent(self, offset: int) -> Piece | None:
        """The piece that begins there, where it is still in memory."""
        return self._recent.get(offset)

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes from wherever they are now.

        Raises:
            BytesGone: The attempt is void.
            OSError: The file or the artifact cannot be read.
        """
        if self._void:
            raise BytesGone
        if self._elsewhere is not None:
            return await self._elsewhere(offset, length)
        file = self._file
        if file is None:
            raise BytesGone
        # One of its own: the file may be closed while the thread reads.
        own = file.duplicate()
        reading = self._executor.submit(own.read, offset, length)
        # Also where the reader leaves before a thread has come to it.
        reading.add_done_callback(lambda _: own.close())
        return await asyncio.wrap_future(reading)


def _hash_and_write(
    digest: hashlib._Hash, pieces: list[Piece], file: SpoolFile | None, to_write: list[Piece]
) -> None:
    for piece in pieces:
        digest.update(piece)
    if file is not None:
        for piece in to_write:
            file.write(piece)
