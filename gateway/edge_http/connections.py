"""How many connections each address holds."""

from __future__ import annotations

from collections.abc import Callable

from gateway.auth.door import Door


class Connections:
    """Counts connections by address; a proxy that is trusted is not counted.

    Args:
        door: Knows the proxies, and what counts as one address.
        limit: For one address.
        refused: Called for each connection that is one too many.
    """

    def __init__(self, door: Door, *, limit: int, refused: Callable[[], None]) -> None:
        self._door = door
        self._limit = limit
        self._refused = refused
        self._held: dict[str, int] = {}

    def enter(self, remote: str | None) -> str | None:
        """What to :meth:`leave` with; None: the address holds as many as it may."""
        if self._door.trusts(remote):
            return ""
        address = self._door.address_of(remote, ())
        held = self._held.get(address, 0)
        if held >= self._limit:
            self._refused()
            return None
        self._held[address] = held + 1
        return address

    def leave(self, address: str) -> None:
        """A connection ended."""
        if not address:
            return
        self._held[address] -= 1
        if not self._held[address]:
            del self._held[address]
