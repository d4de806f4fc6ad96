"""JSON schemas of what the HTTP edge answers, as its OpenAPI document names them."""

from __future__ import annotations

from typing import Any, Final

Json = dict[str, Any]

_TEXT: Final[Json] = {"type": "string"}
_WHOLE: Final[Json] = {"type": "integer"}
_NUMBER: Final[Json] = {"type": ["number", "null"]}
_TIME: Final[Json] = {"type": ["integer", "null"], "description": "Seconds since 1970."}


def _object(properties: Json, *, optional: tuple[str, ...] = (), about: str = "") -> Json:
    made: Json = {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }
    return {**made, "description": about} if about else made


def _list_of(name: str, **more: Json) -> Json:
    items = {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}}
    return _object({"object": {"const": "list"}, "data": items, **more})


_VIDEO: Final = _object(
    {
        "id": {**_TEXT, "description": "Its beginning names the region it lives in."},
        "object": {"const": "video"},
        "model": _TEXT,
        "status": {"enum": ["queued", "in_progress", "completed", "failed"]},
        "progress": {**_WHOLE, "minimum": 0, "maximum": 100},
        "prompt": _TEXT,
        "created_at": _WHOLE,
        "completed_at": _TIME,
        "expires_at": _TIME,
        "seconds": {**_TEXT, "description": "Of what is or will be made."},
        "size": _TEXT,
        "error": {
            "type": ["object", "null"],
            "properties": {"code": _TEXT, "message": _TEXT, "retryable": {"type": "boolean"}},
            "required": ["code", "message"],
        },
        "remixed_from_video_id": {"type": ["string", "null"]},
        "model_version": _TEXT,
        "width": _WHOLE,
        "height": _WHOLE,
        "num_frames": _WHOLE,
        "fps": _NUMBER,
        "negative_prompt": _TEXT,
        "num_inference_steps": _WHOLE,
        "guidance_scale": _NUMBER,
        "flow_shift": _NUMBER,
        "quality": {"type": ["string", "null"]},
        "brown_out": {
            "type": ["object", "null"],
            "description": "Where it is drawn in fewer steps, as there was load: how many, and "
            "how many it would have been.",
            "properties": {"steps": _WHOLE, "unloaded_steps": _WHOLE},
            "required": ["steps", "unloaded_steps"],
        },
        "priority": {"enum": ["interactive", "batch", None]},
        "cache": {
            "enum": ["miss", "hit", "shared", "refreshed", "bypassed", None],
            "description": "hit: a video that was there; shared: drawn for other requests too.",
        },
        "seed": _WHOLE,
        "requested": _object(
            {"resolution": {"type": ["string", "null"]}, "seconds": _NUMBER},
            about="The names and lengths that were resolved.",
        ),
        "region": _TEXT,
        "attempts": _WHOLE,
        "durable": {"type": "boolean", "description": "Whether it outlives its gateway."},
        "result": {"type": ["object", "null"], "description": "sha256, sizes, timings, cost."},
    },
    about="OpenAI's video object, with this service's own fields beside its.",
)

_PROBLEM: Final = _object(
    {
        "type": _TEXT,
        "title": _TEXT,
        "status": _WHOLE,
        "detail": _TEXT,
        "instance": _TEXT,
        "code": {**_TEXT, "description": "Stable; what a program looks at."},
        "retryable": {"type": "boolean"},
        "quota": {**_TEXT, "description": "Which of the tenant's limits is used up."},
        "errors": {
            "type": "array",
            "items": _object(
                {
                    "field": _TEXT,
                    "message": _TEXT,
                    "nearest": {"type": "array", "items": _TEXT},
                }
            ),
        },
        "error": _object(
            {
                "message": _TEXT,
                "type": _TEXT,
                "code": _TEXT,
                "param": {"type": ["string", "null"]},
            },
            about="As OpenAI's clients read it.",
        ),
    },
    optional=("errors", "quota"),
    about="RFC 9457 problem details.",
)

_BATCH: Final = _object(
    {
        "id": {**_TEXT, "description": "Its beginning names the region it lives in."},
        "object": {"const": "batch"},
        "status": {
            "enum": [
                "queued",
                "in_progress",
                "completed",
                "failed",
                "cancelling",
                "cancelled",
                "expired",
            ]
        },
        "counts": _object(
            {
                name: {**_WHOLE, "minimum": 0}
                for name in ("total", "queued", "running", "completed", "failed", "cancelled")
            },
            about="How many items are where; the last five add up to the first.",
        ),
        "created_at": _WHOLE,
        "completed_at": _TIME,
        "expires_at": _WHOLE,
        "metadata": {"type": "object", "additionalProperties": _TEXT},
        "region": _TEXT,
        "priority": {"enum": ["interactive", "batch", None]},
        "error": {"type": ["object", "null"]},
        "durable": {"type": "boolean", "description": "Whether it outlives its gateway."},
    },
    about="Many videos under one record.",
)
_ITEM: Final = _object(
    {
        "object": {"const": "batch.item"},
        "index": {**_WHOLE, "minimum": 0},
        "custom_id": {"type": ["string", "null"]},
        "prompt": _TEXT,
        "status": {"enum": ["queued", "in_progress", "completed", "failed", "cancelled"]},
        "video_id": {"type": ["string", "null"]},
        "error": {"type": ["object", "null"]},
        "content": {"type": ["string", "null"], "description": "Where its MP4 is."},
        "sha256": {"type": ["string", "null"]},
        "bytes": {"type": ["integer", "null"]},
        "file": {"type": ["string", "null"], "description": "Its name in the zip."},
    },
    optional=("file",),
)

SCHEMAS: Final[Json] = {
    "Batch": _BATCH,
    "BatchList": _list_of(
        "Batch",
        first_id={"type": ["string", "null"]},
        last_id={"type": ["string", "null"]},
        has_more={"type": "boolean"},
    ),
    "BatchItem": _ITEM,
    "BatchItemList": _list_of(
        "BatchItem",
        last_index={"type": ["integer", "null"]},
        has_more={"type": "boolean"},
    ),
    "BatchResults": _object(
        {
            "object": {"const": "batch.results"},
            "batch_id": _TEXT,
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/BatchItem"}},
        }
    ),
    "DeletedBatch": _object(
        {"id": _TEXT, "object": {"const": "batch.deleted"}, "deleted": {"const": True}}
    ),
    "Video": _VIDEO,
    "VideoList": _list_of(
        "Video",
        first_id={"type": ["string", "null"]},
        last_id={"type": ["string", "null"]},
        has_more={"type": "boolean"},
    ),
    "DeletedVideo": _object(
        {"id": _TEXT, "object": {"const": "video.deleted"}, "deleted": {"const": True}}
    ),
    "VideoLink": _object(
        {
            "object": {"const": "video.link"},
            "video_id": _TEXT,
            "url": {**_TEXT, "description": "Good for whoever has it, until it expires."},
            "expires_at": _WHOLE,
            "size_bytes": _WHOLE,
            "sha256": {**_TEXT, "description": "For the client to check."},
        }
    ),
    "Model": _object(
        {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": _WHOLE,
            "owned_by": _TEXT,
            "default": {"type": "boolean"},
            "pinned_id": _TEXT,
        },
        about="With sizes, frame rule, steps and more, as its manifest has them.",
    ),
    "ModelList": _list_of("Model"),
    "Region": _object({"object": {"const": "region"}, "name": _TEXT}),
    "RegionList": _list_of("Region"),
    "State": _object({"status": _TEXT, "reason": _TEXT}, optional=("reason",)),
    "Problem": _PROBLEM,
}
