"""What a tenant's jobs take of its limits, and whether one more fits. Pure.

A job that has not ended counts as one, and as the GPU-seconds that it reserved; one that
completed counts as what it took, never more than it had reserved; one that failed or was
cancelled as nothing. So what a job counts as never rises after it was admitted.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from reelmesh.v1 import job_service_pb2 as pb
from reelmesh.v1 import tenant_pb2, video_pb2

from control_plane.errors import (
    ConcurrentJobsError,
    ControlPlaneError,
    GpuSecondsError,
    InvalidRequestError,
    QuotaTooSmallError,
)

# Sums of figures with fractions are not exact to the last bit.
_SLACK: Final = 1e-6
# When one of many jobs ends nobody knows; nobody is sent away for longer than this.
_MAX_JOB_WAIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may have here; None: any number."""

    concurrent_jobs: int | None = None
    gpu_seconds_per_day: float | None = None

    @property
    def none(self) -> bool:
        """Whether nothing is limited."""
        return self.concurrent_jobs is None and self.gpu_seconds_per_day is None


def limits_of(said: tenant_pb2.TenantPolicy | pb.JobLimits) -> Limits:
    """Those of a policy, or of what a gateway says of it."""
    return Limits(
        concurrent_jobs=said.concurrent_jobs if said.HasField("concurrent_jobs") else None,
        gpu_seconds_per_day=(
            said.gpu_seconds_per_day if said.HasField("gpu_seconds_per_day") else None
        ),
    )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant has, as of a revision of the store."""

    live_jobs: int
    reserved_gpu_seconds: float
    """Of the day, by jobs that have not ended."""
    spent_gpu_seconds: Mapping[str, float]
    """Of the day, by the gateway that ended the jobs."""
    revision: int
    """No job that is not counted was there then."""

    @property
    def gpu_seconds(self) -> float:
        """What counts against the day's limit."""
        return self.reserved_gpu_seconds + sum(self.spent_gpu_seconds.values())


def part_of(limits: Limits, part: float) -> Limits:
    """The limits of a region that has a part of them; of jobs whole ones alone."""
    jobs, seconds = limits.concurrent_jobs, limits.gpu_seconds_per_day
    return Limits(
        concurrent_jobs=None if jobs is None else math.floor(jobs * part + _SLACK),
        gpu_seconds_per_day=None if seconds is None else seconds * part,
    )


def refusal(
    limits: Limits,
    usage: Usage,
    reservation: pb.QuotaReservation,
    *,
    now_s: float,
    part: float = 1.0,
) -> ControlPlaneError | None:
    """Why one more job with that reservation does not fit, None where it does.

    Args:
        limits: The tenant's.
        usage: What it has here.
        reservation: Of the job.
        now_s: The time.
        part: What there is of the limits here.
    """
    asked_s = reservation.gpu_seconds
    if limits.concurrent_jobs == 0:
        return QuotaTooSmallError("this tenant may have no videos made")
    if limits.gpu_seconds_per_day is not None and asked_s > limits.gpu_seconds_per_day + _SLACK:
        return QuotaTooSmallError(
            f"this video is predicted to take {asked_s:.1f} GPU-seconds, more than the "
            f"{limits.gpu_seconds_per_day:g} that the tenant has a day"
        )
    here = part_of(limits, part)
    most_jobs, most_s = here.concurrent_jobs, here.gpu_seconds_per_day
    if most_s is not None and usage.gpu_seconds + asked_s > most_s + _SLACK:
        left_s = max(most_s - usage.gpu_seconds, 0.0)
        return GpuSecondsError(
            f"{left_s:.1f} of the tenant's {most_s:g} GPU-seconds of {reservation.day} are left, "
            f"and this video is predicted to take {asked_s:.1f}",
            retry_after_s=seconds_to_midnight(now_s),
        )
    if most_jobs is not None and usage.live_jobs >= most_jobs:
        return ConcurrentJobsError(
            f"{usage.live_jobs} of the tenant's videos run or wait, and it may have {most_jobs}"
            f"{'' if part >= 1 else ' in this region'}",
            retry_after_s=min(max(asked_s / max(most_jobs, 1), 1.0), _MAX_JOB_WAIT_S),
        )
    return None


def charge_of(record: pb.JobRecord, reservation: pb.QuotaReservation) -> float:
    """GPU-seconds that an ended job is charged, of those that it had reserved."""
    if record.video.status != video_pb2.VIDEO_STATUS_COMPLETED:
        return 0.0
    return min(max(record.video.result.gpu_seconds, 0.0), max(reservation.gpu_seconds, 0.0))


def day_of(now_s: float) -> str:
    """The day in UTC, as 2026-11-25."""
    return dt.datetime.fromtimestamp(now_s, tz=dt.UTC).date().isoformat()


def check_reservation(reservation: pb.QuotaReservation) -> None:
    """Makes sure that what a job reserves can be counted.

    Raises:
        InvalidRequestError: Its day is none, or its amount no number of seconds.
    """
    amount_s = reservation.gpu_seconds
    if not math.isfinite(amount_s) or amount_s < 0:
        raise InvalidRequestError("job.reservation.gpu_seconds", "must be 0 or more")
    if (amount_s or reservation.day) and not _is_day(reservation.day):
        raise InvalidRequestError("job.reservation.day", "must be a day such as 2026-11-25")


def _is_day(text: str) -> bool:
    try:
        return dt.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def seconds_to_midnight(now_s: float) -> float:
    """Until the next day in UTC begins."""
    return 86_400.0 - now_s % 86_400.0
