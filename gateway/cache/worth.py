"""Which of many things of many sizes are worth their room: W-TinyLFU, by bytes.

The policy is theine's (Caffeine's algorithm, in Rust), which counts entries and knows no sizes.
So a thing is so many pages there, each an entry of its own, and is held while all of them are.
That bounds bytes and entries at once: a page is as many bytes as there are for each entry, and
everything takes one at least.
"""

from __future__ import annotations

import hashlib
from typing import Final

from theine_core import TlfuCore

_NO_TTL: Final = 0


class Worth:
    """The keys that are worth their bytes, by how often they are asked for.

    Args:
        max_bytes: Of everything that is held.
        max_entries: How many things that may be.
    """

    def __init__(self, *, max_bytes: int, max_entries: int) -> None:
        self._page_bytes = max(1, -(-max_bytes // max_entries))
        self._max_pages = max(1, max_bytes // self._page_bytes)
        self._core = TlfuCore(self._max_pages)
        self._pages: dict[str, list[int]] = {}
        self._sizes: dict[str, int] = {}
        self._keys: dict[int, str] = {}
        self.bytes_held = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, key: str) -> bool:
        return key in self._sizes

    def touch(self, key: str) -> None:
        """A thing that is held was asked for."""
        self._core.access(self._pages[key])

    def offer(self, key: str, size: int) -> list[str]:
        """Takes a thing that was asked for and is not held; answers what is not, therefore.

        The thing itself is among those where the others are worth more.
        """
        pages = self._pages_of(key, size)
        if len(pages) > self._max_pages:
            return [key]
        self._pages[key], self._sizes[key] = pages, size
        self._keys.update(dict.fromkeys(pages, key))
        self.bytes_held += size
        evicted = self._core.set([(page, _NO_TTL) for page in pages])
        lost = list(dict.fromkeys(self._keys[page] for page in evicted if page in self._keys))
        for each in lost:
            self.drop(each)
        return lost

    def drop(self, key: str) -> None:
        """A thing is held no more; none is fine."""
        if key not in self._sizes:
            return
        self.bytes_held -= self._sizes.pop(key)
        for page in self._pages.pop(key):
            del self._keys[page]
            self._core.remove(page)

    def _pages_of(self, key: str, size: int) -> list[int]:
        count = max(1, -(-size // self._page_bytes))
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        first = int.from_bytes(digest, "big")
        return [(first + number) % 2**64 for number in range(count)]
