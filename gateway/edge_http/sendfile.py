"""Bodies that the kernel copies from a file to the socket (sendfile(2)).

asyncio's own ``loop.sendfile`` is not there in uvloop, and both loops would read the disk in
the loop's thread. Here a thread sends as much as the socket takes, and the loop waits for room.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from gateway.application import FileBytes
from gateway.edge_http.writing import write_within

_log = structlog.get_logger("gateway.http")

# Under TLS the bytes pass through this process.
_READ_AT_ONCE = 256 * 1024


async def send_file(
    request: web.Request,
    response: web.StreamResponse,
    file: FileBytes,
    *,
    start: int,
    stop: int,
    timeout_s: float,
) -> None:
    """Sends the head of ``response`` and the file's bytes from ``start`` up to ``stop``.

    Args:
        request: What is answered.
        response: Not prepared; its Content-Length is what is sent.
        file: Not attached yet; it stays the caller's to close, also after cancellation.
        start: First byte.
        stop: After the last one.
        timeout_s: Seconds that the client may take nothing.

    Raises:
        ConnectionError: The client left or was too slow, or the file ended early or could not
            be read: the connection is to be cut.
    """
    writer = await response.prepare(request)
    transport = request.transport
    if writer is None or transport is None:
        raise ConnectionResetError("the client left")
    try:
        if transport.get_extra_info("sslcontext") is not None:
            await _copy(response, file, start=start, stop=stop, timeout_s=timeout_s)
        else:
            socket = transport.get_extra_info("socket")
            async with _emptied(writer, transport, timeout_s):
                await _send(file, file.attach(socket.fileno()), start, stop, timeout_s)
    except ConnectionError:
        raise
    except OSError as error:
        _log.error("artifact not readable", error=str(error), cause=type(error).__name__)
        raise ConnectionResetError("the file cannot be read") from error
    await response.write_eof()


@contextlib.asynccontextmanager
async def _emptied(
    writer: AbstractStreamWriter, transport: asyncio.Transport, timeout_s: float
) -> AsyncGenerator[None]:
    """Within, the transport has nothing to send: what goes to its socket comes after the head."""
    writer.send_headers()
    transport.set_write_buffer_limits(high=0)
    try:
        try:
            async with asyncio.timeout(timeout_s):
                await writer.drain()
        except TimeoutError:
            raise _too_slow(timeout_s) from None
        yield
    finally:
        if not transport.is_closing():
            transport.set_write_buffer_limits()


async def _send(file: FileBytes, socket: int, start: int, stop: int, timeout_s: float) -> None:
    while start < stop:
        try:
            sent = await file.send(start, stop - start)
        except BlockingIOError:
            await _room(socket, timeout_s)
            continue
        if sent == 0:
            raise ConnectionResetError(f"the artifact ended {stop - start} bytes early")
        start += sent


async def _room(socket: int, timeout_s: float) -> None:
    """Waits until the socket takes bytes again."""
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    loop.add_writer(socket, writable.set)
    try:
        async with asyncio.timeout(timeout_s):
            await writable.wait()
    except TimeoutError:
        raise _too_slow(timeout_s) from None
    finally:
        loop.remove_writer(socket)


async def _copy(
    response: web.StreamResponse, file: FileBytes, *, start: int, stop: int, timeout_s: float
) -> None:
    while start < stop:
        data = await file.read(start, min(_READ_AT_ONCE, stop - start))
        if not data:
            raise ConnectionResetError(f"the artifact ended {stop - start} bytes early")
        await write_within(response, data, timeout_s=timeout_s)
        start += len(data)


def _too_slow(timeout_s: float) -> ConnectionResetError:
    return ConnectionResetError(f"the client took no byte for {timeout_s:g} s")
