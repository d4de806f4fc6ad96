"""What clients of an overloaded region asked and were told, and what must hold of it. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Way = Literal["stream", "grpc", "http"]
ENDED = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request for a video."""

    number: int
    way: Way
    tenant: str
    gateway: int
    deadline_s: float | None = None
    key: str = ""
    """Sent twice under this idempotency key."""


@dataclass(slots=True)
class Told:
    """What came of it, as its client saw it."""

    ask: Ask
    video_ids: list[str] = field(default_factory=list)
    """Every id that was acknowledged for it."""
    refused: str = ""
    """The code that it was refused with."""
    retry_after_s: float | None = None
    """How long it was told to wait then."""
    outcome: str = ""
    """How its stream ended."""
    broken: str = ""
    """What no client should see: a call that got no answer of ours."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A video as its record has it, when the region is idle again."""

    status: str
    ended_s: float = 0.0
    code: str = ""


def violations(history: Sequence[Told], standings: Mapping[str, Standing]) -> list[str]:
    """Every rule that was broken, in words."""
    found: list[str] = []
    owners: dict[str, Told] = {}
    for told in history:
        found += [f"#{told.ask.number} {told.ask.way}: {text}" for text in _of(told, standings)]
        for video_id in set(told.video_ids):
            if owners.setdefault(video_id, told) is not told:
                found.append(f"#{told.ask.number}: got {video_id}, which is another's")
    return found


def _of(told: Told, standings: Mapping[str, Standing]) -> Iterator[str]:
    if told.broken:
        yield f"was answered by nobody: {told.broken}"
    if told.refused and not told.retry_after_s:
        yield f"was refused with {told.refused} and no delay"
    if len(set(told.video_ids)) > 1:
        yield f"one key made {sorted(set(told.video_ids))}"
    for video_id in set(told.video_ids):
        standing = standings.get(video_id, Standing("lost"))
        if standing.status not in ENDED:
            yield f"{video_id} was acknowledged and is {standing.status}"
        elif told.outcome and standing.status != told.outcome:
            yield f"{video_id} ended as {told.outcome} to its client and as {standing.status}"


def goodput(
    standings: Mapping[str, Standing], *, from_s: float, to_s: float, capacity_per_s: float
) -> float:
    """The share of the capacity that came out as completed videos in that time."""
    done = sum(
        each.status == "completed" and from_s <= each.ended_s < to_s for each in standings.values()
    )
    return done / (capacity_per_s * (to_s - from_s))


def by_second(standings: Mapping[str, Standing], *, from_s: float, to_s: float) -> list[int]:
    """Videos that were completed in each whole second of that time."""
    seconds = Counter(
        math.floor(each.ended_s - from_s)
        for each in standings.values()
        if each.status == "completed"
    )
    return [seconds[number] for number in range(int(to_s - from_s))]


def late(history: Sequence[Told], standings: Mapping[str, Standing]) -> tuple[int, int]:
    """Of the acknowledged with a deadline: how many missed it, and how many there are."""
    dated = [t for t in history if t.ask.deadline_s is not None and t.video_ids]
    missed = sum(
        video_id in standings and standings[video_id].status == "failed"
        for told in dated
        for video_id in told.video_ids[-1:]
    )
    return missed, len(dated)


def summary(history: Sequence[Told], standings: Mapping[str, Standing]) -> list[list[str]]:
    """How many of each way were refused, and how the others ended."""
    rows = []
    for way in ("stream", "grpc", "http"):
        told = [each for each in history if each.ask.way == way]
        ends = Counter(
            standings[each.video_ids[-1]].status if each.video_ids else f"refused {each.refused}"
            for each in told
            if not each.video_ids or each.video_ids[-1] in standings
        )
        rows += [[way, end, str(count)] for end, count in sorted(ends.items())]
    return rows
