"""The port to whatever posts webhooks."""

from __future__ import annotations

from typing import Protocol


class DeliveryFailed(Exception):  # noqa: N818 - named for what happened
    """The receiver could not be reached; the message has no part of the URL."""


class Sender(Protocol):
    """Posts to URLs that clients chose."""

    async def __call__(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """The status of the answer.

        Raises:
            DeliveryFailed: There was none in time, or the address is not to be called.
        """
        ...
