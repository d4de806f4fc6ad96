"""What clients did and saw, written down as it happened. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["stream", "durable", "cancel"]
TERMINAL = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Wish:
    """A video that may be asked for: few of them, so that each has a known answer."""

    prompt: str
    seed: int


@dataclass(slots=True)
class Seen:
    """One event as a client saw it, in the order in which it came."""

    seq: int
    kind: str
    attempt: int = 0
    offset: int = 0
    size: int = 0


@dataclass(slots=True)
class Watch:
    """One stream of events, taken up after ``after_seq``."""

    gateway: str
    after_seq: int
    events: list[Seen] = field(default_factory=list)


@dataclass(slots=True)
class Operation:
    """One thing a client wanted, from its first try to what became of it."""

    number: int
    kind: Kind
    wish: Wish
    started_s: float
    ended_s: float | None = None
    video_ids: list[str] = field(default_factory=list)
    """Every id that was acknowledged for it; more than one where a region was given up."""
    cancelled: bool = False
    """A cancel was acknowledged."""
    outcome: str = ""
    """What the client was told in the end, "" where it gave up."""
    code: str = ""
    """Why it failed, or what the client gave up over."""
    sha256: str = ""
    """Of the bytes that the client holds."""
    watches: list[Watch] = field(default_factory=list)


@dataclass(slots=True)
class Standing:
    """A video as one gateway tells of it, after everything was healed."""

    status: str
    sha256: str = ""
    code: str = ""


@dataclass(slots=True)
class History:
    """A whole run."""

    operations: list[Operation] = field(default_factory=list)
    answers: dict[Wish, str] = field(default_factory=dict)
    """sha256 of each wish's video, drawn before the first fault."""
    standings: dict[str, dict[str, Standing]] = field(default_factory=dict)
    """By video, then gateway of its home region."""
    completions: dict[str, int] = field(default_factory=dict)
    """How often each video was drawn to its end, by the nodes' logs."""
    faults: list[tuple[float, str]] = field(default_factory=list)
