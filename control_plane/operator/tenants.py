"""The methods of OperatorService that are about tenants; they need the global store."""

from __future__ import annotations

from typing import Protocol

from reelmesh.v1 import operator_service_pb2 as op
from reelmesh.v1 import tenant_pb2

from control_plane.errors import InvalidRequestError
from control_plane.operator.access import Operator
from control_plane.tenants.policy import check_name, check_policy


class TenantBook(Protocol):
    """The tenants' policies as the global store has them."""

    def all(self) -> tenant_pb2.TenantPolicies:
        """Every policy by its tenant's name."""
        ...

    async def get(self, tenant: str) -> tenant_pb2.TenantPolicy:
        """A tenant's own; raises NotFoundError where it has none."""
        ...

    async def set(self, policy: tenant_pb2.TenantPolicy, *, by: str) -> tenant_pb2.TenantPolicy:
        """Writes one; raises ChangedMeanwhileError where another was faster."""
        ...

    async def unset(self, tenant: str, *, revision: int, by: str) -> None:
        """Removes one; likewise."""
        ...


class UsageReader(Protocol):
    """What tenants have in this region."""

    async def report(self, tenant: str) -> op.TenantUsage:
        """A tenant's figures of now and of today; raises StoreError where the store is away."""
        ...


class TenantMethods:
    """ListTenants, GetTenant, SetTenant, UnsetTenant and GetTenantUsage."""

    def __init__(self, book: TenantBook, usage: UsageReader) -> None:
        self._tenants = book
        self._usage = usage

    async def list_tenants(
        self, _request: op.ListTenantsRequest, _operator: Operator
    ) -> op.ListTenantsResponse:
        """See operator_service.proto."""
        return op.ListTenantsResponse(tenants=self._tenants.all().policies)

    async def get_tenant(
        self, request: op.GetTenantRequest, _operator: Operator
    ) -> op.GetTenantResponse:
        """See operator_service.proto."""
        check_name("tenant", request.tenant)
        return op.GetTenantResponse(tenant=await self._tenants.get(request.tenant))

    async def set_tenant(
        self, request: op.SetTenantRequest, operator: Operator
    ) -> op.SetTenantResponse:
        """See operator_service.proto."""
        check_policy(request.tenant)
        made = await self._tenants.set(request.tenant, by=operator.subject)
        return op.SetTenantResponse(tenant=made)

    async def unset_tenant(
        self, request: op.UnsetTenantRequest, operator: Operator
    ) -> op.UnsetTenantResponse:
        """See operator_service.proto."""
        check_name("tenant", request.tenant)
        if request.revision < 1:
            raise InvalidRequestError("revision", "must be that at which the policy was read")
        await self._tenants.unset(request.tenant, revision=request.revision, by=operator.subject)
        return op.UnsetTenantResponse()

    async def get_tenant_usage(
        self, request: op.GetTenantUsageRequest, _operator: Operator
    ) -> op.GetTenantUsageResponse:
        """See operator_service.proto."""
        check_name("tenant", request.tenant)
        return op.GetTenantUsageResponse(usage=await self._usage.report(request.tenant))
