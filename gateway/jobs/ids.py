"""Ids of videos: ``<region>-<ulid>``, such as ``ap-01jd3x8z5q0e8m2c4r6t7v9wxy``.

The region is the video's home. The ULID is 48 bits of milliseconds and 80 bits of
chance in lower-case Crockford base 32, so ids need no escaping in a URL or a path and
those of one region sort by the time of admission.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Final

from gateway.errors import OtherRegion, VideoNotFound
from reelkit.clock import Clock

REGION_PATTERN: Final = r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?"

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS: Final = 80
_CHARS: Final = 26
_VIDEO_ID: Final = re.compile(rf"({REGION_PATTERN})-[0-7][{_ALPHABET}]{{{_CHARS - 1}}}")


def region_of(video_id: str) -> str | None:
    """The home region that an id names, or None where it is no video's id."""
    match = _VIDEO_ID.fullmatch(video_id)
    return match.group(1) if match else None


def not_here(video_id: str, *, region: str) -> VideoNotFound | OtherRegion:
    """What to tell of a video that ``region`` does not have.

    The id alone decides, so the answer says nothing of what another region has.
    """
    home = region_of(video_id)
    if home is not None and home != region:
        return OtherRegion(home)
    return VideoNotFound("there is no such video; finished ones are kept for a day")


class VideoIds:
    """Draws ids for a region; each sorts after the one before, also within a millisecond."""

    def __init__(
        self, region: str, *, clock: Clock, randbits: Callable[[int], int] = secrets.randbits
    ) -> None:
        self._region = region
        self._clock = clock
        self._randbits = randbits
        self._last = 0

    def draw(self) -> str:
        """A new id."""
        value = (int(self._clock.wall() * 1000) << _RANDOM_BITS) | self._randbits(_RANDOM_BITS)
        if value <= self._last:
            # The same millisecond, or a clock set back: stay above by an unguessable step.
            value = self._last + 1 + self._randbits(64)
        self._last = value
        return f"{self._region}-{_base32(value)}"


def _base32(value: int) -> str:
    digits = []
    for _ in range(_CHARS):
        value, digit = divmod(value, 32)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
