"""A video's events as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from aiohttp import hdrs, web
from reelmesh.v1 import video_pb2

from gateway import errors
from gateway.application import Caller, VideoApplication
from gateway.edge.config import EdgeConfig
from gateway.edge.streams import closing
from gateway.edge_http.json_values import dumps, to_json
from gateway.edge_http.problem import problem_body, problem_of
from gateway.edge_http.query import flag
from gateway.edge_http.writing import write_within
from gateway.jobs.attempts import TERMINAL_N, split_seq
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

_SEQ = re.compile(r"[0-9]{1,20}")
_MAX_SEQ = 2**64 - 1
_RECONNECT_MS = 2_000


async def stream_events(
    request: web.Request,
    *,
    application: VideoApplication,
    caller: Caller,
    video_id: str,
    config: EdgeConfig,
    clock: Clock,
) -> web.StreamResponse:
    """Answers with the events after ``Last-Event-ID`` (or ``?after_seq=``) to the end.

    Each event's id is its seq and its data a JSON object with ``type``; chunks come only
    with ``?chunks=1``, as base64. Silence is filled with comments. After the terminal event
    the answer is 204, which stops a browser's EventSource from coming again.

    Raises:
        VideoNotFound: There is no such video of this tenant.
        InvalidRequest: The seq or a parameter is malformed.
    """
    after_seq = _after_seq(request)
    with_chunks = flag(request, "chunks")
    # Asked here since the first step of a watch may take as long as a step of the model.
    await application.get(caller, video_id)
    if split_seq(after_seq)[1] == TERMINAL_N:
        return web.Response(status=204)
    async with closing(application.watch(caller, video_id, after_seq=after_seq)) as events:
        stream = _EventStream(request, config=config, clock=clock, with_chunks=with_chunks)
        await stream.run(events)
        return stream.response


class _EventStream:
    """One open answer: events from the iterator, comments from a task beside it."""

    def __init__(
        self, request: web.Request, *, config: EdgeConfig, clock: Clock, with_chunks: bool
    ) -> None:
        self.response = web.StreamResponse(
            headers={
                hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
                hdrs.CACHE_CONTROL: "no-store",
                # nginx otherwise collects events before it passes them on.
                "X-Accel-Buffering": "no",
            }
        )
        self._request = request
        self._config = config
        self._clock = clock
        self._with_chunks = with_chunks
        self._written_s = clock.monotonic()

    async def run(self, events: AsyncIterator[video_pb2.VideoEvent]) -> None:
        await self.response.prepare(self._request)
        await self._write(f"retry: {_RECONNECT_MS}\n\n".encode())
        async with TaskScope("sse") as scope:
            scope.spawn(self._keep_alive(), name="keepalive")
            try:
                async for event in events:
                    await self._write_event(event)
            except errors.GatewayError as error:
                # The status line is gone; the stream itself must say it.
                body = problem_body(problem_of(error), instance=self._request.path)
                await self._write(b"event: error\ndata: " + dumps(body) + b"\n\n")
        await self.response.write_eof()

    async def _write_event(self, event: video_pb2.VideoEvent) -> None:
        kind = event.WhichOneof("event")
        if kind is None or (kind == "chunk" and not self._with_chunks):
            return
        data = {
            "type": kind,
            "seq": event.seq,
            "video_id": event.video_id,
            **to_json(getattr(event, kind)),
        }
        # An unnumbered snapshot has no id: a client goes on resuming after the last seq.
        head = f"id: {event.seq}\n" if event.seq else ""
        await self._write(f"{head}event: {kind}\ndata: ".encode() + dumps(data) + b"\n\n")

    async def _keep_alive(self) -> None:
        interval_s = self._config.keepalive_s
        while True:
            await self._clock.sleep(interval_s)
            if self._clock.monotonic() - self._written_s < interval_s:
                continue
            try:
                await self._write(b": keepalive\n\n")
            except ConnectionError:
                # The reader left; the handler itself is cancelled for that.
                return

    async def _write(self, data: bytes) -> None:
        await write_within(self.response, data, timeout_s=self._config.write_timeout_s)
        self._written_s = self._clock.monotonic()


def _after_seq(request: web.Request) -> int:
    name = "Last-Event-ID"
    text = request.headers.get(name, "")
    if not text:
        name = "after_seq"
        text = request.query.get(name, "0")
    if not _SEQ.fullmatch(text) or int(text) > _MAX_SEQ:
        raise errors.InvalidRequest(
            (errors.FieldViolation(name, "must be the id of an event, a whole number"),)
        )
    return int(text)
