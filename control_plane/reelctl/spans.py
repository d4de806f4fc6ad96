"""Lengths of time as people write them."""

from __future__ import annotations

import re
from typing import Final

from control_plane.reelctl.errors import UsageError

MINUTE_S: Final = 60
_UNITS: Final = {"s": 1, "m": MINUTE_S, "h": 60 * MINUTE_S, "d": 24 * 60 * MINUTE_S}
_SPAN = re.compile(r"(\d{1,9})([smhd])")


def parse_span(option: str, text: str, *, least_s: int, most_s: int) -> int:
    """Seconds of ``90s``, ``15m``, ``8h`` or ``30d``.

    Raises:
        UsageError: It is none, or outside the bounds.
    """
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"{option}: {text!r} is no length of time", hint="write 90s, 15m, 8h or 30d"
        )
    seconds = int(found[1]) * _UNITS[found[2]]
    if not least_s <= seconds <= most_s:
        nearest = min(max(seconds, least_s), most_s)
        raise UsageError(
            f"{option}: must be {least_s} s to {most_s // _UNITS['d']} d", hint=f"try {nearest}s"
        )
    return seconds
