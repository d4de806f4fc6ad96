"""The routes of batches in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from gateway.batches.application import MAX_ITEMS_PAGE
from gateway.edge_http.openapi_parts import KEY, Json, header, operation_of, query, ref

_BATCH_ID: Final[Json] = {
    "name": "batch_id",
    "in": "path",
    "required": True,
    "description": "As the answer to the submission, or the list, has it.",
    "schema": {"type": "string"},
}
_TEXT: Final[Json] = {"type": "string"}
_ROWS: Final[Json] = {"type": "array", "items": {"type": "object"}, "minItems": 1}
_SHARED: Final[dict[str, Json]] = {
    "template": {
        **_TEXT,
        "description": "A prompt with names in braces, such as `a {color} {product} spins`; `{{` "
        "and `}}` are braces. Each row says what the names stand for.",
    },
    "defaults": {
        "type": "object",
        "description": "Settings of every row that does not say otherwise: the fields of a create "
        "request but prompt.",
    },
    "model": {**_TEXT, "description": "The same as in defaults."},
    "priority": {
        "type": "string",
        "enum": ["batch", "interactive"],
        "description": "batch without: after whatever somebody waits for.",
    },
    "metadata": {
        "type": "object",
        "additionalProperties": _TEXT,
        "description": "Up to 16 pairs of the client's own.",
    },
    "webhook_url": {
        **_TEXT,
        "description": "Told of the batch's end, where the operators allow that; https.",
    },
    "max_in_flight": {
        "type": "integer",
        "minimum": 1,
        "description": "Videos under way at once, at most; no more than the gateway allows.",
    },
}

SCHEMA: Final[Json] = {
    "type": "object",
    "description": "Either rows or items.",
    "properties": {
        "rows": {
            **_ROWS,
            "description": "With a template: a value for each of its names, and settings of the "
            "row's own. Without: a prompt each. custom_id is the client's name of the row.",
        },
        "items": {
            **_ROWS,
            "description": "A prompt each, and settings of the item's own.",
        },
        **_SHARED,
    },
    "required": [],
    "additionalProperties": False,
}
FORM: Final[Json] = {
    "type": "object",
    "description": "A file of rows, and beside it what a JSON body has.",
    "properties": {
        "file": {
            "type": "string",
            "contentMediaType": "application/octet-stream",
            "description": "JSON lines, or CSV with a header where its name ends with .csv.",
        },
        **{
            name: {**_TEXT, "description": schema["description"]}
            for name, schema in _SHARED.items()
        },
    },
    "required": ["file"],
    "additionalProperties": False,
}

SUBMISSIONS: Final[dict[str, Json]] = {"SubmitBatch": SCHEMA, "UploadBatch": FORM}


def batch_operations() -> dict[str, Json]:
    """By endpoint, as the access table names them."""
    return {**_of_batches(), **_of_one_batch(), **_of_its_items()}


def _of_batches() -> dict[str, Json]:
    submit = operation_of(
        "submitBatch",
        "Submit a batch",
        "Many videos in one request: all of it is accepted, or nothing and every mistake is told. "
        "What is accepted is made in the background, whatever becomes of the gateway. The same "
        "Idempotency-Key and body again answer the same batch.",
        ok=ref("Batch"),
        parameters=[header("Idempotency-Key", KEY, "[!-~]{1,128}")],
        body={
            "required": True,
            "content": {
                "application/json": {"schema": ref("SubmitBatch")},
                "multipart/form-data": {"schema": ref("UploadBatch")},
            },
        },
        errors=("400", "413", "415", "422"),
    )
    listed = operation_of(
        "listBatches",
        "List batches",
        "This region's, the newest first.",
        ok=ref("BatchList"),
        parameters=[
            query("limit", {"type": "integer", "minimum": 1, "maximum": 100}, "20 without."),
            query("after", _TEXT, "The last id of the page before."),
        ],
        errors=("400",),
    )
    return {"POST /v1/batches": submit, "GET /v1/batches": listed}


def _of_one_batch() -> dict[str, Json]:
    return {
        "GET /v1/batches/{batch_id}": operation_of(
            "getBatch",
            "Get a batch",
            "Its state and how many of its items are where; a second old at most.",
            ok=ref("Batch"),
            parameters=[_BATCH_ID],
            errors=("404", "421"),
        ),
        "DELETE /v1/batches/{batch_id}": operation_of(
            "deleteBatch",
            "Delete a batch",
            "With its videos; one that goes on is to be cancelled first.",
            ok=ref("DeletedBatch"),
            parameters=[_BATCH_ID],
            errors=("404", "409", "421"),
        ),
        "POST /v1/batches/{batch_id}/cancel": operation_of(
            "cancelBatch",
            "Cancel a batch",
            "No item is begun any more and those that run are stopped. What has ended stays.",
            ok=ref("Batch"),
            parameters=[_BATCH_ID],
            errors=("404", "421"),
        ),
    }


def _of_its_items() -> dict[str, Json]:
    limit: Json = {"type": "integer", "minimum": 1, "maximum": MAX_ITEMS_PAGE}
    results = operation_of(
        "getBatchResults",
        "Get a batch's results",
        "What is finished so far. manifest and jsonl have a line for each item, with the link to "
        "its video and its sha256; zip has the videos themselves, and a manifest.",
        ok=None,
        parameters=[
            _BATCH_ID,
            query("format", {"enum": ["manifest", "jsonl", "zip"]}, "manifest without."),
        ],
        errors=("400", "404", "421"),
    )
    binary: dict[str, Any] = {"type": "string", "format": "binary"}
    results["responses"]["200"]["content"] = {
        "application/json": {"schema": ref("BatchResults")},
        "application/jsonl": {"schema": _TEXT},
        "application/zip": {"schema": binary},
    }
    return {
        "GET /v1/batches/{batch_id}/items": operation_of(
            "listBatchItems",
            "List a batch's items",
            "In the order of the submission.",
            ok=ref("BatchItemList"),
            parameters=[
                _BATCH_ID,
                query("limit", limit, "100 without."),
                query("after", {"type": "integer", "minimum": 0}, "The last index of the page."),
            ],
            errors=("400", "404", "421"),
        ),
        "GET /v1/batches/{batch_id}/results": results,
    }
