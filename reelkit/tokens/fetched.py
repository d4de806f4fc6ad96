"""Key sets from an issuer's server: the bounds, and a reader that needs no HTTP library.

The reader works in a thread of its own for each reading, so that the event loop is never
held, and is cut off at its deadline: a server that sends a byte now and then holds nobody.
It follows no redirect and asks no proxy: the URL that was configured is the one that is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from reelkit.tokens.refreshed import Load, Loaded, SourceAway

TIMEOUT_S: Final = 5.0
MAX_BYTES: Final = 256 * 1024
# How long a key set counts as fresh where its server does not say, and what is believed of it:
# less would be a flood, more would keep a key for days that its issuer has withdrawn.
DEFAULT_FRESH_S: Final = 600.0
MIN_FRESH_S: Final = 60.0
MAX_FRESH_S: Final = 3600.0
_MAX_AGE = re.compile(r"(?:^|,)\s*max-age\s*=\s*\"?(\d{1,9})\"?\s*(?:,|$)", re.IGNORECASE)


def fresh_for_s(cache_control: str) -> float:
    """For how long a server lets a key set be kept, within bounds."""
    found = _MAX_AGE.search(cache_control)
    said_s = float(found.group(1)) if found else DEFAULT_FRESH_S
    return min(max(said_s, MIN_FRESH_S), MAX_FRESH_S)


def loader_of(url: str) -> Load:
    """Reads a key set from a URL; see :data:`reelkit.tokens.sources.LoaderOf`."""

    async def load(tag: str) -> Loaded:
        try:
            # The thread ends by itself a moment later where a name server is what hangs.
            async with asyncio.timeout(TIMEOUT_S):
                return await asyncio.to_thread(_read, url, tag, timeout_s=TIMEOUT_S)
        except TimeoutError:
            raise SourceAway(f"no answer in {TIMEOUT_S:g} s") from None

    return load


def _read(url: str, tag: str, *, timeout_s: float) -> Loaded:
    parts = urlsplit(url)
    path = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
    headers = {"Accept": "application/json", **({"If-None-Match": tag} if tag else {})}
    connection = _connection(parts.scheme, parts.hostname or "", parts.port, timeout_s)
    try:
        with _cut_after(connection, timeout_s):
            connection.request("GET", path, headers=headers)
            return _loaded(connection.getresponse(), tag)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SourceAway(f"cannot be fetched: {type(error).__name__}") from None
    finally:
        connection.close()


def _connection(
    scheme: str, host: str, port: int | None, timeout_s: float
) -> http.client.HTTPConnection:
    if scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    return http.client.HTTPConnection(host, port, timeout=timeout_s)


def _loaded(answer: http.client.HTTPResponse, tag: str) -> Loaded:
    fresh_s = fresh_for_s(answer.headers.get("Cache-Control", ""))
    if answer.status == http.client.NOT_MODIFIED and tag:
        return Loaded(None, tag, fresh_s)
    if answer.status != http.client.OK:
        raise SourceAway(f"the server answered {answer.status}")
    text = answer.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise SourceAway(f"is larger than {MAX_BYTES} bytes")
    return Loaded(text, answer.headers.get("ETag", ""), fresh_s)


@contextlib.contextmanager
def _cut_after(connection: http.client.HTTPConnection, timeout_s: float) -> Iterator[None]:
    """Ends whatever the block reads at the deadline; a socket's own is for each read alone."""

    def cut() -> None:
        sock = connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
