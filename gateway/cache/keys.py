"""Which requests ask for the same video. Pure."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Final

from reelmesh.v1 import video_pb2

# Changes with what goes into a key, so that nobody takes an old one for a new one.
_FORM: Final = b"reelmesh video 1\0"

# Said of how a choice was come by, not of what is drawn.
_NO_PART: Final = ("requested_resolution", "requested_seconds", "quality", "unloaded_steps")


def video_key(spec: video_pb2.ResolvedSpec, *, seeded: bool) -> str:
    """Equal for requests that one video answers.

    Everything that a resolved request holds goes into it, but for how its choices were come
    by: a field that is added to it tells requests apart until somebody says otherwise.

    Args:
        spec: Every choice made.
        seeded: The seed counts. A caller who gave none takes any.
    """
    drawn = video_pb2.ResolvedSpec()
    drawn.CopyFrom(spec)
    for name in _NO_PART:
        drawn.ClearField(name)
    if not seeded:
        drawn.ClearField("seed")
    drawn.prompt = normalised(spec.prompt)
    drawn.negative_prompt = normalised(spec.negative_prompt)
    mark = b"seeded\0" if seeded else b"any\0"
    return hashlib.sha256(_FORM + mark + drawn.SerializeToString(deterministic=True)).hexdigest()


def normalised(text: str) -> str:
    """A text in the one form of its characters (NFC), with single blanks; case is kept."""
    return " ".join(unicodedata.normalize("NFC", text).split())
