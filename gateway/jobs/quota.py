"""What a job reserves of its tenant's GPU-seconds, and which limits its record is held to. Pure."""

from __future__ import annotations

import datetime as dt
from typing import Final

from reelmesh.v1 import job_service_pb2, tenant_pb2

# Sums of figures with fractions are not exact to the last bit.
SLACK_S: Final = 1e-6


def job_limits(policy: tenant_pb2.TenantPolicy) -> job_service_pb2.JobLimits:
    """Those that are kept with the job records."""
    limits = job_service_pb2.JobLimits()
    if policy.HasField("concurrent_jobs"):
        limits.concurrent_jobs = policy.concurrent_jobs
    if policy.HasField("gpu_seconds_per_day"):
        limits.gpu_seconds_per_day = policy.gpu_seconds_per_day
    return limits


def is_counted(policy: tenant_pb2.TenantPolicy) -> bool:
    """Whether a job of the tenant needs a record before it may begin."""
    return policy.HasField("concurrent_jobs") or policy.HasField("gpu_seconds_per_day")


def reservation(gpu_seconds: float, *, now_s: float) -> job_service_pb2.QuotaReservation:
    """What a job that is admitted now is predicted to take, of today in UTC."""
    return job_service_pb2.QuotaReservation(day=day_of(now_s), gpu_seconds=max(gpu_seconds, 0.0))


def day_of(now_s: float) -> str:
    """The day in UTC, as 2026-11-25."""
    return dt.datetime.fromtimestamp(now_s, tz=dt.UTC).date().isoformat()


def seconds_left_of(record: job_service_pb2.JobRecord) -> float:
    """Of the day in UTC on which a record was made."""
    return 86_400.0 - record.video.created_at.ToNanoseconds() / 1e9 % 86_400.0
