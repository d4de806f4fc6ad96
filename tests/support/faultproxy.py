"""A small TCP proxy that cuts, holds and delays what passes through it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from types import TracebackType
from typing import Self

CHUNK_BYTES = 64 * 1024


class Direction(enum.Enum):
    """Which way bytes go."""

    TO_SERVER = "to_server"
    TO_CLIENT = "to_client"


class FaultProxy:
    """Forwards ``127.0.0.1:<port>`` to a server until told otherwise.

    Held bytes are kept and delivered after :meth:`heal`, as a network that lost and
    resends them; bytes on their way when a connection is cut are lost.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = {direction: asyncio.Event() for direction in Direction}
        self._delay_s = 0.0
        self._refusing = False
        self._bytes_until_cut: int | None = None
        self.port = 0
        # Connections taken since the start: shows that a client connected anew.
        self.accepted = 0
        self.bytes_to_client = 0

    @property
    def address(self) -> str:
        """Where to connect."""
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        for event in self._open.values():
            event.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.heal()
        self.cut(refuse=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await self._server.wait_closed()

    def cut(self, *, refuse: bool = False) -> None:
        """Resets every connection; ``refuse``: new ones too, until :meth:`heal`."""
        self._refusing = refuse
        for writer in list(self._writers):
            writer.transport.abort()
        # Held bytes of a cut connection must not wait for the network to heal.
        for event in self._open.values():
            if not event.is_set():
                event.set()
                event.clear()

    def hold(self, *directions: Direction) -> None:
        """Stops delivering in these directions (none given: in both); connections stand."""
        for direction in directions or tuple(Direction):
            self._open[direction].clear()

    def delay(self, seconds: float) -> None:
        """Delivers everything that much later."""
        self._delay_s = seconds

    def cut_after(self, byte_count: int) -> None:
        """Cuts all connections once this many more bytes went to clients."""
        self._bytes_until_cut = byte_count

    def heal(self) -> None:
        """Forwards again, held bytes first."""
        self._refusing = False
        self._delay_s = 0.0
        for event in self._open.values():
            event.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        self.accepted += 1
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, upstream_writer)
        self._writers.update(pair)
        try:
            await asyncio.gather(
                self._pump(reader, upstream_writer, Direction.TO_SERVER),
                self._pump(upstream_reader, writer, Direction.TO_CLIENT),
            )
        finally:
            for each in pair:
                self._writers.discard(each)
                each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        with contextlib.suppress(ConnectionError, OSError):
            while data := await reader.read(CHUNK_BYTES):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                await self._open[direction].wait()
                if direction is Direction.TO_CLIENT:
                    self.bytes_to_client += len(data)
                    if self._spent(len(data)):
                        self.cut()
                        return
                writer.write(data)
                await writer.drain()
        # One side left: the other must notice at once.
        writer.transport.abort()

    def _spent(self, byte_count: int) -> bool:
        if self._bytes_until_cut is None:
            return False
        self._bytes_until_cut -= byte_count
        if self._bytes_until_cut > 0:
            return False
        self._bytes_until_cut = None
        return True
