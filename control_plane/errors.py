"""Every error of the control plane, and what a caller sees of each.

    ControlPlaneError
    ├── InvalidRequestError          a field of a request breaks a rule
    │   └── RecordTooLargeError      a record would pass the store's limit
    ├── NotFinishedError             the job must have ended first
    ├── NotFoundError                nothing of that name is known
    ├── SupersededError              another stream took the record over
    ├── ChangedMeanwhileError        somebody else changed what was read before
    ├── AlreadyRegisteredError       a model's version has other content
    ├── StillWantedError             nodes are told to have what was to be retired
    ├── NotReadyError                this replica has not read the store yet
    ├── NotLeaderError               another replica leads, or nobody does
    ├── QuotaExceededError           a tenant has as much as it may
    │   ├── ConcurrentJobsError      of jobs that have not ended
    │   └── GpuSecondsError          of a day's GPU-seconds
    ├── QuotaTooSmallError           a tenant may never have what is asked for
    ├── KeysAwayError                an operator's token cannot be checked now
    ├── UnauthenticatedError         an operator's call without a token that holds
    ├── PermissionDeniedError        its token lacks the scope
    ├── NoGlobalStoreError           a question of regions, and there is no global store
    └── StoreError
        ├── StoreUnavailableError    no answer; nothing was written
        ├── OutcomeUnknownError      a write may or may not have been applied
        ├── StoreRestoredError       the store's history went backwards: relist everything
        ├── StoreDeniedError         wrong user, password or permission
        ├── StoreRefusedError        the store understood the request and refused it
        │   └── StoreFullError       it has no space left, or too many requests
        ├── CompactedError           the revision asked for is no longer kept
        └── LeaseNotFoundError       the lease ran out or was revoked

``BOUNDARY`` maps each class to its gRPC status; ``abort`` is the one place that
turns an error into an answer. What a client reads holds no stack and no path.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

ERROR_DOMAIN = "control-plane.reelmesh"
RETRY_DELAY_S = 1


class ControlPlaneError(Exception):
    """Base of all; ``code`` is stable, ``retryable`` says whether asking again can help."""

    code: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False


class InvalidRequestError(ControlPlaneError):
    """A field breaks a rule; the message names field, rule and what would be right."""

    code = "INVALID_REQUEST"

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.rule = rule


class RecordTooLargeError(InvalidRequestError):
    """A record would pass the limit that keeps the store quick."""

    code = "RECORD_TOO_LARGE"

    def __init__(self, field: str, *, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            field,
            f"takes {size_bytes} bytes in the store, the limit is {limit_bytes}; "
            "shorten its texts or its lists",
        )


class NotFinishedError(ControlPlaneError):
    """The job runs or waits; what was asked needs one that has ended."""

    code = "not_finished"


class NotFoundError(ControlPlaneError):
    """Nothing of that name is known here; the message says what there is, where it may."""

    code = "NOT_FOUND"


class SupersededError(ControlPlaneError):
    """Another stream holds this record now; attach again if that was not meant."""

    code = "SUPERSEDED"
    retryable = True


class ChangedMeanwhileError(ControlPlaneError):
    """Somebody else changed it since the caller read it: read it again, then decide."""

    code = "CHANGED_MEANWHILE"
    retryable = True


class AlreadyRegisteredError(ControlPlaneError):
    """The version is registered with other content; it never changes."""

    code = "ALREADY_REGISTERED"


class StillWantedError(ControlPlaneError):
    """Nodes are told to have the version; that has to be taken back first."""

    code = "STILL_WANTED"


class NotReadyError(ControlPlaneError):
    """This replica cannot answer yet; another may."""

    code = "NOT_READY"
    retryable = True


class NotLeaderError(ControlPlaneError):
    """This replica does not lead (any more); what it meant to write was not written."""

    code = "NOT_LEADER"
    retryable = True


class QuotaExceededError(ControlPlaneError):
    """The tenant has as much as it may; in ``retry_after_s`` seconds it may have more."""

    code = "quota"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float = RETRY_DELAY_S) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ConcurrentJobsError(QuotaExceededError):
    """As many jobs of the tenant as may run and wait at once do so."""

    code = "quota_concurrent_jobs"


class GpuSecondsError(QuotaExceededError):
    """What is left of the tenant's GPU-seconds of the day is not enough."""

    code = "quota_gpu_seconds"


class QuotaTooSmallError(ControlPlaneError):
    """The tenant's limit is below what this one job needs; waiting does not help."""

    code = "quota_too_small"


class KeysAwayError(ControlPlaneError):
    """The keys of a token's issuer were never fetched, and cannot be now."""

    code = "KEYS_UNAVAILABLE"
    retryable = True


class UnauthenticatedError(ControlPlaneError):
    """The call has no token that holds; ``cause`` is the stable code of why, if it is known."""

    code = "UNAUTHENTICATED"

    def __init__(self, message: str, *, cause: str | None = None) -> None:
        super().__init__(message)
        self.cause = cause


class PermissionDeniedError(ControlPlaneError):
    """The token is good and lacks the scope."""

    code = "PERMISSION_DENIED"


class NoGlobalStoreError(ControlPlaneError):
    """This control plane has no global store, so it knows of no other region."""

    code = "NO_GLOBAL_STORE"


class StoreError(ControlPlaneError):
    """Base of what the store says."""

    code = "STORE_ERROR"


class StoreUnavailableError(StoreError):
    """The store gave no answer in time; nothing was written."""

    code = "STORE_UNAVAILABLE"
    retryable = True


class OutcomeUnknownError(StoreError):
    """A write was sent and not answered: it may have been applied, now or later."""

    code = "STORE_OUTCOME_UNKNOWN"
    retryable = True


class StoreRestoredError(StoreError):
    """Cluster id, raft term or revision went backwards: what was known is void, relist.

    The call that met it may have been applied to the restored store.
    """

    code = "STORE_RESTORED"
    retryable = True


class StoreDeniedError(StoreError):
    """The store did not accept the user, the password or the permission."""

    code = "STORE_DENIED"


class StoreRefusedError(StoreError):
    """The store refused the request as it stands; nothing was written."""

    code = "STORE_REFUSED"


class StoreFullError(StoreRefusedError):
    """The store is out of space or overloaded; nothing was written."""

    code = "STORE_FULL"
    retryable = True


class CompactedError(StoreError):
    """The revision is below what the store still keeps."""

    code = "STORE_COMPACTED"

    def __init__(self, compact_revision: int) -> None:
        super().__init__(f"revisions below {compact_revision} are compacted away")
        self.compact_revision = compact_revision


class LeaseNotFoundError(StoreError):
    """The lease ran out or was revoked; its keys are gone."""

    code = "LEASE_NOT_FOUND"

    def __init__(self, lease_id: int) -> None:
        super().__init__(f"lease {lease_id:x} is gone")
        self.lease_id = lease_id


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """How a class of errors looks from outside."""

    status: grpc.StatusCode
    # Shown in place of the error's own text where that is of no use to a client.
    text: str | None = None


_STORE_AWAY = "the control plane's store gives no answer; try again"

BOUNDARY: dict[type[ControlPlaneError], Answer] = {
    ControlPlaneError: Answer(grpc.StatusCode.INTERNAL, "internal error"),
    InvalidRequestError: Answer(grpc.StatusCode.INVALID_ARGUMENT),
    RecordTooLargeError: Answer(grpc.StatusCode.INVALID_ARGUMENT),
    NotFinishedError: Answer(grpc.StatusCode.FAILED_PRECONDITION),
    NotFoundError: Answer(grpc.StatusCode.NOT_FOUND),
    SupersededError: Answer(grpc.StatusCode.ABORTED),
    ChangedMeanwhileError: Answer(grpc.StatusCode.ABORTED),
    AlreadyRegisteredError: Answer(grpc.StatusCode.ALREADY_EXISTS),
    StillWantedError: Answer(grpc.StatusCode.FAILED_PRECONDITION),
    NotReadyError: Answer(grpc.StatusCode.UNAVAILABLE),
    NotLeaderError: Answer(grpc.StatusCode.UNAVAILABLE),
    QuotaExceededError: Answer(grpc.StatusCode.RESOURCE_EXHAUSTED),
    ConcurrentJobsError: Answer(grpc.StatusCode.RESOURCE_EXHAUSTED),
    GpuSecondsError: Answer(grpc.StatusCode.RESOURCE_EXHAUSTED),
    QuotaTooSmallError: Answer(grpc.StatusCode.PERMISSION_DENIED),
    KeysAwayError: Answer(grpc.StatusCode.UNAVAILABLE),
    UnauthenticatedError: Answer(grpc.StatusCode.UNAUTHENTICATED),
    PermissionDeniedError: Answer(grpc.StatusCode.PERMISSION_DENIED),
    NoGlobalStoreError: Answer(grpc.StatusCode.FAILED_PRECONDITION),
    StoreError: Answer(grpc.StatusCode.INTERNAL, "the control plane's store failed"),
    StoreUnavailableError: Answer(grpc.StatusCode.UNAVAILABLE, _STORE_AWAY),
    OutcomeUnknownError: Answer(grpc.StatusCode.UNAVAILABLE, _STORE_AWAY),
    StoreRestoredError: Answer(
        grpc.StatusCode.UNAVAILABLE, "the control plane's store was restored; try again"
    ),
    StoreDeniedError: Answer(
        grpc.StatusCode.INTERNAL, "the control plane has no access to its store; tell an operator"
    ),
    StoreRefusedError: Answer(
        grpc.StatusCode.INTERNAL, "the control plane's store refused a request"
    ),
    StoreFullError: Answer(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "the control plane's store is full or overloaded"
    ),
    CompactedError: Answer(
        grpc.StatusCode.UNAVAILABLE, "the revision is no longer kept; start anew"
    ),
    LeaseNotFoundError: Answer(grpc.StatusCode.ABORTED, "the lease ran out; attach again"),
}


def to_status(error: ControlPlaneError) -> status_pb2.Status:
    """The rich status of an error: ErrorInfo always, BadRequest and RetryInfo where they fit."""
    answer = BOUNDARY[type(error)]
    status = status_pb2.Status(code=answer.status.value[0], message=answer.text or str(error))
    cause = error.cause if isinstance(error, UnauthenticatedError) else None
    details = [error_details_pb2.ErrorInfo(reason=cause or error.code, domain=ERROR_DOMAIN)]
    if isinstance(error, InvalidRequestError):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.rule
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retryable:
        delay = duration_pb2.Duration(seconds=_retry_delay_s(error))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _retry_delay_s(error: ControlPlaneError) -> int:
    if isinstance(error, QuotaExceededError):
        return max(math.ceil(error.retry_after_s), 1)
    return RETRY_DELAY_S


async def abort(context: aio.ServicerContext, error: ControlPlaneError) -> NoReturn:  # type: ignore[type-arg]  # grpc's stubs make it generic, grpc itself does not
    """Ends the call with the error's status; does not return."""
    status = to_status(error)
    await context.abort(
        BOUNDARY[type(error)].status,
        status.message,
        trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),),
    )
    raise AssertionError("abort returned")
