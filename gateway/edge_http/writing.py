"""Writes to HTTP clients that do not wait for ever."""

from __future__ import annotations

import asyncio

from aiohttp import web


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
