"""Idempotency keys whose videos are made in another region.

Such a key's entry names that region where it would name a job. It goes by itself, since
nobody would come to remove it.
"""

from __future__ import annotations

from typing import Final

# No job id begins with it.
_MARK: Final = b"@"


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
