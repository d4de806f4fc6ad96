"""What can go wrong in a node agent, as one tree.

::

    NodeError
    ├── ConfigurationError       the settings contradict the model or the machine
    ├── WeightsError             weights cannot be fetched, or are not what they claim
    ├── CallError                a caller's fault or ill luck; has a gRPC status
    │   ├── InvalidRunError      INVALID_ARGUMENT  a field of the run is wrong
    │   ├── ModelNotLoadedError  FAILED_PRECONDITION  another model or version is asked for
    │   └── StaleOwnerError      FAILED_PRECONDITION  a newer owner or try has the job
    └── WorkerError              a worker process did not do what it must
        ├── WorkerStartError     it could not be started
        └── WorkerLostError      it died, hung or broke the wire

Each class has a stable ``code`` and says whether a retry (elsewhere, or later) can help.
``to_status`` is the one table that turns a :class:`CallError` into a gRPC status.
"""

from __future__ import annotations

from typing import ClassVar

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

ERROR_DOMAIN = "node.reelmesh"


class NodeError(Exception):
    """Base of every error that the agent raises on purpose."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False


class ConfigurationError(NodeError):
    """The settings cannot work; the message names the field and what to change."""

    code = "configuration"


class WeightsError(NodeError):
    """The model's files cannot be had, or differ from their manifest."""

    code = "weights"


class CallError(NodeError):
    """A call that cannot be served as it was made."""


class InvalidRunError(CallError):
    """A field of the run breaks a rule of the model.

    Args:
        field: Path of the field in the request, such as ``spec.num_frames``.
        rule: What must hold, with the nearest valid value.
    """

    code = "invalid_argument"

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.rule = rule


class ModelNotLoadedError(CallError):
    """The node serves another model or version; another node may have it."""

    code = "model_not_loaded"
    retryable = True


class StaleOwnerError(CallError):
    """A higher epoch or try has the job; the caller no longer owns it."""

    code = "stale_owner"


class WorkerError(NodeError):
    """A worker process failed; its runs can be retried on another node."""

    code = "worker_failed"
    retryable = True


class WorkerStartError(WorkerError):
    """The process could not be started, or said that it cannot load the model."""

    code = "worker_start"


class WorkerLostError(WorkerError):
    """The process is gone or was killed because it no longer answered."""

    code = "worker_died"


_STATUS: dict[type[CallError], tuple[grpc.StatusCode, str]] = {
    InvalidRunError: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_RUN"),
    ModelNotLoadedError: (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_NOT_LOADED"),
    StaleOwnerError: (grpc.StatusCode.FAILED_PRECONDITION, "STALE_OWNER"),
}


def to_status(error: CallError) -> status_pb2.Status:
    """The rich status that a caller reads: ErrorInfo always, BadRequest for a field."""
    code, reason = _STATUS[type(error)]
    details = [error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN)]
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    if isinstance(error, InvalidRunError):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.rule
        )
        packed.append(any_pb2.Any())
        packed[-1].Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    number: int = code.value[0]
    return status_pb2.Status(code=number, message=str(error), details=packed)
