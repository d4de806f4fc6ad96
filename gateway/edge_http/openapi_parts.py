"""What operations of the OpenAPI document are put together from."""

from __future__ import annotations

from typing import Any, Final

Json = dict[str, Any]

PROBLEMS: Final = {
    "400": "The request breaks a rule; `errors` names each field and the nearest valid values.",
    "401": "There is no token, or it does not hold.",
    "403": "The token lacks the scope, or the tenant's quota is too small for this.",
    "404": "There is no such video, model or route of this tenant.",
    "409": "The video is not finished, or has ended without content.",
    "413": "The body is too large.",
    "415": "The body is neither JSON nor multipart/form-data.",
    "416": "The range lies outside the video.",
    "421": "The video lives in another region, which this gateway does not know.",
    "422": "The idempotency key was used with another request.",
    "500": "What is stored is damaged, or no picture can be made of it; a retry does not help.",
    "429": "A limit of the tenant (`quota` names it) or of the region is reached; Retry-After says "
    "when to come back.",
    "503": "The region cannot serve now; Retry-After says when to come back.",
}
ALWAYS: Final = ("401", "403", "429", "503")


KEY: Final = (
    "Of the caller's own choosing, for a request that may be repeated: 1 to 128 visible ASCII "
    "characters. It belongs to the tenant."
)


_RATES: Final[Json] = {
    name: {"description": f"{about} Sent to tenants with a rate.", "schema": {"type": "string"}}
    for name, about in (
        ("RateLimit-Policy", "Requests that may come at once (q), and seconds for as many (w)."),
        ("RateLimit", "Requests that are left at this gateway (r), and seconds to all (t)."),
    )
}
_RETRY_AFTER: Final[Json] = {
    "description": "Seconds until a retry can help.",
    "schema": {"type": "integer"},
}


def operation_of(
    name: str,
    summary: str,
    description: str,
    *,
    ok: Json | None,
    parameters: list[Json] | None = None,
    body: Json | None = None,
    errors: tuple[str, ...] = (),
) -> Json:
    """One route; what every route may answer is added."""
    answers: dict[str, Json] = {"200": {"description": "Done."}}
    answers["200"]["headers"] = dict(_RATES)
    if ok is not None:
        answers["200"]["content"] = {"application/json": {"schema": ok}}
    for status in sorted({*errors, *ALWAYS}):
        answers[status] = {
            "description": PROBLEMS[status],
            "content": {"application/problem+json": {"schema": ref("Problem")}},
        }
    answers["429"]["headers"] = {**_RATES, "Retry-After": _RETRY_AFTER}
    operation: Json = {
        "operationId": name,
        "summary": summary,
        "description": description,
        "parameters": parameters or [],
        "responses": answers,
    }
    if body is not None:
        operation["requestBody"] = body
    return operation


def ref(name: str) -> Json:
    """A schema of the document, by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def header(name: str, about: str, pattern: str = "") -> Json:
    """A header of a request."""
    schema: Json = {"type": "string"}
    if pattern:
        schema["pattern"] = f"^{pattern}$"
    return {"name": name, "in": "header", "description": about, "schema": schema}


def query(name: str, schema: Json, about: str) -> Json:
    """A parameter of a request."""
    return {"name": name, "in": "query", "description": about, "schema": schema}
