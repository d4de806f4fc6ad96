"""Errors over gRPC: a google.rpc.Status with ErrorInfo, BadRequest and RetryInfo."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from gateway import errors
from gateway.edge.error_table import ERROR_DOMAIN, row_for

# A status travels in trailing metadata, of which clients take 8 KiB: the message there
# is percent-encoded (three times as long), the details are base64 (a third longer).
MAX_MESSAGE_BYTES = 400
MAX_FIELD_BYTES = 64
MAX_DESCRIPTION_BYTES = 300
MAX_VIOLATIONS_BYTES = 3_600


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
        code=row_for(error).grpc_status.value[0], message=_short(error.message, MAX_MESSAGE_BYTES)
    )
    status.details.append(_any(info))
    if isinstance(error, errors.InvalidRequest):
        status.details.append(_any(_bad_request(error)))
    if isinstance(error, errors.QuotaExceeded):
        status.details.append(_any(_quota_failure(error)))
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
    bad_request = error_details_pb2.BadRequest()
    for violation in error.violations:
        bad_request.field_violations.add(
            field=_short(violation.field, MAX_FIELD_BYTES), description=_described(violation)
        )
        if bad_request.ByteSize() > MAX_VIOLATIONS_BYTES:
            del bad_request.field_violations[-1]
            break
    return bad_request


def _quota_failure(error: errors.QuotaExceeded) -> error_details_pb2.QuotaFailure:
    failure = error_details_pb2.QuotaFailure()
    failure.violations.add(
        subject=f"tenant:{_short(error.tenant, MAX_FIELD_BYTES)}",
        description=_short(error.message, MAX_DESCRIPTION_BYTES),
        quota_id=error.quota,
    )
    return failure


def _described(violation: errors.FieldViolation) -> str:
    nearest = f" (nearest valid: {', '.join(violation.nearest)})" if violation.nearest else ""
    nearest = _short(nearest, MAX_DESCRIPTION_BYTES // 2)
    room = MAX_DESCRIPTION_BYTES - len(nearest.encode())
    return _short(violation.message, room) + nearest


def _short(text: str, max_bytes: int) -> str:
    data = text.encode()
    if len(data) <= max_bytes:
        return text
    return data[: max_bytes - 3].decode(errors="ignore") + "..."


def _any(message: error_details_pb2.ErrorInfo) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
