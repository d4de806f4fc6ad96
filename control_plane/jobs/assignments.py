"""Idempotency keys whose videos are made in another region.

Such a key's entry names that region where it would name a job. It goes by itself, under a
lease that it shares with those of the same ten minutes: nobody would come to remove it.
"""

from __future__ import annotations

from typing import Final

from control_plane.store.port import Store
from reelkit.clock import Clock

# No job id begins with it.
_MARK: Final = b"@"
_BUCKET_S: Final = 600.0


class KeyElsewhere(Exception):  # noqa: N818 - an answer, not a failure
    """The key was assigned to another region."""

    def __init__(self, region: str) -> None:
        super().__init__(region)
        self.region = region


def assigned_to(region: str) -> bytes:
    """A key's entry that names a region."""
    return _MARK + region.encode()


def region_in(entry: bytes) -> str | None:
    """The region that an entry names, None where it names a job."""
    return entry.removeprefix(_MARK).decode() if entry.startswith(_MARK) else None


class BucketLeases:
    """Leases that are granted once and shared by what is written within ten minutes."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        # By how long to keep: the lease, and until when it may be given out.
        self._leases: dict[int, tuple[int, float]] = {}

    async def lease(self, keep_s: int) -> int:
        """A lease that lasts ``keep_s`` from now, and ten minutes more at most.

        Raises:
            StoreError: None could be granted.
        """
        now_s = self._clock.monotonic()
        found = self._leases.get(keep_s)
        if found is not None and now_s < found[1]:
            return found[0]
        granted = await self._store.grant(keep_s + _BUCKET_S)
        # Those of other lengths whose time is over are not asked for again.
        self._leases = {k: v for k, v in self._leases.items() if now_s < v[1]}
        self._leases[keep_s] = (granted.lease_id, now_s + _BUCKET_S)
        return granted.lease_id

    def forget(self, lease_id: int) -> None:
        """The lease is gone: the next one is granted."""
        self._leases = {k: v for k, v in self._leases.items() if v[0] != lease_id}
