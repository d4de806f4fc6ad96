"""What all holders of a tier may have together of a tenant: the whole, or a region's part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import structlog

from control_plane.store.port import Compare

_log = structlog.get_logger("control_plane.quotas")


class Totals(Protocol):
    """How much there is to be divided."""

    def of(self, tenant: str) -> float:
        """Of a tenant, as far as is known here; 0: nothing of any."""
        ...

    def fence(self, tenant: str) -> Sequence[Compare]:
        """What holds in the tier's store while that is so."""
        ...

    def holds_for_s(self) -> float:
        """Seconds for which it is so at least."""
        ...

    async def refresh(self, tenant: str) -> None:
        """Looks again, where a fence did not hold.

        Raises:
            StoreError: The store is away.
        """
        ...


class Whole:
    """Everything, for ever."""

    def of(self, tenant: str) -> float:  # noqa: ARG002 - the port's
        """All of it."""
        return 1.0

    def fence(self, tenant: str) -> Sequence[Compare]:  # noqa: ARG002 - the port's
        """Nothing need hold."""
        return ()

    def holds_for_s(self) -> float:
        """For ever."""
        return float("inf")

    async def refresh(self, tenant: str) -> None:
        """There is nothing to look at."""


class Single:
    """The whole for a mesh of one region; nothing for the others where there are more.

    Of several the first by name has it, so that no two do.

    Args:
        region: This one.
        regions: Those that are known.
    """

    def __init__(self, *, region: str, regions: Callable[[], Collection[str]]) -> None:
        self._region = region
        self._regions = regions
        self._told = False

    def of(self, tenant: str) -> float:  # noqa: ARG002 - the port's
        """All of it, or nothing."""
        others = self._regions()
        alone = self._region <= min(others, default=self._region)
        if len(others) > 1 and not self._told:
            self._told = True
            _log.error(
                "there are more regions than quotas.max_regions: all but the first have no part "
                "of any tenant's limits",
                regions=sorted(others),
                has_the_whole=min(others),
            )
        return 1.0 if alone else 0.0

    def fence(self, tenant: str) -> Sequence[Compare]:  # noqa: ARG002 - the port's
        """Nothing need hold."""
        return ()

    def holds_for_s(self) -> float:
        """For as long as nobody else comes."""
        return float("inf")

    async def refresh(self, tenant: str) -> None:
        """There is nothing to look at."""
