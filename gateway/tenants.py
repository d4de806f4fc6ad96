"""What tenants may do, as this gateway last heard of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Final, Protocol

from reelmesh.v1 import tenant_pb2

MIN_WEIGHT: Final = 1e-3
EVERYBODY: Final = "*"
"""The policy of tenants that have none of their own."""


class Policies(Protocol):
    """Where the parts of a gateway look a tenant's policy up."""

    def of(self, tenant: str) -> tenant_pb2.TenantPolicy:
        """The policy that holds; not to be changed. Nothing is limited where there is none."""
        ...


def opaque(tenant: str) -> str:
    """A tenant as nodes see it: enough to tell one from the other, and no name."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:16]


def weight_of(policy: tenant_pb2.TenantPolicy) -> float:
    """A tenant's part of the machines beside others; 1 where none is set, or none that can be."""
    weight = policy.weight if policy.HasField("weight") else 1.0
    return weight if MIN_WEIGHT <= weight < math.inf else 1.0


class TenantPolicies:
    """The policies of all tenants; empty until somebody tells of them."""

    def __init__(self) -> None:
        self.heard = False
        """Whether anybody has told of them yet."""
        self._policies: dict[str, tenant_pb2.TenantPolicy] = {}

    def of(self, tenant: str) -> tenant_pb2.TenantPolicy:
        """See :meth:`Policies.of`."""
        return self._policies.get(tenant) or self._policies.get(EVERYBODY) or _UNLIMITED

    def replace(self, policies: Iterable[tenant_pb2.TenantPolicy]) -> None:
        """Takes the policies as they now stand, in place of those before."""
        self.heard = True
        self._policies = {policy.tenant: policy for policy in policies}


_UNLIMITED = tenant_pb2.TenantPolicy()
