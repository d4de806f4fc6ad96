"""Frames between a node agent and its worker processes.

A frame is a 4-byte big-endian length and one protobuf message: the agent sends
``WorkerCommand``, the worker ``WorkerEvent`` (``proto/reelmesh/v1/worker.proto``).
:class:`SyncWire` is the worker's end, :class:`AsyncWire` the agent's. Nothing here
imports torch or grpc.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from typing import Generic, Self, TypeVar

from google.protobuf.message import DecodeError, Message
from reelmesh.v1.worker_pb2 import WorkerCommand, WorkerEvent

# A chunk event holds 256 KiB at most; anything near this is a broken peer.
MAX_FRAME_BYTES = 16 * 1024 * 1024

# Room for several chunks, so that a worker's last bytes do not wait for the agent.
SOCKET_BUFFER_BYTES = 1024 * 1024

_LENGTH = struct.Struct(">I")

In = TypeVar("In", bound=Message)
Out = TypeVar("Out", bound=Message)


class WireError(Exception):
    """The peer broke the framing, or left in the middle of a frame."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected stream sockets with room for several chunks each way."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    return ours, theirs


def to_frame(message: Message) -> bytes:
    """The message with its length in front.

    Raises:
        WireError: It is larger than a frame may be.
    """
    body = message.SerializeToString()
    if len(body) > MAX_FRAME_BYTES:
        raise WireError(f"a message of {len(body)} bytes exceeds the frame limit {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


def _body_length(header: bytes) -> int:
    length: int = _LENGTH.unpack(header)[0]
    if length > MAX_FRAME_BYTES:
        raise WireError(f"the peer announced a frame of {length} bytes; limit {MAX_FRAME_BYTES}")
    return length


def _parse(kind: type[In], body: bytes) -> In:
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise WireError(f"a frame is no {kind.__name__}: {error}") from None
    return message


class SyncWire(Generic[In, Out]):
    """A blocking end of the wire; ``send`` may be called from several threads."""

    def __init__(self, sock: socket.socket, receives: type[In]) -> None:
        self._sock = sock
        self._sock.setblocking(True)
        self._reader = sock.makefile("rb")
        self._receives = receives
        self._send_lock = threading.Lock()

    @classmethod
    def of_worker(cls, sock: socket.socket) -> SyncWire[WorkerCommand, WorkerEvent]:
        """The worker's end."""
        return SyncWire(sock, WorkerCommand)

    @classmethod
    def of_agent(cls, sock: socket.socket) -> SyncWire[WorkerEvent, WorkerCommand]:
        """The agent's end, for tools and tests that have no event loop."""
        return SyncWire(sock, WorkerEvent)

    def send(self, message: Out) -> None:
        """Writes one frame; blocks while the peer does not read.

        Raises:
            OSError: The peer is gone.
        """
        frame = to_frame(message)
        with self._send_lock:
            self._sock.sendall(frame)

    def receive(self) -> In | None:
        """The next message, or None once the peer has closed its end.

        Raises:
            WireError: The framing is broken.
            OSError: The connection is.
        """
        header = self._reader.read(_LENGTH.size)
        if not header:
            return None
        if len(header) < _LENGTH.size:
            raise WireError("the peer left inside a frame's length")
        length = _body_length(header)
        body = self._reader.read(length)
        if len(body) < length:
            raise WireError(f"the peer left after {len(body)} of {length} bytes of a frame")
        return _parse(self._receives, body)

    def close(self) -> None:
        """Closes the socket; a peer that reads sees the end. Idempotent."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._reader.close()
        self._sock.close()


class AsyncWire:
    """The agent's end on an event loop: one reader task, any number of senders."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Self:
        """Takes over the socket of a :class:`~node_agent.engine.spawn.WorkerProcess`."""
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=SOCKET_BUFFER_BYTES)
        return cls(reader, writer)

    async def receive(self) -> WorkerEvent | None:
        """The next event, or None once the worker is gone; cancel-safe between frames.

        Raises:
            WireError: The framing is broken, or the worker died inside a frame.
        """
        try:
            header = await self._reader.readexactly(_LENGTH.size)
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                return None
            raise WireError("the worker left inside a frame's length") from None
        except ConnectionError:
            return None
        length = _body_length(header)
        try:
            body = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise WireError(f"the worker left inside a frame of {length} bytes") from None
        return _parse(WorkerEvent, body)

    async def send(self, command: WorkerCommand, *, timeout_s: float = 5.0) -> None:
        """Writes one frame and waits until the socket takes it.

        Raises:
            TimeoutError: The worker's reader thread did not read in time: it hangs.
            ConnectionError: The worker is gone.
        """
        self._writer.write(to_frame(command))
        async with asyncio.timeout(timeout_s):
            await self._writer.drain()

    async def close(self) -> None:
        """Closes the socket, which tells the worker to leave. Idempotent."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
