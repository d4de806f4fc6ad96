"""A region whose operators say what tenants may do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from reelmesh.v1 import operator_service_pb2 as op
from reelmesh.v1 import tenant_pb2

from tests.support.gateway_region import GatewayRegion, gateway_region
from tests.support.operators import Client, auth_for
from tests.support.tokens import TokenIssuer


class Operators:
    """Who sets and unsets policies, whatever they were before."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def policy(self, tenant: str) -> tenant_pb2.TenantPolicy:
        try:
            answer = await self.client.call("GetTenant", op.GetTenantRequest(tenant=tenant))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return tenant_pb2.TenantPolicy()
        return answer.tenant

    async def set(self, tenant: str = "acme", **fields: Any) -> tenant_pb2.TenantPolicy:
        revision = (await self.policy(tenant)).revision
        policy = tenant_pb2.TenantPolicy(tenant=tenant, revision=revision, **fields)
        return (await self.client.call("SetTenant", op.SetTenantRequest(tenant=policy))).tenant

    async def unset(self, tenant: str = "acme") -> None:
        revision = (await self.policy(tenant)).revision
        request = op.UnsetTenantRequest(tenant=tenant, revision=revision)
        await self.client.call("UnsetTenant", request)

    async def usage(self, tenant: str = "acme") -> op.TenantUsage:
        request = op.GetTenantUsageRequest(tenant=tenant)
        return (await self.client.call("GetTenantUsage", request)).usage


@contextlib.asynccontextmanager
async def operated_region(
    tmp_path: Path, *etcd: str, **fields: Any
) -> AsyncIterator[tuple[GatewayRegion, Operators]]:
    """A region with an operators' listener, its operators, and a mesh.json for reelctl."""
    (tmp_path / "operators").mkdir()
    issuer = TokenIssuer()
    operator = {"listen": "127.0.0.1:0", "auth": auth_for(issuer, tmp_path / "operators")}
    async with gateway_region(tmp_path, *etcd, operator=operator, **fields) as region:
        region.issuer = issuer
        assert region.control.operator_address is not None
        client = Client(region.control.operator_address, issuer)
        document = {
            "regions": {"ap": {"operator": region.control.operator_address}},
            "tokens": {"operator": issuer.issue(scope="fleet:read fleet:operate")},
        }
        (tmp_path / "mesh.json").write_text(json.dumps(document))
        try:
            yield region, Operators(client)
        finally:
            await client.channel.close()
