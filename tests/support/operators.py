"""A control plane that operators can call, and a client with whatever token."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from reelmesh.v1.operator_service_pb2_grpc import OperatorServiceStub

from control_plane.app import ControlPlaneApp
from reelkit import rpc
from tests.support.controlplanes import DEADLINE_S, running
from tests.support.tokens import AUDIENCE, ISSUER, TokenIssuer

READ, OPERATE = "fleet:read", "fleet:operate"


def auth_for(issuer: TokenIssuer, tmp_path: Path) -> dict[str, Any]:
    """The ``operator.auth`` section that takes the issuer's tokens."""
    jwks = issuer.write_jwks(tmp_path / "operators.json")
    return {"issuers": [{"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(jwks)}]}


class Client:
    """Calls OperatorService; ``scope`` None sends no token."""

    def __init__(
        self,
        address: str,
        issuer: TokenIssuer,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.issuer = issuer
        self.channel = rpc.internal_channel(address, credentials=credentials)
        self.stub: Any = OperatorServiceStub(self.channel)

    async def call(
        self,
        method: str,
        request: Message,
        *,
        scope: str | None = f"{READ} {OPERATE}",
        token: str | None = None,
    ) -> Any:
        metadata = []
        if scope is not None or token is not None:
            token = token or self.issuer.issue(scope=scope, sub="ops", tenant=None)
            metadata = [("authorization", f"Bearer {token}")]
        return await getattr(self.stub, method)(request, timeout=DEADLINE_S, metadata=metadata)


@contextlib.asynccontextmanager
async def operated(
    tmp_path: Path, *, store: Any, operator: dict[str, Any] | None = None, **fields: Any
) -> AsyncIterator[tuple[ControlPlaneApp, Client]]:
    """A control plane with an operators' listener on plain loopback, and a client of it."""
    issuer = TokenIssuer()
    section = {"listen": "127.0.0.1:0", "auth": auth_for(issuer, tmp_path), **(operator or {})}
    async with running(store=store, operator=section, **fields) as app:
        assert app.operator_address is not None
        client = Client(app.operator_address, issuer)
        try:
            yield app, client
        finally:
            await client.channel.close()
