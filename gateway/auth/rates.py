"""How often a tenant may call: the port that both edges ask, after they know who calls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a limited tenant has left at this gateway after a call."""

    burst: int
    """Requests at once that its policy allows."""
    window_s: int
    """In which its rate brings so many back."""
    remaining: int
    reset_s: int
    """Until all that this gateway may give out is there again."""

    @property
    def headers(self) -> dict[str, str]:
        """Over HTTP; see draft-ietf-httpapi-ratelimit-headers."""
        return {
            "RateLimit-Policy": f'"requests";q={self.burst};w={self.window_s}',
            "RateLimit": f'"requests";r={self.remaining};t={self.reset_s}',
        }


def allowance(
    *, rate: float, burst: float, tokens: float, missing: float, speed: float
) -> Allowance:
    """What is told of a bucket.

    Args:
        rate: Of the policy, in requests a second.
        burst: Likewise, in requests.
        tokens: In this gateway's bucket.
        missing: Until it is full.
        speed: At which it is filled.
    """
    return Allowance(
        burst=max(math.floor(burst), 1),
        window_s=max(math.ceil(burst / rate), 1),
        remaining=max(math.floor(tokens), 0),
        reset_s=math.ceil(missing / speed) if speed > 0 else 0,
    )


class Rates(Protocol):
    """Counts calls."""

    async def charge(self, tenant: str) -> Allowance | None:
        """Counts one call of a tenant; None: it is not limited.

        Raises:
            RequestQuota: It was one too many; carries what is left.
            QuotaUnknown: This gateway has no part of the tenant's limit.
        """
        ...


class Unlimited:
    """Nobody's calls are counted."""

    async def charge(self, tenant: str) -> Allowance | None:  # noqa: ARG002 - the port's
        """None."""
        return None
