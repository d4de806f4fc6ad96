"""Posts webhooks, to addresses that the whole internet can reach and to no others.

A name is looked up for each delivery, every address that it means is held against
:mod:`gateway.webhooks.addresses`, and the connection goes to one that was: what the name
means a moment later does not matter. Redirects are not followed.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.webhooks.addresses import UrlRules, refused_because
from gateway.webhooks.sender import DeliveryFailed, Sender

_AGENT: Final = "Reelmesh-Webhooks/1"


class AddressRefused(OSError):  # noqa: N818 - named for what happened
    """A name means an address that is not called."""


class PublicResolver(AbstractResolver):
    """Looks names up, and refuses one that means any address that is not public.

    All of them have to be: of several the client library takes another when one fails, and a
    name that means both a public and a private address was made for that.

    Args:
        inner: Looks up.
        allow_private: Refuses nothing.
    """

    def __init__(self, inner: AbstractResolver, *, allow_private: bool) -> None:
        self._inner = inner
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See aiohttp; raises AddressRefused."""
        found = await self._inner.resolve(host, port, family)
        for each in found:
            why = "" if self._allow_private else refused_because(each["host"])
            if why:
                raise AddressRefused(f"the host's address is not called: {why}")
        return found

    async def close(self) -> None:
        """See aiohttp."""
        await self._inner.close()


@asynccontextmanager
async def open_sender(
    rules: UrlRules, *, timeout_s: float, resolver: AbstractResolver | None = None
) -> AsyncIterator[Sender]:
    """Yields a sender; leaving closes its connections.

    Args:
        rules: What a URL must be; held against again, since they may have changed since it
            was taken.
        timeout_s: For one delivery.
        resolver: Looks names up; the system's by default.
    """
    connector = aiohttp.TCPConnector(
        resolver=PublicResolver(
            resolver or aiohttp.ThreadedResolver(), allow_private=rules.allow_private
        ),
        # Each delivery looks up and connects anew.
        use_dns_cache=False,
        force_close=True,
        limit=0,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        raise_for_status=False,
        # No proxy of the environment: it would connect where this does not look.
        trust_env=False,
        read_bufsize=4_096,
        auto_decompress=False,
    ) as session:

        async def send(url: str, headers: dict[str, str], body: bytes) -> int:
            wrong = rules.wrong_with(url)
            if wrong:
                raise DeliveryFailed(f"the URL {wrong}")
            all_headers = {
                **headers,
                "Content-Type": "application/json",
                "User-Agent": _AGENT,
            }
            try:
                answer = await session.post(
                    url, data=body, headers=all_headers, allow_redirects=False
                )
            except TimeoutError:
                raise DeliveryFailed(f"no answer in {timeout_s:g} s") from None
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise DeliveryFailed(_cause(error)) from None
            # What it says beyond its status is of no interest, however long it is.
            answer.close()
            return answer.status

        yield send


def _cause(error: Exception) -> str:
    refused: BaseException | None = error
    while refused is not None:
        if isinstance(refused, AddressRefused):
            return str(refused)
        refused = refused.__cause__ or refused.__context__
    return type(error).__name__
