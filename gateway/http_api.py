"""The HTTP edge: OpenAI-shaped routes over the application port.

For the composition root::

    app = build_http_app(application=..., verifier=..., metrics=..., ...)
    runner = http_runner(app)
    await runner.setup()                # and runner.cleanup() at the end
    site = web.TCPSite(runner, host, port)
"""

from __future__ import annotations

from aiohttp import web

from gateway.application import VideoApplication
from gateway.auth import TokenVerifier
from gateway.edge_config import EdgeConfig
from gateway.edge_metrics import EdgeMetrics
from reelkit.clock import Clock


def build_http_app(
    *,
    application: VideoApplication,
    verifier: TokenVerifier,
    metrics: EdgeMetrics,
    config: EdgeConfig,
    clock: Clock,
) -> web.Application:
    """The gateway's whole HTTP application; ``/metrics`` shows ``metrics.registry``.

    Every route but ``/healthz``, ``/readyz`` and ``/metrics`` needs a token with the
    scope that :mod:`gateway.access` names for it.
    """
    raise NotImplementedError


def http_runner(app: web.Application, *, shutdown_timeout_s: float = 5.0) -> web.AppRunner:
    """A runner with what the routes rely on: handlers are cancelled when clients leave."""
    raise NotImplementedError
