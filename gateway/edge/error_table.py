"""The one table from what went wrong to what HTTP and gRPC clients are told.

A class that is not listed takes the row of its nearest listed ancestor. ``GatewayError``
itself is not listed: a new branch of the tree needs a row of its own, and a test says so.
Until it has one, it reads as a failure of the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import grpc

from gateway import errors

ERROR_DOMAIN = "reelmesh"
"""The domain of google.rpc.ErrorInfo; its reason is the error's code."""

PROBLEM_TYPE_PREFIX = "urn:reelmesh:problem:"
"""An RFC 9457 problem type is this and the error's code."""


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """How one class of errors reads on the wire."""

    http_status: int
    title: str
    """RFC 9457 title: the same for every occurrence."""
    grpc_status: grpc.StatusCode
    openai_type: str = "invalid_request_error"
    """``error.type`` as OpenAI's clients know it."""


# Create never answers 409: OpenAI's client retries it, and a used key stays used.
ERROR_TABLE: Mapping[type[errors.GatewayError], ErrorRow] = MappingProxyType(
    {
        errors.InvalidRequest: ErrorRow(
            400, "The request breaks a rule", grpc.StatusCode.INVALID_ARGUMENT
        ),
        errors.PayloadTooLarge: ErrorRow(
            413, "The request is too large", grpc.StatusCode.INVALID_ARGUMENT
        ),
        errors.Unauthenticated: ErrorRow(
            401,
            "The call is not authenticated",
            grpc.StatusCode.UNAUTHENTICATED,
            "authentication_error",
        ),
        errors.PermissionDenied: ErrorRow(
            403,
            "The token does not allow this",
            grpc.StatusCode.PERMISSION_DENIED,
            "permission_error",
        ),
        errors.VideoNotFound: ErrorRow(404, "No such video", grpc.StatusCode.NOT_FOUND),
        errors.VideoDamaged: ErrorRow(
            500, "The stored video is damaged", grpc.StatusCode.DATA_LOSS, "server_error"
        ),
        errors.PictureFailed: ErrorRow(
            500, "No picture can be made", grpc.StatusCode.INTERNAL, "server_error"
        ),
        # Not 404: this region cannot tell whether the video exists.
        errors.OtherRegion: ErrorRow(
            421, "The video lives in another region", grpc.StatusCode.NOT_FOUND
        ),
        errors.BatchNotFound: ErrorRow(404, "No such batch", grpc.StatusCode.NOT_FOUND),
        errors.BatchElsewhere: ErrorRow(
            421, "The batch lives in another region", grpc.StatusCode.NOT_FOUND
        ),
        errors.ModelNotFound: ErrorRow(404, "No such model", grpc.StatusCode.NOT_FOUND),
        errors.IdempotencyConflict: ErrorRow(
            422, "The idempotency key is in use", grpc.StatusCode.ALREADY_EXISTS
        ),
        errors.NotFinished: ErrorRow(
            409, "The video is not finished", grpc.StatusCode.FAILED_PRECONDITION
        ),
        errors.BatchNotFinished: ErrorRow(
            409, "The batch has not ended", grpc.StatusCode.FAILED_PRECONDITION
        ),
        errors.VideoFailed: ErrorRow(
            409, "The video failed and has no content", grpc.StatusCode.FAILED_PRECONDITION
        ),
        errors.VideoCancelled: ErrorRow(
            409, "The video was cancelled and has no content", grpc.StatusCode.FAILED_PRECONDITION
        ),
        errors.JobFailed: ErrorRow(409, "The video failed", grpc.StatusCode.FAILED_PRECONDITION),
        errors.ResourceExhausted: ErrorRow(
            429, "A limit is reached", grpc.StatusCode.RESOURCE_EXHAUSTED, "rate_limit_error"
        ),
        errors.QuotaExceeded: ErrorRow(
            429,
            "The tenant's quota is used up",
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "rate_limit_error",
        ),
        errors.QuotaTooSmall: ErrorRow(
            403,
            "The tenant's quota does not allow this",
            grpc.StatusCode.PERMISSION_DENIED,
            "permission_error",
        ),
        errors.Unavailable: ErrorRow(
            503, "The region cannot serve now", grpc.StatusCode.UNAVAILABLE, "server_error"
        ),
        # Over HTTP such a connection is cut, since its status has long been sent.
        errors.ReaderTooSlow: ErrorRow(
            408, "The stream was not read in time", grpc.StatusCode.ABORTED
        ),
    }
)


UNLISTED = ErrorRow(500, "The gateway failed", grpc.StatusCode.INTERNAL, "server_error")


def row_for(error: errors.GatewayError) -> ErrorRow:
    """The row of an error's class or of its nearest listed ancestor, else UNLISTED."""
    for cls in type(error).__mro__:
        row = ERROR_TABLE.get(cls)
        if row is not None:
            return row
    return UNLISTED
