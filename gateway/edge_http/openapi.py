"""The HTTP API as an OpenAPI 3.1 document, made of the tables that the server itself goes by."""

from __future__ import annotations

from typing import Final

from gateway.auth import access
from gateway.edge_http.fields import FIELDS, CreateField, Kind
from gateway.edge_http.openapi_batches import SUBMISSIONS, batch_operations
from gateway.edge_http.openapi_parts import KEY, Json, header, operation_of, query, ref
from gateway.edge_http.schemas import SCHEMAS

ABOUT: Final = (
    "Text to video. The routes under /v1/videos are OpenAI's, so that its clients work "
    "unchanged; a cancelled video reads as failed with the code `cancelled` there. Every "
    "error is a problem (RFC 9457) that also carries OpenAI's `error` object. Sizes, lengths "
    "and steps are the model's: see /v1/models."
)
_SCALAR: Final[dict[Kind, Json]] = {
    Kind.TEXT: {"type": "string"},
    Kind.WHOLE: {"type": "integer", "minimum": 0},
    Kind.NUMBER: {"type": "number"},
    Kind.SECONDS: {"type": ["number", "string"]},
}
_VIDEO_ID: Final[Json] = {
    "name": "video_id",
    "in": "path",
    "required": True,
    "description": "As the answer to the create, or the list, has it.",
    "schema": {"type": "string"},
}


def document(*, version: str) -> Json:
    """The whole document.

    Args:
        version: Of this software.
    """
    paths: dict[str, Json] = {}
    for endpoint, operation in _operations().items():
        method, template = endpoint.split(" ")
        scope = access.required_scope(endpoint)
        if scope is not None:
            operation["security"] = [{"bearer": [scope.value]}]
            operation["description"] += f" Needs the scope `{scope.value}`."
        else:
            operation["security"] = []
        paths.setdefault(template, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Reelmesh", "version": version, "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": {**SCHEMAS, "CreateVideo": _create_schema(), **SUBMISSIONS},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
            },
        },
    }


def _operations() -> dict[str, Json]:
    """By endpoint, as the access table names them."""
    return {
        **_of_videos(),
        **_of_one_video(),
        **_of_its_bytes(),
        **batch_operations(),
        **_of_the_mesh(),
        **_open_ones(),
    }


def _of_videos() -> dict[str, Json]:
    key = header("Idempotency-Key", KEY, "[!-~]{1,128}")
    return {
        "POST /v1/videos": _with_cache_status(
            operation_of(
                "createVideo",
                "Create a video",
                "Answers at once; the video is made in the background, and runs on when nobody "
                "watches. The same Idempotency-Key and body again answer the same video.",
                ok=ref("Video"),
                parameters=[key, header("Cache-Control", _NO_CACHE)],
                body=_BODY,
                errors=("400", "413", "415", "422"),
            )
        ),
        "GET /v1/videos": operation_of(
            "listVideos",
            "List videos",
            "This region's, the newest first.",
            ok=ref("VideoList"),
            parameters=[
                query("limit", {"type": "integer", "minimum": 1, "maximum": 100}, "20 without."),
                query("after", {"type": "string"}, "The last id of the page before."),
                query("order", {"enum": ["asc", "desc"]}, "By age; desc without."),
            ],
            errors=("400",),
        ),
    }


def _of_one_video() -> dict[str, Json]:
    video = ref("Video")
    return {
        "GET /v1/videos/{video_id}": _with_cache_status(
            operation_of(
                "getVideo",
                "Get a video",
                "Its state, its settings as they were resolved, and its result.",
                ok=video,
                parameters=[_VIDEO_ID],
                errors=("404", "421"),
            )
        ),
        "DELETE /v1/videos/{video_id}": operation_of(
            "deleteVideo",
            "Delete a video",
            "With its bytes; one that runs is cancelled first.",
            ok=ref("DeletedVideo"),
            parameters=[_VIDEO_ID],
            errors=("404", "421"),
        ),
        "POST /v1/videos/{video_id}/remix": _with_cache_status(
            operation_of(
                "remixVideo",
                "Remix a video",
                "Another video with a new prompt and the settings of this one, its seed too, which "
                "may have ended in any way. Fields beside the prompt replace its settings. The "
                "model is the one of that name, in the version that is served now.",
                ok=video,
                parameters=[
                    _VIDEO_ID,
                    header("Idempotency-Key", KEY, "[!-~]{1,128}"),
                    header("Cache-Control", _NO_CACHE),
                ],
                body=_BODY,
                errors=("400", "404", "413", "415", "421", "422"),
            )
        ),
        "POST /v1/videos/{video_id}/cancel": operation_of(
            "cancelVideo",
            "Cancel a video",
            "The device stops within a step. One that has ended stays what it is.",
            ok=video,
            parameters=[_VIDEO_ID],
            errors=("404", "421"),
        ),
    }


def _of_its_bytes() -> dict[str, Json]:
    return {
        "GET /v1/videos/{video_id}/content": _with_content(
            operation_of(
                "downloadVideo",
                "Download a video",
                "The MP4 or a picture of it, whole or one range of it. Its ETag is the sha256. A "
                "whole one that arrives whole is what was drawn: a damaged one breaks off.",
                ok=None,
                parameters=[
                    _VIDEO_ID,
                    query(
                        "variant",
                        {"enum": ["video", "thumbnail", "spritesheet"]},
                        "thumbnail: the frame in the middle; spritesheet: up to 16 frames from "
                        "first to last, four in a row. Both are JPEGs.",
                    ),
                    query(
                        "follow",
                        {"enum": ["0", "1"]},
                        "1: a video that is not finished is sent as it is drawn. Where its bytes "
                        "become void, as when another node begins anew, the connection is reset.",
                    ),
                    query(
                        "link",
                        {"enum": ["0", "1"]},
                        "1: a JSON object with a URL of the object store, which holds for some "
                        "minutes, and the sha256; where the operators allow that.",
                    ),
                    query("redirect", {"enum": ["0", "1"]}, "1: sent there, by 302."),
                    header("Range", "One range of bytes."),
                    header("If-None-Match", "Answers 304 where it is the ETag."),
                ],
                errors=("400", "404", "409", "416", "421", "500"),
            )
        ),
        "GET /v1/videos/{video_id}/events": _with_events(
            operation_of(
                "watchVideo",
                "Watch a video",
                "Server-sent events until the end: `queued`, `started`, `progress`, `chunk`, "
                "`restarted` and one of `completed`, `failed`, `cancelled`. An event's id is where "
                "to go on, at any gateway: a browser sends it as Last-Event-ID by itself, after "
                "the time that `retry` names, and gets what came since; progress may have been "
                "conflated, the rest has not. After `restarted` the bytes of before are void. "
                "Silence is filled with comments. An `error` event says that the stream broke: "
                "come again. After the end the answer is 204, at which a browser comes no more.",
                ok=None,
                parameters=[
                    _VIDEO_ID,
                    header("Last-Event-ID", "The id of the last event that was seen.", "[0-9]+"),
                    query("after_seq", {"type": "integer", "minimum": 0}, "The same."),
                    query("chunks", {"enum": ["0", "1"]}, "1: with the bytes, as base64."),
                ],
                errors=("400", "404", "421"),
            )
        ),
    }


def _of_the_mesh() -> dict[str, Json]:
    return {
        "GET /v1/models": operation_of(
            "listModels", "List models", "With what each can do.", ok=ref("ModelList")
        ),
        "GET /v1/models/{name}": operation_of(
            "getModel",
            "Get a model",
            "By its name, or name@version.",
            ok=ref("Model"),
            parameters=[
                {
                    "name": "name",
                    "in": "path",
                    "required": True,
                    "description": "As the list has it.",
                    "schema": {"type": "string"},
                }
            ],
            errors=("404",),
        ),
        "GET /v1/regions": operation_of(
            "listRegions", "List regions", "As this gateway knows them.", ok=ref("RegionList")
        ),
    }


def _open_ones() -> dict[str, Json]:
    return {
        "GET /healthz": _open("health", "Whether the process lives", ref("State")),
        "GET /readyz": _open(
            "readiness", "Whether the region should receive traffic", ref("State"), "503"
        ),
        "GET /metrics": _open("metrics", "Figures for Prometheus", None),
        "GET /openapi.json": _open("openapi", "This document", {"type": "object"}),
        "GET /docs": _open("docs", "This document for people", None),
    }


_NO_CACHE: Final = (
    "no-cache: a video that is drawn for this request. Without it, and without a seed, one that "
    "was drawn before for the same request may answer it: the answer says so in Cache-Status."
)
_CACHE_STATUS: Final[Json] = {
    "description": "How the video came to be (RFC 9211): hit, it was there; fwd=miss, it is drawn; "
    "collapsed, for other requests too; fwd=request, anew as was asked for; fwd=bypass, there is "
    "no cache for this tenant; stored, it may answer later requests.",
    "schema": {"type": "string"},
}
_BODY: Final[Json] = {
    "required": True,
    "content": {
        kind: {"schema": {"$ref": "#/components/schemas/CreateVideo"}}
        for kind in ("application/json", "multipart/form-data")
    },
}


def _open(name: str, summary: str, ok: Json | None, *others: str) -> Json:
    """One that asks for no token."""
    answer: Json = {"description": "Done."}
    if ok is not None:
        answer["content"] = {"application/json": {"schema": ok}}
    answers = dict.fromkeys(("200", *others), answer)
    return {
        "operationId": name,
        "summary": summary,
        "description": "Asks for no token.",
        "parameters": [],
        "responses": answers,
    }


def _with_cache_status(operation: Json) -> Json:
    operation["responses"]["200"]["headers"]["Cache-Status"] = _CACHE_STATUS
    return operation


def _with_content(operation: Json) -> Json:
    _with_cache_status(operation)
    binary = {"schema": {"type": "string", "format": "binary"}}
    video = {"video/mp4": binary, "image/jpeg": binary}
    link = {"application/json": {"schema": ref("VideoLink")}}
    operation["responses"]["200"]["content"] = {**video, **link}
    operation["responses"]["302"] = {"description": "The store has it, at Location."}
    operation["responses"]["206"] = {"description": "The range.", "content": video}
    operation["responses"]["304"] = {"description": "It is what the client has."}
    return operation


def _with_events(operation: Json) -> Json:
    operation["responses"]["200"]["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    operation["responses"]["204"] = {"description": "The end was seen: there is nothing more."}
    return operation


def _create_schema() -> Json:
    return {
        "type": "object",
        "description": "What a model allows is in /v1/models.",
        "properties": {name: _property(field) for name, field in FIELDS.items()},
        "required": ["prompt"],
        "additionalProperties": False,
    }


def _property(field: CreateField) -> Json:
    schema = {**_SCALAR[field.kind], "description": field.about}
    if field.choices is not None:
        schema["enum"] = list(field.choices)
    if field.kind is Kind.WHOLE:
        schema["maximum"] = field.max_value
    return schema
