"""How a tenant's limit is divided among those who enforce it. Pure.

Everything is in parts of the whole limit, 0 to 1. A holder that has a place is kept its
safe part, which it may fall back to without a word from anybody; what is left follows
demand. Invariant (tests/unit/test_quota_shares.py): what all holders may go by together is
never more than the total, if each grant is written down before it is told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

# A part that is off by less than this of the total is left as it is: demand wavers.
NEAR: Final = 0.05
_EPSILON: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Holding:
    """What is known of one holder's part."""

    part: float = 0.0
    """The most that it may go by, as it is written down."""
    demand: float = 0.0
    """What it could use."""
    number: int = 0
    """Of its call that was answered last."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to one call."""

    part: float
    """What the holder goes by from now on."""
    recorded: float
    """What has to be written down before it hears of that."""


def reserved(holding: Holding | None, safe: float) -> float:
    """What is kept free for a holder with a place."""
    return safe if holding is None else max(holding.part, safe)


def targets(total: float, demands: Mapping[str, float], *, safe: float) -> dict[str, float]:
    """What each holder should have: its safe part, then by demand, the smallest first.

    What nobody asks for goes to those who ask for something, since they may ask for more in
    a moment; where nobody does, to all alike.
    """
    result = dict.fromkeys(demands, safe)
    rest = max(total - safe * len(demands), 0.0)
    wants = {name: max(demand - safe, 0.0) for name, demand in demands.items()}
    unfilled = sorted((name for name in wants if wants[name] > 0), key=lambda name: wants[name])
    for index, name in enumerate(unfilled):
        level = rest / (len(unfilled) - index)
        given = min(wants[name], level)
        result[name] += given
        rest -= given
    askers = [name for name, demand in demands.items() if demand > 0] or list(demands)
    for name in askers:
        result[name] += max(rest, 0.0) / len(askers)
    return result


def grant(
    total: float,
    *,
    me: str,
    held: float,
    demand: float,
    holdings: Mapping[str, Holding],
    places: Iterable[str],
    safe: float,
) -> Grant:
    """What a holder with a place may go by.

    Args:
        total: Of all holders.
        me: Who asks.
        held: What it goes by as it asks.
        demand: What it could use.
        holdings: What is written down of each that holds something.
        places: Everybody who has a place or waits for one, ``me`` too.
        safe: What is kept for each that has one.
    """
    own = holdings.get(me, Holding())
    # What it says beyond what is written it cannot have from us.
    held = min(max(held, 0.0), own.part)
    places = set(places)
    demands = {name: holdings.get(name, Holding()).demand for name in places}
    demands[me] = demand
    target = targets(total, demands, safe=safe)[me]
    free = total - taken(holdings, places - {me}, safe, but=me)
    if abs(target - held) <= NEAR * total and held <= free + _EPSILON and held >= safe:
        target = held
    # Its safe part is kept for it, however full all else is.
    part = max(min(target, free), safe)
    return Grant(part=part, recorded=max(part, held))


def taken(
    holdings: Mapping[str, Holding], places: Collection[str], safe: float, *, but: str = ""
) -> float:
    """What is kept for those with a place, and what those without one may go by still."""
    kept = sum(reserved(holdings.get(name), safe) for name in places)
    left = (h.part for name, h in holdings.items() if name not in places and name != but)
    return kept + sum(left)


def has_room(
    total: float, holdings: Mapping[str, Holding], places: Collection[str], safe: float
) -> bool:
    """Whether one more holder can be kept its safe part."""
    return total - taken(holdings, places, safe) >= safe - _EPSILON
