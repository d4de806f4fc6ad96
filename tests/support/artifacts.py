"""What tests ask artifact stores, and stores that fail as a test says."""

import asyncio
from typing import Any

from gateway.output.artifacts import ArtifactError, StoredArtifact


async def listed(store: Any) -> list[StoredArtifact]:
    """Every artifact of a store."""
    return [artifact async for page in store.listing() for artifact in page]


class Slow:
    """A store whose writes wait for the test, or fail as often as it says."""

    def __init__(self, inner: Any, *, failures: int = 0) -> None:
        self._inner = inner
        self.go = asyncio.Event()
        self.writing = asyncio.Event()
        self.failures = failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def verify(self, gateway_id: str) -> None:
        pass

    async def put(self, key: str, data: Any) -> None:
        self.writing.set()
        await self.go.wait()
        if self.failures:
            self.failures -= 1
            raise ArtifactError("scripted")
        await self._inner.put(key, data)
