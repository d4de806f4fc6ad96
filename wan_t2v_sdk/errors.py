"""What can go wrong, as types to catch.

::

    ReelmeshError               base of all; .code, .retryable, .video_id, .region
    ├── ConfigurationError      no endpoint, no token, an unreadable file
    ├── InvalidRequestError     .violations: each field, the rule and the nearest valid values
    ├── AuthenticationError     the token is missing, expired or not believed
    ├── PermissionDeniedError   a good token without the scope
    ├── VideoNotFoundError      no such video of this tenant
    ├── ConflictError           the idempotency key was used with another request
    ├── NotFinishedError        bytes were asked for before the video is complete
    ├── OverloadedError         a queue or a limit is full; .retry_after_s
    ├── UnavailableError        no region could serve; .retry_after_s
    │   ├── ConnectionLostError a gateway cannot be reached, or went away in the middle
    │   └── OtherRegionError    no gateway of the video's home region could be asked
    ├── DeadlineError           the time that was given is over (also a TimeoutError)
    ├── GenerationFailedError   the video ended as failed; .code is the job's own
    ├── CancelledVideoError     the video was cancelled by somebody else; .reason
    ├── IntegrityError          the bytes do not match their sha256
    └── ServerError             an answer that breaks the contract, or an internal fault

``code`` is stable and meant for programs; the message is meant for people.
``retryable`` says whether the same call may succeed later; the library has then
retried already, as far as its limits allow.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that breaks a rule."""

    field: str
    """The field's name, such as ``num_frames``."""
    message: str
    """The rule and what was given."""
    nearest: tuple[str, ...] = ()
    """Valid values nearest to it, best first; empty where there is no such thing."""


class ReelmeshError(Exception):
    """Base of every error that this library raises on purpose."""

    code: str = "error"
    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.video_id: str | None = None
        self.region: str | None = None


class ConfigurationError(ReelmeshError):
    """The library was not told where the mesh is or who asks."""

    code = "configuration"


class InvalidRequestError(ReelmeshError):
    """One or more fields break a rule; :attr:`violations` names each."""

    code = "invalid_request"

    def __init__(
        self,
        message: str,
        *,
        violations: tuple[FieldViolation, ...] = (),
        code: str | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.violations = violations


class AuthenticationError(ReelmeshError):
    """The token is missing, expired or not believed."""

    code = "unauthenticated"


class PermissionDeniedError(ReelmeshError):
    """The token holds but lacks the scope."""

    code = "permission_denied"


class VideoNotFoundError(ReelmeshError):
    """There is no such video of this tenant."""

    code = "video_not_found"


class ConflictError(ReelmeshError):
    """The idempotency key was used with another request."""

    code = "idempotency_conflict"


class NotFinishedError(ReelmeshError):
    """The bytes are not complete yet."""

    code = "not_finished"


class OverloadedError(ReelmeshError):
    """A queue or a limit is full; come back after :attr:`retry_after_s`."""

    code = "resource_exhausted"
    retryable = True


class UnavailableError(ReelmeshError):
    """No region could serve."""

    code = "unavailable"
    retryable = True


class ConnectionLostError(UnavailableError):
    """A gateway cannot be reached, or the connection broke and could not be taken up again."""

    code = "connection_lost"


class OtherRegionError(UnavailableError):
    """The video lives in another region than those that answered; it may exist there."""

    code = "other_region"


class DeadlineError(ReelmeshError, TimeoutError):
    """The time that the caller gave is over."""

    code = "deadline_exceeded"


class GenerationFailedError(ReelmeshError):
    """The video ended as failed; ``code`` is the job's own, such as ``worker_died``."""

    code = "generation_failed"


class CancelledVideoError(ReelmeshError):
    """The video was cancelled, and not by this call."""

    code = "cancelled"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class IntegrityError(ReelmeshError):
    """The bytes that arrived are not the bytes that were made."""

    code = "integrity"
    retryable = True


class ServerError(ReelmeshError):
    """The other side broke the contract or failed inside."""

    code = "internal"
