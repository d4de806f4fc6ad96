"""From a gRPC status with its rich details to one of :mod:`wan_t2v_sdk.errors`."""

from __future__ import annotations

import contextlib
import re

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from wan_t2v_sdk.errors import (
    AuthenticationError,
    ConflictError,
    ConnectionLostError,
    DeadlineError,
    FieldViolation,
    GenerationFailedError,
    InvalidRequestError,
    NotFinishedError,
    OtherRegionError,
    OverloadedError,
    PermissionDeniedError,
    ReelmeshError,
    ServerError,
    UnavailableError,
    VideoNotFoundError,
)

_DETAILS_KEY = "grpc-status-details-bin"
_NEAREST_METADATA_PREFIX = "nearest."
_NEAREST_IN_TEXT = re.compile(r"nearest(?: valid)?(?: values?)?(?: are| is)?:? ([^;()]+)")

_TYPES: dict[grpc.StatusCode, type[ReelmeshError]] = {
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.NOT_FOUND: VideoNotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: ConflictError,
    grpc.StatusCode.FAILED_PRECONDITION: NotFinishedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.ABORTED: UnavailableError,
}
# What gRPC itself says when the other side goes away; a gateway's own refusal has details.
_LOSSES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)
_INVALID = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
# gRPC's own refusal of a message, which comes without details and never passes by itself.
_TOO_LARGE = "larger than max"
_BATCH_OTHER_REGION = "batch_other_region"
_TOO_LARGE_CODE = "payload_too_large"


def error_of(error: aio.AioRpcError, *, endpoint: str) -> ReelmeshError:
    """The typed error that ``error`` means; its message is the server's own where there is one."""
    info, bad_request, retry_after_s = _details(error)
    text = error.details() or error.code().name
    reason = info.reason.lower() if info.reason else None
    if error.code() in _INVALID:
        violations = _violations(bad_request, dict(info.metadata))
        return InvalidRequestError(text, violations=violations, code=reason)
    if reason is None and _TOO_LARGE in text:
        return InvalidRequestError(text, code=_TOO_LARGE_CODE)
    if reason is None and error.code() in _LOSSES and _says_loss(error):
        return ConnectionLostError(f"{endpoint}: {text}")
    kind = _TYPES.get(error.code(), ServerError)
    if reason == "job_failed":
        kind = GenerationFailedError
    if reason in (OtherRegionError.code, _BATCH_OTHER_REGION):
        kind = OtherRegionError
    return kind(text, code=reason, retry_after_s=retry_after_s)


def _says_loss(error: aio.AioRpcError) -> bool:
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return True
    # A server that is killed in the middle of a message resets the stream.
    return "RST_STREAM" in (error.details() or "")


def _details(
    error: aio.AioRpcError,
) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, float | None]:
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after_s = None
    # What cannot be read is passed over: the status and its text still tell the error.
    with contextlib.suppress(DecodeError):
        for detail in _status(error).details:
            if detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
            elif not detail.Unpack(info):
                detail.Unpack(bad_request)
    return info, bad_request, retry_after_s


def _status(error: aio.AioRpcError) -> status_pb2.Status:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return status_pb2.Status()


def _violations(
    bad_request: error_details_pb2.BadRequest, metadata: dict[str, str]
) -> tuple[FieldViolation, ...]:
    found = []
    for violation in bad_request.field_violations:
        listed = metadata.get(_NEAREST_METADATA_PREFIX + violation.field)
        if listed is None:
            match = _NEAREST_IN_TEXT.search(violation.description)
            listed = match.group(1) if match else ""
        nearest = tuple(value.strip(" .'\"") for value in listed.split(",") if value.strip(" .'\""))
        found.append(FieldViolation(violation.field, violation.description, nearest))
    return tuple(found)
