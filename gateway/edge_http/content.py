"""The finished MP4 over HTTP: whole or one range of it (RFC 9110, section 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aiohttp import hdrs, web
from reelmesh.v1 import video_pb2

from gateway import errors
from gateway.application import Caller, VideoApplication
from gateway.edge.config import EdgeConfig
from gateway.edge.streams import closing
from gateway.edge_http.writing import write_within

# One range. Several at once are answered with the whole, as the RFC allows.
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of a file: from ``start`` up to and not including ``stop``."""

    start: int
    stop: int


def parse_range(header: str, *, total: int) -> ByteRange | None:
    """The range that a header asks for, or None where the whole is to be sent.

    Raises:
        web.HTTPRequestRangeNotSatisfiable: It lies outside the file.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        start, stop = max(0, total - int(last)), total
    else:
        start, stop = int(first), min(total, int(last) + 1 if last else total)
        if last and int(last) < int(first):
            return None
    if start >= stop:
        raise web.HTTPRequestRangeNotSatisfiable(
            text=f"the video has {total} bytes",
            headers={hdrs.CONTENT_RANGE: f"bytes */{total}"},
        )
    return ByteRange(start, stop)


async def send_content(
    request: web.Request,
    *,
    application: VideoApplication,
    caller: Caller,
    video_id: str,
    config: EdgeConfig,
) -> web.StreamResponse:
    """Answers a GET or HEAD with the bytes of a finished video.

    Raises:
        VideoNotFound: There is no such video of this tenant.
        OtherRegion: The id names another region.
        NotFinished: It is not complete; VideoFailed and VideoCancelled say that it never will be.
        InvalidRequest: Another variant than ``video`` is asked for.
        web.HTTPRequestRangeNotSatisfiable: The range lies outside.
    """
    _check_variant(request)
    record = await application.get(caller, video_id)
    if record.status != video_pb2.VIDEO_STATUS_COMPLETED:
        # The application knows best how to say why.
        download = await application.download(caller, video_id, offset=0)
        async with closing(download.chunks):
            raise errors.NotFinished("the video finished just now; ask again")
    total = record.result.size_bytes
    etag = f'"{record.result.sha256}"'
    headers = _headers(video_id, etag)
    if etag in _etags(request.headers.get(hdrs.IF_NONE_MATCH, "")):
        return web.Response(status=304, headers={hdrs.ETAG: etag})
    part = _wanted(request, total=total, etag=etag)
    headers[hdrs.CONTENT_LENGTH] = str(part.stop - part.start)
    status = 200
    if part != ByteRange(0, total):
        status = 206
        headers[hdrs.CONTENT_RANGE] = f"bytes {part.start}-{part.stop - 1}/{total}"
    response = web.StreamResponse(status=status, headers=headers)
    if request.method == hdrs.METH_HEAD:
        await response.prepare(request)
        return response
    await _send(request, response, application, caller, video_id, part, config)
    return response


async def _send(
    request: web.Request,
    response: web.StreamResponse,
    application: VideoApplication,
    caller: Caller,
    video_id: str,
    part: ByteRange,
    config: EdgeConfig,
) -> None:
    download = await application.download(caller, video_id, offset=part.start)
    left = part.stop - part.start
    async with closing(download.chunks) as chunks:
        await response.prepare(request)
        async for chunk in chunks:
            data = chunk if len(chunk) <= left else chunk[:left]
            await write_within(response, data, timeout_s=config.write_timeout_s)
            left -= len(data)
            if left == 0:
                break
    if left:
        # Fewer bytes than the length that was promised: the client must see a break.
        raise ConnectionResetError(f"the artifact ended {left} bytes early")
    await response.write_eof()


def _check_variant(request: web.Request) -> None:
    if request.query.get("variant", "video") != "video":
        raise errors.InvalidRequest(
            (errors.FieldViolation("variant", "only video is kept", ("video",)),)
        )


def _headers(video_id: str, etag: str) -> dict[str, str]:
    return {
        hdrs.CONTENT_TYPE: "video/mp4",
        hdrs.CONTENT_DISPOSITION: f'attachment; filename="{video_id}.mp4"',
        hdrs.ACCEPT_RANGES: "bytes",
        hdrs.ETAG: etag,
        "X-Content-Type-Options": "nosniff",
        # The tenant's own, and never another: a finished video does not change.
        hdrs.CACHE_CONTROL: "private, max-age=3600, immutable",
    }


def _etags(header: str) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}


def _wanted(request: web.Request, *, total: int, etag: str) -> ByteRange:
    header = request.headers.get(hdrs.RANGE)
    if_range = request.headers.get(hdrs.IF_RANGE)
    whole = ByteRange(0, total)
    if header is None or (if_range is not None and if_range.strip() != etag):
        return whole
    return parse_range(header, total=total) or whole
