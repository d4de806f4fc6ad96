"""What operators see of tenants. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from reelmesh.v1 import operator_service_pb2 as op
from reelmesh.v1 import tenant_pb2
from rich.table import Table
from rich.text import Text

from control_plane.reelctl.limits import limit_words, limits_of
from control_plane.reelctl.tables import plain_table
from control_plane.reelctl.words import age

# What a list has room for; the rest is shown one tenant at a time.
_LISTED = {
    ">RATE/S": "requests_per_second",
    ">JOBS": "concurrent_jobs",
    ">QUEUED": "queued_jobs",
    ">GPU-S/DAY": "gpu_seconds_per_day",
    "MAX SIZE": "max_size",
    ">STEPS": "max_steps",
    ">FRAMES": "max_frames",
    "PRIORITY": "priority",
}


def tenants_table(policies: Sequence[tenant_pb2.TenantPolicy], *, now_s: float) -> Table:
    """Policies with the limits that matter most; "-": none."""
    table = plain_table("TENANT", *_LISTED, "AGE", "BY")
    for policy in policies:
        limits = limits_of(policy)
        table.add_row(
            Text(policy.tenant),
            *(Text(limit_words(limits[field])) for field in _LISTED.values()),
            age(policy.updated_at, now_s),
            Text(policy.updated_by),
        )
    return table


def policy_table(policy: tenant_pb2.TenantPolicy, *, now_s: float) -> Table:
    """One policy, a limit a line."""
    table = plain_table("LIMIT", "VALUE")
    table.add_row("tenant", Text(policy.tenant))
    for field, value in limits_of(policy).items():
        table.add_row(field.replace("_", "-"), Text(limit_words(value)))
    by = f" by {policy.updated_by}" if policy.updated_by else ""
    table.add_row("changed", Text(f"{age(policy.updated_at, now_s)} ago{by}"))
    return table


def usage_table(usages: Sequence[op.TenantUsage], policy: tenant_pb2.TenantPolicy) -> Table:
    """What a tenant has at each gateway, in all, and may have; "-": any number."""
    columns = (">PART OF RATE", ">JOBS", ">GPU-S RESERVED", ">GPU-S SPENT TODAY")
    table = plain_table("REGION", "GATEWAY", *columns)
    jobs, reserved_s, spent_s = 0, 0.0, 0.0
    for usage in usages:
        for gateway in usage.gateways:
            jobs += gateway.live_jobs
            reserved_s += gateway.reserved_gpu_seconds
            spent_s += gateway.spent_gpu_seconds
            table.add_row(
                Text(usage.region),
                Text(gateway.gateway_id),
                f"{gateway.rate_part:.2f}" if gateway.rate_part else "-",
                str(gateway.live_jobs),
                f"{gateway.reserved_gpu_seconds:.1f}",
                f"{gateway.spent_gpu_seconds:.1f}",
            )
        table.add_row(Text(usage.region), Text("may have"), *_parts(usage))
    table.add_row("all", "", "", str(jobs), f"{reserved_s:.1f}", f"{spent_s:.1f}")
    limits = limits_of(policy)
    table.add_row(
        "limit",
        "",
        f"{limit_words(limits['requests_per_second'])}/s",
        limit_words(limits["concurrent_jobs"]),
        "",
        limit_words(limits["gpu_seconds_per_day"]),
    )
    return table


def _parts(usage: op.TenantUsage) -> tuple[str, str, str, str]:
    """What a region may have of the limits, and how it comes by that."""
    rate = f"{usage.rate_part:.2f}{' (safe)' if usage.is_safe else ''}"
    jobs = f"{usage.jobs_part:.0%}"
    return rate, jobs, "", jobs
