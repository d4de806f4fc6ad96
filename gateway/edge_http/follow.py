"""The bytes of a video as they are drawn, as one body without a length."""

from __future__ import annotations

import hashlib
import socket
import struct

from aiohttp import HttpVersion11, hdrs, web
from reelmesh.v1 import video_pb2

from gateway import errors
from gateway.application import MP4, Caller, VideoApplication
from gateway.edge.config import EdgeConfig
from gateway.edge.streams import closing
from gateway.edge_http.writing import write_within

_NO_LINGER = struct.pack("ii", 1, 0)


async def follow_content(
    request: web.Request,
    *,
    application: VideoApplication,
    caller: Caller,
    video_id: str,
    config: EdgeConfig,
) -> web.StreamResponse:
    """Answers with the MP4 while it is made, from its first byte to its last.

    The head is sent with the first bytes, so a video that ends before any is an ordinary
    error. Afterwards the connection is reset where the bytes are void (another node began
    anew, the video failed or was cancelled) or are not what was drawn: a body that looks
    whole is whole.

    Raises:
        VideoNotFound: There is no such video of this tenant.
        VideoFailed: It failed before its first byte; likewise VideoCancelled.
        InvalidRequest: The client speaks HTTP/1.0, where the end of a body cannot be told
            from a break.
        ConnectionResetError: The bytes that were sent are void.
    """
    if request.version < HttpVersion11:
        raise errors.InvalidRequest(
            (errors.FieldViolation("follow", "needs HTTP/1.1, whose bodies have an end"),)
        )
    response = web.StreamResponse(
        headers={
            hdrs.CONTENT_TYPE: MP4,
            hdrs.CONTENT_DISPOSITION: f'attachment; filename="{video_id}.mp4"',
            hdrs.CACHE_CONTROL: "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Accel-Buffering": "no",
        }
    )
    response.enable_chunked_encoding()
    watched = application.watch(caller, video_id, after_seq=0)
    digest = hashlib.sha256()
    async with closing(watched) as events:
        async for event in events:
            kind = event.WhichOneof("event")
            if kind == "chunk":
                if not response.prepared:
                    await response.prepare(request)
                digest.update(event.chunk.data)
                await write_within(response, event.chunk.data, timeout_s=config.write_timeout_s)
            elif kind == "completed":
                if not response.prepared:
                    await response.prepare(request)
                if digest.hexdigest() != event.completed.sha256:
                    raise _reset(request, "the bytes are not the video's")
                await response.write_eof()
                return response
            elif response.prepared and kind in ("restarted", "failed", "cancelled"):
                raise _reset(request, f"the bytes are void: {kind}")
            elif kind in ("failed", "cancelled"):
                raise _never(event)
    raise _reset(request, "the events ended before the video")


def _never(event: video_pb2.VideoEvent) -> errors.NotFinished:
    if event.HasField("cancelled"):
        return errors.VideoCancelled("the video was cancelled and will have no content")
    cause = f": {event.failed.message}" if event.failed.message else ""
    return errors.VideoFailed(f"the video failed and will have no content{cause}")


def _reset(request: web.Request, why: str) -> ConnectionResetError:
    """Has the connection end with a reset, not with an orderly close that proxies may smooth."""
    found = None if request.transport is None else request.transport.get_extra_info("socket")
    if found is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    return ConnectionResetError(why)
