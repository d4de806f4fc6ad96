"""Finished videos and their pictures over HTTP: whole, or one range (RFC 9110, section 14)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from aiohttp import hdrs, web
from reelmesh.v1 import video_service_pb2 as pb

from gateway import errors
from gateway.application import Caller, Download, Variant, VideoApplication
from gateway.edge.config import EdgeConfig
from gateway.edge.streams import closing
from gateway.edge_http.cache_headers import content_headers
from gateway.edge_http.follow import follow_content
from gateway.edge_http.links import send_link
from gateway.edge_http.query import flag
from gateway.edge_http.sendfile import send_file
from gateway.edge_http.writing import write_within

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "video": pb.VIDEO_VARIANT_VIDEO,
        "thumbnail": pb.VIDEO_VARIANT_THUMBNAIL,
        "spritesheet": pb.VIDEO_VARIANT_SPRITESHEET,
    }
)
"""By the names of OpenAI's clients."""
_PICTURES: Mapping[Variant, str] = MappingProxyType(
    {
        pb.VIDEO_VARIANT_THUMBNAIL: "-thumbnail.jpg",
        pb.VIDEO_VARIANT_SPRITESHEET: "-spritesheet.jpg",
    }
)

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
    """Answers a GET or HEAD with the bytes of a finished video, or of a picture of it.

    Those of a file of this host are sent by the kernel. With ``follow=1`` those of a video that
    is not finished yet are sent as they are made, see :func:`follow_content`; with ``link=1`` or
    ``redirect=1`` the client is told where the store has them, see :func:`send_link`.

    Raises:
        VideoNotFound: There is no such video of this tenant.
        OtherRegion: The id names another region.
        NotFinished: It is not complete; VideoFailed and VideoCancelled say that it never will be.
        InvalidRequest: A parameter is not valid.
        VideoDamaged: What is stored is not what was drawn.
        web.HTTPRequestRangeNotSatisfiable: The range lies outside.
    """
    variant = _variant(request)
    if flag(request, "link") or flag(request, "redirect"):
        return await send_link(
            request, application=application, caller=caller, video_id=video_id, variant=variant
        )
    follow = flag(request, "follow")
    if follow and variant in _PICTURES:
        raise _violation("follow", "goes with the video alone: a picture is made when it is whole")
    try:
        download = await application.download(
            caller, video_id, offset=0, variant=variant, as_file=True
        )
    except errors.NotFinished as error:
        # The other two say that it never will be.
        head = request.method == hdrs.METH_HEAD
        if not follow or head or type(error) is not errors.NotFinished:
            raise
        return await follow_content(
            request, application=application, caller=caller, video_id=video_id, config=config
        )
    with contextlib.ExitStack() as stack:
        if download.file is not None:
            stack.callback(download.file.close)
        async with closing(download.chunks):
            content = _Content(request, download, video_id=video_id, variant=variant)
            if content.answered is not None:
                return content.answered
            if download.file is not None or content.part.start == 0:
                await content.send(download, timeout_s=config.write_timeout_s)
                return content.response
        rest = await application.download(
            caller, video_id, offset=content.part.start, variant=variant
        )
        async with closing(rest.chunks):
            await content.send(rest, timeout_s=config.write_timeout_s)
            return content.response


class _Content:
    """What a request asks for of a download: the head of the answer, and which bytes."""

    def __init__(
        self, request: web.Request, download: Download, *, video_id: str, variant: Variant
    ) -> None:
        etag = f'"{download.sha256}"'
        total = download.total_bytes
        self._request = request
        self.answered: web.Response | None = None
        """The whole answer, where no bytes are needed."""
        headers = _headers(video_id, etag, variant=variant, content_type=download.content_type)
        if etag in _etags(request.headers.get(hdrs.IF_NONE_MATCH, "")):
            self.answered = web.Response(status=304, headers={hdrs.ETAG: etag})
            return
        self.part = _wanted(request, total=total, etag=etag)
        headers.update(content_headers(download))
        headers[hdrs.CONTENT_LENGTH] = str(self.part.stop - self.part.start)
        status = 200
        if self.part != ByteRange(0, total):
            status = 206
            headers[hdrs.CONTENT_RANGE] = f"bytes {self.part.start}-{self.part.stop - 1}/{total}"
        self.response = web.StreamResponse(status=status, headers=headers)

    async def send(self, download: Download, *, timeout_s: float) -> None:
        """Sends the answer, with the bytes of a download from the part's start."""
        if self._request.method == hdrs.METH_HEAD:
            await self.response.prepare(self._request)
            return
        start, stop = self.part.start, self.part.stop
        if download.file is not None:
            await send_file(
                self._request,
                self.response,
                download.file,
                start=start,
                stop=stop,
                timeout_s=timeout_s,
            )
            return
        left = stop - start
        await self.response.prepare(self._request)
        async for chunk in download.chunks:
            data = chunk if len(chunk) <= left else chunk[:left]
            await write_within(self.response, data, timeout_s=timeout_s)
            left -= len(data)
            if left == 0:
                break
        if left:
            # Fewer bytes than the length that was promised: the client must see a break.
            raise ConnectionResetError(f"the artifact ended {left} bytes early")
        await self.response.write_eof()


def _variant(request: web.Request) -> Variant:
    name = request.query.get("variant", "video")
    if name not in VARIANTS:
        raise _violation("variant", f"must be {', '.join(VARIANTS)}", tuple(VARIANTS))
    return VARIANTS[name]


def _violation(field: str, message: str, nearest: tuple[str, ...] = ()) -> errors.InvalidRequest:
    return errors.InvalidRequest((errors.FieldViolation(field, message, nearest),))


def _headers(video_id: str, etag: str, *, variant: Variant, content_type: str) -> dict[str, str]:
    ending = _PICTURES.get(variant, ".mp4")
    return {
        hdrs.CONTENT_TYPE: content_type,
        hdrs.CONTENT_DISPOSITION: f'attachment; filename="{video_id}{ending}"',
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
