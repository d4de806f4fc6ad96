"""What a gateway can answer instead of a video.

::

    GatewayError
    ├── InvalidRequest          a field breaks a rule; names the nearest valid value
    ├── PayloadTooLarge         a body or message over the limit
    ├── Unauthenticated         no token, or one that does not hold
    ├── PermissionDenied        a good token without the scope
    │   └── QuotaTooSmall       the tenant may never have this, however long it waits
    ├── VideoNotFound           no such video of this tenant
    │   └── BatchNotFound       no such batch of this tenant
    ├── VideoDamaged            the bytes that are stored are not the video's
    ├── PictureFailed           no picture can be made of the video
    ├── OtherRegion             the id names another region, and its gateways alone know
    │   └── BatchElsewhere      likewise of a batch
    ├── ModelNotFound           no such model is served here
    ├── IdempotencyConflict     the key was used with another request
    ├── NotFinished             bytes were asked for before the video is complete
    │   ├── BatchNotFinished    a batch was to be deleted that goes on
    │   ├── VideoFailed         and they never will be: it failed
    │   └── VideoCancelled      likewise: it was cancelled
    ├── ResourceExhausted       a bound is reached: come back after retry_after_s
    │   └── QuotaExceeded       the tenant has as much as it may
    │       ├── RequestQuota        of requests a second
    │       ├── ConcurrentJobsQuota of videos that run or wait
    │       ├── QueuedJobsQuota     of videos that wait
    │       └── GpuSecondsQuota     of a day's GPU-seconds
    ├── Unavailable             this region cannot serve now
    │   ├── QuotaUnknown            this gateway has no part of the tenant's limits
    │   └── JobStoreAway        the region's job records cannot be written now
    ├── ReaderTooSlow           a client took nothing of its stream for too long
    └── JobFailed               the video ended as failed; carries the job's own code

Each class has a stable ``code`` and says whether a retry can help. The mapping to
HTTP and gRPC is one table in :mod:`gateway.edge.error_table`. Messages are read by
clients: never a stack, a path, a prompt or an address in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

# What gRPC has room for in a status, whose message travels percent-encoded in a header.
MAX_MESSAGE_BYTES = 400
MAX_SENTENCE_BYTES = 270
MAX_NAMED_FIELDS = 16
_MAX_FIELD_BYTES = 64
_MAX_NEAREST_BYTES = 130


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that breaks a rule."""

    field: str
    """Name as the client wrote it, such as ``num_frames``."""
    message: str
    """The rule and what was given."""
    nearest: tuple[str, ...] = ()
    """Valid values nearest to it, best first; empty where there is no such thing."""

    def sentence(self) -> str:
        """Field, rule and nearest values, in at most MAX_SENTENCE_BYTES."""
        field = shortened(self.field, _MAX_FIELD_BYTES)
        nearest = ""
        if self.nearest:
            verb = "is" if len(self.nearest) == 1 else "are"
            nearest = shortened(
                f"; the nearest {verb} {', '.join(self.nearest)}", _MAX_NEAREST_BYTES
            )
        room = MAX_SENTENCE_BYTES - len(f"{field}: {nearest}".encode())
        return f"{field}: {shortened(self.message, room)}{nearest}"


def shortened(text: str, max_bytes: int) -> str:
    """The text, or as much of its beginning as fits, with dots that say so."""
    data = text.encode()
    if len(data) <= max_bytes:
        return text
    return data[: max_bytes - 3].decode(errors="ignore") + "..."


def summary(violations: Sequence[FieldViolation]) -> str:
    """All violations in at most MAX_MESSAGE_BYTES: sentences, and names where those do not fit."""
    listed = violations[:MAX_NAMED_FIELDS]
    unlisted = len(violations) - len(listed)
    sentences = [violation.sentence() for violation in listed]
    for told in range(len(listed), 0, -1):
        named = [shortened(violation.field, _MAX_FIELD_BYTES) for violation in listed[told:]]
        if unlisted:
            named.append(f"{unlisted} more")
        text = "; ".join(sentences[:told]) + (f"; also wrong: {', '.join(named)}" if named else "")
        if len(text.encode()) <= MAX_MESSAGE_BYTES:
            return text
    return f"{sentences[0]}; also wrong: {len(violations) - 1} more" if sentences else ""


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
        super().__init__(summary(violations))
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


class QuotaTooSmall(PermissionDenied):
    """The tenant's limit is below what this one request needs."""

    code = "quota_too_small"


class VideoNotFound(GatewayError):  # noqa: N818 - likewise
    """No such video of this tenant; another tenant's looks the same."""

    code = "video_not_found"


class VideoDamaged(GatewayError):  # noqa: N818 - likewise
    """What is stored is not what was drawn; it is never sent for the whole."""

    code = "video_damaged"


class PictureFailed(GatewayError):  # noqa: N818 - likewise
    """No picture can be made of the video, which is there."""

    code = "picture_failed"


class OtherRegion(GatewayError):  # noqa: N818 - likewise
    """The id names another region as the video's home; whether it exists is not known here."""

    code = "other_region"

    def __init__(self, region: str) -> None:
        super().__init__(f"the video lives in region {region}; ask a gateway there")
        self.region = region


class BatchNotFound(VideoNotFound):
    """No such batch of this tenant."""

    code = "batch_not_found"


class BatchElsewhere(OtherRegion):
    """The id names another region as the batch's home."""

    code = "batch_other_region"

    def __init__(self, region: str) -> None:
        super().__init__(region)
        self.message = f"the batch lives in region {region}; ask a gateway there"


class ModelNotFound(GatewayError):  # noqa: N818 - likewise
    """No ready node of this region serves such a model."""

    code = "model_not_found"


class IdempotencyConflict(GatewayError):  # noqa: N818 - likewise
    """The idempotency key was used with a different request."""

    code = "idempotency_conflict"


class NotFinished(GatewayError):  # noqa: N818 - likewise
    """The bytes are not complete yet."""

    code = "not_finished"


class BatchNotFinished(NotFinished):
    """The batch has not ended: cancel it first."""

    code = "batch_not_finished"


class VideoFailed(NotFinished):
    """The video failed: it will have no bytes."""

    code = "video_failed"


class VideoCancelled(NotFinished):
    """The video was cancelled: it will have no bytes."""

    code = "video_cancelled"


class ResourceExhausted(GatewayError):  # noqa: N818 - likewise
    """A queue or a limit is full; retry after ``retry_after_s``."""

    code = "resource_exhausted"
    retryable = True


class TooManyRefusals(ResourceExhausted):
    """The caller's address was refused too often; its token was not looked at."""

    code = "too_many_refusals"


class QuotaExceeded(ResourceExhausted):
    """The tenant has as much as it may; ``quota`` names the limit as operators do."""

    code = "quota"
    quota: ClassVar[str] = ""

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, tenant: str = ""
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.tenant = tenant
        self.headers: dict[str, str] = {}
        """What is told beside it over HTTP, where there is something to tell."""


class RequestQuota(QuotaExceeded):
    """Requests come faster than the tenant's may."""

    code = "quota_requests"
    quota = "requests_per_second"


class ConcurrentJobsQuota(QuotaExceeded):
    """As many of the tenant's videos as may run and wait at once do so."""

    code = "quota_concurrent_jobs"
    quota = "concurrent_jobs"


class QueuedJobsQuota(QuotaExceeded):
    """As many of the tenant's videos as may wait do so."""

    code = "quota_queued_jobs"
    quota = "queued_jobs"


class GpuSecondsQuota(QuotaExceeded):
    """What is left of the tenant's GPU-seconds of the day is not enough."""

    code = "quota_gpu_seconds"
    quota = "gpu_seconds_per_day"


class Unavailable(GatewayError):  # noqa: N818 - likewise
    """The region cannot serve now."""

    code = "unavailable"
    retryable = True


class QuotaUnknown(Unavailable):
    """The tenant is limited, and this gateway has no part of its limits to give out."""

    code = "quota_unknown"


class HomeUnreachable(Unavailable):
    """The region that the video lives in does not answer; the video may well exist."""

    code = "home_unreachable"


class JobStoreAway(Unavailable):
    """The region's job records give no answer; nothing that was asked for was promised."""

    code = "job_store_unavailable"


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
