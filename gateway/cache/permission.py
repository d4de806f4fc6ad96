"""Which tenants' videos may answer whose requests. Pure.

A video lies in one shelf: its tenant's own, or the common one of all tenants that share. A
tenant that shares nothing has none: it neither reads nor feeds.
"""

from __future__ import annotations

from typing import Final

from reelmesh.v1 import tenant_pb2

COMMON: Final = ""
"""The shelf of those who share; no tenant's name is empty."""


def shelves(tenant: str, policy: tenant_pb2.TenantPolicy) -> tuple[str, ...]:
    """Where a tenant's requests are looked up, its own first."""
    if policy.cache_sharing == tenant_pb2.CACHE_SHARING_OFF:
        return ()
    if policy.cache_sharing == tenant_pb2.CACHE_SHARING_SHARED:
        return (tenant, COMMON)
    return (tenant,)


def shelf_of(tenant: str, policy: tenant_pb2.TenantPolicy) -> str | None:
    """Where a tenant's finished videos go; None: nowhere."""
    found = shelves(tenant, policy)
    return found[-1] if found else None


def may_use(
    tenant: str,
    policy: tenant_pb2.TenantPolicy,
    owner: str,
    owner_policy: tenant_pb2.TenantPolicy,
) -> bool:
    """Whether a video, or a run, of one tenant may answer another's request, as of now.

    What lies in a shelf was put there under the policy of its day.
    """
    sharing = policy.cache_sharing
    if sharing == tenant_pb2.CACHE_SHARING_OFF:
        return False
    if tenant == owner:
        return True
    shared = tenant_pb2.CACHE_SHARING_SHARED
    return sharing == shared == owner_policy.cache_sharing
