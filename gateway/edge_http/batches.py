"""Batches over HTTP: routes over the port of :mod:`gateway.batches.application`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from reelmesh.v1 import batch_pb2

from gateway import errors
from gateway.application import Download, VideoApplication
from gateway.batches.application import DEFAULT_ITEMS_PAGE, MAX_ITEMS_PAGE, BatchApplication
from gateway.edge.config import EdgeConfig
from gateway.edge.streams import closing
from gateway.edge.zipped import file_name, zipped
from gateway.edge_http.batch_body import read_submission
from gateway.edge_http.batch_objects import (
    batch_list,
    batch_object,
    deleted_batch,
    item_list,
    item_object,
)
from gateway.edge_http.json_values import dumps
from gateway.edge_http.middleware import CALLER
from gateway.edge_http.parameters import idempotency_key, page_size, violation
from gateway.edge_http.writing import write_within

FORMATS: Final = ("manifest", "jsonl", "zip")
_BATCH_ID: Final = re.compile(r"[A-Za-z0-9._~:-]{1,128}")
_INDEX: Final = re.compile(r"[0-9]{1,9}")
_LINES_BYTES: Final = 64 * 1024


class BatchRoutes:
    """The handlers; each translates and asks the application."""

    def __init__(
        self, *, batches: BatchApplication, application: VideoApplication, config: EdgeConfig
    ) -> None:
        self._batches = batches
        self._application = application
        self._config = config

    def handlers(self) -> list[tuple[str, str, Handler]]:
        """Each route with its handler."""
        return [
            ("POST", "/v1/batches", self.submit),
            ("GET", "/v1/batches", self.list_page),
            ("GET", "/v1/batches/{batch_id}", self.get),
            ("DELETE", "/v1/batches/{batch_id}", self.delete),
            ("POST", "/v1/batches/{batch_id}/cancel", self.cancel),
            ("GET", "/v1/batches/{batch_id}/items", self.items),
            ("GET", "/v1/batches/{batch_id}/results", self.results),
        ]

    async def submit(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/batches."""
        key = idempotency_key(request)
        submission = await read_submission(
            request,
            max_bytes=self._config.max_batch_bytes,
            max_items=self._batches.max_items,
            timeout_s=self._config.body_timeout_s,
        )
        submission.idempotency_key = key
        batch = await self._batches.submit(request[CALLER], submission)
        return _json(batch_object(batch), headers={hdrs.LOCATION: f"/v1/batches/{batch.id}"})

    async def list_page(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/batches."""
        try:
            batches, token = await self._batches.list_page(
                request[CALLER],
                page_size=page_size(request.query.get("limit")),
                page_token=request.query.get("after", ""),
            )
        except errors.InvalidRequest:
            raise violation("after", "must be the id of a batch") from None
        return _json(batch_list(batches, has_more=token != ""))

    async def get(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/batches/{batch_id}."""
        return _json(batch_object(await self._batches.get(request[CALLER], _batch_id(request))))

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """DELETE /v1/batches/{batch_id}."""
        batch_id = _batch_id(request)
        await self._batches.delete(request[CALLER], batch_id)
        return _json(deleted_batch(batch_id))

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/batches/{batch_id}/cancel."""
        return _json(batch_object(await self._batches.cancel(request[CALLER], _batch_id(request))))

    async def items(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/batches/{batch_id}/items."""
        after = request.query.get("after")
        if after is not None and not _INDEX.fullmatch(after):
            raise violation("after", "must be the index of an item, a whole number")
        limit = page_size(
            request.query.get("limit"), default=DEFAULT_ITEMS_PAGE, most=MAX_ITEMS_PAGE
        )
        try:
            found, more = await self._batches.items(
                request[CALLER],
                _batch_id(request),
                from_index=0 if after is None else int(after) + 1,
                limit=limit,
            )
        except errors.InvalidRequest:
            raise violation("after", "must be the index of an item of this batch") from None
        return _json(item_list(found, has_more=more))

    async def results(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/batches/{batch_id}/results: a manifest of links, or the videos in a zip."""
        form = request.query.get("format", "manifest")
        if form not in FORMATS:
            raise violation("format", f"must be one of {', '.join(FORMATS)}", FORMATS)
        batch_id = _batch_id(request)
        # Asked here, since an answer that is begun can tell of no error any more.
        await self._batches.get(request[CALLER], batch_id)
        items = self._all_items(request, batch_id)
        if form == "zip":
            return await self._stream(
                request,
                zipped(items, self._opener(request), item_object),
                kind="application/zip",
                name=f"{batch_id}.zip",
            )
        kind = "application/json" if form == "manifest" else "application/jsonl"
        pieces = _manifest(items, batch_id) if form == "manifest" else _lines(items)
        return await self._stream(request, pieces, kind=kind, name=f"{batch_id}.{kind[12:]}")

    def _opener(self, request: web.Request) -> Any:
        async def opened(video_id: str) -> Download:
            return await self._application.download(request[CALLER], video_id, offset=0)

        return opened

    async def _all_items(
        self, request: web.Request, batch_id: str
    ) -> AsyncGenerator[batch_pb2.BatchItem]:
        async with closing(self._batches.all_items(request[CALLER], batch_id)) as items:
            async for item in items:
                yield item

    async def _stream(
        self, request: web.Request, pieces: AsyncGenerator[bytes], *, kind: str, name: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                hdrs.CONTENT_TYPE: kind,
                hdrs.CONTENT_DISPOSITION: f'attachment; filename="{name}"',
                hdrs.CACHE_CONTROL: "no-store",
                "X-Content-Type-Options": "nosniff",
            }
        )
        async with contextlib.aclosing(pieces):
            # What goes wrong with the first piece still has a status of its own.
            first = await anext(pieces, b"")
            await response.prepare(request)
            await self._write(response, first)
            async for piece in pieces:
                await self._write(response, piece)
        await response.write_eof()
        return response

    async def _write(self, response: web.StreamResponse, piece: bytes) -> None:
        if piece:
            await write_within(response, piece, timeout_s=self._config.write_timeout_s)


async def _lines(items: AsyncGenerator[batch_pb2.BatchItem]) -> AsyncGenerator[bytes]:
    """A JSON object in each line."""
    async with contextlib.aclosing(items):
        held = bytearray()
        async for item in items:
            held += dumps(_result(item)) + b"\n"
            if len(held) >= _LINES_BYTES:
                yield bytes(held)
                held.clear()
        yield bytes(held)


async def _manifest(
    items: AsyncGenerator[batch_pb2.BatchItem], batch_id: str
) -> AsyncGenerator[bytes]:
    """One JSON object with all of them."""
    start = dumps({"object": "batch.results", "batch_id": batch_id, "data": []})[:-2]
    async with contextlib.aclosing(items):
        held, comma = bytearray(start), b""
        async for item in items:
            held += comma + dumps(_result(item))
            comma = b","
            if len(held) >= _LINES_BYTES:
                yield bytes(held)
                held.clear()
        yield bytes(held) + b"]}"


def _result(item: batch_pb2.BatchItem) -> dict[str, Any]:
    described = item_object(item)
    return {**described, "file": file_name(item) if described["content"] else None}


def _batch_id(request: web.Request) -> str:
    batch_id = request.match_info["batch_id"]
    if not _BATCH_ID.fullmatch(batch_id):
        raise errors.BatchNotFound("there is no such batch; an id looks like those of the list")
    return batch_id


def _json(value: dict[str, Any], *, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=dumps(value), content_type="application/json", headers=headers)
