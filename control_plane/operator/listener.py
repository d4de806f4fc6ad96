"""The operators' listener: its own port, its own certificate, tokens alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final

from grpc import aio
from grpc_health.v1 import health, health_pb2_grpc

from control_plane.operator.access import LISTENER_ACCESS
from control_plane.operator.config import OperatorSettings
from control_plane.operator.gate import TokenAuthenticator, guarded_service
from control_plane.operator.service import OperatorService
from reelkit import rpc
from reelkit.clock import Clock
from reelkit.mtls.guard import Guard
from reelkit.settings import blame_field
from reelkit.tasks import TaskScope
from reelkit.tls import grpc_credentials
from reelkit.tokens.revoked import RevokedTokens

# A token of the largest configured size, and what else a call brings: from 8 KiB on grpc would
# refuse some calls, by chance, and say nothing of why.
_MAX_METADATA_BYTES: Final = 24 * 1024
_LONG_TOKENS: Final = (
    ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * _MAX_METADATA_BYTES),
)


@contextlib.asynccontextmanager
async def operator_listener(
    config: OperatorSettings,
    service: OperatorService,
    *,
    region: str,
    revoked: RevokedTokens,
    clock: Clock,
    scope: TaskScope,
) -> AsyncIterator[str]:
    """Serves while the block runs; yields host:port with the port that was bound.

    Args:
        config: Address, certificate and issuers.
        service: What is served.
        region: Of this control plane.
        revoked: Tokens that hold no more.
        clock: For tokens' times.
        scope: Owns what reads keys again.

    Raises:
        ConfigError: The address, the certificate or a key file cannot be used.
    """
    if config.listen is None or config.auth is None:
        raise ValueError("operator.listen and operator.auth are needed")
    authenticator = TokenAuthenticator(config.auth, clock=clock, revoked=revoked)
    authenticator.follow_keys(scope)
    guard = Guard(
        LISTENER_ACCESS, region=region, mutual=config.client_ca_file is not None, clock=clock
    )
    server = aio.server(options=[*rpc.server_options(), *_LONG_TOKENS], interceptors=[guard])
    server.add_generic_rpc_handlers((guarded_service(service, authenticator),))
    # Anybody may ask whether it serves: that is all there is to hear without a token.
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    credentials = None
    if config.tls is not None:
        with blame_field("operator.tls.cert_file", config.tls.cert_file):
            credentials = grpc_credentials(config.tls, client_ca=config.client_ca_file)
    with blame_field("operator.listen", config.listen):
        port = rpc.listen(server, config.listen, credentials=credentials)
    await server.start()
    try:
        yield f"{config.listen.rpartition(':')[0]}:{port}"
    finally:
        await server.stop(0)
