"""Key sets from an issuer's server, over HTTP with a deadline and bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from reelkit.tokens.fetched import MAX_BYTES, TIMEOUT_S, fresh_for_s
from reelkit.tokens.refreshed import Load, Loaded, SourceAway
from reelkit.tokens.sources import LoaderOf


@asynccontextmanager
async def open_jwks_loaders() -> AsyncIterator[LoaderOf]:
    """Makes readers of URLs that share one session."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(
        timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), raise_for_status=False
    ) as session:
        yield lambda url: _loader(session, url)


def _loader(session: aiohttp.ClientSession, url: str) -> Load:
    async def load(tag: str) -> Loaded:
        headers = {"Accept": "application/json", **({"If-None-Match": tag} if tag else {})}
        try:
            # A redirect could lead anywhere: the URL that was configured is the one that is asked.
            async with session.get(url, headers=headers, allow_redirects=False) as answer:
                return await _loaded(answer, tag)
        except TimeoutError:
            raise SourceAway(f"no answer in {TIMEOUT_S:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise SourceAway(f"cannot be fetched: {type(error).__name__}") from None

    return load


async def _loaded(answer: aiohttp.ClientResponse, tag: str) -> Loaded:
    fresh_s = fresh_for_s(answer.headers.get("Cache-Control", ""))
    if answer.status == 304 and tag:
        return Loaded(None, tag, fresh_s)
    if answer.status != 200:
        raise SourceAway(f"the server answered {answer.status}")
    text = bytearray()
    async for piece in answer.content.iter_any():
        text += piece
        if len(text) > MAX_BYTES:
            raise SourceAway(f"is larger than {MAX_BYTES} bytes")
    return Loaded(bytes(text), answer.headers.get("ETag", ""), fresh_s)
