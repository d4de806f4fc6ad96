"""The methods of OperatorService that are about tokens; they need the global store."""

from __future__ import annotations

from typing import Final, Protocol

from reelmesh.v1 import access_pb2
from reelmesh.v1 import operator_service_pb2 as op

from control_plane.errors import InvalidRequestError
from control_plane.operator.access import Operator
from control_plane.validation import MAX_REASON_CHARS

MAX_TEXT_CHARS: Final = 512
MAX_KEEP_S: Final = 366 * 24 * 3600


class RevocationBook(Protocol):
    """The revocations as the global store has them."""

    def all(self) -> access_pb2.TokenRevocations:
        """Every revocation, the newest first."""
        ...

    async def revoke(
        self, asked: access_pb2.TokenRevocation, *, by: str, keep_s: int
    ) -> access_pb2.TokenRevocation:
        """Writes one; raises StoreError where the global store is away."""
        ...

    async def restore(self, revocation_id: str, *, by: str) -> None:
        """Takes one back; raises NotFoundError where there is none."""
        ...


class RevocationMethods:
    """RevokeTokens, ListRevocations and RestoreTokens."""

    def __init__(self, book: RevocationBook) -> None:
        self._revocations = book

    async def revoke_tokens(
        self, request: op.RevokeTokensRequest, operator: Operator
    ) -> op.RevokeTokensResponse:
        """See operator_service.proto."""
        asked = request.revocation
        which = asked.WhichOneof("which")
        if which is None:
            raise InvalidRequestError("revocation", "must name a jti or a subject")
        _check_text("revocation.issuer", asked.issuer)
        _check_text(f"revocation.{which}", getattr(asked, which))
        if which == "subject" and not asked.HasField("issued_before"):
            raise InvalidRequestError(
                "revocation.issued_before", "must be given with a subject; now, for all so far"
            )
        if len(asked.reason) > MAX_REASON_CHARS:
            raise InvalidRequestError(
                "revocation.reason", f"has more than {MAX_REASON_CHARS} characters"
            )
        if not 1 <= request.keep_s <= MAX_KEEP_S:
            raise InvalidRequestError("keep_s", f"must be 1 to {MAX_KEEP_S}, not {request.keep_s}")
        made = await self._revocations.revoke(asked, by=operator.subject, keep_s=request.keep_s)
        return op.RevokeTokensResponse(revocation=made)

    async def list_revocations(
        self, _request: op.ListRevocationsRequest, _operator: Operator
    ) -> op.ListRevocationsResponse:
        """See operator_service.proto."""
        return op.ListRevocationsResponse(revocations=self._revocations.all().revocations)

    async def restore_tokens(
        self, request: op.RestoreTokensRequest, operator: Operator
    ) -> op.RestoreTokensResponse:
        """See operator_service.proto."""
        _check_text("id", request.id)
        await self._revocations.restore(request.id, by=operator.subject)
        return op.RestoreTokensResponse()


def _check_text(field: str, value: str) -> None:
    if not 1 <= len(value) <= MAX_TEXT_CHARS or not value.isprintable():
        raise InvalidRequestError(field, f"must have 1 to {MAX_TEXT_CHARS} printable characters")
