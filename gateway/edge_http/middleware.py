"""What surrounds every HTTP route: trace, metrics, token, scope, and errors as problems."""

from __future__ import annotations

import asyncio

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from opentelemetry import trace

from gateway import errors
from gateway.application import Caller
from gateway.auth import access
from gateway.auth.door import Door
from gateway.auth.errors import MalformedToken
from gateway.auth.rates import Allowance
from gateway.edge.metrics import EdgeMetrics
from gateway.edge_http.problem import Problem, problem_of, problem_of_status, problem_response
from reelkit.clock import Clock
from reelkit.tracing import context_from, current_trace_id

_log = structlog.get_logger("gateway.http")
_tracer = trace.get_tracer("gateway.http")

CALLER = web.RequestKey("caller", Caller)
ALLOWANCE = web.RequestKey("allowance", Allowance)

_UNMATCHED = "unmatched"
# As nginx counts a client that left before its answer.
_CLIENT_LEFT = "499"
_REQUEST_ID = "x-request-id"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def edge_middleware(*, door: Door, metrics: EdgeMetrics, clock: Clock) -> Middleware:
    """The one middleware of the application; no route is reached around it."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        template = _template(request)
        method = request.method if request.method in _METHODS else "OTHER"
        labels = {"protocol": "http", "route": template, "method": method}
        started_s = clock.monotonic()
        metrics.started(**labels)
        code = _CLIENT_LEFT
        span = _tracer.start_as_current_span(
            f"{method} {template}",
            context=context_from({k.lower(): v for k, v in _trace_headers(request)}),
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": template},
            record_exception=False,
        )
        try:
            with span as current:
                response = await _answer(request, handler, door, metrics)
                code = str(response.status)
                current.set_attribute("http.response.status_code", response.status)
                return response
        finally:
            metrics.ended(**labels, code=code, seconds=clock.monotonic() - started_s)

    return middleware


async def _answer(
    request: web.Request, handler: Handler, door: Door, metrics: EdgeMetrics
) -> web.StreamResponse:
    scope: access.Scope | None = None
    try:
        address = door.address_of(request.remote, request.headers.getall("X-Forwarded-For", []))
        if request.match_info.http_exception is not None:
            door.note_stranger(address)
        else:
            scope = access.required_scope(access.http_endpoint(request.method, _template(request)))
        if scope is not None:
            caller = await door.enter(_authorization(request), address)
            allowance = await door.charge(caller)
            if allowance is not None:
                request[ALLOWANCE] = allowance
            access.require(caller, scope)
            request[CALLER] = caller
        response = await handler(request)
    except errors.GatewayError as error:
        if isinstance(error, errors.QuotaExceeded):
            metrics.quota_refused(error.quota)
        response = _problem(request, problem_of(error, scope=scope))
    except web.HTTPException as error:
        response = _problem(request, _problem_of_http(error))
    except asyncio.CancelledError:
        raise
    except ConnectionError:
        _cut(request)
        raise
    except Exception:  # noqa: BLE001 - the process's boundary: logged, and told without detail
        _log.exception("unexpected error", route=_template(request), method=request.method)
        response = _problem(request, problem_of_status(500))
    if not response.prepared:
        sign(request, response)
    return response


def sign(request: web.Request, response: web.StreamResponse) -> None:
    """Names the request, the product and what is left of a rate, before headers are sent."""
    if ALLOWANCE in request:
        response.headers.update(request[ALLOWANCE].headers)
    trace_id = current_trace_id()
    if trace_id is not None:
        # OpenAI's clients show it as the request's id.
        response.headers[_REQUEST_ID] = trace_id
    # aiohttp would tell the versions that it runs on.
    response.headers[hdrs.SERVER] = "reelmesh"


def _problem(request: web.Request, problem: Problem) -> web.Response:
    if request.writer.output_size > 0:
        _cut(request)
        raise ConnectionResetError("the answer was begun and cannot be finished") from None
    response = problem_response(problem, instance=request.path)
    if request.method == hdrs.METH_POST and not request.content.at_eof():
        # The body was not read: a client that goes on sending it must not confuse us.
        response.force_close()
    return response


def _cut(request: web.Request) -> None:
    """Ends the connection now: a close would wait for a client that takes no byte."""
    if request.transport is not None:
        request.transport.abort()


def _problem_of_http(error: web.HTTPException) -> Problem:
    default_text = f"{error.status}: {error.reason}"
    detail = error.text if error.text and error.text != default_text else ""
    kept = {
        name: value
        for name, value in error.headers.items()
        if name not in (hdrs.CONTENT_TYPE, hdrs.CONTENT_LENGTH)
    }
    return problem_of_status(error.status, detail=detail, headers=kept)


def _template(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else _UNMATCHED


def _authorization(request: web.Request) -> str | None:
    values = request.headers.getall(hdrs.AUTHORIZATION, [])
    if len(values) > 1:
        raise MalformedToken("send one Authorization header, not several")
    return values[0] if values else None


def _trace_headers(request: web.Request) -> list[tuple[str, str]]:
    return [(n, request.headers[n]) for n in ("traceparent", "tracestate") if n in request.headers]
