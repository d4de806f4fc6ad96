"""Rules for single fields of a request, and the valid values nearest to a wrong one."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Protocol

from reelmesh.v1 import model_pb2, video_service_pb2

from gateway.errors import FieldViolation
from gateway.jobs.ids import region_of

MAX_KEY_CHARS = 128
# A week: longer than any video takes, short enough to tell a mistake in units.
MAX_DEADLINE_S = 7 * 24 * 3600.0
DEFAULT_PAGE_SIZE = 20
MAX_PAGE_SIZE = 100

_VISIBLE_ASCII = re.compile(r"[!-~]+")
_ALLOWED_CONTROLS = frozenset("\n\r\t")
_NEAREST = 3
_SIZE = re.compile(r"([0-9]{1,60})\s*[xX×*]\s*([0-9]{1,60})")
_MAX_DIGITS = 24
_MAX_QUOTED_CHARS = 48
# No picture is larger, and a float holds it.
_FAR_PX = 2**32


class Refuse(Protocol):
    """Notes that a field breaks a rule."""

    def __call__(self, name: str, message: str, nearest: Sequence[str] = ()) -> None:
        """Notes it; the check goes on with the next field."""
        ...


def number(value: float) -> str:
    """A number as a person writes it: ``5`` rather than ``5.0``."""
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _MAX_DIGITS else f"a number of {len(text)} digits"


def quoted(text: str) -> str:
    """What a client wrote, short enough to say it back."""
    short = text if len(text) <= _MAX_QUOTED_CHARS else text[:_MAX_QUOTED_CHARS] + "..."
    return repr(short)


def size_text(size: model_pb2.VideoSize) -> str:
    """A size as WIDTHxHEIGHT."""
    return f"{size.width_px}x{size.height_px}"


def check_number(refuse: Refuse, name: str, value: float, low: float, high: float) -> bool:
    """Whether a number is finite and in [low, high]; refuses it where it is not."""
    if low <= value <= high:
        return True
    bounds = f"{number(low)} to {number(high)}"
    if isinstance(value, float) and not math.isfinite(value):
        refuse(name, f"must be a finite number, {bounds}, not {value}")
    else:
        nearest = low if value < low else high
        refuse(name, f"must be {bounds}, not {number(value)}", [number(nearest)])
    return False


def check_text(refuse: Refuse, name: str, text: str, *, limit: int, required: bool) -> None:
    """Refuses a text that is blank, too long or holds control characters."""
    if required and not text.strip():
        refuse(name, "must say something: it is empty or blank")
    if len(text) > limit:
        refuse(name, f"must be at most {limit} characters, not {len(text)}")
    for position, char in enumerate(text):
        if unicodedata.category(char) == "Cc" and char not in _ALLOWED_CONTROLS:
            refuse(
                name,
                f"must hold no control characters but line breaks and tabs; "
                f"U+{ord(char):04X} is at position {position}",
            )
            return


def check_options(options: video_service_pb2.CreateOptions) -> list[FieldViolation]:
    """Every option of a create call that breaks a rule."""
    found: list[FieldViolation] = []
    key = options.idempotency_key
    if key and not (len(key) <= MAX_KEY_CHARS and _VISIBLE_ASCII.fullmatch(key)):
        found.append(
            FieldViolation(
                "idempotency_key",
                f"must be 1 to {MAX_KEY_CHARS} visible ASCII characters without spaces",
            )
        )
    deadline_s = options.deadline_s
    if options.HasField("deadline_s") and not 0 < deadline_s <= MAX_DEADLINE_S:
        found.append(
            FieldViolation(
                "deadline_s",
                f"must be more than 0 and at most {number(MAX_DEADLINE_S)} seconds, "
                f"not {number(deadline_s)}",
            )
        )
    if options.supersedes and region_of(options.supersedes) is None:
        found.append(FieldViolation("supersedes", "must be the id of a video"))
    return found


def model_by_name(wanted: str, models: Sequence[model_pb2.ModelInfo]) -> model_pb2.ModelInfo | None:
    """The first model that ``name`` or ``name@version`` means."""
    name, at, version = wanted.partition("@")
    for info in models:
        if info.name == name and (not at or info.version == version):
            return info
    return None


def nearest_names(wanted: str, names: Sequence[str]) -> list[str]:
    """Names most like the one given; the first few where none is like it."""
    unique = list(dict.fromkeys(names))
    close = difflib.get_close_matches(wanted.lower(), unique, n=_NEAREST, cutoff=0.3)
    return close or unique[:_NEAREST]


def nearest_sizes(
    width: int, height: int, sizes: Sequence[model_pb2.VideoSize]
) -> list[model_pb2.VideoSize]:
    """Sizes nearest in shape and area, best first."""
    wanted = (_near_px(width), _near_px(height))

    def distance(size: model_pb2.VideoSize) -> float:
        return math.dist((size.width_px, size.height_px), wanted)

    return sorted(sizes, key=distance)[:_NEAREST]


def nearest_size_names(wanted: str, info: model_pb2.ModelInfo) -> list[str]:
    """What a name of a size may have meant.

    For a WIDTHxHEIGHT these are the true sizes nearest to it and then the aliases, those
    nearest by what they say; for another name those that are spelt like it.
    """
    asked = _size_in(wanted)
    if asked is None:
        names = [alias.alias for alias in info.size_aliases]
        return nearest_names(wanted, names + [size_text(size) for size in info.sizes])

    def distance(alias: model_pb2.SizeAlias) -> float:
        said = _size_in(alias.alias) or (alias.size.width_px, alias.size.height_px)
        return math.dist(said, asked)

    true = [size_text(size) for size in nearest_sizes(*asked, info.sizes)]
    aliases = [alias.alias for alias in sorted(info.size_aliases, key=distance)]
    return (true + aliases)[:_NEAREST]


def _size_in(text: str) -> tuple[int, int] | None:
    match = _SIZE.fullmatch(text.strip())
    return (_near_px(int(match.group(1))), _near_px(int(match.group(2)))) if match else None


def _near_px(value: int) -> int:
    return min(max(value, -_FAR_PX), _FAR_PX)


def nearest_widths(wanted: int, widths: Iterable[int]) -> list[str]:
    """Of some widths or heights those nearest to a number, best first."""
    found = sorted(set(widths), key=lambda width: (abs(width - wanted), width))
    return [str(width) for width in found[:_NEAREST]]


def nearest_counts(wanted: float, rule: model_pb2.FrameRule) -> list[int]:
    """Allowed frame counts nearest to a number, best first; of two equally near the lower."""
    step = max(rule.step, 1)
    top = (rule.max - rule.min) // step
    below = math.floor((min(max(wanted, rule.min), rule.max) - rule.min) / step)
    counts = {rule.min + step * min(max(k, 0), top) for k in (below, below + 1)}
    return sorted(counts, key=lambda count: (abs(count - wanted), count))
