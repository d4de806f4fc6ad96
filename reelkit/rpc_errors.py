"""What the details of a failed call say; see google/rpc/error_details.proto."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What a server said of an error, beside its code."""

    reason: str
    """Stable; the error's code."""
    domain: str
    retry_after_s: float | None
    """When to come back, None where that is not said."""


def details_of(error: aio.AioRpcError) -> ErrorDetails | None:
    """The server's own word on an error; None where it said none, as a broken connection."""
    for name, value in error.trailing_metadata() or ():
        if name == _DETAILS and isinstance(value, bytes):
            return _parsed(value)
    return None


def _parsed(value: bytes) -> ErrorDetails | None:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    has_info = has_retry = False
    try:
        for detail in status_pb2.Status.FromString(value).details:
            has_info = detail.Unpack(info) or has_info
            has_retry = detail.Unpack(retry) or has_retry
    except DecodeError:
        return None
    if not has_info:
        return None
    after_s = retry.retry_delay.ToNanoseconds() / 1e9 if has_retry else None
    return ErrorDetails(str(info.reason), str(info.domain), after_s)
