"""The gRPC face of the leased parts: calls in, errors out by the one table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from reelmesh.v1 import quota_service_pb2 as pb
from reelmesh.v1 import quota_service_pb2_grpc as pb_grpc

from control_plane.calls import Observe, answer, check_id
from control_plane.errors import InvalidRequestError
from control_plane.quotas.book import Ask, ShareBook
from control_plane.tenants.policy import check_name

MAX_ASKS: Final = 256

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["QuotaService"].full_name


class QuotaService(pb_grpc.QuotaServiceServicer):
    """Leases parts to the gateways of one region, on this replica.

    Args:
        book: The parts.
        region_is_safe: Whether the region goes by its safe part.
        observe: Told the method and the outcome of each call.
    """

    def __init__(
        self, *, book: ShareBook, region_is_safe: Callable[[], bool], observe: Observe
    ) -> None:
        self._book = book
        self._region_is_safe = region_is_safe
        self._observe = observe

    async def LeaseShares(  # noqa: N802 - gRPC names it
        self, request: pb.LeaseSharesRequest, context: Any
    ) -> pb.LeaseSharesResponse:
        """See quota_service.proto."""
        return await answer(self._observe, "LeaseShares", self._lease, request, context)

    async def ReleaseShares(  # noqa: N802 - as above
        self, request: pb.ReleaseSharesRequest, context: Any
    ) -> pb.ReleaseSharesResponse:
        """See quota_service.proto."""
        return await answer(self._observe, "ReleaseShares", self._release, request, context)

    async def _lease(self, request: pb.LeaseSharesRequest) -> pb.LeaseSharesResponse:
        check_id("gateway_id", request.gateway_id)
        _check_number(request.number)
        if len(request.asks) > MAX_ASKS:
            raise InvalidRequestError("asks", f"must be at most {MAX_ASKS}")
        for ask in request.asks:
            _check_ask(ask)
        leased = await self._book.lease(
            request.gateway_id,
            number=request.number,
            lease_id=request.lease_id,
            asks=[Ask(a.tenant, a.held, a.demand) for a in request.asks if not a.dropped],
            dropped=[a.tenant for a in request.asks if a.dropped],
        )
        return pb.LeaseSharesResponse(
            shares=[
                pb.TenantShare(tenant=tenant, part=each.part, fresh=each.fresh)
                for tenant, each in leased.parts.items()
            ],
            lease_id=leased.lease_id,
            ttl_s=leased.ttl_s,
            safe_part=self._book.safe,
            safe_for_s=leased.safe_for_s,
            region_is_safe=self._region_is_safe(),
        )

    async def _release(self, request: pb.ReleaseSharesRequest) -> pb.ReleaseSharesResponse:
        check_id("gateway_id", request.gateway_id)
        _check_number(request.number)
        await self._book.release(
            request.gateway_id, number=request.number, lease_id=request.lease_id
        )
        return pb.ReleaseSharesResponse()


def _check_number(number: int) -> None:
    if number < 1:
        raise InvalidRequestError("number", "must be 1 or more")


def _check_ask(ask: pb.ShareAsk) -> None:
    check_name("asks.tenant", ask.tenant)
    for field in ("held", "demand"):
        value = getattr(ask, field)
        if not math.isfinite(value) or value < 0:
            raise InvalidRequestError(f"asks.{field}", "must be 0 or more")
