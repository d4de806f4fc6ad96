"""The methods of OperatorService that are about regions; they need the global store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from reelmesh.v1 import operator_service_pb2 as op
from reelmesh.v1 import region_pb2

from control_plane.errors import InvalidRequestError, NoGlobalStoreError
from control_plane.operator.access import Operator
from control_plane.validation import MAX_REASON_CHARS, check_id


class RegionBook(Protocol):
    """Every region as the global store has it."""

    def views(self) -> Sequence[region_pb2.RegionView]:
        """Every region that has a summary or a policy, by name."""
        ...

    async def set_policy(
        self, region: str, *, draining: bool, reason: str, by: str
    ) -> region_pb2.RegionView:
        """Writes what an operator wants of a region.

        Raises:
            NotFoundError: Nobody knows that region.
            StoreError: The global store is away.
        """
        ...


class RegionMethods:
    """ListRegions and SetRegionPolicy.

    Args:
        book: None where this control plane has no global store.
    """

    def __init__(self, book: RegionBook | None) -> None:
        self._book = book

    async def list_regions(
        self, _request: op.OperatorServiceListRegionsRequest, _operator: Operator
    ) -> op.OperatorServiceListRegionsResponse:
        """See operator_service.proto."""
        return op.OperatorServiceListRegionsResponse(regions=self._known_book().views())

    async def set_region_policy(
        self, request: op.SetRegionPolicyRequest, operator: Operator
    ) -> op.SetRegionPolicyResponse:
        """See operator_service.proto."""
        book = self._known_book()
        check_id("region", request.region)
        if len(request.reason) > MAX_REASON_CHARS:
            raise InvalidRequestError("reason", f"has more than {MAX_REASON_CHARS} characters")
        view = await book.set_policy(
            request.region,
            draining=request.draining,
            reason=request.reason,
            by=operator.subject,
        )
        return op.SetRegionPolicyResponse(region=view)

    def _known_book(self) -> RegionBook:
        if self._book is None:
            raise NoGlobalStoreError("this control plane has no global store")
        return self._book
