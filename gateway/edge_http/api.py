"""The HTTP edge: OpenAI-shaped routes over the application port.

For the composition root::

    app = build_http_app(application=..., door=..., metrics=..., ...)
    runner = http_runner(app)
    await runner.setup()                # and runner.cleanup() at the end
    port = await listen_http(runner, "127.0.0.1:0")
"""

from __future__ import annotations

import importlib.metadata
import re

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gateway import errors
from gateway.application import VideoApplication
from gateway.auth import access
from gateway.auth.door import Door
from gateway.batches.application import BatchApplication
from gateway.edge.config import EdgeConfig
from gateway.edge.metrics import EdgeMetrics
from gateway.edge_http.batches import BatchRoutes
from gateway.edge_http.body import read_create_request
from gateway.edge_http.cache_headers import cache_headers, wants_fresh
from gateway.edge_http.content import send_content
from gateway.edge_http.docs_page import page
from gateway.edge_http.json_values import dumps
from gateway.edge_http.middleware import CALLER, edge_middleware, sign
from gateway.edge_http.openai_objects import (
    deleted_object,
    model_list,
    model_object,
    region_list,
    video_list,
    video_object,
)
from gateway.edge_http.openapi import document
from gateway.edge_http.parameters import idempotency_key, page_size, violation
from gateway.edge_http.problem import problem_of_status, problem_response
from gateway.edge_http.server import http_runner, listen_http
from gateway.edge_http.sse import stream_events
from reelkit.clock import Clock
from reelkit.extras import DISTRIBUTION

__all__ = ["build_http_app", "http_runner", "listen_http"]

_VIDEO_ID = re.compile(r"[A-Za-z0-9._~:-]{1,128}")


def build_http_app(
    *,
    application: VideoApplication,
    batches: BatchApplication,
    door: Door,
    metrics: EdgeMetrics,
    config: EdgeConfig,
    clock: Clock,
) -> web.Application:
    """The gateway's whole HTTP application; ``/metrics`` shows ``metrics.registry``.

    Every route but ``/healthz``, ``/readyz`` and ``/metrics`` needs a token with the
    scope that :mod:`gateway.auth.access` names for it.

    Raises:
        UnlistedEndpoint: A route is missing in the access table.
    """
    app = web.Application(
        middlewares=[edge_middleware(door=door, metrics=metrics, clock=clock)],
        client_max_size=config.max_body_bytes,
    )
    app.on_response_prepare.append(_sign)
    routes = _Routes(application=application, metrics=metrics, config=config, clock=clock)
    batch_routes = BatchRoutes(batches=batches, application=application, config=config)
    handlers: list[tuple[str, str, Handler]] = [
        ("POST", "/v1/videos", routes.create),
        ("GET", "/v1/videos", routes.list_page),
        ("GET", "/v1/videos/{video_id}", routes.get),
        ("DELETE", "/v1/videos/{video_id}", routes.delete),
        ("GET", "/v1/videos/{video_id}/content", routes.content),
        ("HEAD", "/v1/videos/{video_id}/content", routes.content),
        ("GET", "/v1/videos/{video_id}/events", routes.events),
        ("POST", "/v1/videos/{video_id}/cancel", routes.cancel),
        ("POST", "/v1/videos/{video_id}/remix", routes.remix),
        *batch_routes.handlers(),
        ("GET", "/v1/models", routes.models),
        ("GET", "/v1/models/{name}", routes.model),
        ("GET", "/v1/regions", routes.regions),
        ("GET", "/healthz", routes.healthz),
        ("HEAD", "/healthz", routes.healthz),
        ("GET", "/readyz", routes.readyz),
        ("HEAD", "/readyz", routes.readyz),
        ("GET", "/metrics", routes.metrics),
        ("GET", "/openapi.json", routes.openapi),
        ("GET", "/docs", routes.docs),
    ]
    for method, template, handler in handlers:
        access.required_scope(access.http_endpoint(method, template))
        app.router.add_route(method, template, handler, expect_handler=_expect)
    return app


class _Routes:
    """The handlers; each translates and asks the application."""

    def __init__(
        self,
        *,
        application: VideoApplication,
        metrics: EdgeMetrics,
        config: EdgeConfig,
        clock: Clock,
    ) -> None:
        self._application = application
        self._metrics = metrics
        self._config = config
        self._clock = clock
        described = document(version=importlib.metadata.version(DISTRIBUTION))
        self._openapi = dumps(described)
        self._docs = page(described).encode()

    async def openapi(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(body=self._openapi, content_type="application/json")

    async def docs(self, _request: web.Request) -> web.StreamResponse:
        # Nothing in it is fetched or run.
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        return web.Response(
            body=self._docs,
            content_type="text/html",
            charset="utf-8",
            headers={"Content-Security-Policy": policy},
        )

    async def create(self, request: web.Request) -> web.StreamResponse:
        return await self._create(request, original="")

    async def remix(self, request: web.Request) -> web.StreamResponse:
        return await self._create(request, original=_video_id(request))

    async def _create(self, request: web.Request, *, original: str) -> web.StreamResponse:
        key = idempotency_key(request)
        wish = await read_create_request(request, timeout_s=self._config.body_timeout_s)
        if key:
            wish.options.idempotency_key = key
        wish.options.remixed_from_video_id = original
        wish.options.no_cache = wants_fresh(request)
        try:
            video = await self._application.create(
                request[CALLER], wish.spec, wish.options, streamed=False, unfit=wish.unfit
            )
        except errors.InvalidRequest as error:
            raise wish.in_clients_words(error) from None
        headers = cache_headers(video)
        headers[hdrs.LOCATION] = f"/v1/videos/{video.id}"
        return _json(video_object(video), headers=headers)

    async def list_page(self, request: web.Request) -> web.StreamResponse:
        order = request.query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise violation("order", "must be asc or desc", ("desc", "asc"))
        try:
            videos, token = await self._application.list_page(
                request[CALLER],
                page_size=page_size(request.query.get("limit")),
                page_token=request.query.get("after", ""),
                oldest_first=order == "asc",
            )
        except errors.InvalidRequest as error:
            raise _in_list_words(error) from None
        return _json(video_list(videos, has_more=token != ""))

    async def get(self, request: web.Request) -> web.StreamResponse:
        video = await self._application.get(request[CALLER], _video_id(request))
        return _json(video_object(video), headers=cache_headers(video))

    async def delete(self, request: web.Request) -> web.StreamResponse:
        video_id = _video_id(request)
        await self._application.delete(request[CALLER], video_id)
        return _json(deleted_object(video_id))

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        return _json(
            video_object(await self._application.cancel(request[CALLER], _video_id(request)))
        )

    async def content(self, request: web.Request) -> web.StreamResponse:
        return await send_content(
            request,
            application=self._application,
            caller=request[CALLER],
            video_id=_video_id(request),
            config=self._config,
        )

    async def events(self, request: web.Request) -> web.StreamResponse:
        return await stream_events(
            request,
            application=self._application,
            caller=request[CALLER],
            video_id=_video_id(request),
            config=self._config,
            clock=self._clock,
        )

    async def models(self, _request: web.Request) -> web.StreamResponse:
        models, default = self._application.models()
        return _json(model_list(models, default=default))

    async def model(self, request: web.Request) -> web.StreamResponse:
        models, default = self._application.models()
        return _json(model_object(request.match_info["name"], models, default=default))

    async def regions(self, _request: web.Request) -> web.StreamResponse:
        return _json(region_list(self._application.regions()))

    async def healthz(self, _request: web.Request) -> web.StreamResponse:
        return _json({"status": "ok"})

    async def readyz(self, _request: web.Request) -> web.StreamResponse:
        ready, reason = self._application.ready()
        if ready:
            return _json({"status": "ready"})
        return _json({"status": "not ready", "reason": reason}, status=503)

    async def metrics(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(
            body=generate_latest(self._metrics.registry),
            headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST},
        )


def _json(
    value: dict[str, object], *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        status=status, body=dumps(value), content_type="application/json", headers=headers
    )


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    """For streams, whose headers are sent before the middleware sees their end."""
    sign(request, response)


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """Lets a client go on that waits for 100-continue, and refuses what else it expects."""
    if request.version < HttpVersion11:
        return None
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # Those bytes are no part of the answer.
        request.writer.output_size = 0
        return None
    return problem_response(problem_of_status(417), instance=request.path)


def _video_id(request: web.Request) -> str:
    video_id = request.match_info["video_id"]
    if not _VIDEO_ID.fullmatch(video_id):
        raise errors.VideoNotFound("there is no such video; an id looks like those of the list")
    return video_id


def _in_list_words(error: errors.InvalidRequest) -> errors.InvalidRequest:
    names = {"page_size": "limit", "page_token": "after"}
    return errors.InvalidRequest(
        tuple(
            errors.FieldViolation(names.get(v.field, v.field), v.message, v.nearest)
            for v in error.violations
        )
    )
