"""Artifacts that are files of this host: opened once, checked once, sent by the kernel.

What may wait for a disk runs in a thread, with a deadline: a dead mount holds up neither the
event loop nor whoever waits for a file on it. The beginning of a file that is in memory is sent
without one, which is all of a short video.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import select
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_HASHED_AT_ONCE: Final = 1024 * 1024
# One call must not hold a thread for long. Within it a fast reader is waited for here, which
# spares the event loop a turn for each filled buffer; a slow one is left to the loop.
_SENT_AT_ONCE: Final = 16 * 1024 * 1024
_SEND_S: Final = 0.05
_ROOM_MS: Final = 2
# At first, in the loop: what an idle socket takes at once, and half a millisecond.
_SENT_AT_FIRST: Final = 2 * 1024 * 1024
# Some hundred bytes each; more files than are asked for again and again.
_REMEMBERED: Final = 4096

Identity = tuple[int, int, int, int]
"""Device, inode, size and time of change: another file, or another content, differs."""


class LocalFile:
    """An open file that is sent to a socket or read. It goes on when its name is deleted.

    Args:
        descriptor: Of the file; it is owned from here on.
        size: Of the file.
        executor: Where the calls run.
        timeout_s: For each of them.
    """

    def __init__(self, descriptor: int, *, size: int, executor: Executor, timeout_s: float) -> None:
        self.size = size
        self._descriptors = [descriptor]
        self._executor = executor
        self._timeout_s = timeout_s
        self._call: Future[object] | None = None
        self._closed = False
        self._begun = False

    def attach(self, socket: int) -> int:
        """Takes a duplicate of a socket's descriptor, to send to, and answers it.

        It is closed with the file, and no earlier: a thread may be at it.
        """
        self._descriptors[1:] = [os.dup(socket)]
        return self._descriptors[1]

    def duplicate(self) -> int:
        """Another descriptor of the file, which is the caller's to close."""
        return os.dup(self._descriptors[0])

    async def send(self, offset: int, count: int) -> int:
        """Sends as much to the attached socket as that takes now; answers how many bytes.

        Raises:
            BlockingIOError: It takes none now.
            ConnectionError: It is not connected any more.
            OSError: The file cannot be read, or not in time (``TimeoutError``).
        """
        file, socket = self._descriptors
        if not self._begun:
            self._begun = True
            first = min(count, _SENT_AT_FIRST)
            if _in_memory(file, offset, first):
                with contextlib.suppress(BlockingIOError):
                    return os.sendfile(socket, file, offset, first)
        return await self._run(_send, socket, file, offset, min(count, _SENT_AT_ONCE))

    async def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes; none at the file's end.

        Raises:
            OSError: It cannot be read, or not in time (``TimeoutError``).
        """
        return await self._run(os.pread, self._descriptors[0], length, offset)

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        future = self._executor.submit(call, *args, **kwargs)
        self._call = future  # type: ignore[assignment] # what it answers does not matter there
        async with asyncio.timeout(self._timeout_s):
            return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Lets go as soon as no thread is at it."""
        if self._closed:
            return
        self._closed = True
        if self._call is None:
            self._close()
        else:
            self._call.add_done_callback(lambda _: self._close())

    def _close(self) -> None:
        for descriptor in self._descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _in_memory(file: int, offset: int, count: int) -> bool:
    """Whether both ends of a run of bytes are read without a disk; False where nobody can tell.

    File systems over a network cannot: they may hang, and are never asked in the loop.
    """
    no_wait = getattr(os, "RWF_NOWAIT", None)
    if no_wait is None or count < 1:
        return False
    try:
        return all(
            os.preadv(file, [bytearray(1)], at, no_wait) for at in (offset, offset + count - 1)
        )
    except OSError:
        return False


def _send(socket: int, file: int, offset: int, count: int) -> int:
    room = select.poll()
    room.register(socket, select.POLLOUT)
    until_s = time.monotonic() + _SEND_S
    sent = 0
    while sent < count:
        try:
            taken = os.sendfile(socket, file, offset + sent, count - sent)
        except BlockingIOError:
            if time.monotonic() < until_s and room.poll(_ROOM_MS):
                continue
            if sent:
                break
            raise
        if not taken:
            break
        sent += taken
    return sent


def open_file(path: Path) -> tuple[int, Identity]:
    """A descriptor of a regular file, and which content it is. Blocks.

    Raises:
        OSError: There is none, or it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        stat = os.fstat(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


def sha256_of(descriptor: int) -> str:
    """The digest of a whole file. Blocks; the descriptor's position stays."""
    digest = hashlib.sha256()
    offset = 0
    while piece := os.pread(descriptor, _HASHED_AT_ONCE, offset):
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


class KnownDigests:
    """Digests of files that were read whole once; the newest few thousand are remembered.

    Bytes that rot on the disk later are not noticed; that a file was replaced is.
    """

    def __init__(self, *, remembered: int = _REMEMBERED) -> None:
        self._remembered = remembered
        self._digests: OrderedDict[Identity, str] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, descriptor: int, identity: Identity) -> str:
        """The digest of an open file. Blocks for as long as it takes to read it, once."""
        with self._lock:
            digest = self._digests.get(identity)
        if digest is None:
            digest = sha256_of(descriptor)
        with self._lock:
            self._digests[identity] = digest
            self._digests.move_to_end(identity)
            while len(self._digests) > self._remembered:
                self._digests.popitem(last=False)
        return digest
