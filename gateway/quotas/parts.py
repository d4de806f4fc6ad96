"""Which parts of tenants' limits this gateway may go by. Pure; times are passed in.

A part counts from the sending of the call that it answers, so that an answer that comes late
holds no longer than one that comes at once. Afterwards the safe part holds, which is kept for
this gateway for a day; a gateway that never had a place has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from reelmesh.v1 import quota_service_pb2 as pb

# Of a lease's time, at its end: clocks run at slightly different speeds.
MARGIN_SHARE: Final = 0.2


class Mode(StrEnum):
    """What this gateway goes by."""

    LEASED = "leased"
    """Parts that follow demand."""
    REGION_SAFE = "region_safe"
    """Parts of what the region has without a word from the others."""
    SAFE = "safe"
    """Its safe part of each tenant's limits: the control plane is away."""
    NONE = "none"
    """Nothing: it has no place among the gateways, or not any more."""


class Parts:
    """Filled by :meth:`take` with the answers to this gateway's calls."""

    def __init__(self) -> None:
        self.lease_id = 0
        self._parts: dict[str, float] = {}
        self._safe_part = 0.0
        self._leased_until_s = self._safe_until_s = float("-inf")
        self._region_is_safe = False

    def take(
        self, answer: pb.LeaseSharesResponse, *, sent_s: float, now_s: float, asked: Iterable[str]
    ) -> None:
        """Goes by an answer to the newest call.

        Args:
            answer: It.
            sent_s: When the call was sent.
            now_s: By the same clock.
            asked: The tenants that were asked for.
        """
        if answer.lease_id != self.lease_id or now_s >= self._leased_until_s:
            # What was not asked for was under a lease that may be gone.
            self._parts.clear()
        self.lease_id = answer.lease_id
        for tenant in asked:
            self._parts.pop(tenant, None)
        for share in answer.shares:
            self._parts[share.tenant] = share.part
        self._leased_until_s = sent_s + answer.ttl_s * (1 - MARGIN_SHARE)
        self._safe_until_s = sent_s + answer.safe_for_s
        self._safe_part = answer.safe_part
        self._region_is_safe = answer.region_is_safe

    def drop(self, tenant: str) -> None:
        """Goes by no more than the safe part of a tenant."""
        self._parts.pop(tenant, None)

    def leased(self, tenant: str, now_s: float) -> bool:
        """Whether the control plane said what this gateway has of a tenant, and it holds still."""
        return now_s < self._leased_until_s and tenant in self._parts

    def part(self, tenant: str, now_s: float) -> float:
        """The part to go by now."""
        if self.leased(tenant, now_s):
            return self._parts[tenant]
        return self._safe_part if now_s < self._safe_until_s else 0.0

    def mode(self, now_s: float) -> Mode:
        """What this gateway goes by now."""
        if now_s >= self._safe_until_s:
            return Mode.NONE
        if now_s >= self._leased_until_s:
            return Mode.SAFE
        return Mode.REGION_SAFE if self._region_is_safe else Mode.LEASED
