"""Streams to clients: iterators closed at once, and writes that do not wait for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

from aiohttp import web

T = TypeVar("T")


@contextlib.asynccontextmanager
async def closing(iterator: AsyncIterator[T]) -> AsyncGenerator[AsyncIterator[T], None]:
    """Closes an async iterator when the block is left, where it can be closed.

    ``contextlib.aclosing`` for a port that promises an iterator and not a generator.
    """
    try:
        yield iterator
    finally:
        aclose = getattr(iterator, "aclose", None)
        if aclose is not None:
            await aclose()


async def write_within(response: web.StreamResponse, data: bytes, *, timeout_s: float) -> None:
    """Writes to a client that must take the bytes in time.

    Raises:
        ConnectionResetError: It left, or took nothing for ``timeout_s``.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await response.write(data)
    except TimeoutError:
        raise ConnectionResetError(f"the client took no byte for {timeout_s:g} s") from None
