"""Both edges of a gateway on free ports, over the fake application or another."""

import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from grpc import aio
from prometheus_client import CollectorRegistry
from reelmesh.v1 import batch_service_pb2_grpc, fleet_service_pb2_grpc, video_service_pb2_grpc

from gateway.application import VideoApplication
from gateway.auth.config import AuthConfig, IssuerConfig, StrangerConfig
from gateway.auth.door import Door
from gateway.auth.tokens import TokenVerifier
from gateway.edge.config import EdgeConfig
from gateway.edge.metrics import EdgeMetrics
from gateway.edge_grpc.api import add_grpc_services, grpc_server_options
from gateway.edge_http.api import build_http_app, http_runner, listen_http
from gateway.edge_http.connections import Connections
from gateway.fake_application import FakeApplication
from reelkit.clock import SystemClock
from reelkit.rpc import listen
from reelkit.tasks import TaskScope
from reelkit.tokens.sources import LoaderOf
from tests.support.batches import batches_over
from tests.support.certs import Identity
from tests.support.tokens import TokenIssuer


@dataclass
class Edges:
    """What a test talks to."""

    application: Any
    """The fake, where a test brings no other."""
    issuer: TokenIssuer
    registry: CollectorRegistry
    http_url: str
    grpc_address: str
    http: aiohttp.ClientSession
    channel: aio.Channel

    @property
    def videos(self):
        return video_service_pb2_grpc.VideoServiceStub(self.channel)

    @property
    def batches(self):
        return batch_service_pb2_grpc.BatchServiceStub(self.channel)

    @property
    def fleet(self):
        return fleet_service_pb2_grpc.FleetServiceStub(self.channel)

    def bearer(self, **claims: object) -> dict[str, str]:
        """HTTP headers with a good token."""
        return {"Authorization": f"Bearer {self.issuer.issue(**claims)}"}

    def metadata(self, **claims: object) -> tuple[tuple[str, str], ...]:
        """gRPC metadata with a good token."""
        return (("authorization", f"Bearer {self.issuer.issue(**claims)}"),)


def _runner(
    app: web.Application, config: EdgeConfig, door: Door, metrics: EdgeMetrics
) -> web.AppRunner:
    limit = config.max_connections_per_address
    return http_runner(
        app,
        shutdown_timeout_s=0.1,
        idle_timeout_s=config.idle_timeout_s,
        connections=Connections(door, limit=limit, refused=metrics.connection_refused),
    )


def _context(tls: Identity | None) -> ssl.SSLContext | None:
    if tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.cert, tls.key)
    return context


def _auth(issuer: TokenIssuer, tmp_path: Path, jwks_url: str | None) -> AuthConfig:
    keys = (
        {"jwks_url": jwks_url}
        if jwks_url
        else {"jwks_file": issuer.write_jwks(tmp_path / "jwks.json")}
    )
    return AuthConfig(
        issuers=(IssuerConfig(issuer=issuer.issuer, audience=issuer.audience, **keys),)
    )


@contextlib.asynccontextmanager
async def serve_edges(
    tmp_path: Path,
    *,
    config: EdgeConfig | None = None,
    hold: bool = False,
    application: VideoApplication | None = None,
    strangers: StrangerConfig | None = None,
    jwks_url: str | None = None,
    loader_of: LoaderOf | None = None,
    files: bool = False,
    tls: Identity | None = None,
) -> AsyncIterator[Edges]:
    clock = SystemClock()
    config = config or EdgeConfig()
    issuer = TokenIssuer()
    auth = _auth(issuer, tmp_path, jwks_url)
    verifier = TokenVerifier(auth, clock=clock, loader_of=loader_of)
    folder = tmp_path if files else None
    application = application or FakeApplication(clock=clock, hold=hold, folder=folder)
    registry = CollectorRegistry()
    common: dict[str, Any] = {
        "application": application,
        "door": Door(verifier, strangers or auth.strangers, clock=clock),
        "metrics": EdgeMetrics(registry),
        "config": config,
        "clock": clock,
    }
    async with contextlib.AsyncExitStack() as stack:
        scope = await stack.enter_async_context(TaskScope("edges"))
        opened = await batches_over(application, scope=scope, clock=clock)
        common["batches"] = opened.application
        server = aio.server(options=grpc_server_options(config))
        add_grpc_services(server, **common)
        grpc_port = listen(server, "127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, 0)
        app = build_http_app(**common)
        runner = _runner(app, config, common["door"], common["metrics"])
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        http_port = await listen_http(runner, "127.0.0.1:0", context=_context(tls))
        http_url = f"{'http' if tls is None else 'https'}://127.0.0.1:{http_port}"
        # The certificate is none of these tests' business.
        connector = aiohttp.TCPConnector(ssl=tls is None)
        http = await stack.enter_async_context(aiohttp.ClientSession(http_url, connector=connector))
        channel = await stack.enter_async_context(aio.insecure_channel(f"127.0.0.1:{grpc_port}"))
        yield Edges(
            application=application,
            issuer=issuer,
            registry=registry,
            http_url=http_url,
            grpc_address=f"127.0.0.1:{grpc_port}",
            http=http,
            channel=channel,
        )
