"""Errors over gRPC: a google.rpc.Status with ErrorInfo, BadRequest and RetryInfo."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from gateway import errors
from gateway.error_table import ERROR_DOMAIN, row_for

# A status travels in trailing metadata, of which clients take 8 KiB, base64 included.
MAX_VIOLATIONS = 12
MAX_TEXT_CHARS = 300


@dataclass(frozen=True, slots=True)
class RichStatus:
    """What ends a call: the three things that ``context.abort`` takes."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def rich_status(error: errors.GatewayError) -> RichStatus:
    """The status that the error table makes of an error."""
    info = error_details_pb2.ErrorInfo(reason=error.code, domain=ERROR_DOMAIN)
    retryable = error.retryable
    if isinstance(error, errors.JobFailed):
        info.metadata["job_code"] = error.job_code
        retryable = error.job_retryable
    info.metadata["retryable"] = "true" if retryable else "false"
    status = status_pb2.Status(
        code=row_for(error).grpc_status.value[0], message=_short(error.message)
    )
    status.details.append(_any(info))
    if isinstance(error, errors.InvalidRequest):
        status.details.append(_any(_bad_request(error)))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(max(0.0, error.retry_after_s) * 1e9))
        status.details.append(_any(error_details_pb2.RetryInfo(retry_delay=delay)))
    return _packed(status)


def internal_status() -> RichStatus:
    """What is told of an error that nobody foresaw: nothing but its code."""
    status = status_pb2.Status(
        code=grpc.StatusCode.INTERNAL.value[0],
        message="the gateway failed; the error was logged",
    )
    info = error_details_pb2.ErrorInfo(reason="internal", domain=ERROR_DOMAIN)
    info.metadata["retryable"] = "false"
    status.details.append(_any(info))
    return _packed(status)


def _packed(status: status_pb2.Status) -> RichStatus:
    packed = rpc_status.to_status(status)
    return RichStatus(packed.code, packed.details, packed.trailing_metadata)


def _bad_request(error: errors.InvalidRequest) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=_short(violation.field), description=_described(violation)
            )
            for violation in error.violations[:MAX_VIOLATIONS]
        ]
    )


def _described(violation: errors.FieldViolation) -> str:
    text = _short(violation.message)
    if violation.nearest:
        text += _short(f" (nearest valid: {', '.join(violation.nearest)})")
    return text


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 3] + "..."


def _any(message: error_details_pb2.ErrorInfo) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
