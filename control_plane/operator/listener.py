"""The operators' listener: its own port, its own certificate, tokens alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import structlog
from grpc import aio
from grpc_health.v1 import health, health_pb2_grpc

from control_plane.operator.config import OperatorSettings, OperatorTls
from control_plane.operator.gate import TokenAuthenticator, guarded_service
from control_plane.operator.service import OperatorService
from reelkit import rpc
from reelkit.clock import Clock
from reelkit.settings import blame_field
from reelkit.tasks import TaskScope
from reelkit.tokens.revoked import RevokedTokens

_log = structlog.get_logger("control_plane.operator")


@contextlib.asynccontextmanager
async def operator_listener(
    config: OperatorSettings,
    service: OperatorService,
    *,
    revoked: RevokedTokens,
    clock: Clock,
    scope: TaskScope,
) -> AsyncIterator[str]:
    """Serves while the block runs; yields host:port with the port that was bound.

    Args:
        config: Address, certificate and issuers.
        service: What is served.
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
    server = aio.server(options=rpc.server_options())
    server.add_generic_rpc_handlers((guarded_service(service, authenticator),))
    # Anybody may ask whether it serves: that is all there is to hear without a token.
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    credentials = None
    if config.tls is not None:
        with blame_field("operator.tls.cert_file", config.tls.cert_file):
            credentials = _credentials(config.tls)
    with blame_field("operator.listen", config.listen):
        port = rpc.listen(server, config.listen, credentials=credentials)
    await server.start()
    try:
        yield f"{config.listen.rpartition(':')[0]}:{port}"
    finally:
        await server.stop(0)


def _credentials(tls: OperatorTls) -> grpc.ServerCredentials:
    """Credentials that follow the files: a certificate is renewed without a restart."""
    certificate = _Certificate(tls)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        try:
            return certificate.changed()
        except OSError as error:
            # The one in use serves on; a half-written file is whole in a moment.
            _log.warning("certificate cannot be read again", error=str(error))
            return None

    first = certificate.changed()
    if first is None:
        raise OSError("the certificate cannot be read")
    return grpc.dynamic_ssl_server_credentials(first, fetch)  # type: ignore[arg-type]  # None means: as before; the stubs do not know


class _Certificate:
    """A certificate and its key, read when one of their files was written."""

    def __init__(self, tls: OperatorTls) -> None:
        self._tls = tls
        self._seen: tuple[int, int] | None = None

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        cert_file, key_file = self._tls.cert_file, self._tls.key_file
        seen = (_written(cert_file), _written(key_file))
        if seen == self._seen:
            return None
        pair = (key_file.read_bytes(), cert_file.read_bytes())
        self._seen = seen
        return grpc.ssl_server_certificate_configuration([pair])


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns
