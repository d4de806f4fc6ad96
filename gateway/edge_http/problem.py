"""Errors over HTTP: RFC 9457 problem details that also carry OpenAI's ``error`` object."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from aiohttp import hdrs, web

from gateway import errors
from gateway.auth.access import Scope
from gateway.auth.errors import MissingToken
from gateway.edge.error_table import PROBLEM_TYPE_PREFIX, row_for
from gateway.edge_http.json_values import dumps

PROBLEM_CONTENT_TYPE = "application/problem+json"
# More wrong fields than this are not listed: an answer stays small. A batch tells of so many.
MAX_VIOLATIONS = 101

# What is said by status alone: code, title, and a detail for the bare case.
_BY_STATUS: dict[int, tuple[str, str, str]] = {
    400: ("bad_request", "The request is not valid HTTP", "the request cannot be read"),
    404: ("route_not_found", "No such route", "this gateway has no such path; see /v1/videos"),
    405: ("method_not_allowed", "The route has no such method", "the header Allow lists them"),
    408: ("request_timeout", "The request took too long", "the body did not arrive in time"),
    413: ("payload_too_large", "The request is too large", "the body is over the limit"),
    415: ("unsupported_media_type", "The body's type is not supported", "send JSON or multipart"),
    416: ("range_not_satisfiable", "The range lies outside the video", "see Content-Range"),
    417: ("expectation_failed", "The expectation cannot be met", "only 100-continue is known"),
    431: ("header_too_large", "A header is too large", "a header line is over the limit"),
}
_INTERNAL = ("internal", "The gateway failed", "the error was logged; a retry may not help")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a client reads of one error."""

    status: int
    code: str
    title: str
    detail: str
    openai_type: str = "invalid_request_error"
    violations: tuple[errors.FieldViolation, ...] = ()
    retryable: bool = False
    retry_after_s: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


def problem_of(error: errors.GatewayError, *, scope: Scope | None = None) -> Problem:
    """The problem that the error table makes of an error.

    Args:
        error: What went wrong.
        scope: What the route asks for; said in the challenge of a 403.
    """
    row = row_for(error)
    extra: dict[str, Any] = {}
    retryable = error.retryable
    if isinstance(error, errors.JobFailed):
        extra["job_code"] = error.job_code
        retryable = error.job_retryable
    if isinstance(error, errors.OtherRegion):
        extra["region"] = error.region
    if isinstance(error, errors.QuotaExceeded):
        extra["quota"] = error.quota
    return Problem(
        status=row.http_status,
        code=error.code,
        title=row.title,
        detail=error.message,
        openai_type=row.openai_type,
        violations=error.violations if isinstance(error, errors.InvalidRequest) else (),
        retryable=retryable,
        retry_after_s=error.retry_after_s,
        extra=extra,
        headers={
            **_challenge(error, scope),
            **(error.headers if isinstance(error, errors.QuotaExceeded) else {}),
        },
    )


def problem_of_status(
    status: int, *, detail: str = "", headers: dict[str, str] | None = None
) -> Problem:
    """The problem of a bare HTTP status, such as an unknown route's 404."""
    code, title, usual = _BY_STATUS.get(status, _INTERNAL)
    return Problem(
        status=status,
        code=code,
        title=title,
        detail=detail or usual,
        openai_type="server_error" if status >= 500 else "invalid_request_error",
        # A body that came too slowly may come faster; all else stays what it is.
        retryable=status == 408,
        headers=headers or {},
    )


def problem_body(problem: Problem, *, instance: str) -> dict[str, Any]:
    """The problem as a JSON object; ``instance`` is the path that was asked for."""
    listed = problem.violations[:MAX_VIOLATIONS]
    body: dict[str, Any] = {
        "type": PROBLEM_TYPE_PREFIX + problem.code,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": instance,
        "code": problem.code,
        "retryable": problem.retryable,
        **problem.extra,
    }
    if listed:
        body["errors"] = [
            {"field": v.field, "message": v.message, "nearest": list(v.nearest)} for v in listed
        ]
    # OpenAI's clients raise with this object; param is the first wrong field.
    body["error"] = {
        "message": problem.detail,
        "type": problem.openai_type,
        "code": problem.code,
        "param": listed[0].field if listed else None,
    }
    return body


def problem_response(problem: Problem, *, instance: str) -> web.Response:
    """The whole response, with Retry-After where a retry helps and a refusal where not."""
    headers = dict(problem.headers)
    headers[hdrs.CACHE_CONTROL] = "no-store"
    if problem.retry_after_s is not None:
        headers[hdrs.RETRY_AFTER] = str(max(1, math.ceil(problem.retry_after_s)))
    if not problem.retryable:
        # OpenAI's client retries 409, 429 and 5xx unless it is told not to.
        headers["x-should-retry"] = "false"
    return web.Response(
        status=problem.status,
        body=dumps(problem_body(problem, instance=instance)),
        content_type=PROBLEM_CONTENT_TYPE,
        headers=headers,
    )


def _challenge(error: errors.GatewayError, scope: Scope | None) -> dict[str, str]:
    """The WWW-Authenticate header of RFC 6750 section 3."""
    if isinstance(error, errors.Unauthenticated):
        challenge = 'Bearer realm="reelmesh"'
        if not isinstance(error, MissingToken):
            challenge += f', error="invalid_token", error_description="{error.message}"'
        return {hdrs.WWW_AUTHENTICATE: challenge}
    if isinstance(error, errors.PermissionDenied) and not isinstance(error, errors.QuotaTooSmall):
        needed = f', scope="{scope.value}"' if scope is not None else ""
        return {
            hdrs.WWW_AUTHENTICATE: f'Bearer realm="reelmesh", error="insufficient_scope"{needed}'
        }
    return {}
