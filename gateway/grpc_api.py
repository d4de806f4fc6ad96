"""The gRPC edge: VideoService and FleetService over the application port.

For the composition root::

    server = aio.server(options=grpc_server_options(config.edge))
    add_grpc_services(server, application=..., verifier=..., metrics=..., ...)
    port = reelkit.rpc.listen(server, "127.0.0.1:0")
"""

from __future__ import annotations

from typing import Any

from grpc import aio

from gateway.application import VideoApplication
from gateway.auth import TokenVerifier
from gateway.edge_config import EdgeConfig
from gateway.edge_metrics import EdgeMetrics
from reelkit.clock import Clock


def grpc_server_options(config: EdgeConfig) -> list[tuple[str, Any]]:
    """Options of the public gRPC server: small requests, large answers, long tokens."""
    raise NotImplementedError


def add_grpc_services(
    server: aio.Server,
    *,
    application: VideoApplication,
    verifier: TokenVerifier,
    metrics: EdgeMetrics,
    config: EdgeConfig,
    clock: Clock,
) -> None:
    """Adds VideoService, FleetService, standard health and reflection to a server.

    Call it before the server starts. Every RPC but health and reflection needs a
    token with the scope that :mod:`gateway.access` names for it. Health says SERVING
    exactly while ``application.ready()`` does.
    """
    raise NotImplementedError
