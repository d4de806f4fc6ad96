"""What a gateway can answer instead of a video.

::

    GatewayError
    ├── InvalidRequest          a field breaks a rule; names the nearest valid value
    ├── PayloadTooLarge         a body or message over the limit
    ├── Unauthenticated         no token, or one that does not hold
    ├── PermissionDenied        a good token without the scope
    ├── VideoNotFound           no such video of this tenant
    ├── IdempotencyConflict     the key was used with another request
    ├── NotFinished             bytes were asked for before the video is complete
    ├── ResourceExhausted       a bound is reached: come back after retry_after_s
    ├── Unavailable             this region cannot serve now
    ├── ReaderTooSlow           a client took nothing of its stream for too long
    └── JobFailed               the video ended as failed; carries the job's own code

Each class has a stable ``code`` and says whether a retry can help. The mapping to
HTTP and gRPC is one table in :mod:`gateway.edge.error_table`. Messages are read by
clients: never a stack, a path, a prompt or an address in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that breaks a rule."""

    field: str
    """Name as the client wrote it, such as ``num_frames``."""
    message: str
    """The rule and what was given."""
    nearest: tuple[str, ...] = ()
    """Valid values nearest to it, best first; empty where there is no such thing."""


class GatewayError(Exception):
    """Base: something the client is told."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class InvalidRequest(GatewayError):  # noqa: N818 - named for what the client reads
    """One or more fields break a rule."""

    code = "invalid_request"

    def __init__(self, violations: tuple[FieldViolation, ...]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.message}" for v in violations))
        self.violations = violations


class PayloadTooLarge(GatewayError):  # noqa: N818 - likewise
    """The request is over a size limit."""

    code = "payload_too_large"


class Unauthenticated(GatewayError):  # noqa: N818 - likewise
    """There is no token, or it does not hold."""

    code = "unauthenticated"


class PermissionDenied(GatewayError):  # noqa: N818 - likewise
    """The token lacks the scope."""

    code = "permission_denied"


class VideoNotFound(GatewayError):  # noqa: N818 - likewise
    """No such video of this tenant; another tenant's looks the same."""

    code = "video_not_found"


class IdempotencyConflict(GatewayError):  # noqa: N818 - likewise
    """The idempotency key was used with a different request."""

    code = "idempotency_conflict"


class NotFinished(GatewayError):  # noqa: N818 - likewise
    """The bytes are not complete yet."""

    code = "not_finished"


class ResourceExhausted(GatewayError):  # noqa: N818 - likewise
    """A queue or a limit is full; retry after ``retry_after_s``."""

    code = "resource_exhausted"
    retryable = True


class Unavailable(GatewayError):  # noqa: N818 - likewise
    """The region cannot serve now."""

    code = "unavailable"
    retryable = True


class ReaderTooSlow(GatewayError):  # noqa: N818 - likewise
    """The client took nothing of its stream for too long; it may resume."""

    code = "reader_too_slow"
    retryable = True


class JobFailed(GatewayError):  # noqa: N818 - likewise
    """The video ended as failed, for a cause that ``job_code`` names."""

    code = "job_failed"

    def __init__(self, message: str, *, job_code: str, job_retryable: bool) -> None:
        super().__init__(message)
        self.job_code = job_code
        self.job_retryable = job_retryable
